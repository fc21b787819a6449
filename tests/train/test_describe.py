"""What is said of an experiment: numbers by hand, and of every config."""

import importlib
import re

import jax
import mask_folders
import pytest
import yolo_folders
from conftest import tiny_config

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.train import describe
from vit_jax.train.experiment import Experiment

# Of tiny_config: four patches of 4x4x1, width and MLP of 16, one layer, ten classes.
TOKENS, PATCH, WIDTH, CLASSES = 4, 16, 16, 10
DENSE = WIDTH**2 + WIDTH
BLOCK = 2 * 2 * WIDTH + 4 * DENSE + 2 * DENSE  # norms, attention, MLP
PARAMETERS = {
  'embedding': PATCH * WIDTH + WIDTH,
  'Transformer': TOKENS * WIDTH + BLOCK + 2 * WIDTH,
  'output_projection': WIDTH * CLASSES + CLASSES,
}
TOTAL = sum(PARAMETERS.values())
FORWARD = 2 * (TOKENS * WIDTH * (PATCH + 6 * WIDTH) + 2 * TOKENS**2 * WIDTH + WIDTH * CLASSES)


def read(text):
  """Returns section -> first cell of each line -> the others."""
  found = {}
  for block in text.split('\n\n')[1:]:
    title, *lines = block.splitlines()
    rows = [re.split(r' {2,}', line.strip()) for line in lines]
    found[title] = {row[0]: row[1:] for row in rows}
  return found


def number(cells):
  """FLOPs in a line."""
  value, unit = cells[0].split()[:2]
  return float(value) * 1000 ** ' kMGTPE'.index(unit.removesuffix('FLOP') or ' ')


def test_several_processes_compile_nothing(monkeypatch):
  experiment = Experiment(tiny_config())
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert 'such as activations: --compile' in describe.describe(experiment)
  with pytest.raises(UsageError, match='--compile: not with several processes'):
    describe.describe(experiment, compile=True)


def test_numbers_are_those_by_hand():
  config = tiny_config(num_steps=200, batch_size=32, ema_decay=0.9)
  config.schedule.update(warmup_steps=10, end=1e-5)
  config.freeze_first, config.freeze_first_steps = ('output_projection',), 7
  text = describe.describe(Experiment(config))
  found = read(text)
  layers = {
    name: (kind, output, int(count.replace(',', '')))
    for name, (kind, output, count) in found['layers'].items()
    if name != 'module'
  }
  assert layers['embedding'] == ('PatchEmbedding', '2x2x16', PARAMETERS['embedding'])
  assert layers['Transformer'] == ('Encoder', '4x16', PARAMETERS['Transformer'])
  assert layers['encoderblock_0'] == ('Encoder1DBlock', '4x16', BLOCK)
  assert layers['output_projection'] == ('Dense', '10', PARAMETERS['output_projection'])
  parameters = found['parameters']
  assert parameters['total'] == [f'{TOTAL:,}', f'{TOTAL:,}']
  for name, count in PARAMETERS.items():
    assert parameters[name] == [f'{count:,}', f'{count:,}']
  assert "first 7 steps: config.freeze_first=('output_projection',)" in text
  assert found['computation']['forward'] == [f'{FORWARD / 1e3:.4g} kFLOP an example']
  training = number(found['computation']['training'])
  assert 2.5 * FORWARD < training < 3 * FORWARD, 'no gradient of the image'
  memory = found['memory of each device']
  assert memory['parameters'] == memory['moving average'] == [f'{4 * TOTAL / 2**20:,.1f} MiB']
  assert memory['optimiser state'] == [f'{8 * TOTAL / 2**20:,.1f} MiB']
  schedule = read(text)['schedule']
  assert schedule['learning rate'] == ['0 in the first step, cosine']
  assert '0.002 after 10 steps of warmup' in text
  assert re.search(r'1\.\d+e-05 in the last, step 200', text)
  assert schedule['eval_every'] == ['100 steps']


def test_what_is_frozen_does_not_train(tmp_path):
  start = Experiment(tiny_config(num_steps=1))
  variables = {'params': start.initial_state().params}
  weights.save(variables, start.model_config, tmp_path / 'start.msgpack', format='scenic')
  config = tiny_config(num_steps=1, freeze=('embedding', 'Transformer'))
  config.init_from = str(tmp_path / 'start.msgpack')
  text, head = describe.describe(Experiment(config)), PARAMETERS['output_projection']
  assert read(text)['parameters']['total'] == [f'{TOTAL:,}', f'{head:,}']
  assert f"frozen by config.freeze=('embedding', 'Transformer'): {TOTAL - head:,}" in text
  assert read(text)['memory of each device']['optimiser state'] == [f'{8 * head / 2**20:.1f} MiB']


def test_the_memory_of_a_step_is_asked_of_its_compilation():
  experiment = Experiment(tiny_config(num_steps=1))
  without, compiled = (describe.describe(experiment, compile=flag) for flag in (False, True))
  assert '--compile' in without
  assert '--compile' not in compiled
  found = read(compiled)['memory of each device']
  *parts, total = (float(cells[0].split()[0]) for cells in list(found.values())[-5:])
  assert total == pytest.approx(sum(parts), abs=0.21), 'rounded'
  assert parts[-1] > 0


# Every config but those that start from weights, on data that are at hand.
CONFIGS = {
  'asl_letters': 'vit-small',
  'bit': 'R50x1,cifar10',
  'cifar10': 'strong',
  'digits': '',
  'dino': 'Ti/4,digits',
  'hybrid': 'R26+S/32,cifar10',
  'mae': 'Ti/4,digits',
  'mnist': 'fixed',
  'mobilenet': 'small,cifar10',
  'mobilevit': 'XXS,cifar10',
  'part_segmentation': 'small,digits_in_space',
  'point_transformer': 'small,digits_in_space',
  'resnet': 'resnet152,cifar10',
  'segmentation': 'segvit,small,./masks',
  'simmim': 'swin-T,cifar10',
  'swin': 'T,cifar10',
  'token_learner': 'mnist',
  'vit': 'Ti/4,digits',
  'vivit': '1,moving_mnist',
  'vnt': 'small,digits_in_space',
}


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_is_described(tfds_dir, tmp_path, name):
  config = importlib.import_module(f'configs.{name}').get_config(CONFIGS[name])
  folders = {'yolo': yolo_folders, 'masks': mask_folders}
  if config.data.name in folders:
    folder = folders[config.data.name].write(tmp_path / 'data', {'train': 8, 'test': 4})
    config.data.update(dir=str(folder), test_split='test')
    config.num_steps, config.schedule.warmup_steps = 100, 0
  text = describe.describe(Experiment(config))
  assert max(map(len, text.splitlines()[4:])) <= 100
  found = read(text)
  assert len(found['layers']) > 2
  assert len(found['parameters']) > 2
  assert number(found['computation']['training']) > number(found['computation']['forward'])
