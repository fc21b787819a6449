import math

import numpy as np
import pytest
from image_files import bounds, corners, painted_classes, scene
from scipy import ndimage

from vit_jax.data.preprocess import inception_box, make_preprocess, scale_box
from vit_jax.errors import FieldError


def record(height, width, channels=3, seed=0):
  """Noise far enough from black and white for bicubic overshoot not to be clipped."""
  shape = (height, width, channels)
  image = np.random.default_rng(seed).integers(64, 192, shape, dtype=np.uint8)
  return {'image': image, 'label': 3}


def rng(seed=0):
  return np.random.default_rng(seed)


def cubic(x):
  """Keys' cubic kernel with a = -1/2."""
  x = np.abs(x)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def resize_weights(stored, wanted):
  """Antialiased bicubic: the kernel widens by the factor of reduction. [wanted, stored]."""
  scale = stored / wanted
  width = max(scale, 1)
  centres = (np.arange(wanted) + 0.5) * scale
  weights = cubic((np.arange(stored) + 0.5 - centres[:, None]) / width)
  return weights / weights.sum(1, keepdims=True)


def resize(image, height, width):
  rows, columns = resize_weights(image.shape[0], height), resize_weights(image.shape[1], width)
  return np.einsum('hwc,uh,vw->uvc', image.astype(float), rows, columns)


def test_as_stored_is_the_same_record():
  given = record(5, 7)
  assert make_preprocess((), 0, 'resize', train=True)(given, None) is given


@pytest.mark.parametrize('shape', [(4, 6), (20, 30), (9, 31)])
@pytest.mark.parametrize('channels', [1, 3])
def test_resize_is_antialiased_bicubic(shape, channels):
  given = record(13, 17, channels)
  made = make_preprocess(shape, 0, 'resize', train=True)(given, None)
  assert made['image'].shape == (*shape, channels)
  assert made['image'].dtype == np.uint8
  assert made['label'] == 3
  expected = resize(given['image'], *shape)
  np.testing.assert_allclose(made['image'], expected, atol=1.1)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('size', [(30, 20), (20, 50), (16, 16)])
@pytest.mark.parametrize('fraction', [None, 0.7, 1.0])
def test_central_is_the_middle_of_256_by_224_or_of_a_fraction(size, train, fraction):
  height, width = 14, 21
  given = record(*size)
  made = make_preprocess((height, width), 0, 'central', train, fraction)(given, None)['image']
  # In whole numbers: the side that fits, then the other.
  numerator, denominator = (256, 224) if fraction is None else (10, round(10 * fraction))
  if height * size[1] >= width * size[0]:
    rows = height * numerator // denominator
    columns = rows * size[1] // size[0]
  else:
    columns = width * numerator // denominator
    rows = columns * size[0] // size[1]
  covered = resize(given['image'], rows, columns)
  top, left = (covered.shape[0] - height) // 2, (covered.shape[1] - width) // 2
  expected = covered[top : top + height, left : left + width]
  np.testing.assert_allclose(made, expected, atol=1.1)


