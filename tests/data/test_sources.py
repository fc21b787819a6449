import io
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow_datasets.proto import tf_example_pb2

from vit_jax.data import decode_image, load_source
from vit_jax.errors import UsageError

TFDS_DATA_DIR = os.environ.get('TFDS_DATA_DIR', '')


def needs_tfds(name):
  return pytest.mark.skipif(
    not TFDS_DATA_DIR or not Path(TFDS_DATA_DIR, name).is_dir(),
    reason=f'{name} is not in TFDS_DATA_DIR',
  )


def one_line(error):
  assert '\n' not in str(error.value)
  return str(error.value)


def pixels(height, width, channels=3, seed=0):
  shape = (height, width, channels) if channels > 1 else (height, width)
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width):
  """A colour gradient, which JPEG keeps to within a few levels."""
  y, x = np.mgrid[:height, :width]
  return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], -1).astype(np.uint8)


def save(path, array, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path, **kwargs)
  return path


# Digits.


def test_digits_are_scaled_to_uint8_and_split_by_class():
  train, test = load_source('digits', 'train'), load_source('digits', 'test')
  assert (len(train), len(test)) == (1437, 360)
  assert train.class_names == tuple('0123456789')
  assert train.image_shape == (8, 8, 1)

  raw = load_digits()
  scaled = np.floor(raw.images * 255 / 16 + 0.5)
  known = sorted((image.tobytes(), label) for image, label in zip(scaled, raw.target, strict=True))
  records = [*train, *test]
  assert {r['image'].dtype for r in records} == {np.dtype(np.uint8)}
  found = sorted((r['image'][..., 0].astype(float).tobytes(), r['label']) for r in records)
  assert found == known  # every digit once, over both splits

  counts = np.bincount([r['label'] for r in test])
  np.testing.assert_allclose(counts, np.bincount(raw.target) / 5, atol=1)


def test_digits_slices_are_disjoint_and_complete():
  def images(split):
    return [r['image'].tobytes() for r in load_source('digits', split)]

  assert images('train[:30%]') + images('train[30%:]') == images('train')
  assert images('test + train[-5:]') == images('test') + images('train')[-5:]
  assert images('all') == images('train') + images('test')


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ('tset', "'tset' is not one of train, test, all; did you mean 'test'?"),
    ('train[:9x%]', 'cannot be read'),
    ('train[', 'TFDS syntax'),
    ('all[:5]', 'cannot be read'),
    ('train[:9999]', 'incompatible with 1437 examples'),
    ('train[:0]', 'holds no examples'),
  ],
)
def test_wrong_split(split, message):
  with pytest.raises(UsageError) as error:
    load_source('digits', split, field='config.data.test_split')
  assert one_line(error).startswith('config.data.test_split: ')
  assert message in one_line(error)


# Decoding.


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'webp'])
def test_lossless_colour(tmp_path, suffix):
  image = pixels(5, 9)
  kwargs = {'lossless': True} if suffix == 'webp' else {}
  np.testing.assert_array_equal(
    decode_image(save(tmp_path / f'a.{suffix}', image, **kwargs)), image
  )


def test_grey_is_one_channel_and_palette_is_colour(tmp_path):
  grey = pixels(4, 6, 1)
  np.testing.assert_array_equal(decode_image(save(tmp_path / 'a.png', grey))[..., 0], grey)
  Image.fromarray(smooth(16, 16)).quantize(16).save(tmp_path / 'p.gif')
  assert decode_image(tmp_path / 'p.gif').shape == (16, 16, 3)
  Image.fromarray(grey > 99).save(tmp_path / 'one_bit.png')
  np.testing.assert_array_equal(
    decode_image(tmp_path / 'one_bit.png')[..., 0], np.where(grey > 99, 255, 0)
  )


def test_channels_convert(tmp_path):
  grey, colour = pixels(4, 6, 1), pixels(4, 6)
  path = save(tmp_path / 'grey.png', grey)
  np.testing.assert_array_equal(decode_image(path, 3), np.repeat(grey[..., None], 3, -1))
  luma = decode_image(save(tmp_path / 'colour.png', colour), 1)[..., 0]
  np.testing.assert_allclose(luma, colour @ [0.299, 0.587, 0.114], atol=1)


