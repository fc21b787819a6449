import jax
import jax.numpy as jnp
import pytest

from vit_jax.train import profiler


@pytest.fixture
def traces(monkeypatch):
  """What is started and stopped, without tracing."""
  calls = []

  def start(folder, create_perfetto_trace):
    calls.append('start')
    folder.mkdir()
    (folder / 'perfetto_trace.json.gz').touch()

  monkeypatch.setattr(jax.profiler, 'start_trace', start)
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  return calls


def run(folder, steps, dispatches, calls=None):
  """Goes through dispatches, each (steps done before, after); returns what is printed."""
  notes = []
  with profiler.Profiler(steps, folder / 'profile', notes.append) as profile:
    for before, after in dispatches:
      profile.start(before)
      if calls is not None:
        calls.append(after)
      profile.stop(after)
  return notes


def test_a_trace_is_written_that_says_where_it_is(tmp_path):
  with profiler.Profiler((1, 1), tmp_path, lambda text: notes.append(text)) as profile:
    notes = []
    profile.start(0)
    jnp.ones(3).sum().block_until_ready()
    profile.stop(1)
  (trace,) = tmp_path.rglob('perfetto_trace.json.gz')
  assert notes == [
    f'steps 1 to 1 are traced: {trace} for ui.perfetto.dev, {tmp_path} for TensorBoard'
  ]
  assert list(tmp_path.rglob('*.xplane.pb'))


@pytest.mark.parametrize(
  ('first', 'expected', 'text'),
  [
    (0, [2, 'start', 4, 5, 'stop', 9], 'steps 3 to 5 are'),
    (3, ['start', 4, 5, 'stop', 9], 'steps 4 to 5 are'),
  ],
)
def test_the_steps_that_were_asked_for_are_traced(tmp_path, traces, first, expected, text):
  dispatches = [(0, 2), (2, 4), (4, 5), (5, 9)] if not first else [(3, 4), (4, 5), (5, 9)]
  (note,) = run(tmp_path, (3, 5), dispatches, traces)
  assert traces == expected
  assert note.startswith(text)


def test_a_run_that_ends_among_the_steps_keeps_the_trace(tmp_path, traces):
  (note,) = run(tmp_path, (3, 5), [(0, 2), (2, 4)])
  assert traces == ['start', 'stop']
  assert note.startswith('steps from 3 on are traced')


def test_steps_that_did_not_run_are_told(tmp_path, traces):
  notes = run(tmp_path, (3, 5), [(7, 8)])
  assert (notes, traces) == (
    ['config.profile: steps 3 to 5 did not run here, and are not traced'],
    [],
  )
  assert run(tmp_path, (), [(0, 1)]) == []
