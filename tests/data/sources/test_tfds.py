"""Data sets as TFDS prepares them, without TensorFlow."""

import itertools
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from image_files import one_line, pixels
from PIL import Image
from tfds_files import image_feature, label_feature, labels_feature, png, video_feature, write_tfds

from vit_jax import regular_files
from vit_jax.data import decoding, load_source, make_preprocess, train_loader
from vit_jax.data.loader import epoch_order
from vit_jax.data.sources import array_records
from vit_jax.errors import FieldError, UsageError

TFDS_DATA_DIR = os.environ.get('TFDS_DATA_DIR', '')


def needs_tfds(name):
  return pytest.mark.skipif(
    not TFDS_DATA_DIR or not Path(TFDS_DATA_DIR, name).is_dir(),
    reason=f'{name} is not in TFDS_DATA_DIR',
  )


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
  np.testing.assert_array_equal(source.labels(), labels)
  assert source.labels().dtype == np.float32


def test_labels_are_read_without_their_images(tmp_path):
  examples = [{'image': b'no image', 'label': [i % 3]} for i in range(7)]
  source = load_source('tiny', 'train[2:]', write_tfds(tmp_path, examples, FEATURES))
  assert source.labels().tolist() == [2, 0, 1, 2, 0]
  assert source.labels().dtype == np.int32


def test_tfds_videos(tmp_path):
  written = [np.stack([pixels(4, 6, seed=10 * i + t) for t in range(3 + i)]) for i in range(3)]
  examples = [
    {'clip': [png(frame) for frame in video], 'label': [i]} for i, video in enumerate(written)
  ]
  features = {'clip': video_feature(-1, 4, 6, 3), 'label': label_feature(3)}
  source = load_source('tiny', 'train', write_tfds(tmp_path, examples, features))
  assert (source.image_shape, source.num_frames) == ((4, 6, 3), None)
  for i, record in enumerate(pickle.loads(pickle.dumps(source))):
    assert record['label'] == i
    assert record['video'].shape == written[i].shape
    np.testing.assert_array_equal(record['video'], written[i])
    np.testing.assert_array_equal(record['video'][np.array([2, 0])], written[i][[2, 0]])
  features = {'clip': video_feature(3, 4, 6, 3), 'label': label_feature(3)}
  source = load_source('fixed', 'train', write_tfds(tmp_path, examples[:1], features, name='fixed'))
  assert source.num_frames == 3


def test_tfds_newest_version_and_variants(tmp_path):
  write_tfds(tmp_path, EXAMPLES[:1], FEATURES, version='1.9.0')
  root = write_tfds(tmp_path, EXAMPLES[:2], FEATURES, version='1.10.0')
  assert len(load_source('tiny', 'train', root)) == 2
  assert len(load_source('tiny:1.9.0', 'train', root)) == 1
  write_tfds(tmp_path, EXAMPLES[:3], FEATURES, name='two/one')
  assert len(load_source('two', 'train', root)) == 3
  write_tfds(tmp_path, EXAMPLES[:4], FEATURES, name='two/another')
  assert len(load_source('two/another', 'train', root)) == 4
  with pytest.raises(FieldError, match='several variants: two/another, two/one'):
    load_source('two', 'train', root)


def test_tfds_mistakes(tmp_path, monkeypatch):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  write_tfds(tmp_path, EXAMPLES, FEATURES, name='records', form='tfrecord')
  write_tfds(tmp_path, EXAMPLES, None, name='ancient')
  write_tfds(tmp_path, EXAMPLES, {'label': label_feature(3)}, name='tabular')
  two = {'left': image_feature(4, 4, 3), 'right': image_feature(4, 4, 3), 'label': label_feature(3)}
  write_tfds(tmp_path, EXAMPLES, two, name='pairs')

  def message(name, split='train'):
    with pytest.raises(FieldError) as error:
      load_source(name, split, root)
    return one_line(error)

  def command(name, place):
    return (
      'Run once: pip install tensorflow importlib_resources && python -c "import '
      f"tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{place}', "
      "file_format='array_record').download_and_prepare()\""
    )

  assert "did you mean 'tiny'?" in message('tiiny')
  assert len(message('tiiny').replace(root, '')) < 200
  assert "did you mean 'mnist'?" in message('MNIST')
  assert "did you mean 'digits'?" in message('digts')
  assert 'prepared in' in message('zzzzzzzz')
  assert message('no/such/thing:x').startswith('name: ')
  assert f'{root}/tiny has no such version with a dataset_info.json' in message('tiny:2.0.0')
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


SHARD = 'tiny-train.array_record-00000-of-00001'


def replace(path, change):
  """Writes a file anew: its bytes changed, a pipe, a folder or nothing in its place."""
  data = path.read_bytes()
  path.unlink()
  if change == 'pipe':
    os.mkfifo(path)
  elif change == 'folder':
    path.mkdir()
  elif change is not None:
    path.write_bytes(change(data))


