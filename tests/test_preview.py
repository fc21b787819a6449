"""The rows that are drawn are those that the model is trained on; what train.py's modes leave."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_server import command_server
from conftest import ROOT, TINY, tiny_config

from vit_jax import preview
from vit_jax.errors import UsageError
from vit_jax.tasks.classification import Classification
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import put_on_devices

SEEN = []


@dataclasses.dataclass(frozen=True)
class Watched(Classification):
  """Keeps what a model is trained on, in place of which there is none to compile."""

  def outputs(self, apply, batch, rng, train, teacher=None):
    jax.debug.callback(lambda **entries: SEEN.append(entries), **batch)
    return {'logits': jnp.zeros((len(rng), self.num_classes))}


@pytest.mark.parametrize(
  'changes',
  [
    {'augment.mixup_alpha': 0.5},
    {'data.crop': 'inception', 'augment.flip': True, 'data.image_size': (8, 8)},
  ],
  ids=['resident', 'streamed'],
)
def test_rows_are_those_that_the_model_is_trained_on(changes):
  experiment = Experiment(tiny_config(num_steps=3, **changes))
  experiment.task = Watched(**vars(experiment.task))
  assert experiment.resident == ('data.crop' not in changes)
  SEEN.clear()
  state = put_on_devices(experiment.initial_state())
  with experiment.train_feed() as feed:
    for step in range(3):
      state, _, _ = feed(state, step, 1)
  jax.block_until_ready(state)
  jax.effects_barrier()
  assert len(SEEN) == 3
  for step in (0, 2):
    rows = experiment.training_rows(step, 7)
    assert len(np.unique(rows['image'], axis=0)) == 7
    for name in ('image', 'label', 'slot', 'weight'):
      np.testing.assert_allclose(rows[name], SEEN[step][name][:7], atol=1e-5)


@pytest.fixture(scope='module')
def train():
  with command_server('train') as run:
    yield run


def test_a_preview_is_drawn_beside_the_run_directory(train, tmp_path):
  """Which isn't made, so that training can start in it."""
  drawn = []
  for flags in ((), ('--step=2',)):
    result = train(*TINY, '--mode=preview', f'--workdir={tmp_path}/run', *flags)
    assert (result.returncode, result.stderr) == (0, '')
    paths = [tmp_path / 'run-preview' / f'{name}.png' for name in ('data', 'classes')]
    assert result.stdout.splitlines() == [str(path) for path in paths]
    drawn.append([path.read_bytes() for path in paths])
  assert drawn[0][0] != drawn[1][0]
  assert drawn[0][1] == drawn[1][1], 'the same picture, whenever it is drawn'
  assert [path.name for path in tmp_path.iterdir()] == ['run-preview']


def test_an_experiment_is_described_without_a_trace(train, tmp_path):
  result = train(*TINY, '--mode=describe', f'--workdir={tmp_path}/run')
  assert (result.returncode, result.stderr) == (0, '')
  assert re.search(r'^  total  +\d+,\d+ ', result.stdout, re.MULTILINE)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    (['--step=2'], '--step: only with --mode=preview'),
    (['--compile', '--mode=preview'], '--compile: only with --mode=describe'),
    (['--mode=preview', '--step=0'], 'step'),
    (['--mode=preview', f'--workdir={ROOT}/train.py/a'], 'cannot be written (Not a directory)'),
  ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(train, tmp_path, flags, says):
  result = train(*TINY, f'--workdir={tmp_path}/run', *flags)
  assert result.returncode == 2
  assert result.stderr.startswith('train.py: ')
  assert says in result.stderr
  assert result.stderr.count('\n') == 1


def test_the_data_of_a_run_of_an_earlier_version_are_not_guessed():
  with pytest.raises(UsageError, match='is of an earlier version, without the field'):
    preview.experiment_of(ROOT / 'tests' / 'kept_runs' / 'run')
