"""Probabilities against an independent statement; batches, compilations, damaged files."""

import jax
import numpy as np
import pytest
import scipy.special
from PIL import Image
from small_vits import SQUARE, WIDE, logits, random_variables

from vit_jax.data import augment, decode_image
from vit_jax.data.decoding import TooLittleMemory, UnreadableFile
from vit_jax.data.images import find_images
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.predictor import Predictor
from vit_jax.tasks import classification

TOKEN_LEARNER = ModelConfig.from_dict(
  SQUARE.to_dict()
  | {
    'name': 'token_learner',
    'classifier': 'gap',
    'num_classes': 4,
    'tokenizer': {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 1},
  }
)


def photographs(count, seed=0):
  """uint8 images of odd sizes, every other one grey."""
  rng = np.random.default_rng(seed)
  shapes = [(*rng.integers(1, 40, 2), 1 + 2 * (i % 2)) for i in range(count)]
  return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def expected(variables, config, images, loss='softmax', mean=0.5, std=0.5):
  """Pillow resizes the whole image, NumPy and SciPy do the rest, around the model's logits."""
  height, width = config.image_size
  mode = {1: 'L', 3: 'RGB'}[config.channels]
  pixels = []
  for image in images:
    whole = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    resized = whole.convert(mode).resize((width, height), Image.Resampling.BICUBIC)
    pixels.append(np.asarray(resized, np.float32).reshape(height, width, -1) / 255)
  outputs = logits(variables, config, (np.stack(pixels) - np.float32(mean)) / np.float32(std))
  if loss == 'sigmoid':
    return scipy.special.expit(outputs)
  return scipy.special.softmax(outputs, axis=1)


@pytest.mark.parametrize('config', [SQUARE, WIDE], ids=['square', 'wide'])
@pytest.mark.parametrize('loss', classification._LOSSES)
def test_probabilities_are_those_of_an_independent_statement(config, loss):
  variables, images = random_variables(config), photographs(5)
  probabilities = Predictor(variables, config, loss=loss)(images)
  assert probabilities.dtype == np.float32
  pixels = config.preprocess or Preprocessing()
  wanted = expected(variables, config, images, loss, pixels.mean, pixels.std)
  np.testing.assert_allclose(probabilities, wanted, atol=1e-5)


def test_images_are_normalised_as_the_config_says():
  mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
  variables, images = random_variables(SQUARE), photographs(3)
  predictor = Predictor(variables, SQUARE.replace(preprocess=Preprocessing(mean=mean, std=std)))
  np.testing.assert_allclose(
    predictor(images), expected(variables, SQUARE, images, mean=mean, std=std), atol=1e-5
  )


def test_a_central_crop_leaves_out_the_border():
  variables, image = random_variables(SQUARE), photographs(2)[1]
  square = Image.fromarray(image).resize((256, 256))  # 256 to 224 as 9 to 8, rounded down
  middle = np.asarray(square.resize((9, 9), Image.Resampling.BICUBIC))[:8, :8]
  predictor = Predictor(variables, SQUARE.replace(preprocess=Preprocessing(crop='central')))
  np.testing.assert_allclose(
    predictor([np.asarray(square)]), expected(variables, SQUARE, [middle]), atol=1e-5
  )


def test_any_model_and_the_compute_dtype():
  model = TOKEN_LEARNER.model
  shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  exact, coarse = (
    Predictor(variables, TOKEN_LEARNER, dtype=dtype)(photographs(3))
    for dtype in ('float32', 'bfloat16')
  )
  assert exact.shape == (3, 4)
  assert coarse.dtype == np.float32
  assert 0 < np.abs(exact - coarse).max() < 0.1


@pytest.fixture
def traced(monkeypatch):
  """Batch sizes, one for each time that a predictor's computation is traced."""
  sizes, normalize = [], augment.normalize_batch

  def counting(batch, mean, std):
    sizes.append(len(batch['image']))
    return normalize(batch, mean, std)

  monkeypatch.setattr(augment, 'normalize_batch', counting)
  return sizes


@pytest.mark.parametrize(
  ('count', 'batch_size', 'size'), [(0, 4, 1), (1, 32, 1), (3, 32, 4), (11, 4, 4), (9, 3, 3)]
)
def test_one_compilation_serves_all_images(traced, tmp_path, count, batch_size, size):
  variables, images = random_variables(SQUARE), photographs(count)
  predictor = Predictor(variables, SQUARE)
  del traced[:]  # its own check of shapes
  together = predictor(images, batch_size)
  assert traced == ([size] if count else [])
  assert together.shape == (count, 3)
  paths = [tmp_path / f'{i}.png' for i in range(count)]
  for path, image in zip(paths, images, strict=True):
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path)
  outcomes = list(predictor.map(decode_image, paths, batch_size))
  assert [path for path, _ in outcomes] == paths
  assert traced == ([size] if count else []), 'files go through what images went through'
  for (_, row), alone in zip(outcomes, together, strict=True):
    np.testing.assert_array_equal(row, alone)


