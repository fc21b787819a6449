"""The configs of published experiments: what they build, that they train, what they cite."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import (
  cifar10,
  digits,
  finetune,
  mae,
  mnist,
  mobilenet,
  part_segmentation,
  point_transformer,
  resnet,
  simmim,
  token_learner,
  vit,
  vivit,
)
from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.train import loop
from vit_jax.train.optimizers import make_optimizer

CONFIGS = {'mnist': mnist, 'cifar10': cifar10, 'token_learner': token_learner}


def get_config(name, arg):
  return CONFIGS[name].get_config(arg)


def layer_norm(d):
  return 2 * d


def dense(inputs, outputs):
  return inputs * outputs + outputs


def block(d, mlp):
  return 2 * layer_norm(d) + 4 * dense(d, d) + dense(d, mlp) + dense(mlp, d)


# By hand: patches, class token and positions, blocks, norm and head.
PARAMETERS = {
  ('mnist', 'fixed'): 49 * 32 + 32 + 32 + 17 * 32 + 3 * block(32, 128) + 64 + dense(32, 10),
  ('cifar10', 'basic'): dense(48, 192) + 66 * 192 + 12 * block(192, 768) + 384 + dense(192, 10),
  ('cifar10', 'pe'): dense(48, 192) + 192 + 12 * block(192, 768) + 384 + dense(192, 10),
  ('cifar10', 'pe_conv'): dense(48, 192) + 192 + 12 * block(192, 768) + 384 + dense(192, 10),
  ('cifar10', 'strong'): dense(48, 192) + 12 * block(192, 768) + 384 + dense(192, 10),
  ('token_learner', 'mnist,plain'): dense(4, 64)
  + 196 * 64
  + 4 * block(64, 128)
  + layer_norm(64)
  + dense(64, 10),
  ('token_learner', 'mnist'): dense(4, 64)
  + 196 * 64
  + 4 * block(64, 128)
  + layer_norm(64)
  + dense(64, 10)
  + (layer_norm(64) + 9 * 64 * 2 + 3 * 9 * 2 * 2),
}


def test_the_mnist_model_by_hand():
  assert PARAMETERS['mnist', 'fixed'] == 40_682


def build(config, image, **sizes):
  """The model of a config at other sizes, and its parameters."""
  config.model.update(sizes)
  model = models.build(config.model, num_classes=10)
  return model, lambda key: model.init(key, jnp.zeros((1, *image)))['params']


@pytest.mark.parametrize(('name', 'arg'), PARAMETERS)
def test_parameters(name, arg):
  image = (32, 32, 3) if name == 'cifar10' else (28, 28, 1)
  _, init = build(get_config(name, arg), image)
  shapes = jax.eval_shape(init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name, arg]


@pytest.mark.parametrize(
  ('name', 'arg'),
  [
    ('mnist', 'faithful'),
    ('cifar10', 'pe'),
    ('cifar10', 'strong'),
    ('token_learner', 'mnist'),
    ('token_learner', 'mnist,plain'),
  ],
)
def test_trains_and_cites(tfds_dir, tmp_path, name, arg, capsys):
  config = get_config(name, arg)
  config.model.update(hidden_size=8, mlp_dim=8, num_heads=2)
  config.model.num_layers = 2 if name == 'token_learner' else 1
  config.update(batch_size=4, num_steps=2, eval_every=2, log_every=2)
  config.schedule.warmup_steps = 0
  config.data.update(train_split='train[:8]', test_split='test[:8]', resident='yes')
  results = loop.train_and_evaluate(config, tmp_path)
  assert json.loads((tmp_path / 'results.json').read_text()) == results
  assert (results['step'], results['epochs']) == (2, 1)
  assert (results['dataset'], results['model']) == (config.data.name, config.model.name)
  assert results['reference'] == config.reference.to_dict()
  assert 0 < results['flops_per_image']['forward'] < results['flops_per_image']['training']
  assert np.isfinite(results['final']['train/loss'])
  published = [v for k, v in config.reference.items() if k.endswith('accuracy')]
  lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith('  published ')]
  assert bool(lines) == bool(config.reference)
  assert all(f'{100 * value:.2f} % (here ' in lines[0] for value in published)


@pytest.mark.parametrize(
  ('name', 'arg', 'metric', 'value'),
  [
    ('mnist', 'fixed', 'train/accuracy', 0.946),
    ('mnist', 'faithful', 'train/accuracy', 0.946),
    ('cifar10', 'basic', 'test/accuracy', 0.7503),
    ('cifar10', 'pe', 'test/accuracy', 0.7605),
    ('cifar10', 'pe_conv', 'test/accuracy', 0.7855),
    ('token_learner', 'mnist', 'steps_per_second', 72),
    ('token_learner', 'mnist,plain', 'steps_per_second', 26),
  ],
)
def test_what_is_published(name, arg, metric, value):
  assert get_config(name, arg).reference[metric] == value


def test_faithful_and_fixed_differ_in_the_loss_alone():
  fixed, faithful = mnist.get_config('fixed'), mnist.get_config('faithful')
  assert (fixed.loss.name, faithful.loss.name) == ('softmax', 'softmax_twice')
  faithful.loss.name = fixed.loss.name
  assert fixed.to_dict() == faithful.to_dict()


def test_without_an_argument():
  assert mnist.get_config().to_dict() == mnist.get_config('fixed').to_dict()
  assert cifar10.get_config().to_dict() == cifar10.get_config('basic').to_dict()


def test_adam_decays_every_parameter_through_the_gradient():
  """As PyTorch's Adam: with no gradient but the decay's, the first step is -lr * sign(p)."""
  config = cifar10.get_config('basic')
  params = {'Transformer': {'encoder_norm': {'scale': np.full(3, 2.0), 'bias': np.full(3, -3.0)}}}
  model = models.build(config.model, num_classes=10)
  tx = make_optimizer(config, model, params, lambda step: 1e-3)
  updates, _ = tx.update(jax.tree.map(np.zeros_like, params), tx.init(params), params)
  norm = updates['Transformer']['encoder_norm']
  np.testing.assert_allclose(norm['scale'], -1e-3, rtol=1e-3)
  np.testing.assert_allclose(norm['bias'], 1e-3, rtol=1e-3)


def test_pe_and_pe_conv_are_one_function():
  """What the config's docstring says of them."""
  image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  features = []
  for arg in ('pe', 'pe_conv'):
    model, init = build(cifar10.get_config(arg), image.shape[1:], num_layers=1)
    model = model.clone(num_classes=0)
    params = jax.jit(init)(jax.random.key(0))
    features.append(jax.jit(model.apply)({'params': params}, image))
  assert np.abs(features[0]).max() > 1
  np.testing.assert_allclose(*features, rtol=0, atol=1e-4)


