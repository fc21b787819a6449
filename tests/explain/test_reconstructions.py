"""The picture of what a masked autoencoder draws."""

import numpy as np
import pytest
from explain.helpers import VIT, WIDE, assert_fits_into_readme, make_context, random_images, words
from explain.test_pictures import drawn

from vit_jax.explain import reconstructions
from vit_jax.explain.context import NOT_OF_MODEL
from vit_jax.explain.pictures import PICTURES
from vit_jax.models.heads.mae import join_patches, split_patches

HEAD = {'name': 'mae', 'hidden_size': 8, 'num_layers': 1, 'num_heads': 2}


def test_what_is_hidden_is_grey_and_what_is_seen_stays():
  images, predicted = random_images(3, 4, 6, 3), random_images(3, 4, 6, 3)[::-1]
  hidden = np.zeros((3, 4, 6, 1), bool)
  hidden[:, :2, 3:] = True
  captions = ['a$b.png', 'b', 'c']
  figure = reconstructions.reconstructions_figure(images, hidden, predicted, captions)
  tiles = drawn(figure)
  assert len(tiles) == 9
  for i in range(3):
    original, masked, reconstruction = tiles[3 * i : 3 * i + 3]
    np.testing.assert_array_equal(original, images[i])
    np.testing.assert_array_equal(masked, np.where(hidden[i], 128, images[i]))
    np.testing.assert_array_equal(reconstruction, np.where(hidden[i], predicted[i], images[i]))
  assert words(figure).count('reconstruction') == 2  # above the first row alone
  assert {*captions, 'Reconstructions, 25% of the image hidden'} <= {*words(figure)}
  assert_fits_into_readme(figure)


@pytest.mark.parametrize(('size', 'norm_pixels'), [(VIT, True), (WIDE, False)])
def test_predictions_are_drawn_as_pixels(size, norm_pixels):
  entries = size | {'num_classes': 0, 'class_names': None}
  scale = {'mean': (0.2,), 'std': (0.4,)}
  entries |= {'head': HEAD | {'norm_pixels': norm_pixels}, 'preprocess': scale}
  context = make_context(entries)
  inputs = ((context.images / 255 - 0.2) / 0.4).astype(np.float32)
  context = make_context(entries, inputs=inputs)
  outputs, patch, size = context.outputs, context.layout.patch, context.image_size
  assert 0 < outputs['mask'].mean() < 1
  assert (outputs['mask'][0] != outputs['mask'][1]).any()  # each image has its own
  prediction = outputs['prediction']
  if norm_pixels:
    patches = np.asarray(split_patches(inputs, patch))
    std = np.sqrt(patches.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
    prediction = prediction * std + patches.mean(axis=-1, keepdims=True)
  pixels = (255 * (join_patches(prediction, patch, size) * 0.4 + 0.2)).clip(0, 255)
  hidden = np.broadcast_to(outputs['mask'][..., None] > 0, prediction.shape)
  hidden = join_patches(hidden, patch, size)
  tiles = drawn(PICTURES['reconstructions'](context))
  for i, image in enumerate(context.images):
    expected = np.where(hidden[i], pixels[i], image)
    expected = expected if image.shape[-1] == 3 else expected[..., 0]
    np.testing.assert_allclose(tiles[3 * i + 2], expected, atol=0.51)


def test_other_models_draw_none():
  assert PICTURES['reconstructions'](make_context(VIT)) == NOT_OF_MODEL