def test_central_of_a_photo_is_that_of_big_vision():
  """224 of a smaller side of 256, on a picture whose pixels tell where they are."""
  y, x = np.mgrid[:256, :341]
  given = {'image': np.stack([y, x % 256, x // 256 * 255], -1).astype(np.uint8)}
  made = make_preprocess((224, 224), 0, 'central', train=False)(given, None)['image']
  np.testing.assert_array_equal(made, given['image'][16:240, 58:282])


def test_inception_evaluates_as_central():
  given = record(40, 30)
  inception = make_preprocess((16, 16), 0, 'inception', train=False)
  assert not inception.random
  central = make_preprocess((16, 16), 0, 'central', train=False)
  np.testing.assert_array_equal(inception(given, None)['image'], central(given, None)['image'])


def test_inception_resizes_the_drawn_part():
  given = record(60, 40)
  inception = make_preprocess((8, 12), 0, 'inception', train=True)
  assert inception.random
  for seed in range(5):
    left, top, right, bottom = inception_box(60, 40, rng(seed))
    expected = resize(given['image'][top:bottom, left:right], 8, 12)
    np.testing.assert_allclose(inception(given, rng(seed))['image'], expected, atol=1.1)


def test_inception_boxes_have_the_areas_and_aspects_of_the_paper():
  height, width = 300, 400
  generator = rng()
  boxes = np.array([inception_box(height, width, generator) for _ in range(3000)])
  left, top, right, bottom = boxes.T
  assert left.min() == top.min() == 0
  assert (right.max(), bottom.max()) == (width, height)
  w, h = right - left, bottom - top
  aspect, area = w / h, w * h / (width * height)
  assert 0.74 < aspect.min() < 0.77
  assert 1.3 < aspect.max() < 1.35
  assert 0.079 < area.min() < 0.085
  assert area.max() > 0.95
  # Until parts stop fitting (here at 56 % of the area), areas are uniform, aspects log-uniform.
  small = area < 0.5
  np.testing.assert_allclose(
    np.quantile(area[small], [0.25, 0.5, 0.75]), [0.185, 0.29, 0.395], atol=0.02
  )
  assert abs(np.log(aspect[small]).mean()) < 0.02
  # Places are uniform where they fit.
  room = (width - w) > 100
  assert abs((left / np.maximum(width - w, 1))[room].mean() - 0.5) < 0.02


@pytest.mark.parametrize('size', [(1, 500), (500, 1), (10, 400), (1, 1)])
def test_inception_of_narrow_images_falls_back_to_the_middle(size):
  for seed in range(20):
    left, top, right, bottom = inception_box(*size, rng(seed))
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]
    if max(size) > 10 * min(size):
      assert (left, top) == ((size[1] - right + left) // 2, (size[0] - bottom + top) // 2)
      assert max((right - left) / (bottom - top), (bottom - top) / (right - left)) < 1.5


def test_channels():
  grey, colour = record(5, 6, 1)['image'], record(5, 6, 3)['image']
  to_colour = make_preprocess((), 3, 'resize', train=False)
  to_grey = make_preprocess((), 1, 'resize', train=False)
  np.testing.assert_array_equal(to_colour({'image': grey}, None)['image'], np.repeat(grey, 3, -1))
  np.testing.assert_array_equal(to_colour({'image': colour}, None)['image'], colour)
  luma = to_grey({'image': colour}, None)['image']
  assert luma.shape == (5, 6, 1)
  np.testing.assert_allclose(luma[..., 0], colour @ [0.299, 0.587, 0.114], atol=1)
  assert make_preprocess((4, 4), 3, 'central', train=True)({'image': grey}, None)[
    'image'
  ].shape == (4, 4, 3)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (((8, 8, 3), 0, 'resize'), r'^image_size: \(8, 8, 3\) is not \(height, width\)'),
    (((8, 0), 0, 'resize'), r'^image_size: \(8, 0\)'),
    (((8, 8, 3), 0, 'resize'), '^image_size'),
    (((8, 8), 2, 'resize'), '^channels: 2 is not 1, 3 or 0'),
    (((8, 8), 0, 'centre'), "^crop: 'centre' .* did you mean 'central'"),
    (((), 0, 'inception'), r"^image_size: crop 'inception' needs"),
    (((8, 8), 0, 'central', 0.0), '^crop_fraction: 0.0 is not over 0 and up to 1'),
    (((8, 8), 0, 'inception', 1.1), '^crop_fraction: 1.1 is not over 0 and up to 1'),
    (((8, 8), 0, 'resize', 0.9), "^crop_fraction: crop 'resize' has none"),
  ],
)
def test_mistakes(args, message):
  with pytest.raises(FieldError, match=message) as error:
    make_preprocess(*args[:3], True, *args[3:])
  assert '\n' not in str(error.value)


def test_log_aspect_is_symmetric():
  """A part and its mirror image along the diagonal are as likely."""
  generator = rng(1)
  boxes = np.array([inception_box(1000, 1000, generator) for _ in range(2000)])
  aspects = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
  assert abs(np.log(aspects).mean()) < 4 * math.log(4 / 3) / math.sqrt(3 * 2000)


def test_one_side_stands_for_a_square():
  assert make_preprocess((8,), 0, 'resize', train=False).image_size == (8, 8)


@pytest.mark.parametrize(
  ('crop', 'train'), [('resize', True), ('central', False), ('inception', True)]
)
@pytest.mark.parametrize('stored', [(40, 60), (80, 30)])
@pytest.mark.parametrize('size', [(24, 32), (96, 64)])
def test_one_geometry_moves_all_of_a_record(crop, train, stored, size):
  """Off edges a pixel keeps its class; the box stays round its object, and frames alike."""
  preprocess = make_preprocess(size, 0, crop, train)
  for seed in range(10):
    given = scene(seed, *stored) | {'label': seed}
    made = preprocess(given, rng(seed))
    mask = made['mask']
    assert made['image'].shape == (*size, 3)
    assert (mask.dtype, mask.shape) == (np.uint8, size)
    is_edge = ndimage.maximum_filter(mask, 3) != ndimage.minimum_filter(mask, 3)
    same = painted_classes(made['image']) == mask
    assert same[~is_edge].all()
    assert same.mean() > 0.85
    np.testing.assert_array_equal(made['video'][0], made['image'])
    np.testing.assert_array_equal(made['video'][1], made['image'][..., ::-1])
    if (mask == 2).any():
      np.testing.assert_allclose(corners(made['box']), bounds(mask), atol=1 / min(size))
    assert made['label'] == seed


def test_random_parts_have_the_area_that_is_asked_for():
  given = {'mask': np.arange(100 * 100, dtype=np.int32).reshape(100, 100)}
  preprocess = make_preprocess((100, 100), 0, 'inception', train=True, area=(0.1, 0.2))
  for seed in range(20):
    part = preprocess(given, rng(seed))['mask']
    rows, columns = np.divmod(part, 100)
    area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / 100**2
    assert 0.09 < area < 0.21
  for area in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.1)):
    with pytest.raises(FieldError, match=r'^area: .* is not \(low, high\)'):
      make_preprocess((8, 8), 0, 'inception', train=True, area=area)
  with pytest.raises(FieldError, match=r"^area: \(0\.1, 0\.2\), but crop 'resize' has none"):
    make_preprocess((8, 8), 0, 'resize', train=True, area=(0.1, 0.2))