def test_16_bit_png_keeps_the_high_byte(tmp_path):
  deep = np.array([[0, 255, 256], [32767, 32768, 65535]], np.uint16)
  decoded = decode_image(save(tmp_path / 'a.png', deep))
  np.testing.assert_array_equal(decoded[..., 0], [[0, 0, 1], [127, 128, 255]])


def test_cmyk_jpeg(tmp_path):
  image = smooth(32, 48)
  root = make_folder(tmp_path, splits=('.',))
  path = tmp_path / 'cat/cmyk.jpg'
  Image.fromarray(image).convert('CMYK').save(path, quality=98)
  np.testing.assert_allclose(decode_image(path).astype(int), image, atol=12)
  assert 'cat/cmyk.jpg' in load_source('folder', 'train', root).files


def test_transparency_is_laid_on_white(tmp_path):
  image = pixels(4, 5, 4)
  alpha = image[..., 3:] / 255
  expected = alpha * image[..., :3] + (1 - alpha) * 255
  decoded = decode_image(save(tmp_path / 'a.png', image))
  np.testing.assert_allclose(decoded, expected, atol=1)
  palette = Image.new('P', (3, 2), 1)
  palette.putpalette([255, 0, 0, 0, 0, 255])
  palette.save(tmp_path / 'p.png', transparency=1)
  np.testing.assert_array_equal(decode_image(tmp_path / 'p.png'), np.full((2, 3, 3), 255))


def oriented(image, orientation):
  """The stored pixels of which `image` is the upright view, by the definition of EXIF."""
  transposed = image.swapaxes(0, 1)
  return {
    1: image,
    2: image[:, ::-1],
    3: image[::-1, ::-1],
    4: image[::-1],
    5: transposed,
    6: transposed[::-1],
    7: transposed[::-1, ::-1],
    8: transposed[:, ::-1],
  }[orientation]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
  image = pixels(6, 11)
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = np.ascontiguousarray(oriented(image, orientation))
  path = save(tmp_path / 'train/a/a.png', stored, exif=exif)
  np.testing.assert_array_equal(decode_image(path), image)
  np.testing.assert_array_equal(decode_image(path, exif=False), stored)
  save(tmp_path / 'train/b/b.png', image)
  assert load_source('folder', 'train', str(tmp_path)).image_shape == (6, 11, 3)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp'])
@pytest.mark.parametrize('exif', [b'garbage', b'MM\x00*\x00\x00\x00\x08', b'\x00'])
def test_damaged_exif_is_ignored(tmp_path, suffix, exif):
  image = smooth(16, 24)
  path = save(tmp_path / f'a.{suffix}', image, quality=98, exif=b'Exif\x00\x00' + exif)
  np.testing.assert_allclose(decode_image(path).astype(int), image, atol=16)


# Folders.


def make_folder(root, splits=('train', 'test'), classes=('cat', 'dog'), count=4, suffix='png'):
  for s, split in enumerate(splits):
    for c, name in enumerate(classes):
      for i in range(count):
        save(root / split / name / f'{i}.{suffix}', pixels(4, 4, seed=100 * s + 10 * c + i))
  return str(root)


def test_folder_with_splits(tmp_path):
  root = make_folder(tmp_path)
  train, test = load_source('folder', 'train', root), load_source('folder', 'test', root)
  assert train.class_names == test.class_names == ('cat', 'dog')
  assert train.image_shape == (4, 4, 3)
  found = {(r['image'].tobytes(), r['label']) for r in test}
  assert found == {
    (pixels(4, 4, seed=100 + 10 * c + i).tobytes(), c) for c in (0, 1) for i in range(4)
  }
  assert [r['label'] for r in train] == [['cat', 'dog'].index(f.split('/')[1]) for f in train.files]
  assert len(load_source('folder', 'all', root)) == 16


