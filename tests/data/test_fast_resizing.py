"""Fast resizing is Pillow's but for rounding, in training alone.

What is stated independently are the filters in float64, over both sides in the order of the shape,
rounded in between.
"""

import io
import itertools
import sys

import numpy as np
import PIL
import pytest
from conftest import tiny_config
from image_files import pixels, scene
from PIL import Image
from sklearn.datasets import load_sample_image

from vit_jax.data import fast_resizing, kinds, make_preprocess
from vit_jax.data.images import EncodedImage
from vit_jax.errors import FieldError
from vit_jax.train.experiment import Experiment

needs_package = pytest.mark.skipif(
  not fast_resizing.importlib.util.find_spec('cykooz_resizer'), reason='needs cykooz-resizer'
)

INTERPOLATIONS = ('bilinear', 'bicubic', 'lanczos')


def _cubic(x):
  inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x < 1, inner, np.where(x < 2, outer, 0))


FILTERS = {
  'bilinear': lambda x: np.maximum(1 - x, 0),
  'bicubic': _cubic,
  'lanczos': lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0),
}


def statement(image, size, interpolation, box, rows_first):
  """Returns an image [h, w, c] resized to a (height, width)."""

  def along(axis, values, low, high):
    stored, wanted = values.shape[axis], size[axis]
    step = (high - low) / wanted
    centres = low + (np.arange(wanted) + 0.5) * step
    distance = np.abs(np.arange(stored) + 0.5 - centres[:, None]) / max(step, 1)
    weights = FILTERS[interpolation](distance)
    weights /= weights.sum(1, keepdims=True)
    resized = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return np.floor(resized + 0.5).clip(0, 255)

  left, top, right, bottom = box
  sides = [(0, top, bottom), (1, left, right)]
  for axis, low, high in reversed(sides) if rows_first else sides:
    image = along(axis, image, low, high)
  return image


# (height, width) stored and wanted, and whether Pillow 13 resizes rows first
SHAPES = [
  ((90, 131), (40, 40), True),
  ((131, 60), (40, 40), False),  # loses over twice as many rows as columns
  ((120, 30), (60, 50), False),
  ((30, 41), (80, 64), True),
  ((50, 60), (50, 24), True),
]


