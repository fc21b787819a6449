"""The masked autoencoder is transformers' ViTMAE, with the same parameters and noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_operators  # noqa: F401
from small_vits import random_variables

from vit_jax import models, weights
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.heads import mae
from vit_jax.tasks.mae import MaskedAutoencoding, visible_patches
from vit_jax.train import flops

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

_FIELDS = {
  'name': 'vit',
  'hidden_size': 8,
  'mlp_dim': 12,
  'num_layers': 1,
  'num_heads': 2,
  'patches': {'size': (4, 4)},
  'classifier': 'token',
  'dropout_rate': 0.0,
  'attention_dropout_rate': 0.0,
  'positional_embedding': 'learned_1d',
  'activation': 'gelu_exact',
  'channels': 3,
  'image_size': (8, 8),
}
_HEAD = {
  'name': 'mae',
  'hidden_size': 8,
  'num_layers': 1,
  'num_heads': 2,
  'positional_embedding': 'learned_1d',
  'activation': 'gelu_exact',
}
SMALL = (_FIELDS, _HEAD)
LARGER = (
  _FIELDS | {'hidden_size': 16, 'num_layers': 2, 'patches': {'size': (2, 2)}, 'channels': 1},
  _HEAD | {'hidden_size': 12, 'num_layers': 3, 'num_heads': 3, 'mlp_dim': 20},
)
QUICK = {'xla_backend_optimization_level': 0}  # to compile, which is all the time that it takes


def config_of(size=SMALL, image_size=(8, 8), head=(), **changes):
  fields, options = size
  fields = fields | {'image_size': image_size, 'head': options | dict(head)} | changes
  return ModelConfig.from_dict(fields)


def make_images(config, count=2):
  shape = (count, *config.image_size, config.channels)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def make_noise(config, count=2):
  num_patches = np.prod(config.backbone.grid(config.image_size))
  return np.random.default_rng(1).uniform(size=(count, num_patches)).astype(np.float32)


def with_their_positions(variables, model, grid):
  """Our variables with the positions that transformers interpolates for a grid."""
  flat, patches = models.flatten(variables), 1 + grid[0] * grid[1]
  embeddings, config = model.vit.embeddings, model.config
  size = grid[0] * config.patch_size, grid[1] * config.patch_size
  with torch.no_grad():
    encoder = embeddings.interpolate_pos_encoding(
      torch.zeros(1, patches, config.hidden_size), *size
    )
    inner = torch.zeros(1, patches, config.decoder_hidden_size)
    decoder = model.decoder.interpolate_pos_encoding(inner)
  for name, positions in (('backbone/Transformer', encoder), ('decoder/encoder', decoder)):
    flat[f'{name}/posembed_input/pos_embedding'] = positions.detach().numpy()
  return models.unflatten(flat)


def compiled(model, ratio=0.6):
  def apply(variables, images, noise):
    return model.apply(variables, images, visible=lambda _: visible_patches(noise, ratio))

  return jax.jit(apply, compiler_options=QUICK)


@pytest.mark.parametrize(
  ('size', 'image_size', 'norm_pixels'),
  [
    (SMALL, (8, 8), True),
    (SMALL, (8, 16), False),
    (LARGER, (8, 8), False),
    (LARGER, (8, 16), True),
  ],
)
def test_transformers_computes_the_same(tmp_path, size, image_size, norm_pixels):
  config, square = (config_of(size, s, {'norm_pixels': norm_pixels}) for s in (image_size, (8, 8)))
  variables, images, noise = random_variables(square), make_images(config), make_noise(config)
  weights.save(variables, square, tmp_path, format='huggingface')
  theirs = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path, mask_ratio=0.6).eval()
  assert theirs.config.norm_pix_loss == norm_pixels
  variables = with_their_positions(variables, theirs, config.backbone.grid(image_size))
  pixels = torch.tensor(images.transpose(0, 3, 1, 2))
  with torch.no_grad():
    expected = theirs(pixels, noise=torch.tensor(noise), interpolate_pos_encoding=True)
  outputs = compiled(config.model)(variables, images, noise)
  np.testing.assert_array_equal(outputs['mask'], expected.mask)
  logits = expected.logits.numpy()
  tolerance = 1e-4 * np.abs(logits).max()
  np.testing.assert_allclose(outputs['prediction'], logits, rtol=1e-4, atol=tolerance)
  batch = {'weight': np.ones(2, np.float32)}
  total, count = MaskedAutoencoding(0).loss(outputs, batch, None, False)['loss']
  np.testing.assert_allclose(total / count, expected.loss, rtol=1e-4)


def test_patches_are_in_rows_and_go_back_to_their_places():
  images = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  patches = np.asarray(mae.split_patches(jnp.asarray(images), (2, 3)))
  assert patches.shape == (2, 4, 18)
  for i, (top, left) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
    expected = images[:, top : top + 2, left : left + 3].reshape(2, -1)
    np.testing.assert_array_equal(patches[:, i], expected)
  np.testing.assert_array_equal(mae.join_patches(patches, (2, 3), (4, 6)), images)


def test_registers_stay_and_patches_go_to_their_places():
  config = config_of(num_registers=2)
  variables, images = random_variables(config), make_images(config)
  positions = variables['params']['decoder']['encoder']['posembed_input']['pos_embedding']
  assert positions.shape == (1, 1 + 2 + 4, 8)
  places = np.array([[2, 0, 3, 1], [1, 2, 3, 0]])

  def predict(variables):
    apply = functools.partial(config.model.apply, variables, images)
    return apply()['prediction'], apply(visible=lambda _: places)['prediction']

  expected, found = jax.jit(predict, compiler_options=QUICK)(variables)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_hidden_pixels_reach_nothing_but_the_target():
  config = config_of()
  variables, images, noise = random_variables(config), make_images(config), make_noise(config)
  apply = compiled(config.model)
  first = apply(variables, images, noise)
  pixels = mae.join_patches(np.repeat(first['mask'][..., None], 48, axis=2), (4, 4), (8, 8))
  changed = np.where(pixels > 0, images + 1 + np.arange(8)[:, None], images)
  second = apply(variables, changed, noise)
  np.testing.assert_array_equal(first['prediction'], second['prediction'])
  assert np.abs(first['target'] - second['target']).max() > 0.1
  restored = first['target'] * first['std'] + first['mean']
  np.testing.assert_allclose(
    mae.join_patches(np.asarray(restored), (4, 4), (8, 8)), images, atol=1e-5
  )


def test_without_a_class_token_positions_follow_the_order_of_patches():
  """Of all patches in another order, the tokens are the same."""
  head = {'positional_embedding': 'sinusoidal_2d'}
  config = config_of(head=head, classifier='gap', positional_embedding='sinusoidal_2d')
  variables, images = random_variables(config), make_images(config)
  whole = jax.jit(config.model.apply, compiler_options=QUICK)(variables, images)
  assert not whole['mask'].any()
  order = jnp.array([[2, 0, 3, 1], [3, 2, 1, 0]])
  shuffled = config.model.apply(variables, images, visible=lambda _: order)
  np.testing.assert_allclose(shuffled['prediction'], whole['prediction'], atol=1e-5)
  assert not shuffled['mask'].any()


def test_bfloat16_keeps_float32_where_it_counts():
  config = config_of(SMALL, head={'positional_embedding': 'sinusoidal_2d'})
  fields = {'name': 'vit', **config.backbone.config(), 'head': config['head']}
  model = models.build(fields, num_classes=0, dtype=jnp.bfloat16)
  variables, images, noise = random_variables(config), make_images(config), make_noise(config)
  outputs = jax.eval_shape(
    lambda v: model.apply(v, images, visible=lambda _: visible_patches(noise, 0.5)), variables
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype('float32')}
  exact = compiled(config.model, 0.5)(variables, images, noise)['prediction']
  found = compiled(model, 0.5)(variables, images, noise)['prediction']
  assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_the_encoder_costs_what_it_sees():
  config = config_of(LARGER, (32, 32))
  shapes = jax.eval_shape(config.model.init, jax.random.key(0), make_images(config))
  images, num_patches = make_images(config), 256

  def cost(ratio):
    noise = np.zeros((2, num_patches), np.float32)
    return flops.count(
      lambda v: config.model.apply(v, images, visible=lambda _: visible_patches(noise, ratio)),
      shapes,
    )

  costs = [cost(ratio) for ratio in (0.25, 0.5, 0.75)]
  width, mlp, layers = 16, 12, 2

  def encoder(tokens):
    return layers * tokens * (2 * 4 * width**2 + 2 * 2 * width * mlp + 2 * 2 * tokens * width)

  # The embedding, and all of the decoder but its first layer, are of all patches.
  first = 2 * width * 12
  for i, (more, fewer) in enumerate([(193, 129), (129, 65)]):
    saved = 2 * (encoder(more) - encoder(fewer) + 64 * first)
    assert costs[i] - costs[i + 1] == saved


@pytest.mark.parametrize(
  ('changes', 'head', 'message'),
  [
    ({}, {'num_heads': 3}, r'head\.num_heads: 3 heads do not divide hidden_size=8'),
    ({}, {'num_layers': 0}, r'head\.num_layers: 0 is not a whole number from 1 to'),
    ({}, {'hidden_size': 6, 'num_heads': 2, 'positional_embedding': 'sinusoidal_2d'}, 'multiple'),
    ({}, {'positional_embedding': 'none'}, r"head\.positional_embedding: 'none' is not one of"),
    ({}, {'activation': 'selu'}, r"head\.activation: 'selu' is not one of"),
    ({'stride': 2}, {}, r'stride: \(2, 2\), but patches that overlap tell what is hidden'),
    (
      {'drop_remainder': True, 'image_size': (8, 10)},
      {},
      'drop_remainder: patches cover 8x8 pixels of 8x10, and all are asked for',
    ),
    ({'neck': 4, 'classifier': 'gap'}, {}, 'neck: set, but tokens are left out'),
    ({'patches': {'size': (1, 1)}, 'channels': 1}, {}, r'head\.norm_pixels: True, but a patch'),
    (
      {'tokenizer': {'type': 'dynamic', 'num_tokens': 2}},
      {},
      'reads tokens of patches, and the model learns others',
    ),
    (
      {
        'num_layers': 2,
        'tokenizer': {'type': 'dynamic', 'num_tokens': 2, 'use_tokenfuse': True, 'use_v11': False},
      },
      {},
      r'tokenizer\.use_v11: False, but version 1 takes all tokens of a grid',
    ),
  ],
)
def test_mistakes(changes, head, message):
  def build():
    config = config_of(head=head, **changes)
    images, some = make_images(config), jnp.zeros((2, 1), int)
    variables = jax.eval_shape(config.model.init, jax.random.key(0), images)
    jax.eval_shape(lambda v: config.model.apply(v, images, visible=lambda _: some), variables)

  with pytest.raises(UsageError, match=message):
    build()


def test_a_backbone_without_tokens_to_leave_out():
  fields = {'name': 'resnet18', 'num_filters': 4, 'head': {'name': 'mae'}}
  model = models.build(fields, num_classes=0)
  with pytest.raises(UsageError, match='encodes visible patches alone, which ResNet18 does not'):
    jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