def test_the_token_learner_comes_after_the_first_of_four_layers():
  config = token_learner.get_config('mnist')
  assert (config.model.num_layers, config.model.tokenizer.tokenlearner_loc) == (4, 1)
  assert config.model.tokenizer.num_tokens == 2
  plain = token_learner.get_config('mnist,plain')
  assert plain.model.tokenizer.type == 'patch'


@pytest.mark.parametrize(
  ('name', 'arg', 'message'),
  [
    ('mnist', 'faithfull', r"--config: mnist.py: 'faithfull' .* did you mean 'faithful'\?"),
    ('cifar10', 'pe-conv', r"--config: cifar10.py: 'pe-conv' .* did you mean 'pe_conv'\?"),
    ('token_learner', 'mnist,plane', "model size 'mnist' is not one of"),
  ],
)
def test_mistaken_arguments(name, arg, message):
  with pytest.raises(UsageError, match=message):
    get_config(name, arg)


@pytest.mark.parametrize(
  ('config', 'arg', 'expected'),
  [
    (resnet, 'resnet50', 'resnet50,cifar10'),
    (mobilenet, 'large', 'large,cifar10'),
    (simmim, 'swin-B', 'swin-B,cifar10'),
    (vivit, 'B/16x2-1', 'B/16x2-1,moving_mnist'),
    (vivit, '2', '2,moving_mnist'),
    (point_transformer, 'base', 'base,digits_in_space'),
    (part_segmentation, 'small', 'small,digits_in_space'),
  ],
)
def test_a_size_alone_asks_for_a_data_set(config, arg, expected):
  with pytest.raises(UsageError, match=f"^--config: '{arg}' is no folder; .* as in '{expected}'"):
    config.get_config(arg)


@pytest.mark.parametrize(
  ('splits', 'expected'),
  [
    (('.',), '10%'),
    (('train', 'test'), '10%'),
    (('train', 'valid'), '10%'),
    (('train', 'valid', 'test'), 'valid'),
  ],
)
@pytest.mark.parametrize('inner', [False, True])
def test_a_folder_of_ones_own_has_a_validation_split(tmp_path, splits, expected, inner):
  for split in splits:
    for name in ('cat', 'dog'):
      (tmp_path / (f'{name}/{split}' if inner else f'{split}/{name}')).mkdir(parents=True)
  assert finetune.get_config(f'B/16,{tmp_path}').data.val_split == expected
  assert vivit.get_config(f'B/16x2-1,{tmp_path}').data.val_split == expected
  for config in (mae.get_config(f'B/16,{tmp_path}'), simmim.get_config(f'B/16,{tmp_path}')):
    assert config.data.val_split == ''  # which has no labels to be judged by


@pytest.mark.parametrize(
  'config', [digits.get_config(), mnist.get_config(), cifar10.get_config(), vit.get_config()]
)
def test_known_data_sets_are_trained_on_whole(config):
  assert (config.data.val_split, config.monitor) == ('', 'accuracy')
