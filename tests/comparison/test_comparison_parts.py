"""What a comparison measures, on what images, and in which processes; no PyTorch needed."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image
from small_vits import SQUARE, WIDE, random_variables

from vit_jax import data, weights
from vit_jax.comparison import measure, sides
from vit_jax.comparison.images import DatasetImages, RandomImages
from vit_jax.comparison.processes import Remote
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, Preprocessing

DIGITS = SQUARE.replace(channels=1, num_classes=10)


def planted():
  """Logits of 10 images in 4 classes; theirs are 2 off in one place and top-1 differs in 3."""
  rng = np.random.default_rng(0)
  ours = rng.permuted(np.tile([0.0, 1.0, 2.0, 6.0], (10, 1)), axis=1).astype(np.float32)
  theirs = ours.copy()
  theirs[4, ours[4].argmin()] -= 2  # the lowest, so that the order stays
  theirs[[1, 5, 9]] = ours[[1, 5, 9]][:, ::-1]
  return ours, theirs


@pytest.mark.parametrize('sizes', [[10], [4, 4, 2], [1] * 10])
def test_planted_differences_are_found_however_they_are_batched(sizes):
  ours, theirs = planted()
  labels = ours.argmax(1)
  ends = np.cumsum(sizes)[:-1]
  batches = zip(*(np.split(a, ends) for a in (ours, theirs, labels)), strict=True)
  result = measure.compare_logits(batches)
  expected = np.abs(ours - theirs)
  assert result['largest_difference'] == expected.max() > 0
  assert result['mean_difference'] == pytest.approx(expected.mean())
  assert result['mean'] == pytest.approx(theirs.mean())
  assert result['standard_deviation'] == pytest.approx(theirs.std())
  assert result['top_1_agreement'] == pytest.approx(0.7)
  assert result['accuracy'] == {'jax': 1.0, 'pytorch': pytest.approx(0.7)}


def test_a_single_logit_that_is_off_is_the_largest_difference():
  ours, _ = planted()
  theirs = ours.copy()
  theirs[7, 2] += 0.25
  result = measure.compare_logits([(ours, theirs, np.full(10, -1))])
  assert result['largest_difference'] == 0.25
  assert result['mean_difference'] == pytest.approx(0.25 / 40)
  assert result['accuracy'] is None


@pytest.mark.parametrize(('value', 'side'), [(np.nan, 'JAX'), (np.inf, 'PyTorch')])
def test_logits_that_are_not_finite_end_the_comparison(value, side):
  ours, theirs = planted()
  (ours if side == 'JAX' else theirs)[7, 1] = value
  batches = [(ours[:5], theirs[:5], np.full(5, -1)), (ours[5:], theirs[5:], np.full(5, -1))]
  with pytest.raises(UsageError, match=f'^{side}: the logits of image 7 are not all finite'):
    measure.compare_logits(batches)


def test_speeds_are_taken_in_turns_and_ratios_turn_by_turn():
  calls, speeds = [], {'jax': [10.0, 40.0, 30.0], 'pytorch': [5.0, 80.0, 10.0]}

  def take(name):
    calls.append(name)
    return speeds[name][calls.count(name) - 1]

  result = measure.compare_speeds(lambda: take('jax'), lambda: take('pytorch'), turns=3)
  assert calls == ['jax', 'pytorch'] * 3
  assert result['jax'] == {'median': 30, 'low': 10, 'high': 40}
  assert result['pytorch'] == {'median': 10, 'low': 5, 'high': 80}
  assert result['ratio'] == {'median': 2, 'low': 0.5, 'high': 3}


@pytest.mark.parametrize('on_cpu', [True, False])
@pytest.mark.parametrize(('seconds', 'steps'), [(2.0, 8), (0.0, 1)])
def test_a_task_is_run_for_about_the_asked_time(monkeypatch, seconds, steps, on_cpu):
  clock = {'now': 0.0, 'queued': 0.0, 'runs': 0}

  class Side(sides._Side):
    _on_cpu = on_cpu

    def _wait(self, result):
      clock.update(now=clock['now'] + clock['queued'], queued=0.0)

  def task():
    clock.update(queued=clock['queued'] + 0.25, runs=clock['runs'] + 1)

  monkeypatch.setattr(time, 'perf_counter', lambda: clock['now'])
  side = Side(np.zeros((4, 8, 8, 3), np.float32), 3)
  side._tasks = {'inference': lambda: task}
  speed = side.images_per_second('inference', seconds)
  assert clock['runs'] == 1 + steps
  assert speed == pytest.approx(4 / 0.25)


def test_pytorch_runs_where_jax_does():
  assert [sides.torch_device(backend) for backend in ('cpu', 'gpu')] == ['cpu', 'cuda']
  with pytest.raises(UsageError, match=r'^JAX runs on tpu, .*; set JAX_PLATFORMS=cpu$'):
    sides.torch_device('tpu')


def test_this_projects_side_computes_the_loss_and_learns():
  config = SQUARE.replace(image_size=(8, 8))
  images = next(RandomImages(config, 5).batches(5))[0]
  side = sides.JaxSide(random_variables(config), config, images, 'float32')
  logits = side.logits(images)
  losses = side.warm_up()
  right = logits[np.arange(5), np.arange(5) % 3]
  assert losses[0] == pytest.approx(np.mean(np.log(np.exp(logits).sum(1)) - right), rel=1e-5)
  assert losses[0] > losses[1] > losses[2]
  np.testing.assert_array_equal(side.logits(images), logits)  # training has its own parameters
  assert side.images_per_second('training', 0.0) > 0
  assert side.describe()['versions']['jax'] == jax.__version__


def test_dropout_and_dropped_layers_are_left_out():
  sizes = {'hidden_size': 8, 'mlp_dim': 12, 'num_layers': 2, 'num_heads': 2, 'num_classes': 3}
  config = ModelConfig.from_dict(
    {'name': 'vivit', **sizes, 'patches': {'size': (4, 4, 2)}, 'image_size': (8, 8)}
    | {'temporal_encoding_config': {'method': '3d_conv'}, 'attention_config': {}, 'num_frames': 4}
  )
  variables, clips = random_variables(config), next(RandomImages(config, 3).batches(3))[0]
  rates = ('dropout_rate', 'attention_dropout_rate', 'stochastic_droplayer_rate')
  losses = [
    sides.JaxSide(
      variables, config.replace(**dict.fromkeys(rates, rate)), clips, 'float32'
    ).warm_up()
    for rate in (0.0, 0.5)
  ]
  assert losses[0] == losses[1]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'norm_epsilon': 1e-3},
      r"^m: none of timm's architectures is made with norm_layer='LayerNorm'",
    ),
    ({'image_size': None}, r'^m: image_size is needed there'),
    ({'name': 'resnet18', 'num_filters': 8}, r'^m: num_filters 8 is not 64 there'),
    ({'name': 'swin', 'absolute_positions': True}, r'^m: absolute_positions have no place there'),
    ({'name': 'hybrid'}, r'^m: resnet.width_factor 0.5 is not 1 there'),
  ],
)
def test_models_that_timm_does_not_make_are_refused(changes, message):
  hybrid = {'resnet': {'num_layers': (1,), 'width_factor': 0.5}, 'patches': {'size': (1, 1)}}
  sizes = {'image_size': (8, 8), 'channels': 3, 'num_classes': 3}
  fields = {
    'vit': SQUARE.to_dict(),
    'hybrid': SQUARE.to_dict() | hybrid,
    'swin': sizes | {'activation': 'gelu_exact'},
    'resnet18': sizes,
  }[changes.get('name', 'vit')]
  with pytest.raises(UsageError, match=message):
    weights.timm_creation(ModelConfig.from_dict({**fields, **changes}), 'm')


# Images.


def joined(images, size):
  blocks = list(images.batches(size))
  return [len(x) for x, _ in blocks], *(np.concatenate(a) for a in zip(*blocks, strict=True))


def test_random_images_are_the_same_every_time():
  config = WIDE
  sizes, images, labels = joined(RandomImages(config, 10), 4)
  assert sizes == [4, 4, 2]
  assert images.shape == (10, 8, 6, 1)
  assert images.dtype == np.float32
  assert (labels == -1).all()
  np.testing.assert_array_equal(joined(RandomImages(config, 10), 10)[1], images)
  assert len(RandomImages(config, 0)) == 64
  assert 0.9 < images.std() < 1.1


@pytest.mark.parametrize(
  ('preprocess', 'mean', 'std'),
  [(None, 0.5, 0.5), ({'mean': (0.25,), 'std': (2.0,)}, 0.25, 2.0)],
)
def test_images_of_a_data_set_come_as_the_model_takes_them(preprocess, mean, std):
  config = DIGITS.replace(preprocess=preprocess and Preprocessing(**preprocess))
  opened = DatasetImages(config, 'digits', 'test', '', 10)
  sizes, images, labels = joined(opened, 4)
  records = [data.load_source('digits', 'test')[i] for i in range(10)]
  assert (len(opened), sizes, opened.name) == (10, [4, 4, 2], 'digits, test')
  np.testing.assert_array_equal(labels, [r['label'] for r in records])
  stored = np.stack([r['image'] for r in records]).astype(np.float64)
  assert images.dtype == np.float32
  np.testing.assert_allclose(images, (stored / 255 - mean) / std, atol=1e-6)
  assert len(DatasetImages(config, 'digits', 'test', '', 0)) == 360


def test_labels_count_where_they_can_be_the_models():
  _, _, labels = joined(DatasetImages(DIGITS.replace(num_classes=7), 'digits', 'test', '', 5), 5)
  assert (labels == -1).all()


def test_images_without_labels_are_compared(tmp_path):
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'x.png')
  _, images, labels = joined(DatasetImages(SQUARE, f'{tmp_path}/', 'train', '', 0), 5)
  assert (len(images), labels.tolist()) == (1, [-1])


def test_a_folder_of_images_is_resized_and_cropped(tmp_path):
  for name, colour in (('a', 255), ('b', 0)):
    (tmp_path / name).mkdir()
    Image.fromarray(np.full((20, 30), colour, np.uint8)).save(tmp_path / name / 'x.png')
  how = {'mean': (0.0, 0.5, 0.0), 'std': (1.0, 0.5, 2.0), 'crop': 'central'}
  config = SQUARE.replace(num_classes=2, preprocess=Preprocessing(**how))
  _, images, labels = joined(DatasetImages(config, f'{tmp_path}/', 'train', '', 0), 8)
  assert images.shape == (2, 8, 8, 3)
  assert sorted(labels) == [0, 1]
  white, black = images[labels == 0], images[labels == 1]
  np.testing.assert_allclose(white.mean((0, 1, 2)), [1, 1, 0.5])
  np.testing.assert_allclose(black.mean((0, 1, 2)), [0, -1, 0])


@pytest.mark.parametrize(
  ('dataset', 'split', 'message'),
  [
    ('digts', 'test', r"^--dataset: there is no data set 'digts'; did you mean 'digits'"),
    ('digits', 'tset', r"^--split: 'tset' is not one of train, test"),
    ('./no/such', 'test', r"^--dataset: './no/such' is not a folder"),
    ('mnist', 'test', r"^--dataset: 'mnist' is not prepared.*export TFDS_DATA_DIR=/nowhere "),
  ],
)
def test_mistakes_are_told_by_the_names_of_the_flags(dataset, split, message):
  with pytest.raises(UsageError, match=message) as error:
    DatasetImages(DIGITS, dataset, split, '/nowhere', 0)
  assert '\n' not in str(error.value)


# Processes. The objects are the standard library's, so that the new process has little to import.


def test_an_object_in_another_process_answers():
  with Remote('a dict', dict, {'a': os.getpid()}) as remote:
    assert remote.call('get', 'a') == os.getpid() != remote.pid
    assert remote.call('get', 'b', 'none') == 'none'
  with pytest.raises(ProcessLookupError):
    os.kill(remote.pid, 0)


def test_a_process_that_dies_is_a_line_and_no_hang():
  with (
    Remote('killed', time.sleep, 100) as killed,
    Remote('left', os._exit, 3) as left,
    Remote('wrong', json.loads, '{planted') as wrong,
    Remote('mistaken', sides.torch_device, 'tpu') as mistaken,
  ):
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(UsageError, match=r'^killed: its process was killed.*smaller batch'):
      killed.call('anything')
    with pytest.raises(UsageError, match=r'^left: its process ended with exit code 3$'):
      left.call('anything')
    with pytest.raises(RuntimeError, match=r'^wrong:\nTraceback(.|\n)*JSONDecodeError: Expecting'):
      wrong.call('anything')
    with pytest.raises(UsageError, match=r'^JAX runs on tpu'):
      mistaken.call('anything')


def test_ctrl_c_ends_a_process_that_is_at_work():
  start = time.monotonic()
  with pytest.raises(KeyboardInterrupt), Remote('busy', time.sleep, 100) as remote:
    raise KeyboardInterrupt
  assert time.monotonic() - start < 50
  with pytest.raises(ProcessLookupError):
    os.kill(remote.pid, 0)