def test_records_without_pictures_stay_and_cannot_be_resized():
  given = {'points': np.zeros((5, 3), np.float32), 'label': 1}
  assert make_preprocess((), 0, 'resize', train=True)(given) is given
  with pytest.raises(FieldError, match=r'^image_size: \(8, 8\), but the records have no pictures'):
    make_preprocess((8, 8), 0, 'resize', train=True)(given)
  with pytest.raises(FieldError, match=r'^channels: 3, but the records have no pictures'):
    make_preprocess((), 3, 'resize', train=True)(given)


def videos(count, height=8, width=14):
  """A record of a video whose frames have the brightness of their number, brighter to the right."""
  video = np.arange(count)[:, None, None, None] * 4 + np.arange(width)[:, None]
  return {'video': np.tile(video, (1, height, 1, 1)).astype(np.uint8), 'label': 1}


def test_training_takes_a_random_clip_and_one_crop_for_all_its_frames():
  preprocess = make_preprocess((4, 4), 0, 'inception', True, num_frames=3, frame_stride=2)
  assert preprocess.random
  assert preprocess.takes_clips
  starts, given = set(), videos(9)
  for seed in range(40):
    made = preprocess(given, rng(seed))['video'].astype(int)
    assert made.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(np.diff(made, axis=0), 8)
    draws = rng(seed)
    start = int(draws.integers(5))
    left, top, right, bottom = inception_box(8, 14, draws)
    image = {'image': given['video'][start, top:bottom, left:right]}
    np.testing.assert_array_equal(
      made[0], make_preprocess((4, 4), 0, 'resize', True)(image)['image']
    )
    starts.add(start)
  assert starts == set(range(5))


@pytest.mark.parametrize('turned', [False, True])
def test_evaluation_takes_clips_from_start_to_end_and_three_crops_of_each(turned):
  options = {'num_frames': 2, 'temporal_views': 2, 'spatial_crops': 3}
  preprocess = make_preprocess((8, 8), 0, 'central', False, 1.0, **options)
  given = videos(6)
  if turned:
    given['video'] = given['video'].swapaxes(1, 2)
  made = preprocess(given)
  assert made.keys() == {'video/evaluation', 'label'}
  clips = [given['video'][:2], given['video'][4:]]
  views = [clip[:, :, x : x + 8] for clip in clips for x in (0, 3, 6)]
  if turned:
    views = [clip[:, x : x + 8] for clip in clips for x in (0, 3, 6)]
  np.testing.assert_array_equal(made['video/evaluation'], views)
  middle = preprocess.one_view(given)['video']
  np.testing.assert_array_equal(
    middle,
    given['video'][2:4][
      (slice(None), *([slice(3, 11), slice(None)] if turned else [slice(None), slice(3, 11)]))
    ],
  )
  assert preprocess.window(8, 14) == (3 / 14, 0, 11 / 14, 1)