def test_damaged_files_leave_the_others_as_they_are(tmp_path):
  """Whole batches of them, and one in the middle of a batch."""
  predictor, images = Predictor(random_variables(SQUARE), SQUARE), photographs(8)[1::2]
  expected_rows = iter(predictor(images))
  good = {2, 4, 5, 9}
  for i in range(10):
    if i in good:
      Image.fromarray(images[sorted(good).index(i)]).save(tmp_path / f'{i}.png')
    else:
      (tmp_path / f'{i}.png').write_text('no image')
  outcomes = list(predictor.map(decode_image, [tmp_path / f'{i}.png' for i in range(10)], 2))
  assert [path.name for path, _ in outcomes] == [f'{i}.png' for i in range(10)]
  for i, (_, outcome) in enumerate(outcomes):
    if i in good:
      np.testing.assert_allclose(outcome, next(expected_rows), atol=1e-6)
    else:
      assert isinstance(outcome, UnreadableFile)


def test_faults_of_code_are_no_damage_and_lack_of_memory_is_told(monkeypatch):
  predictor, (image,) = Predictor(random_variables(SQUARE), SQUARE), photographs(1)

  def read(error):
    if error:
      raise error
    return image

  errors = [TooLittleMemory('a.png', 'too little'), OSError('no')]
  outcomes = [outcome for _, outcome in predictor.map(read, [*errors, None])]
  assert outcomes[:2] == errors
  assert outcomes[2].shape == (3,)
  with pytest.raises(ZeroDivisionError):
    list(predictor.map(read, [ZeroDivisionError()]))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_classes': 0}, 'no classification head'),
    ({'classifier': 'none'}, r'outputs of shape \(4, 3\) an image, and a class is told by \(3,\)'),
    ({'image_size': None}, 'image_size: .* give HEIGHT,WIDTH'),
    ({'channels': 4}, 'images of 4 channels; image files have 1 or 3'),
    ({'preprocess': {'mean': (0.1, 0.2)}}, 'mean: 2 values, but images have 3 channels'),
    ({'preprocess': {'std': (0.1, 0.0, 0.1)}}, 'std: .* is not a tuple of numbers above 0'),
    ({'preprocess': {'crop': 'centre'}}, "'centre' is not one of resize, central, "),
  ],
)
def test_a_model_that_cannot_predict_is_refused(changes, message):
  config = SQUARE.replace(**{k: changes[k] for k in changes if k == 'classifier'})
  with pytest.raises(UsageError, match=message):
    Predictor(random_variables(config), SQUARE.to_dict() | changes)


def test_numbers_that_are_not_finite_are_refused():
  variables = random_variables(SQUARE)
  variables['params']['output_projection']['bias'][1] = np.nan
  predictor = Predictor(variables, SQUARE)
  with pytest.raises(UsageError, match='not finite'):
    predictor(photographs(1))


def test_an_unknown_loss_is_refused():
  with pytest.raises(
    UsageError, match="loss: 'hinge' is not one of softmax, softmax_twice, sigmoid"
  ):
    Predictor(random_variables(SQUARE), SQUARE, loss='hinge')


# Where image files are.


def touch(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def test_images_of_a_folder_are_found_below_it_in_order(tmp_path):
  touch(tmp_path, 'b.png', 'a/z.JPG', 'a/b/c d.webp', 'dir.jpg/ü.jpeg', 'B.gif', 'c.bmp')
  touch(tmp_path, '.hidden.png', '.cache/x.png', 'a/.x.jpg', 'notes.txt', 'a/image.jpg.txt')
  (tmp_path / 'nowhere.png').symlink_to('missing')  # named, so that it is told about
  found = [path.relative_to(tmp_path).as_posix() for path in find_images(str(tmp_path))]
  assert found == [
    'B.gif',
    'a/b/c d.webp',
    'a/z.JPG',
    'b.png',
    'c.bmp',
    'dir.jpg/ü.jpeg',
    'nowhere.png',
  ]


def test_a_file_that_is_named_itself_is_taken_whatever_its_name(tmp_path):
  touch(tmp_path, '.hidden')
  assert find_images(tmp_path / '.hidden') == [tmp_path / '.hidden']


def test_folders_without_images_and_unreadable_ones_are_refused(tmp_path, monkeypatch):
  touch(tmp_path, 'empty/notes.txt')
  with pytest.raises(UsageError, match=r'empty: no images in this folder \(.bmp, '):
    find_images(tmp_path / 'empty')
  with pytest.raises(UsageError, match='missing: no such image or folder'):
    find_images(tmp_path / 'missing')

  def locked(path):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr('os.scandir', locked)
  with pytest.raises(UsageError, match=r'empty: cannot be read \(Permission denied\)'):
    find_images(tmp_path / 'empty')
