"""Image files that stand for their pixels: cropped, reduced and batched as decoded ones, or nearly.

What is stated independently is Pillow's own decoding, and the preprocessing of arrays.
"""

import io
import itertools

import numpy as np
import pytest
from image_files import make_folder, pixels, save
from PIL import Image
from sklearn.datasets import load_sample_image

from vit_jax.data import load_source, make_preprocess, train_loader
from vit_jax.data.decoding import UnreadableFile
from vit_jax.data.images import EncodedImage, decode_image
from vit_jax.data.views import Views
from vit_jax.errors import FieldError

CROPS = {
  'inception': make_preprocess((24, 20), 0, 'inception', train=True),
  'grey': make_preprocess((24, 20), 1, 'inception', train=True),
  'central': make_preprocess((24, 20), 3, 'central', train=False),
  'scale': make_preprocess((24, 20), 0, 'scale', train=True),  # which reaches beyond the image
  'whole': make_preprocess((24, 20), 3, 'resize', train=True),
  'colour': make_preprocess((), 3, 'resize', train=True),
  'as stored': make_preprocess((), 0, 'resize', train=True),
}


def exif(orientation):
  tags = Image.Exif()
  tags[0x0112] = orientation
  return tags


def save_cmyk(path):
  Image.fromarray(pixels(60, 70)).convert('CMYK').save(path)


FILES = {
  'colour.jpg': lambda path: save(path, pixels(60, 70)),
  'grey.jpg': lambda path: save(path, pixels(60, 70, 1)),
  'turned.jpg': lambda path: save(path, pixels(60, 70), exif=exif(6)),
  'cmyk.jpg': save_cmyk,
  'transparent.png': lambda path: save(path, pixels(60, 70, 4)),
  'deep.png': lambda path: save(path, pixels(60, 70, 1).astype(np.uint16) * 257),
}


@pytest.mark.parametrize('crop', CROPS)
@pytest.mark.parametrize('name', FILES)
def test_a_file_becomes_what_its_pixels_become(tmp_path, name, crop):
  FILES[name](tmp_path / name)
  array, encoded = decode_image(tmp_path / name), EncodedImage(tmp_path / name)
  assert (encoded.shape, encoded.dtype) == (array.shape, array.dtype)
  for seed in range(3):
    of_array, of_file = (
      np.asarray(CROPS[crop]({'image': image}, np.random.default_rng(seed))['image'])
      for image in (array, encoded)
    )
    np.testing.assert_array_equal(of_file, of_array)


def photograph(size, quality=92, **options):
  file, image = io.BytesIO(), Image.fromarray(load_sample_image('china.jpg')).resize(size)
  image.save(file, 'JPEG', quality=quality, **options)
  return file.getvalue()


def prepare(file, **options):
  preprocess = make_preprocess((48, 48), 0, **options)
  image = EncodedImage(io.BytesIO(file))
  return preprocess({'image': image}, np.random.default_rng(1))['image'].astype(int)


@pytest.mark.parametrize('crop', ['inception', 'central', 'resize', 'scale'])
def test_reduced_decoding_changes_training_a_little_and_evaluation_not_at_all(crop):
  file, area = photograph((1283, 857)), {'area': (0.5, 1.0)} if crop == 'inception' else {}
  exact, reduced = (
    prepare(file, crop=crop, train=True, decoding=decoding, **area)
    for decoding in ('exact', 'reduced')
  )
  difference = np.abs(exact - reduced)
  assert 0 < difference.mean() < 1.5, difference.mean()
  assert np.quantile(difference, 0.99) < 12
  evaluated = [
    prepare(file, crop=crop, train=False, decoding=decoding) for decoding in ('exact', 'reduced')
  ]
  np.testing.assert_array_equal(*evaluated)