@pytest.mark.parametrize(
  ('file', 'change', 'problem'),
  [
    (SHARD, None, 'cannot be read as an array_record file (No such file or directory)'),
    (SHARD, 'pipe', 'cannot be read as an array_record file (not a regular file)'),
    (SHARD, 'folder', 'cannot be read as an array_record file (Is a directory)'),
    (SHARD, lambda data: b'', 'cannot be read as an array_record file (RuntimeError: ArrayRecord'),
    (SHARD, lambda data: data[:-70_000], 'cannot be read as an array_record file (RuntimeError'),
    (SHARD, lambda data: data[:-100], 'cannot be read as an array_record file (RuntimeError: Corr'),
    ('dataset_info.json', 'pipe', 'cannot be read (not a regular file)'),
    ('dataset_info.json', lambda data: data[:50], 'damaged: not valid JSON'),
    ('dataset_info.json', lambda data: b'[]', 'damaged: holds a list, not an object'),
    ('dataset_info.json', lambda data: b'{}', 'cannot be read as information of TFDS ('),
    ('dataset_info.json', lambda d: d.replace(b'["7"]', b'["x"]'), 'cannot be read as information'),
    ('dataset_info.json', lambda d: d.replace(b'["7"]', b'["-7"]'), 'a shard of -7 examples'),
    ('features.json', 'pipe', 'cannot be read (not a regular file)'),
    ('features.json', lambda data: data[:50], 'damaged: not valid JSON'),
    ('features.json', lambda data: b'{}', 'cannot be read as features of TFDS ('),
    ('features.json', lambda d: d.replace(b'"3"', b'"x"'), 'cannot be read as features of TFDS ('),
    ('features.json', lambda d: d.replace(b'"uint8"', b'"x"'), 'cannot be read as features of TF'),
    ('features.json', lambda d: d.replace(b'"-1"', b'[]'), 'cannot be read as features of TFDS ('),
    (
      'features.json',
      lambda data: data.replace(b'tensorflow_datasets.core.features.image_feature', b'antigravity'),
      "'antigravity.Image' is no feature of TFDS",
    ),
    ('label.labels.txt', 'pipe', 'cannot be read (not a regular file)'),
    ('label.labels.txt', lambda data: b'\xff', 'damaged: not UTF-8'),
  ],
)
def test_a_damaged_file_is_named_at_the_start(tmp_path, capsys, file, change, problem):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  folder = tmp_path / 'tiny/1.0.0'
  (folder / 'label.labels.txt').write_text('a\nb\nc\n')
  assert load_source('tiny', 'train', root).class_names == ('a', 'b', 'c')
  replace(folder / file, change)
  with pytest.raises(UsageError) as error:
    load_source('tiny', 'train', root)
  assert one_line(error).startswith(f'{folder / file}: {problem}')
  assert capsys.readouterr() == ('', '')


def test_names_that_do_not_fit_the_features_are_told(tmp_path):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  (tmp_path / 'tiny/1.0.0/label.labels.txt').write_text('a\nb\n')
  with pytest.raises(UsageError, match=r'label\.labels\.txt: 2 names, and 3 classes in'):
    load_source('tiny', 'train', root)


def test_sizes_are_compared_with_what_is_there(tmp_path):
  """Before they take any memory."""
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  info = tmp_path / 'tiny/1.0.0/dataset_info.json'
  info.write_text(info.read_text().replace('["7"]', '["1000000000000"]'))
  with pytest.raises(UsageError, match=rf'{SHARD}: damaged: 7 records, and 1,000,000,000,000 by'):
    load_source('tiny', 'train', root)
  features = {'image': image_feature(-1, -1, 3), 'label': label_feature(10**9)}
  with pytest.raises(
    UsageError, match=r'features\.json: label: 1,000,000,000 classes, not 1 to 1,048,576'
  ):
    load_source('many', 'train', write_tfds(tmp_path, EXAMPLES, features, name='many'))
  features = {'image': image_feature(10**9, 10**9, 3), 'label': label_feature(3)}
  with pytest.raises(UsageError, match=r'record 0: .*it is \(4, 5\), and by features\.json'):
    load_source('large', 'train', write_tfds(tmp_path, EXAMPLES, features, name='large'))


