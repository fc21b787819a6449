"""A Swin Transformer through the commands: trained, fine-tuned, converted, predicting, drawn."""

import json
import re

import pytest
from command_server import command_server
from PIL import Image

from configs import finetune
from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.models.layers import as_pair
from vit_jax.train.experiment import Experiment

TINY_SWIN = (
  '--config=configs/swin.py:T,digits',
  '--config.model.embed_dim=8',
  '--config.model.depths=(2,1)',
  '--config.model.num_heads=(1,2)',
  '--config.model.window_size=2',
  '--config.num_steps=4',
  '--config.batch_size=32',
  '--config.log_every=2',
)


@pytest.fixture(scope='module')
def run(train, tmp_path_factory):
  """A run with layer decay and frozen patches."""
  workdir = tmp_path_factory.mktemp('swin') / 'run'
  options = ('--config.optimizer.layer_decay=0.7', "--config.freeze=('patch_embed.*',)")
  done = train(*TINY_SWIN, *options, f'--workdir={workdir}', tiny=False)
  assert done.returncode == 0, done.stderr
  assert re.search(r'swin: .* parameters \(.* train\)', done.stdout)
  return workdir


def test_fine_tuning_goes_on_at_another_size_and_window(run, train, tmp_path):
  done = train(
    '--config=configs/finetune.py:digits',
    f'--config.init_from={run}',
    '--config.data.image_size=(24,16)',
    '--config.model.window_size=3',
    '--config.num_steps=2',
    '--config.batch_size=32',
    '--config.schedule.warmup_steps=0',
    f'--workdir={tmp_path / "tuned"}',
    tiny=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'position biases of stage 0: resized from windows of 2x2 to 3x3' in done.stdout
  config = weights.load(tmp_path / 'tuned')[1]
  assert (config.name, as_pair(config.backbone.window_size)) == ('swin', (3, 3))
  assert (config.backbone.depths, config.image_size) == ((2, 1), (24, 16))


def test_fields_of_a_vit_are_refused_in_fine_tuning(run):
  config = finetune.get_config('digits')
  config.init_from, config.model.classifier = str(run), 'gap'
  with pytest.raises(UsageError, match=r'config\.model\.classifier: no such field of Swin'):
    Experiment(config)


def test_it_is_converted_and_predicts_the_same(run, tmp_path):
  Image.new('L', (8, 8), 90).save(tmp_path / 'grey.png')
  with command_server('vit_jax.convert', 'SRC', 'DST') as convert:
    converted = convert(run, tmp_path / 'swin.safetensors', '--to=timm')
  assert converted.returncode == 0, converted.stderr
  assert 'Swin v1, 2-1 blocks from width 8, windows of 2' in converted.stdout
  with command_server('vit_jax.predict', 'IMAGE...') as predict:
    outputs = [
      json.loads(predict(f'--weights={path}', '--json', tmp_path / 'grey.png').stdout)
      for path in (run, tmp_path / 'swin.safetensors')
    ]
  assert outputs[0] == outputs[1]


def test_attention_and_filters_are_drawn(run, tmp_path):
  with command_server('vit_jax.explain.__main__', '[IMAGE...]') as explain:
    pictures = '--pictures=attention,filters,rollout'
    drawn = explain(f'--workdir={run}', f'--out={tmp_path}', '--num_images=1', pictures)
    refused = explain(f'--workdir={run}', f'--out={tmp_path}', '--layer=3', '--pictures=attention')
  assert drawn.returncode == 2, drawn.stderr
  assert sorted(path.name for path in tmp_path.glob('*.png')) == ['attention.png', 'filters.png']
  assert 'rollout: not of this model' in drawn.stderr
  assert refused.returncode == 2
  assert '--layer: 3' in refused.stderr
