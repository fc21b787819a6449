"""Trains or evaluates one experiment: python train.py --config=configs/digits.py.

Before it is trained, --mode=preview draws its data as the model gets them, and --mode=describe says
what it will be: layers, parameters, operations, memory, schedule.
"""

import vit_jax  # noqa: F401 -- first, since from there on Ctrl-C is a line

# isort: split
import contextlib
import os
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_jax import cli, interrupts
from vit_jax.errors import UsageError

# Nothing else is imported before it is needed: JAX and the rest take seconds, for which --help
# would wait.

_CONFIG = cli.DEFINE_experiment(
  'config', 'Experiment, as configs/digits.py or configs/vit.py:Ti/4,cifar10.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run directory; starting again in it resumes. Default: runs/<config name>.'
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'eval', 'preview', 'describe'],
  'Train; evaluate what is there; draw the training data into WORKDIR-preview; or print what the '
  'experiment is. The last two start no run.',
)
_PREDICTIONS = flags.DEFINE_string(
  'predictions', None, 'With --mode=eval: a .csv, .json or .npz file for all that is predicted.'
)
_STEP = flags.DEFINE_integer(
  'step', None, 'With --mode=preview: whose batch is drawn. Default: 1.', lower_bound=1
)
_COMPILE = flags.DEFINE_boolean(
  'compile', None, 'With --mode=describe: compile, to know the memory that a step takes.'
)
_DISTRIBUTED = flags.DEFINE_boolean(
  'distributed', None, 'Several processes. Default: where Slurm or a Cloud TPU slice has several.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where no cluster environment says it.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator.', lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator.', lower_bound=0)


def default_workdir(config_flag: str) -> Path:
  """runs/digits for configs/digits.py, runs/vit-Ti-4-cifar10 for configs/vit.py:Ti/4,cifar10."""
  path, _, arg = config_flag.partition(':')
  return Path('runs') / '-'.join(
    [Path(path).stem, *arg.replace('/', ' ').replace(',', ' ').split()]
  )


def _several_processes() -> bool:
  """Whether the environment is a Slurm job or a Cloud TPU slice of more than one process."""
  # A batch script has SLURM_NTASKS too; only what srun starts has a step.
  slurm = 'SLURM_STEP_NODELIST' in os.environ and int(os.environ.get('SLURM_NTASKS', '1')) > 1
  return slurm or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')


def peers() -> contextlib.AbstractContextManager:
  """Returns the connection of the processes of a run, to be entered before any use of JAX."""
  given = [flag.value is not None for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)]
  if any(given) and not all(given):
    raise UsageError('--coordinator, --num_processes and --process_id go together')
  wanted = _DISTRIBUTED.value
  if wanted is None:
    wanted = any(given) or _several_processes()
  if not wanted:
    return contextlib.nullcontext()
  from vit_jax.train.peers import Peers, found

  if not all(given):
    return Peers(*found(), end=cli.fail)
  return Peers(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, end=cli.fail)


def train(config: ConfigDict, workdir: Path) -> None:
  """Trains, or goes on where a run stopped."""
  # Until there are steps to be saved, and after them, a run has nothing that a kill would harm.
  interrupts.end_with_a_line()
  from vit_jax.train import loop

  loop.train_and_evaluate(config, workdir)


def evaluate(config: ConfigDict, workdir: Path) -> None:
  """Evaluates the best checkpoint."""
  from vit_jax.train import loop

  loop.evaluate(config, workdir, _PREDICTIONS.value)


def preview(config: ConfigDict, workdir: Path) -> None:
  """Draws what the model is trained on, beside the run directory, which stays as it is."""
  import jax

  from vit_jax import preview
  from vit_jax.train.experiment import Experiment

  experiment = Experiment(config, workdir)
  if not jax.process_index():
    preview.write(experiment, Path(f'{workdir}-preview'), (_STEP.value or 1) - 1)


def describe(config: ConfigDict, workdir: Path) -> None:
  """Prints what the experiment is."""
  import jax

  from vit_jax.train.describe import describe
  from vit_jax.train.experiment import Experiment

  text = describe(Experiment(config, workdir), compile=bool(_COMPILE.value))
  if not jax.process_index():
    print(text)


_MODES = {'train': train, 'eval': evaluate, 'preview': preview, 'describe': describe}


def main() -> None:
  """Runs the mode that the flags ask for."""
  if _CONFIG.value is None:
    raise UsageError('--config: give an experiment, as --config=configs/digits.py')
  given = (_PREDICTIONS, 'eval'), (_STEP, 'preview'), (_COMPILE, 'describe')
  for flag, mode in given:
    if flag.value is not None and _MODE.value != mode:
      raise UsageError(f'--{flag.name}: only with --mode={mode}')
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(name)
  with peers():
    _MODES[_MODE.value](_CONFIG.value, workdir)


if __name__ == '__main__':
  cli.run(main)