@pytest.mark.parametrize('name', ['val', 'valid', 'validation'])
def test_validation_folders_are_found_as_test(tmp_path, name):
  root = make_folder(tmp_path, splits=('train', name))
  expected = load_source('folder', name, root).files
  assert load_source('folder', 'test', root).files == expected
  assert load_source('folder', 'test[:50%]', root).files == expected[:4]
  with pytest.raises(UsageError, match='not one of train'):
    load_source('folder', 'dev', root)


def test_folder_without_splits_is_sliced_over_classes(tmp_path):
  root = make_folder(tmp_path, splits=('.',), classes=('a', 'b', 'c', 'd'), count=10)
  whole = load_source('folder', 'train', root).files
  parts = [load_source('folder', s, root) for s in ('train[:50%]', 'train[50%:]')]
  assert parts[0].files + parts[1].files == whole
  assert len(set(whole)) == 40
  for part in parts:
    assert set(np.bincount([r['label'] for r in part]) > 0) == {True}
  assert load_source('folder', 'all', root).files == whole
  # The order of what is there stays when another file comes.
  save(tmp_path / 'a' / 'new.png', pixels(4, 4))
  longer = load_source('folder', 'train', root).files
  assert [f for f in longer if f != 'a/new.png'] == list(whole)
  assert len(longer) == 41


def test_folder_without_splits_has_no_test(tmp_path):
  root = make_folder(tmp_path, splits=('.',))
  with pytest.raises(UsageError) as error:
    load_source('folder', 'test', root, field='config.data.test_split')
  assert one_line(error).startswith("config.data.test_split: 'test' is not a folder of")
  assert 'train[80%:]' in one_line(error)


def test_nested_hidden_and_other_files(tmp_path):
  root = make_folder(tmp_path, splits=('.',), count=1)
  save(tmp_path / 'cat/deep/er/x.PNG', pixels(4, 4))
  for hidden in ('cat/.x.png', 'cat/.cache/x.png', '.trash/x.png'):
    save(tmp_path / hidden, pixels(4, 4))
  (tmp_path / 'cat/notes.txt').write_text('no image')
  (tmp_path / 'labels.csv').write_text('no image')
  source = load_source('folder', 'train', root)
  assert sorted(source.files) == ['cat/0.png', 'cat/deep/er/x.PNG', 'dog/0.png']
  assert source.skipped == ()


def test_colour_and_size_as_stored(tmp_path):
  for name in ('a', 'b'):
    save(tmp_path / 'train' / name / 'x.png', pixels(4, 6, 1))
    save(tmp_path / 'test' / name / 'x.png', pixels(4, 6, 3))
  source = load_source('folder', 'test', str(tmp_path))
  assert source.image_shape == source[0]['image'].shape == (4, 6, 1)  # as train
  save(tmp_path / 'train/a/y.png', pixels(6, 4, 3))
  source = load_source('folder', 'train', str(tmp_path))
  assert source.image_shape == (None, None, 3)
  assert {r['image'].shape for r in source} == {(4, 6, 3), (6, 4, 3)}


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'gif', 'bmp'])
def test_truncated_files_are_named_counted_and_skipped(tmp_path, caplog, suffix):
  root = make_folder(tmp_path, count=3, suffix=suffix)
  damaged = ['train/cat/1', 'train/dog/0', 'test/dog/2']
  for name, kept in zip(damaged, (0.0, 0.6, 0.75), strict=True):
    path = tmp_path / f'{name}.{suffix}'
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
  with caplog.at_level(logging.WARNING):
    train, test = load_source('folder', 'train', root), load_source('folder', 'test', root)
  assert (len(train), len(test)) == (4, 5)
  assert set(train.skipped + test.skipped) == {f'{name}.{suffix}' for name in damaged}
  for name in damaged:
    assert sum(f'{name}.{suffix} cannot be decoded' in m for m in caplog.messages) == 1
  assert any(m.startswith('2 of 6 images') for m in caplog.messages)
  assert len([*train, *test]) == 9  # what is left decodes


