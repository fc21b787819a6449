"""Random erasing: where, how large, how often."""

import functools

import numpy as np
from image_files import repeated
from scipy import stats

from vit_jax.data import augment


def test_random_erasing_zeroes_one_rectangle_in_the_ranges():
  image = np.ones((24, 32, 3), np.float32)
  area, aspect = (0.05, 0.2), (0.5, 1.5)
  erase = functools.partial(augment.random_erasing, probability=0.6, area=area, aspect=aspect)
  erased = repeated(image, erase, 400) == 0
  hit = erased.any((1, 2, 3))
  assert stats.binomtest(int(hit.sum()), 400, 0.6).pvalue > 0.01
  boxes = erased[hit]
  heights, widths = boxes.any((2, 3)).sum(1), boxes.any((1, 3)).sum(1)
  np.testing.assert_array_equal(boxes.sum((1, 2, 3)), heights * widths * 3)
  # Sides are whole pixels: at most half a pixel from what was drawn.
  assert ((heights + 0.5) * (widths + 0.5) >= area[0] * 24 * 32).all()
  assert ((heights - 0.5) * (widths - 0.5) <= area[1] * 24 * 32).all()
  assert ((heights + 0.5) / (widths - 0.5) >= aspect[0]).all()
  assert ((heights - 0.5) / (widths + 0.5) <= aspect[1]).all()
  fractions = (heights * widths) / (24 * 32)
  assert stats.kstest(fractions, stats.uniform(area[0], area[1] - area[0]).cdf).pvalue > 0.01
  assert boxes.any((0, 2, 3)).all()
  assert boxes.any((0, 1, 3)).all()


def test_random_erasing_leaves_an_image_that_no_rectangle_fits():
  image = np.ones((4, 6, 1), np.float32)
  erase = functools.partial(augment.random_erasing, probability=1.0, area=(1.0, 1.0))
  np.testing.assert_array_equal(repeated(image, erase, 8), np.broadcast_to(image, (8, 4, 6, 1)))