def pictures(height, width, channels):
  """Yields a photograph, noise and sharp edges, which filters overshoot at."""
  photograph = np.asarray(Image.fromarray(load_sample_image('china.jpg')).resize((width, height)))
  for image in (photograph, pixels(height, width), (pixels(height, width) // 128) * 255):
    yield np.ascontiguousarray(image[..., :channels])


def as_pillow(image):
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def assert_close(found, expected):
  difference = np.abs(found.astype(int) - expected.reshape(found.shape).astype(int))
  assert difference.max() <= 2
  assert (difference > 1).mean() < 1e-3
  assert (difference > 0).mean() < 0.1  # where the exact value ends in .5


@needs_package
@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
@pytest.mark.parametrize('channels', [1, 3])
def test_is_the_filter_but_for_rounding_and_as_pillow_is(interpolation, channels):
  pillow_13 = int(PIL.__version__.split('.')[0]) >= 13
  for (stored, size, rows_first), inset in itertools.product(SHAPES, (0, 3.5)):
    box = inset, inset, stored[1] - inset, stored[0] - inset
    for image in pictures(*stored, channels):
      resized = fast_resizing.resize(
        as_pillow(image), size[::-1], interpolation, box if inset else None
      )
      assert resized.shape == (*size, 3) if channels == 3 else size
      assert resized.dtype == np.uint8
      rows_first = rows_first or not pillow_13
      assert_close(resized, statement(image, size, interpolation, box, rows_first))
      resampling = Image.Resampling[interpolation.upper()]
      exact = as_pillow(image).resize(size[::-1], resampling, box)
      assert_close(resized, np.asarray(exact))


@needs_package
def test_a_part_is_resized_as_if_it_were_cut_out_of_all_that_is_seen():
  """What lies further away than the filter sees may be anything."""
  image, box = Image.fromarray(pixels(200, 300)), (100.5, 60.25, 180.5, 140.25)
  exact = image.resize((20, 30), Image.Resampling.LANCZOS, box)
  assert_close(fast_resizing.resize(image, (20, 30), 'lanczos', box), np.asarray(exact))


def prepare(record, crop, train, resizing, decoding='exact', channels=0):
  size, options = (48, 40), {'decoding': decoding, 'resizing': resizing}
  preprocess = make_preprocess(size, channels, crop, train, **options)
  return preprocess(record, np.random.default_rng(1))


def photograph():
  file, image = io.BytesIO(), Image.fromarray(load_sample_image('china.jpg'))
  image.save(file, 'JPEG')
  return file.getvalue()


@needs_package
@pytest.mark.parametrize('crop', ['inception', 'central', 'resize', 'scale'])
@pytest.mark.parametrize('decoding', ['exact', 'reduced'])
@pytest.mark.parametrize('channels', [0, 1])
def test_training_differs_by_rounding_and_evaluation_not_at_all(
  crop, decoding, channels, monkeypatch
):
  file, made, fast, resize = photograph(), {}, [], fast_resizing.resize
  monkeypatch.setattr(fast_resizing, 'resize', lambda *args: fast.append(args) or resize(*args))
  for train, resizing in itertools.product((True, False), ('exact', 'fast')):
    record, before = {'image': EncodedImage(io.BytesIO(file))}, len(fast)
    made[train, resizing] = prepare(record, crop, train, resizing, decoding, channels)['image']
    assert (len(fast) > before) == (train and resizing == 'fast')
  assert_close(made[True, 'fast'], made[True, 'exact'])
  np.testing.assert_array_equal(made[False, 'fast'], made[False, 'exact'])


@needs_package
def test_frames_are_resized_fast_and_masks_and_boxes_stay():
  record = scene(0, height=70, width=90)
  exact, fast = (prepare(record, 'inception', True, resizing) for resizing in ('exact', 'fast'))
  assert exact.keys() == fast.keys() >= {'image', 'video', 'mask', 'box'}
  for name in exact:
    if kinds.kind_of(name).has_pixels:
      assert_close(fast[name], exact[name])
    else:
      np.testing.assert_array_equal(fast[name], exact[name])


@needs_package
def test_processors_without_vector_instructions_compute_the_same(monkeypatch):
  package = pytest.importorskip('cykooz_resizer')
  image = Image.fromarray(pixels(131, 173))
  expected = fast_resizing.resize(image, (64, 48), 'bicubic')
  resizer = package.Resizer()
  resizer.cpu_extensions = package.CpuExtensions.none
  monkeypatch.setattr(fast_resizing._thread, 'resizer', resizer)
  np.testing.assert_array_equal(fast_resizing.resize(image, (64, 48), 'bicubic'), expected)


def test_without_the_package_a_run_is_refused_in_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'cykooz_resizer', None)
  config = tiny_config()
  config.data.resizing = 'fast'
  config.data.image_size = (8, 8)
  with pytest.raises(FieldError) as error:
    Experiment(config)
  assert str(error.value) == (
    "config.data.resizing: 'fast', but cykooz-resizer is not installed; pip install "
    'cykooz-resizer (the extra resize of this package)'
  )


@needs_package
@pytest.mark.parametrize(
  ('options', 'problem'),
  [
    ({'resizing': 'quick'}, "^resizing: 'quick' is not one of exact, fast"),
    ({'resizing': 'fast', 'image_size': ()}, r"^resizing: 'fast', but image_size is \(\)"),
    ({'resizing': 'fast', 'interpolation': 'box'}, "^resizing: 'fast', but interpolation 'box'"),
  ],
)
def test_mistakes(options, problem):
  with pytest.raises(FieldError, match=problem):
    make_preprocess(
      **{'image_size': (8, 8), 'channels': 0, 'crop': 'resize', 'train': True} | options
    )
