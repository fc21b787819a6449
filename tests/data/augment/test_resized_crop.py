"""Random parts, resized: against Pillow and the distribution of torchvision."""

import functools

import jax
import numpy as np
import pytest
from image_files import keys as make_keys
from image_files import photographs, repeated, run_augment, scene
from PIL import Image
from scipy import stats

from vit_jax.data import augment
from vit_jax.data.augment import resized_crop
from vit_jax.errors import FieldError


@pytest.mark.parametrize('box', [(0, 0, 24, 32), (3, 5, 10, 9), (0, 20, 24, 12), (7, 1, 3, 30)])
@pytest.mark.parametrize('size', [(24, 32), (10, 8), (40, 50)])
def test_a_part_is_resized_as_pillow_resizes_what_is_cut_out(box, size):
  image = photographs(1, 24, 32)[0]
  top, left, height, width = box
  found = np.asarray(jax.jit(resized_crop.resize, static_argnums=2)(image, box, size), np.int32)
  part = image[top : top + height, left : left + width]
  for channel in range(3):  # as numbers, which Pillow doesn't round between the two sides
    expected = Image.fromarray(part[..., channel].astype(np.float32))
    expected = np.asarray(expected.resize(size[::-1], Image.Resampling.BICUBIC)).clip(0, 255)
    np.testing.assert_allclose(found[..., channel], expected, atol=0.501)


def test_parts_are_drawn_from_the_ranges():
  draw = functools.partial(resized_crop.draw_box, height=200, width=240, area=(0.1, 0.4))
  boxes = np.stack(jax.vmap(draw)(make_keys(400)), axis=-1)
  top, left, height, width = boxes.T
  assert (boxes >= 0).all()
  assert (top + height).max() <= 200
  assert (left + width).max() <= 240
  assert stats.kstest(height * width / (200 * 240), stats.uniform(0.1, 0.3).cdf).pvalue > 0.01
  aspect = np.log(width / height)
  reach = np.log(4 / 3)
  assert stats.kstest(aspect, stats.uniform(-reach, 2 * reach).cdf).pvalue > 0.01
  room = stats.kstest((top + 0.5) / (200 - height + 1), stats.uniform().cdf)
  assert room.pvalue > 0.01


def test_a_part_that_never_fits_is_the_largest_in_the_middle():
  for (height, width), expected in (((10, 40), (0, 13, 10, 13)), ((40, 10), (13, 0, 13, 10))):
    box = resized_crop.draw_box(jax.random.key(0), height, width, (0.99, 1.0))
    assert tuple(map(int, box)) == expected


def test_the_size_may_change_and_what_cannot_follow_is_left_out():
  record = {name: value[None] for name, value in scene(0).items()} | {'label': np.arange(1)}
  crop = {'area': (0.3, 0.5), 'size': (9, 7)}
  made = run_augment({'resized_crop': crop}, make_keys(1), record)
  shapes = {name: value.shape for name, value in made.items()}
  assert shapes == {'image': (1, 9, 7, 3), 'video': (1, 2, 9, 7, 3), 'label': (1,)}
  np.testing.assert_allclose(made['video'][:, 0], made['image'], atol=1e-6)
  kept = repeated(
    record['image'][0], lambda k, x: augment.random_resized_crop(k, {'image': x}, (1, 1)), 2
  )
  assert kept['image'].shape == (2, 24, 32, 3)
  with pytest.raises(FieldError, match=r'^resized_crop\.area: .* the task has masks'):
    augment.validate(_config(area=(0.3, 0.5)), ['mask'])


def _config(**fields):
  from image_files import augmentations

  return augmentations(resized_crop=fields)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'area': (0.5, 0.2)}, r'resized_crop\.area: \(0\.5, 0\.2\) is not \(low, high\)'),
    ({'size': (8, 8)}, r'resized_crop\.size: \(8, 8\) is not .* of a crop with an area'),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(FieldError, match=f'^{message}'):
    augment.validate(_config(**fields))
