"""A writer of one's own: --config.writers=own_writer:Table."""

from vit_jax.run.writers import Writer


class Table(Writer):
  """Adds a line to RUN/table.csv for each number."""

  def __init__(self, workdir, config, start_step):
    path = workdir / 'table.csv'
    lines = path.read_text().splitlines() if start_step and path.exists() else []
    kept = [line for line in lines if int(line.split(',')[0]) <= start_step]
    self._file = path.open('w')
    self._file.writelines(f'{line}\n' for line in kept)

  def write(self, step, values):
    self._file.writelines(f'{step},{name},{value}\n' for name, value in values.items())

  def close(self):
    self._file.close()