def test_mended_files_are_found(tmp_path):
  root = make_folder(tmp_path, splits=('.',), count=2)
  (tmp_path / 'cat/0.png').write_bytes(b'')
  assert load_source('folder', 'train', root).skipped == ('cat/0.png',)
  save(tmp_path / 'cat/0.png', pixels(4, 4))
  assert load_source('folder', 'train', root).skipped == ()


@pytest.mark.parametrize('progressive', [False, True])
def test_every_truncation_that_stops_decoding_is_found(tmp_path, progressive):
  root = make_folder(tmp_path, splits=('.',), count=1)
  whole = save(tmp_path / 'whole.jpg', smooth(40, 56), progressive=progressive).read_bytes()
  for size in range(0, len(whole), 25):
    path = tmp_path / 'cat' / f'{size}.jpg'
    path.write_bytes(whole[:size])
  source = load_source('folder', 'train', root)
  assert len(source.skipped) > 20
  for file in source.skipped:
    with pytest.raises((OSError, SyntaxError)):
      decode_image(tmp_path / file)
  assert len(list(source)) == len(source)


def test_decompression_bomb_is_skipped(tmp_path, monkeypatch):
  root = make_folder(tmp_path, splits=('.',))
  save(tmp_path / 'cat/bomb.png', np.zeros((100, 100), np.uint8))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
  assert load_source('folder', 'train', root).skipped == ('cat/bomb.png',)


def test_folder_mistakes(tmp_path):
  def message(split='train', root=tmp_path):
    with pytest.raises(UsageError) as error:
      load_source('folder', split, str(root))
    assert one_line(error).startswith('config.data.dir: ')
    return one_line(error)

  assert 'is not a folder' in message(root='')
  assert 'is not a folder' in message(root=tmp_path / 'missing')
  assert 'has 0 folders' in message()
  (tmp_path / 'cat').mkdir()
  assert 'has 1 folders' in message()
  (tmp_path / 'dog').mkdir()
  assert 'cat holds no images' in message()
  save(tmp_path / 'cat/x.png', pixels(4, 4))
  (tmp_path / 'dog/x.png').write_text('not an image')
  assert 'dog holds no images' in message()


def test_classes_of_test_that_differ(tmp_path):
  root = make_folder(tmp_path)
  (tmp_path / 'test/dog').rename(tmp_path / 'test/dgo')
  with pytest.raises(UsageError) as error:
    load_source('folder', 'test', root)
  assert "'dog' is missing" in one_line(error)
  assert "'dgo' is not in train" in one_line(error)
  assert len(load_source('folder', 'train', root)) == 8


def test_folder_source_pickles_to_paths(tmp_path):
  source = load_source('folder', 'train', make_folder(tmp_path, count=20))
  data = pickle.dumps(source)
  assert len(data) < 4000
  copy = pickle.loads(data)
  assert len(copy) == len(source)
  np.testing.assert_array_equal(copy[7]['image'], source[7]['image'])


# TFDS.


def write_tfds(
  root, examples, features, *, name='tiny', version='1.0.0', keys=None, form='array_record'
):
  """Writes a prepared data set as TFDS does, split 'train', of {key: bytes or [int]} examples."""
  folder = Path(root, name, version)
  folder.mkdir(parents=True)
  base = name.split('/')[0]
  writer = ArrayRecordWriter(
    str(folder / f'{base}-train.array_record-00000-of-00001'), 'group_size:1'
  )
  for example in examples:
    proto = tf_example_pb2.Example()
    for key, value in example.items():
      feature = proto.features.feature[key]
      if isinstance(value, bytes):
        feature.bytes_list.value.append(value)
      else:
        feature.int64_list.value.extend(value)
    writer.write(proto.SerializeToString())
  writer.close()
  info = {
    'name': base,
    'version': version,
    'fileFormat': form,
    'moduleName': 'a.module.that.is.not.here',
    'splits': [
      {
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        'name': 'train',
        'numBytes': '1',
        'shardLengths': [str(len(examples))],
      }
    ],
  }
  if keys:
    info['supervisedKeys'] = {'tuple': {'items': [{'featureKey': k} for k in keys]}}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  if features is not None:
    prefix = 'tensorflow_datasets.core.features.'
    (folder / 'features.json').write_text(
      json.dumps(
        {
          'pythonClassName': f'{prefix}features_dict.FeaturesDict',
          'featuresDict': {'features': {k: make(prefix) for k, make in features.items()}},
        }
      )
    )
  return str(root)


