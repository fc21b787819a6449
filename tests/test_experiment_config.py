"""What fields of every experiment may be, and that all of them say it."""

import math

import pytest
from conftest import tiny_config

from vit_jax import experiment_config
from vit_jax.errors import FieldError
from vit_jax.models import ModelConfig
from vit_jax.train.experiment import Experiment

# Meaningless wherever there is a number, a text or a tuple of them.
_HOSTILE = (-1, math.nan, math.inf, -1e300, 10**20, (-1,), (10**20, 10**20), {'x': 1})
# Fields that a negative number means something in.
_SIGNED = ('data.mean',)


def _leaves(tree, prefix=''):
  for name, value in tree.items():
    if isinstance(value, dict) and value:
      yield from _leaves(value, f'{prefix}{name}.')
    elif name not in ('options', 'reference'):
      yield f'{prefix}{name}'


def _fields():
  tree = experiment_config.default_config('vit', 'classification').to_dict()
  return [name for name in _leaves(tree) if not name.startswith(('model.', 'loss.'))]


@pytest.mark.parametrize('value', _HOSTILE)
def test_no_field_takes_a_meaningless_value(value):
  fields = [name for name in _fields() if name not in _SIGNED or value != (-1,)]
  assert len(fields) > 100
  for name in fields:
    *path, last = name.split('.')
    config = {last: value}
    for part in reversed(path):
      config = {part: config}
    with pytest.raises(FieldError, match=rf'^config\.{name}(\.x)?: '):
      experiment_config.check(config)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('optimizer.layer_decay', 0.0),
    ('optimizer.layer_decay', 1.01),
    ('optimizer.head_lr_factor', 0.0),
    ('optimizer.b2', 1.0),
    ('schedule.timescale', 0),
    ('plateau.min_delta', 0.0),
    ('augment.rand_augment.magnitude', 31.0),
    ('augment.color_jitter.hue', 0.6),
    ('augment.solarize.threshold', 1.1),
    ('augment.random_erasing.area', (0.3, 1.2)),
    ('augment.random_erasing.aspect', (0.0, 1.0)),
    ('augment.resized_crop.area', (0.5,)),
    ('augment.gaussian_blur.sigma', (0.0, 1.0)),
    ('evaluators.knn.temperature', 0.0),
    ('evaluators.linear.max_steps', 0),
    ('seed', -1),
    ('batch_size', 0),
    ('data.num_workers', -1),
    ('data.num_threads', 0),
    ('data.prefetch', 0),
    ('data.std', (0.0,)),
    ('freeze', (8,)),
  ],
)
def test_values_out_of_range(field, value):
  config = tiny_config()
  experiment_config.check(config)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(FieldError, match=rf'^config\.{field}: .* is not '):
    experiment_config.check(config)


def test_rare_values_that_are_meant():
  config = tiny_config()
  config.data.image_size = (2**15, 2**15)
  config.augment.gaussian_blur.sigma = (0.1, 64.0)
  config.init_options.norm_epsilon = 0.0
  experiment_config.check(config)


def test_fields_that_are_missing_or_of_the_user_s_own_are_left_alone():
  config = tiny_config()
  with config.unlocked():
    del config.evaluators
    config.notes = {'author': math.nan}
  experiment_config.check(config)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model.norm_epsilon': -1e-6}, 'model.norm_epsilon: -1e-06 is not a number from 0 on'),
    ({'model.norm_epsilon': math.nan}, 'model.norm_epsilon: nan is not a finite number'),
    ({'model.posemb_init_stddev': math.nan}, 'model.posemb_init_stddev: nan is not'),
    ({'model.layer_scale': math.inf}, 'model.layer_scale: inf is not'),
    ({'model.patches.size': (10**10, 4)}, 'model.patches.size: 10000000000 is larger than'),
    (
      {'model.rotary.type': 'axial', 'model.rotary.grid_offset': math.nan},
      'model.rotary.grid_offset: nan is not a finite number',
    ),
    (
      {'data.image_size': (2**13, 2**13), 'data.channels': 3, 'data.num_frames': 100},
      'data: an example .* has 20,132,659,200 bytes, more than the 2,147,483,648',
    ),
    (
      {
        'model.positional_embedding': 'sinusoidal_2d',
        'model.hidden_size': 2**24,
        'model.patches.size': (1, 1),
      },
      r'model\.positional_embedding: a table of 4,294,967,296 bytes, more than 2,147,483,648',
    ),
    ({'num_epochs': 1e30}, r'num_epochs: 1e\+30 gives 2.25e\+31 steps, more than 2147483647'),
  ],
)
def test_values_of_the_model_and_the_length(changes, message):
  with pytest.raises(ValueError, match=rf'^config\.{message}'):
    Experiment(tiny_config(**changes))


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('vit', {'num_layers': 10**9}),
    ('vit', {'hidden_size': 10**10}),
    ('swin', {'depths': (10**9,) * 4}),
    ('vivit', {'num_layers': 10**9}),
    ('bit', {'depths': (10**9,)}),
    ('point_transformer', {'num_layers': 10**9}),
  ],
)
def test_no_model_is_made_of_sizes_that_nobody_has(name, fields):
  entries = experiment_config.default_config(name, 'classification').model.to_dict() | fields
  with pytest.raises(FieldError, match=rf'^{next(iter(fields))}: .*1000000000.* is not '):
    ModelConfig.from_dict(entries)