@pytest.mark.parametrize(
  ('part', 'size', 'scale'),
  [
    ((10, 0, 510, 423), (212, 224), 1),  # of less than twice the height
    ((10, 0, 510, 425), (212, 224), 2),
    ((0, 0, 640, 424), (100, 100), 4),
    ((0, 0, 640, 424), (10, 10), 8),
    ((0, -1, 640, 424), (10, 10), 1),  # beyond the image
  ],
)
def test_the_part_has_no_fewer_pixels_than_the_result(part, size, scale):
  image = EncodedImage(io.BytesIO(photograph((641, 425))))
  assert image.max_scale(part, size) == scale
  if scale > 1:
    assert image.reduce(scale, 425).size == (-(-641 // scale), -(-425 // scale))


STORED = {
  'whole': {'subsampling': '4:4:4'},
  'halves': {'subsampling': '4:2:0'},
  'wide halves': {'subsampling': '4:2:2'},
  'high halves': {'subsampling': '4:2:2'},
  'quarters': {'subsampling': '4:2:0'},
  'progressive': {'progressive': True},
  'progressive, cut off': {'progressive': True},
  'restarts': {'restart_marker_rows': 1, 'optimize': True},
  'exif': {'exif': exif(1), 'comment': b'\xff\xc0' * 20},
}
# As many blocks, of other places: by what a frame says of a colour's halves across and down.
REPLACED = {
  'high halves': (b'\x01\x21\0', b'\x01\x12\0'),
  'quarters': (b'\x01\x22\0', b'\x01\x14\0'),
}


def stored_as(name):
  file = photograph((203, 157), **STORED[name])
  if name == 'progressive, cut off':  # from its third scan on
    return b'\xff\xda'.join(file.split(b'\xff\xda')[:3]) + b'\xff\xd9'
  changed = file.replace(*REPLACED.get(name, (b'', b'')))
  assert (changed != file) == (name in REPLACED)
  return changed


@pytest.mark.parametrize('stored', STORED)
def test_rows_below_a_part_are_left_out_and_change_nothing_above(stored):
  file = stored_as(stored)
  pillow = Image.open(io.BytesIO(file))
  pillow.load()
  for bottom in range(1, 158):
    part = (3, 0, 203, bottom)
    assert EncodedImage(io.BytesIO(file)).crop(part).tobytes() == pillow.crop(part).tobytes()
  for scale, bottom in itertools.product((2, 4, 8), (1, 8, 40, 77, 155)):
    image, part = EncodedImage(io.BytesIO(file)), (0, 0, 203 // scale, -(-bottom // scale))
    top, whole = (image.reduce(scale, rows).crop(part) for rows in (bottom, 157))
    assert top.tobytes() == whole.tobytes()


def test_rows_below_a_part_are_not_even_needed():
  file, part = photograph((203, 157)), (10, 5, 90, 60)
  whole, half = (EncodedImage(io.BytesIO(f)) for f in (file, file[: len(file) // 2]))
  assert half.crop(part) == half.crop(part) == whole.decoded.crop(part)
  half.keep_whole()
  with pytest.raises(UnreadableFile, match='truncated'):
    half.crop(part)
  with pytest.raises(UnreadableFile, match='truncated'):
    EncodedImage(io.BytesIO(file[: len(file) // 2])).crop((10, 5, 90, 157))


def test_damage_below_a_part_is_no_error_where_the_whole_can_be_decoded():
  file, part = photograph((203, 157), restart_marker_rows=1), (0, 0, 203, 20)
  at = file.index(b'\xff\xd5')  # begins the seventh rows of blocks
  file = file[: at + 20] + b'\xff\xb0' + file[at + 22 :]  # a marker that there is none of
  of_whole, of_part = (EncodedImage(io.BytesIO(file)) for _ in range(2))
  assert of_part.crop(part) == of_whole.decoded.crop(part)
  part, whole = (EncodedImage(io.BytesIO(file)).reduce(2, bottom) for bottom in (20, 157))
  assert part.crop((0, 0, 101, 10)) == whole.crop((0, 0, 101, 10))


def test_views_of_a_file_are_those_of_its_pixels(monkeypatch):
  decoded, file = [], photograph((203, 157))
  take = EncodedImage._take
  monkeypatch.setattr(EncodedImage, '_take', lambda *a: decoded.append(a) or take(*a))
  views = Views({'global': (CROPS['inception'], 3), 'local': (CROPS['grey'], 2)})
  image = EncodedImage(io.BytesIO(file))
  of_file, of_array = (
    views({'image': i}, np.random.default_rng(0)) for i in (image, decode_image(io.BytesIO(file)))
  )
  assert len(decoded) == 2  # that of the array, and one for all views
  for name in of_array:
    np.testing.assert_array_equal(of_file[name], of_array[name])


def test_what_is_no_plain_jpeg_is_not_reduced(tmp_path):
  for name, make in FILES.items():
    make(tmp_path / name)
    expected = 4 if name in ('colour.jpg', 'grey.jpg') else 1
    assert EncodedImage(tmp_path / name).max_scale((0, 0, 60, 60), (12, 12)) == expected
  assert EncodedImage(tmp_path / 'grey.jpg', 3).max_scale((0, 0, 60, 60), (12, 12)) == 1


@pytest.mark.parametrize(
  ('options', 'problem'),
  [
    ({'decoding': 'fast'}, "^decoding: 'fast' is not one of exact, reduced"),
    ({'decoding': 'reduced', 'image_size': ()}, r"^decoding: 'reduced', but image_size is \(\)"),
  ],
)
def test_mistakes(options, problem):
  with pytest.raises(FieldError, match=problem):
    make_preprocess(
      **{'image_size': (8, 8), 'channels': 0, 'crop': 'resize', 'train': True} | options
    )


def test_files_are_damaged_where_pillow_finds_them_so():
  """Of 200 that are cut off or have wrong bytes; what can be decoded has Pillow's pixels."""
  file, rng = photograph((40, 32)), np.random.default_rng(0)
  outcomes = {'damaged': 0, 'decoded': 0}
  for i in range(200):
    damaged = bytearray(file)
    if i % 2:
      del damaged[rng.integers(len(file)) :]
    else:
      for place in rng.integers(len(file), size=5):
        damaged[place] = rng.integers(256)
    try:
      with Image.open(io.BytesIO(damaged), formats=['JPEG']) as image:
        expected = np.asarray(image.convert('RGB'))
    except Exception:  # Pillow raises many types
      with pytest.raises(UnreadableFile):
        decode_image(io.BytesIO(damaged), 3)
      outcomes['damaged'] += 1
    else:
      np.testing.assert_array_equal(decode_image(io.BytesIO(damaged), 3, exif=False), expected)
      outcomes['decoded'] += 1
  assert min(outcomes.values()) > 20, outcomes


def test_a_file_that_is_no_image_is_named(tmp_path):
  path = tmp_path / 'notes.jpg'
  path.write_text('no image')
  with pytest.raises(UnreadableFile) as error:
    decode_image(path)
  assert str(error.value) == f'{path}: not an image in BMP, GIF, JPEG, PNG or WebP'


@pytest.mark.parametrize('resizing', ['exact', 'fast'])
def test_a_folder_gives_the_same_batches_to_threads_and_to_workers(tmp_path, resizing):
  if resizing == 'fast':
    pytest.importorskip('cykooz_resizer')
  root = make_folder(tmp_path, splits=('train',))
  for i in range(3):
    (tmp_path / f'train/cat/photograph{i}.jpg').write_bytes(photograph((120 + i, 90)))
  source = load_source('folder', 'train', root)
  assert isinstance(source[0]['image'], np.ndarray)  # single records are decoded
  preprocess = make_preprocess(
    (12, 12), 3, 'inception', train=True, decoding='reduced', resizing=resizing
  )

  def batches(workers, threads, start_step=0):
    loader = train_loader(
      source,
      preprocess,
      batch_size=6,
      seed=0,
      num_devices=1,
      process_index=0,
      process_count=1,
      resident=False,
      num_workers=workers,
      num_threads=threads,
      prefetch=2,
    )
    made = loader.batches(start_step)
    try:
      return list(itertools.islice(made, 4 - start_step))
    finally:
      made.close()

  expected = batches(0, threads=2)
  for others in (batches(1, threads=8), batches(0, threads=8, start_step=2)):
    for one, other in zip(expected[-len(others) :], others, strict=True):
      for name in one:
        np.testing.assert_array_equal(one[name], other[name])