def image_feature(*shape):
  return lambda prefix: {
    'pythonClassName': f'{prefix}image_feature.Image',
    'image': {'dtype': 'uint8', 'shape': {'dimensions': [str(n) for n in shape]}},
  }


def label_feature(num_classes):
  return lambda prefix: {
    'pythonClassName': f'{prefix}class_label_feature.ClassLabel',
    'classLabel': {'numClasses': str(num_classes)},
  }


def labels_feature(num_classes):
  return lambda prefix: {
    'pythonClassName': f'{prefix}sequence_feature.Sequence',
    'sequence': {'feature': label_feature(num_classes)(prefix), 'length': '-1'},
  }


def png(array, **kwargs):
  file = io.BytesIO()
  Image.fromarray(array).save(file, 'PNG', **kwargs)
  return file.getvalue()


FEATURES = {'image': image_feature(-1, -1, 3), 'label': label_feature(3)}
EXAMPLES = [{'image': png(pixels(4, 5 + i, seed=i)), 'label': [i % 3]} for i in range(7)]


def test_tfds_without_code(tmp_path):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES, keys=('image', 'label'))
  source = load_source('tiny', 'train', root)
  assert source.image_shape == (None, None, 3)
  assert (len(source), source.num_classes) == (7, 3)
  for i, record in enumerate(pickle.loads(pickle.dumps(source))):
    np.testing.assert_array_equal(record['image'], pixels(4, 5 + i, seed=i))
    assert record['label'] == i % 3
  assert [r['label'] for r in load_source('tiny:1.0.0', 'train[5:]+train[:1]', root)] == [2, 0, 0]


def test_tfds_images_stay_as_stored(tmp_path):
  """As everybody else reads them: grey made colour where the features say so, EXIF ignored."""
  exif = Image.Exif()
  exif[0x0112] = 6
  images = [png(pixels(4, 4), exif=exif), png(pixels(4, 4, 1))]
  examples = [{'image': image, 'label': [0]} for image in images]
  first, second = load_source('tiny', 'train', write_tfds(tmp_path, examples, FEATURES))
  np.testing.assert_array_equal(first['image'], pixels(4, 4))
  np.testing.assert_array_equal(second['image'], np.repeat(pixels(4, 4, 1)[..., None], 3, -1))


def test_tfds_multi_label_without_supervised_keys(tmp_path):
  examples = [{'image': png(pixels(4, 4)), 'labels': x} for x in ([], [2], [0, 3], [3])]
  features = {'image': image_feature(4, 4, 3), 'labels': labels_feature(4)}
  source = load_source('tiny', 'train', write_tfds(tmp_path, examples, features))
  labels = [r['label'] for r in source]
  assert {x.dtype for x in labels} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(labels, [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 1]])


def test_tfds_newest_version_and_variants(tmp_path):
  write_tfds(tmp_path, EXAMPLES[:1], FEATURES, version='1.9.0')
  root = write_tfds(tmp_path, EXAMPLES[:2], FEATURES, version='1.10.0')
  assert len(load_source('tiny', 'train', root)) == 2
  assert len(load_source('tiny:1.9.0', 'train', root)) == 1
  write_tfds(tmp_path, EXAMPLES[:3], FEATURES, name='two/one')
  assert len(load_source('two', 'train', root)) == 3
  write_tfds(tmp_path, EXAMPLES[:4], FEATURES, name='two/another')
  assert len(load_source('two/another', 'train', root)) == 4
  with pytest.raises(UsageError, match='several variants: two/another, two/one'):
    load_source('two', 'train', root)


