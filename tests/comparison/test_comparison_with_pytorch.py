"""Both sides of a comparison do the same work, and what differs shows."""

import json

import numpy as np
import pytest
from small_vits import SQUARE, WIDE, random_variables

from vit_jax import weights
from vit_jax.comparison import measure
from vit_jax.comparison.images import RandomImages
from vit_jax.comparison.sides import JaxSide, TorchSide, TrainingSet
from vit_jax.comparison.torch_models import Transformers
from vit_jax.errors import UsageError
from vit_jax.weights import files

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

VIT = 'ViTForImageClassification'


def side(folder, images, dtype='float32', class_name=VIT, **options):
  return TorchSide(Transformers(str(folder), class_name), images, dtype, 'cpu', **options)


def opened(folder, config, dtype='float32', seed=0, **options):
  """Two sides with random parameters, PyTorch's of `seed`, and their images."""
  images = next(RandomImages(config, 6).batches(6))[0]
  weights.save(random_variables(config, seed), config, folder, format='huggingface')
  theirs = side(folder, images, dtype, **options)
  return JaxSide(random_variables(config), config, images, dtype), theirs, images


def compared(ours, theirs, images):
  return measure.compare_logits([(ours.logits(images), theirs.logits(images), np.full(6, -1))])


@pytest.mark.parametrize('config', [SQUARE, WIDE], ids=['square', 'wide'])
def test_logits_and_training_agree(tmp_path, config):
  ours, theirs, images = opened(tmp_path, config)
  before = compared(ours, theirs, images)
  assert before['largest_difference'] < 1e-5
  assert before['top_1_agreement'] == 1
  losses = ours.warm_up(), theirs.warm_up()
  np.testing.assert_allclose(*losses, rtol=1e-4)
  assert losses[1][0] - losses[1][2] > 1e-3  # the agreement above is that of steps that learn
  after = compared(ours, theirs, images)
  assert after == pytest.approx(before, abs=1e-5)  # training has parameters of its own
  assert theirs.images_per_second('inference', 0.0) > 0
  assert set(theirs.describe()['versions']) == {'python', 'torch', 'transformers'}


def test_running_statistics_move_on_both_sides(tmp_path):
  torch.manual_seed(0)
  sizes = {'embedding_size': 4, 'hidden_sizes': [4, 8, 16, 32], 'depths': [2, 2, 2, 2]}
  config = transformers.ResNetConfig(layer_type='basic', image_size=32, num_labels=3, **sizes)
  transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
  variables, config = weights.load(tmp_path)
  images = next(RandomImages(config, 6).batches(6))[0]
  theirs = side(tmp_path, images, class_name='ResNetForImageClassification')
  losses = JaxSide(variables, config, images, 'float32').warm_up(), theirs.warm_up()
  np.testing.assert_allclose(*losses, rtol=1e-3)
  assert losses[1][0] - losses[1][2] > 1e-3


def test_other_weights_show(tmp_path):
  result = compared(*opened(tmp_path, SQUARE, seed=1))
  assert result['largest_difference'] > 0.1


def test_one_epsilon_that_differs_shows(tmp_path):
  ours, _, images = opened(tmp_path, SQUARE)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'layer_norm_eps': 1e-3}))
  theirs = side(tmp_path, images)
  assert compared(ours, theirs, images)['largest_difference'] > 1e-4


def test_bfloat16_is_for_what_is_timed_and_logits_are_float32(tmp_path):
  ours, theirs, images = opened(tmp_path, SQUARE, 'bfloat16')
  assert compared(ours, theirs, images)['largest_difference'] < 1e-5
  exact, _, _ = opened(tmp_path, SQUARE)
  first, their_first, exact_first = (side.warm_up()[0] for side in (ours, theirs, exact))
  for loss in first, their_first:
    assert 1e-6 < abs(loss / exact_first - 1) < 2e-2


def test_dropout_in_a_config_is_left_out(tmp_path):
  ours, _, images = opened(tmp_path, SQUARE)
  path = tmp_path / 'config.json'
  dropout = {'hidden_dropout_prob': 0.5, 'attention_probs_dropout_prob': 0.5}
  path.write_text(json.dumps(json.loads(path.read_text()) | dropout))
  theirs = side(tmp_path, images)
  np.testing.assert_allclose(ours.warm_up(), theirs.warm_up(), rtol=1e-4)
  config = SQUARE.replace(dropout_rate=0.5, attention_dropout_rate=0.5, stochastic_depth=0.5)
  dropping = JaxSide(random_variables(SQUARE), config, images, 'float32')
  np.testing.assert_array_equal(dropping.logits(images), ours.logits(images))


def test_half_precision_files_are_compared_in_float32(tmp_path):
  _, theirs, images = opened(tmp_path / 'full', SQUARE)
  theirs._model.model.to(torch.bfloat16).save_pretrained(tmp_path / 'half')
  variables, config = weights.load(tmp_path / 'half')
  ours = JaxSide(variables, config, images, 'float32')
  halved = side(tmp_path / 'half', images)
  assert compared(ours, halved, images)['largest_difference'] < 1e-5


def test_torch_compile_is_of_what_is_timed(tmp_path, monkeypatch):
  compiled = []
  monkeypatch.setattr(torch, 'compile', lambda model: compiled.append(model) or model)
  _, theirs, _ = opened(tmp_path, SQUARE)
  theirs.warm_up()
  assert not compiled
  assert not theirs.describe()['compiled']
  assert theirs.prepare('training')['compile_seconds'] is None
  _, theirs, _ = opened(tmp_path, SQUARE, compile=True)
  theirs.warm_up()
  assert [model.training for model in compiled] == [False, True]
  assert theirs.describe()['compiled']


def test_a_gpu_that_pytorch_does_not_see_is_a_line(tmp_path, monkeypatch):
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
  with pytest.raises(UsageError, match=r'^JAX runs on GPU, and PyTorch .* finds none; .*CUDA'):
    TorchSide(Transformers('none', VIT), np.zeros((1, 8, 8, 3)), 'float32', 'cuda')


def test_tensors_that_pytorch_would_make_up_are_refused(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path, format='huggingface')
  path = tmp_path / 'model.safetensors'
  tensors, _ = files.parse_safetensors(path.read_bytes())
  del tensors['vit.embeddings.position_embeddings']
  path.write_bytes(files.format_safetensors(tensors))
  with pytest.raises(
    UsageError, match=r'PyTorch finds no vit\.embeddings\.position_embeddings there'
  ):
    side(tmp_path, np.zeros((1, 8, 8, 3), np.float32))


def test_a_loader_gives_normalised_images_with_their_labels(tmp_path):
  """Every image is of one value, which tells its label; an epoch has each once, in any order."""
  weights.save(random_variables(SQUARE), SQUARE, tmp_path, format='huggingface')
  labels = np.arange(6)
  images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None] * 51, (6, 8, 8, 3))
  given = TrainingSet(images, labels, (0.0, 0.5, 0.0), (1.0, 0.5, 2.0))
  loading = side(tmp_path, np.zeros((2, 8, 8, 3), np.float32), training_set=given)
  batches = loading._batches()
  for _ in range(2):
    seen = []
    for images, found in (next(batches) for _ in range(3)):
      pixels = found.numpy() / 5
      expected = np.stack([pixels, pixels * 2 - 1, pixels / 2], 1)
      np.testing.assert_allclose(images.numpy().mean((2, 3)), expected, atol=1e-6)
      seen += found.tolist()
    assert sorted(seen) == labels.tolist()