@pytest.mark.parametrize(
  ('example', 'problem'),
  [
    ({'image': EXAMPLES[0]['image']}, 'record 2: the label is None, of 3 classes'),
    ({'image': EXAMPLES[0]['image'], 'label': [3]}, 'the label is 3, of 3 classes'),
    ({'image': EXAMPLES[0]['image'], 'label': [-2]}, 'the label is -2, of 3 classes'),
    ({'image': EXAMPLES[0]['image'], 'label': [0, 1]}, 'record 2: cannot be read as an example ('),
    ({'image': b'no image', 'label': [0]}, 'image'),
  ],
)
def test_a_damaged_record_is_named(tmp_path, example, problem):
  root = write_tfds(tmp_path, [*EXAMPLES[:2], example, *EXAMPLES[3:]], FEATURES)
  source = load_source('tiny', 'train[1:]', root)
  assert source[0]['label'] == 1
  with pytest.raises(UsageError) as error:
    source[1]
  assert f'{SHARD}, record 2: ' in one_line(error)
  assert problem in str(error.value)
  if 'the label is' in problem:
    with pytest.raises(UsageError, match=rf'{SHARD}, {problem}' if 'rec' in problem else problem):
      source.labels()


def test_files_beside_a_data_set_are_left_alone_and_shards_are_opened_once(tmp_path, monkeypatch):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  (tmp_path / 'tiny/1.0.0/notes.txt').write_bytes(b'\xff')
  opened = []

  def record(path):
    opened.append(path)
    return regular_files.open_regular(path)

  monkeypatch.setattr(array_records, 'open_regular', record)
  for split in ('train', 'train[2:]', 'train[:2]'):
    load_source('tiny', split, root)
  assert len(opened) == 1


def test_a_damaged_video_is_named(tmp_path):
  features = {'clip': video_feature(-1, -1, -1, 3), 'label': label_feature(3)}
  clips = [[b'none'], [png(pixels(4, 6)), b'none'], [png(pixels(4, 6)), png(pixels(5, 6))]]
  examples = [{'clip': clip, 'label': [0]} for clip in clips]
  records = load_source('tiny', 'train', write_tfds(tmp_path, examples, features))
  for i in range(3):
    with pytest.raises(decoding.UnreadableFile, match=rf'{SHARD}, record {i}: '):
      np.asarray(records[i]['video'])


class Remote(MemoryFileSystem):
  """Files of this process that stand for those of another machine."""

  protocol = ('gs', 'gcs')
  store, pseudo_dirs = {}, ['']

  @classmethod
  def _strip_protocol(cls, path):
    return MemoryFileSystem._strip_protocol(path.removeprefix('gs:/'))


def test_remote_data_sets_open(tmp_path, monkeypatch):
  """Their shards are opened by the library of array_record, when they are read."""
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  monkeypatch.setattr(type(epath.backend.fsspec_backend), '_get_filesystem', lambda *_: Remote())
  Remote().put(root, 'gs://bucket', recursive=True)
  source = load_source('tiny', 'train', 'gs://bucket')
  assert (len(source), source.image_shape, source.num_classes) == (7, (None, None, 3), 3)
  features = 'gs://bucket/tiny/1.0.0/features.json'
  Remote().pipe(features, b'{')
  with pytest.raises(UsageError, match='^' + features + ': damaged: not valid JSON'):
    load_source('tiny', 'train', 'gs://bucket')
  monkeypatch.setattr(regular_files, 'MAX_JSON', 0)
  with pytest.raises(UsageError, match='more than the 0 that are read'):
    load_source('tiny', 'train', 'gs://bucket')


def test_a_record_damaged_since_the_start_ends_the_batches_and_changes_none(tmp_path):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  loader = train_loader(
    load_source('tiny', 'train', root),
    make_preprocess((4, 4), 0, 'resize', train=True),
    batch_size=1, seed=0, num_devices=1, process_index=0, process_count=1, resident=False,
    num_workers=0, num_threads=2, prefetch=2,
  )  # fmt: skip
  expected = [batch['image'] for batch in itertools.islice(loader.batches(), 7)]
  damaged = int(epoch_order(0, 0, 7)[5])
  path = tmp_path / 'tiny/1.0.0' / SHARD
  image = EXAMPLES[damaged]['image']
  path.write_bytes(path.read_bytes().replace(image, bytes(len(image))))
  batches = loader.batches()
  found = [next(batches)['image'] for _ in range(5)]
  np.testing.assert_array_equal(found, expected[:5])
  with pytest.raises(UsageError, match=rf'{SHARD}, record {damaged}: damaged'):
    next(batches)


def test_flipped_bytes_never_change_a_record(tmp_path):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  path, told = tmp_path / 'tiny/1.0.0' / SHARD, []
  data = path.read_bytes()
  ends = [i for i in range(len(data)) if data[i]]
  for place in ends[:: len(ends) // 40]:
    path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
    try:
      records = list(load_source('tiny', 'train', root).read(range(7)))
    except UsageError as error:
      told.append(str(error))
      continue
    for i, record in enumerate(records):
      np.testing.assert_array_equal(record['image'], pixels(4, 5 + i, seed=i))
  assert len(told) > 10
  assert all(message.startswith(str(path)) and '\n' not in message for message in told)


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
  path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script)],
    env=os.environ | {'PYTHONPATH': path},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