def test_tfds_mistakes(tmp_path, monkeypatch):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  write_tfds(tmp_path, EXAMPLES, FEATURES, name='records', form='tfrecord')
  write_tfds(tmp_path, EXAMPLES, None, name='ancient')
  write_tfds(tmp_path, EXAMPLES, {'label': label_feature(3)}, name='tabular')
  two = {'left': image_feature(4, 4, 3), 'right': image_feature(4, 4, 3), 'label': label_feature(3)}
  write_tfds(tmp_path, EXAMPLES, two, name='pairs')

  def message(name, split='train'):
    with pytest.raises(UsageError) as error:
      load_source(name, split, root)
    return one_line(error)

  def command(name, place):
    return (
      'Run once: pip install tensorflow importlib_resources && python -c "import '
      f"tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{place}', "
      "file_format='array_record').download_and_prepare()\""
    )

  assert "did you mean 'tiny'?" in message('tiiny')
  assert "did you mean 'mnist'?" in message('MNIST')
  assert "did you mean 'digits'?" in message('digts')
  assert 'prepared in' in message('zzzzzzzz')
  assert message('no/such/thing:x').startswith('config.data.name: ')
  assert "'trian' is not one of train, all; did you mean 'train'?" in message('tiny', 'trian')
  assert 'incompatible with 7 examples' in message('tiny', 'train[:8]')
  assert command('imagenet2012', root) in message('imagenet2012')
  assert f'there is no {root}/imagenet2012' in message('imagenet2012')
  assert 'records/1.0.0 it is tfrecord' in message('records')
  assert command('records', f'{root}/array_record') in message('records')
  assert 'ancient/1.0.0 it is of a TFDS older' in message('ancient')
  assert 'not a data set for image classification' in message('tabular')
  assert 'not a data set for image classification' in message('pairs')
  monkeypatch.setenv('TFDS_DATA_DIR', root)
  assert len(load_source('tiny', 'train')) == 7


@needs_tfds('mnist')
def test_real_mnist():
  train = load_source('mnist', 'train[:90%]')
  rest = load_source('mnist', 'train[90%:]')
  assert (len(train), len(rest), len(load_source('mnist', 'test'))) == (54_000, 6_000, 10_000)
  assert train.image_shape == (28, 28, 1)
  records = list(train.read(range(1000)))
  assert {r['image'].shape for r in records} == {(28, 28, 1)}
  counts = np.bincount([r['label'] for r in records], minlength=10)
  assert counts.min() > 70
  whole = load_source('mnist', 'train')
  np.testing.assert_array_equal(rest[5]['image'], whole[54_005]['image'])


@needs_tfds('cifar10')
def test_real_cifar10():
  source = load_source('cifar10', 'test')
  assert source.class_names[:3] == ('airplane', 'automobile', 'bird')
  assert source.image_shape == source[9_999]['image'].shape == (32, 32, 3)
  assert len(pickle.dumps(source)) < 8000


def test_no_tensorflow_even_where_installed(tmp_path):
  """A TensorFlow that can be imported isn't."""
  (tmp_path / 'tensorflow').mkdir()
  (tmp_path / 'tensorflow/__init__.py').write_text('raise RuntimeError("TensorFlow was imported")')
  root = write_tfds(tmp_path / 'tfds', EXAMPLES, FEATURES)
  script = f"""
    import sys
    import vit_jax.data
    from vit_jax.errors import UsageError
    source = vit_jax.data.load_source('tiny', 'train[:50%]', {root!r})
    assert len(list(source)) == 4 and len(vit_jax.data.load_source('digits', 'test')) == 360
    for name in ('tinny', 'imagenet2012'):
      try:
        vit_jax.data.load_source(name, 'train', {root!r})
      except UsageError:
        continue
      assert False, name
    assert not [m for m in sys.modules if m.split('.')[0] == 'tensorflow']
  """
  path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script)],
    env=os.environ | {'PYTHONPATH': path},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
