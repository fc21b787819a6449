"""BiT and a hybrid through the commands: trained, fine-tuned, drawn."""

import pytest
from command_server import command_server

from vit_jax import weights
from vit_jax.models.hybrid import HybridViT

SHORT = (
  '--config.num_steps=2',
  '--config.batch_size=32',
  '--config.log_every=2',
  '--config.schedule.warmup_steps=0',
)
COMMANDS = {
  'bit': (
    '--config=configs/bit.py:R50x1,digits',
    '--config.model.depths=(1,1)',
    '--config.model.width_factor=0.5',
  ),
  'hybrid': (
    '--config=configs/hybrid.py:R26+S/32,digits',
    '--config.model.resnet.num_layers=(1,)',
    '--config.model.resnet.width_factor=0.5',
    '--config.model.hidden_size=16',
    '--config.model.mlp_dim=16',
    '--config.model.num_layers=2',
    '--config.model.num_heads=2',
    '--config.data.image_size=(16,16)',
    '--config.augment.shift=2',
  ),
}


@pytest.fixture(scope='module')
def runs(train, tmp_path_factory):
  """A run of each, with layer decay and a frozen first convolution."""
  folder = tmp_path_factory.mktemp('runs')
  options = ('--config.optimizer.layer_decay=0.7', "--config.freeze=('.*conv_root.*',)")
  for name, command in COMMANDS.items():
    workdir = f'--workdir={folder / name}'
    done = train(*command, *SHORT, *options, workdir, tiny=False)
    assert done.returncode == 0, done.stderr
    assert f'{name}: ' in done.stdout
  return folder


def test_fine_tuning_goes_on_at_another_size(runs, train, tmp_path):
  done = train(
    '--config=configs/finetune.py:digits',
    f'--config.init_from={runs / "hybrid"}',
    '--config.data.image_size=(24,16)',
    *SHORT,
    f'--workdir={tmp_path}',
    tiny=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'position embeddings: resized from 4x4 to 6x4' in done.stdout
  before, after = (weights.load(path)[1] for path in (runs / 'hybrid', tmp_path))
  assert {n: after[n] for n in HybridViT.WEIGHT_FIELDS} == {
    n: before[n] for n in HybridViT.WEIGHT_FIELDS
  }
  assert after.image_size == (24, 16)


def test_what_there_is_to_see_is_drawn(runs, tmp_path):
  """A ResNet has no attention; a hybrid has a ViT's, and no filters that are pictures."""
  pictures = '--pictures=attention,filters,positions,rollout'
  with command_server('vit_jax.explain.__main__', '[IMAGE...]') as explain:
    drawn = {
      name: explain(f'--workdir={runs / name}', f'--out={tmp_path / name}', pictures)
      for name in COMMANDS
    }
  assert drawn['hybrid'].returncode == 2, drawn['hybrid'].stderr
  names = sorted(path.stem for path in (tmp_path / 'hybrid').glob('*.png'))
  assert names == ['attention', 'positions', 'rollout']
  assert 'filters: not of this model' in drawn['hybrid'].stderr
  assert drawn['bit'].returncode == 2, drawn['bit'].stderr
  assert not list((tmp_path / 'bit').glob('*.png'))
  assert 'attention: not of this model' in drawn['bit'].stderr