def test_three_crops_of_an_image_and_one_in_training():
  image = {'image': record(8, 12)['image']}
  made = make_preprocess((8, 8), 0, 'central', False, 1.0, spatial_crops=3)(image)
  expected = [image['image'][:, x : x + 8] for x in (0, 2, 4)]
  np.testing.assert_array_equal(made['image/evaluation'], expected)
  train = make_preprocess((8, 8), 0, 'central', True, 1.0, spatial_crops=3)(image)
  np.testing.assert_array_equal(train['image'], expected[1])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_frames': -1}, 'num_frames: -1 is negative'),
    ({'frame_stride': 0, 'num_frames': 2}, 'frame_stride: 0 is not'),
    ({'frame_stride': 2}, 'frame_stride: 2, but num_frames is 0'),
    ({'temporal_views': 2}, 'temporal_views: 2, but num_frames is 0'),
    ({'spatial_crops': 2}, 'spatial_crops: 2 is not 1 or 3'),
    ({'spatial_crops': 3}, "spatial_crops: crop 'resize' has one"),
  ],
)
def test_mistakes_in_clips_and_views(options, message):
  with pytest.raises(FieldError, match=message):
    make_preprocess((8, 8), 0, 'resize', False, **options)


def test_clips_are_of_videos_and_views_of_what_has_no_boxes():
  with pytest.raises(FieldError, match='num_frames: 2, but the records have no videos'):
    make_preprocess((8, 8), 0, 'resize', True, num_frames=2)(record(8, 8), rng())
  preprocess = make_preprocess((8, 8), 0, 'central', False, spatial_crops=3)
  with pytest.raises(FieldError, match=r'spatial_crops: .* averaged, and a mask has one'):
    preprocess(scene(0))


def squares(height, width, side=8):
  """An image whose grey value in each square of pixels is 10 times the mask's id there."""
  rows, columns = np.indices((height, width)) // side
  ids = (1 + (rows + 2 * columns) % 5).astype(np.uint8)
  return {'image': np.repeat(10 * ids[..., None], 3, axis=-1), 'mask': ids}


def test_a_random_scale_and_window_takes_image_and_mask_alike():
  stored, whole, window = (96, 64), (48, 32), (24, 40)
  draw = make_preprocess(whole, 3, 'scale', train=True, train_size=window)
  source, shares, generator = squares(*stored), [], rng(0)
  for _ in range(20):
    found = draw(source, generator)
    assert found['image'].shape == (*window, 3)
    inside = found['mask'] != 255
    # Black is where there is no class, but for the blending at edges.
    wrong = abs(found['image'][..., 0] - 10.0 * np.where(inside, found['mask'], 0)) > 5
    assert wrong.mean() < 0.35
    rows, columns = inside.any(1), inside.any(0)
    np.testing.assert_array_equal(inside, rows[:, None] & columns)
    assert inside[0, 0]
    shares.append((rows.mean(), columns.mean()))
  shares = np.array(shares)
  # The window is half of the image's height and 1.25 times its width, at a factor of 1.
  assert (shares[:, 0] == 1).all()
  assert shares[:, 1].min() < 0.6
  assert shares[:, 1].max() == 1


def test_scales_are_uniform_from_a_half_to_two():
  generator = rng(1)
  boxes = np.array([scale_box(1000, 500, generator, (10, 10), (100, 50)) for _ in range(2000)])
  factors = 100 / (boxes[:, 3] - boxes[:, 1])
  assert factors.min() == pytest.approx(0.5, abs=0.01)
  assert factors.max() == pytest.approx(2, abs=0.03)
  assert factors.mean() == pytest.approx(1.25, abs=0.03)
  assert boxes[:, 0].min() == 0
  assert (boxes[:, 2] <= 500).all()
  assert (boxes[:, 3] <= 1000).all()
  np.testing.assert_allclose(boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0], atol=1)


def test_scales_are_of_training_alone():
  evaluated = make_preprocess((48, 32), 3, 'scale', train=False, train_size=(24, 40))
  whole = make_preprocess((48, 32), 3, 'resize', train=False)
  source = squares(96, 64)
  for name, value in evaluated(source).items():
    np.testing.assert_array_equal(value, whole(source)[name])


def test_the_size_to_train_on_may_be_another():
  assert make_preprocess((8, 9), 0, 'resize', True, train_size=(5,)).image_size == (5, 5)
  assert make_preprocess((8, 9), 0, 'resize', False, train_size=(5,)).image_size == (8, 9)
  for size, image_size in (((5, 0), (8, 8)), ((5, 5), ())):
    with pytest.raises(FieldError, match=r'^train_size: '):
      make_preprocess(image_size, 0, 'resize', True, train_size=size)
