"""Patches of images of several sizes, through `patchify` and ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_vits import SQUARE, random_variables

from vit_jax.errors import FieldError, UsageError
from vit_jax.models import layers
from vit_jax.models.hybrid import HybridViT

CONFIG = SQUARE.replace(
  position_table={'grid': (2, 3)},
  position_tokens='patches',
  num_registers=1,
  patches={'size': (4, 2)},
)
QUICK = {'xla_backend_optimization_level': 0}  # to compile, which is what takes time
RNG = np.random.default_rng(0)
IMAGES = [RNG.normal(size=(*size, 3)).astype(np.float32) for size in ((8, 6), (12, 4), (4, 2))]


def test_patches_are_cut_row_after_row():
  patches = layers.patchify(IMAGES, (4, 2))
  assert patches.pixels.shape == (3, 6, 4, 2, 3)
  np.testing.assert_array_equal(patches.places[0], [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])
  for image, pixels, places, valid in zip(
    IMAGES, patches.pixels, patches.places, patches.valid, strict=True
  ):
    assert valid.sum() == image.size / 24
    for patch, (row, column) in zip(pixels[valid], places[valid], strict=True):
      expected = image[4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
      np.testing.assert_array_equal(patch, expected)
    assert not pixels[~valid].any()
  np.testing.assert_array_equal(patches.grids, [[2, 3], [3, 2], [1, 1]])
  assert layers.patchify(IMAGES, (4, 2), 9).valid.shape == (3, 9)
  with pytest.raises(UsageError, match=r'images\[0\]: 6 patches are more than num_patches=5'):
    layers.patchify(IMAGES, (4, 2), 5)
  with pytest.raises(UsageError, match=r'images\[2\]: 4x2 pixels are not whole patches of 4x4'):
    layers.patchify([IMAGES[1], IMAGES[1], IMAGES[2]], (4, 4))


@pytest.mark.parametrize('classifier', ['gap', 'gmp', 'map'])
def test_each_image_is_as_alone_whatever_fills_up_and_in_any_order(classifier):
  config = CONFIG.replace(classifier=classifier, pool_prefix=classifier in ('gmp', 'map'))
  variables, model = random_variables(config), config.model
  apply = jax.jit(model.apply, compiler_options=QUICK)
  patches = layers.patchify(IMAGES, (4, 2), 7)
  together = apply(variables, patches)
  order = RNG.permutation(7)
  shuffled = jax.tree.map(lambda a: a[:, order], patches)
  noise = np.where(shuffled.valid[..., None, None, None], 0, 9).astype(np.float32)
  shuffled = shuffled.replace(pixels=shuffled.pixels + noise)
  np.testing.assert_allclose(apply(variables, shuffled), together, atol=1e-5)
  np.testing.assert_allclose(together[1], apply(variables, IMAGES[1][None])[0], atol=1e-5)


def test_features_have_no_grid_and_the_loop_over_layers_learns_the_same():
  model, variables = CONFIG.model, random_variables(CONFIG)
  patches = layers.patchify(IMAGES, (4, 2))
  features = jax.eval_shape(lambda: model.apply(variables, patches, method='features'))
  assert features.grid is None
  assert features.tokens.shape == (3, 2 + 6, 8)

  def gradient(model):
    def loss(pixels):
      return jnp.sum(model.apply(variables, patches.replace(pixels=pixels)) ** 2)

    return np.asarray(jax.jit(jax.grad(loss), compiler_options=QUICK)(patches.pixels))

  plain = gradient(model)
  np.testing.assert_allclose(gradient(model.clone(scan=True)), plain, atol=1e-5)
  assert np.abs(plain[patches.valid]).max(axis=(1, 2, 3)).all()
  assert not plain[~patches.valid].any()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'position_table': None}, '^position_table: not set, but patches of images of several sizes'),
    ({'rotary': {'type': 'axial'}}, '^rotary: set, but patches of images of several sizes'),
    ({'stride': (2, 2)}, r'^stride: \(2, 2\), but patches of images of several sizes'),
    ({'patches': {'size': (2, 2)}}, '^patches.size: 2x2, but patches of 4x2 are given'),
  ],
)
def test_models_that_take_images_of_one_size(changes, message):
  model = CONFIG.replace(**changes).model
  with pytest.raises(FieldError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), layers.patchify(IMAGES, (4, 2)))


def test_a_convolutional_stem_takes_whole_images():
  model = HybridViT(
    num_classes=2,
    mlp_dim=8,
    num_layers=1,
    num_heads=2,
    hidden_size=8,
    patches={'size': (1, 1)},
    resnet={'num_layers': (1,), 'width_factor': 0.5},
    position_table={'grid': (2, 2)},
  )
  with pytest.raises(UsageError, match='HybridViT takes whole images, but patches of images of'):
    jax.eval_shape(model.init, jax.random.key(0), layers.patchify(IMAGES, (4, 2)))
