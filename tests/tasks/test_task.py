"""What any task can ask of training and evaluation, with tasks made for it."""

import dataclasses
import functools
import shutil
import subprocess
import sys
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, tiny_config, virtual_devices

from vit_jax import models, tasks, weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.predictor import Predictor
from vit_jax.run.writers import read_history
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.task import Metric
from vit_jax.train import loop
from vit_jax.train import metrics as metrics_lib
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import put_on_devices


def mean_iou(matrix):
  """Of a confusion matrix, over the classes that there are."""
  hits, either = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
  return np.mean(hits[either > 0] / either[either > 0])


def recall(matrix):
  """Of each class, NaN of those without examples."""
  total = matrix.sum(1)
  return np.where(total > 0, np.diag(matrix) / np.maximum(total, 1), np.nan)


@dataclasses.dataclass(frozen=True)
class Confusion(Classification):
  """Classification with a confusion matrix."""

  @property
  def metrics(self):
    return super().metrics | {
      'mean_iou': Metric(unit='%', higher_is_better=True, value=mean_iou),
      'recall': Metric(unit='%', value=recall, per_class=True),
    }

  def loss(self, outputs, batch, rng, train):
    truth = jax.nn.one_hot(batch['label'], self.num_classes) * batch['weight'][:, None]
    guess = jax.nn.one_hot(outputs['logits'].argmax(-1), self.num_classes)
    matrix = (truth.T @ guess,)
    return super().loss(outputs, batch, rng, train) | {'mean_iou': matrix, 'recall': matrix}


@dataclasses.dataclass(frozen=True)
class Imitation(Classification):
  """Classification that also learns to agree with the moving average."""

  agreement: float = 1.0

  TEACHER: ClassVar[bool] = True

  @property
  def metrics(self):
    return super().metrics | {'distance': Metric()}

  def outputs(self, apply, batch, rng, train, teacher=None):
    return apply(batch['image']) | {'taught': teacher(batch['image'])['logits']}

  def loss(self, outputs, batch, rng, train):
    sums = super().loss(outputs, batch, rng, train)
    distance = jnp.square(outputs['logits'] - outputs['taught']).sum(-1)
    distance = (distance * batch['weight']).sum(), sums['loss'][1]
    return sums | {
      'loss': (sums['loss'][0] + self.agreement * distance[0], distance[1]),
      'distance': distance,
    }


@dataclasses.dataclass(frozen=True)
class Draws(Classification):
  """Classification that tells what it draws, and whether the batch is normalised."""

  @property
  def metrics(self):
    return super().metrics | {'drawn': Metric(), 'least': Metric()}

  def loss(self, outputs, batch, rng, train):
    weight = batch['weight']
    drawn = jax.vmap(jax.random.uniform)(rng)
    least = batch['image'].min(axis=(1, 2, 3))
    return super().loss(outputs, batch, rng, train) | {
      'drawn': ((drawn * weight).sum(), weight.sum()),
      'least': ((least * weight).sum(), weight.sum()),
    }


@dataclasses.dataclass(frozen=True)
class Shrinking(tasks.Task):
  """Makes features small, whatever the labels are."""

  LEARNS_CLASSES: ClassVar[bool] = False

  @property
  def metrics(self):
    return {'loss': Metric()}

  def loss(self, outputs, batch, rng, train):
    squares = jnp.square(outputs['logits']).mean(-1) * batch['weight']
    return {'loss': (squares.sum(), batch['weight'].sum())}


MADE = {'shrinking': Shrinking, 'confusion': Confusion, 'imitation': Imitation, 'draws': Draws}


@pytest.fixture(autouse=True)
def _made_tasks(monkeypatch):
  for name, task in MADE.items():
    monkeypatch.setitem(tasks.TASKS, name, task)


def evaluated(**changes):
  """The test metrics of the model before the first step."""
  experiment = Experiment(tiny_config(num_steps=1, **changes))
  variables = experiment.initial_state().eval_variables
  # A new head gives all images the same logits. With these, an image's best two are 0.0099 apart
  # or more, so that however they are computed, the guesses are the same.
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), variables)
  sums, rows = experiment.eval_feed('test')(put_on_devices(variables))
  assert rows is None, 'nothing asks for them'
  return sums, metrics_lib.values(experiment.task.metrics, sums)


def test_a_confusion_matrix_adds_up_exactly_over_batches(tmp_path):
  found = [
    evaluated(task='confusion', **{'eval_batch_size': size, 'data.resident': resident})
    for size in (360, 64, 7)
    for resident in ('yes', 'no')
  ]
  (matrix,) = found[0][0]['mean_iou']
  assert matrix.sum() == 360
  assert np.trace(matrix) / 360 == pytest.approx(found[0][1]['accuracy'])
  assert 0 < found[0][1]['mean_iou'] == mean_iou(matrix) < 1
  for sums, values in found[1:]:
    np.testing.assert_array_equal(sums['mean_iou'][0], matrix)
    assert values['mean_iou'] == found[0][1]['mean_iou']


def test_classes_that_do_not_occur_are_left_out():
  metrics, sums = {'recall': Metric(value=recall, per_class=True)}, (np.diag([3, 0, 1.0]),)
  expected = {'recall/cat': 1, 'recall/fox': 1}
  assert metrics_lib.values(metrics, {'recall': sums}, ('cat', 'dog', 'fox')) == expected
  assert metrics_lib.values(metrics, {'recall': sums}) == {}


def test_a_metric_of_each_class_is_not_monitored():
  with pytest.raises(UsageError, match=r"^config\.monitor: 'test/recall' is not one of .*mean_iou"):
    Experiment(tiny_config(task='confusion', num_steps=1, monitor='test/recall'))


def print_confusion():
  """In a process with several devices."""
  tasks.TASKS.update(MADE)
  print(evaluated(task='confusion', eval_batch_size=64)[0]['mean_iou'][0].tolist())


def test_a_confusion_matrix_adds_up_exactly_over_devices():
  code = 'import sys; sys.path[:0] = sys.argv[1:]; import test_task; test_task.print_confusion()'
  command = [sys.executable, '-c', code, ROOT / 'tests' / 'tasks', ROOT / 'tests', ROOT]
  out = subprocess.run(
    command, env=virtual_devices(8), cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout
  (matrix,) = evaluated(task='confusion')[0]['mean_iou']
  assert out == f'{matrix.tolist()}\n'


@pytest.mark.parametrize('resident', ['yes', 'no'])
def test_a_run_monitors_a_metric_of_arrays_and_resumes(tmp_path, resident):
  config = tiny_config(
    task='confusion',
    num_steps=6,
    eval_every=3,
    log_every=6,
    checkpoint_every=2,
    monitor='test/mean_iou',
    **{'data.resident': resident},
  )
  results = loop.train_and_evaluate(config, tmp_path / 'whole')
  assert results['metrics']['mean_iou']['unit'] == '%'
  assert 0 < results['final']['train/mean_iou'] < 1
  recalls = [results['best'][f'test/recall/{digit}'] for digit in range(10)]
  assert np.mean(recalls) == pytest.approx(results['best']['test/accuracy'], abs=0.05)
  assert not any(name.startswith('train/recall') for name in results['final'])
  shutil.copytree(tmp_path / 'whole', tmp_path / 'part')
  (tmp_path / 'part' / 'checkpoints' / '6').rename(tmp_path / 'gone')
  (tmp_path / 'part' / 'results.json').unlink()
  assert loop.train_and_evaluate(config, tmp_path / 'part')['final'] == results['final']
  assert (tmp_path / 'part' / 'checkpoints' / '4').exists()


def test_a_teacher_is_the_moving_average_and_has_no_gradient(tmp_path):
  """With agreement, the student stays closer to its average."""
  distances = []
  for agreement in (0.0, 100.0):
    config = tiny_config(
      task='imitation', num_steps=40, eval_every=40, log_every=10, ema_decay=0.99
    )
    config.optimizer.learning_rate = 0.01
    config.loss.agreement = agreement
    workdir = tmp_path / str(agreement)
    loop.train_and_evaluate(config, workdir)
    lines = [x for x in read_history(workdir / 'metrics.jsonl') if 'train/distance' in x]
    distances.append(lines[-1]['train/distance'])
    evaluation = read_history(workdir / 'metrics.jsonl')[-1]
    assert evaluation['test/distance'] == 0, 'in evaluation the two are the same'
  assert 0 < distances[1] < distances[0] / 2


def test_the_gradient_of_one_step_leaves_the_teacher_alone():
  """At the start teacher and student are the same, and so the distance's gradient is 0."""
  states = []
  for agreement in (0.0, 100.0):
    config = tiny_config(task='imitation', num_steps=1, ema_decay=0.9)
    config.loss.agreement = agreement
    experiment = Experiment(config)
    with experiment.train_feed() as feed:
      state, sums, _ = feed(put_on_devices(experiment.initial_state()), 0, 1)
    assert float(sums['distance'][0][0]) == 0
    states.append(jax.device_get(state.params))
  # Two programs, which may round differently.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *states)


def test_a_teacher_needs_a_moving_average():
  with pytest.raises(UsageError, match=r'^config\.ema_decay: 0\.0, but the task imitation'):
    Experiment(tiny_config(task='imitation'))


def test_training_and_evaluation_give_a_task_normalised_images_and_keys(tmp_path):
  experiment = Experiment(tiny_config(task='draws', num_steps=2, batch_size=64))
  with experiment.train_feed() as feed:
    _, sums, n = feed(put_on_devices(experiment.initial_state()), 0, 2)
  drawn = np.asarray(sums['drawn'][0][:n]) / 64
  assert ((drawn > 0.3) & (drawn < 0.7)).all()
  assert len(set(drawn.tolist())) == n, 'each step draws anew'
  for values in (metrics_lib.values({}, {k: [x[0] for x in v] for k, v in sums.items()}),):
    assert values['least'] == -1

  values = [evaluated(task='draws', eval_batch_size=size)[1] for size in (64, 64, 360)]
  streamed = evaluated(task='draws', eval_batch_size=64, **{'data.resident': 'no'})[1]
  assert values[0]['least'] == -1
  assert 0.3 < values[0]['drawn'] < 0.7
  assert values[0]['drawn'] == values[1]['drawn'] == streamed['drawn']
  assert values[2]['drawn'] == pytest.approx(values[0]['drawn'], rel=1e-6)


def test_a_task_without_classes_has_a_model_without_them(tmp_path):
  config = tiny_config(task='shrinking', loss={}, monitor='test/loss', num_steps=8, eval_every=4)
  loop.train_and_evaluate(config, tmp_path)
  losses = [e['test/loss'] for e in read_history(tmp_path / 'metrics.jsonl') if 'test/loss' in e]
  assert losses[1] < losses[0]
  assert 'classes' not in Experiment(config).describe()
  variables, model = weights.load(tmp_path)
  assert (model.num_classes, model.class_names) == (0, None)
  assert 'output_projection' not in variables['params']
  with pytest.raises(UsageError, match='no classes to predict'):
    Predictor(variables, model)


def test_the_task_of_a_model_is_that_of_its_head():
  fields = {'name': 'resnet18', 'num_filters': 2, 'num_classes': 3}
  plain = ModelConfig.from_dict(fields)
  headed = ModelConfig.from_dict(fields | {'head': {'name': 'localization'}})
  assert type(tasks.task_for(plain)) is Classification
  task = tasks.task_for(headed, name='sigmoid')
  assert (type(task), task.num_classes, task.name) == (tasks.TASKS['localization'], 3, 'sigmoid')


def test_outputs_are_named_in_one_place():
  assert Classification.name_outputs(3) == {'logits': 3}
  outputs = {'logits': 3, 'box': 4}
  assert tasks.find('localization').name_outputs(outputs) is outputs


def test_unknown_task_is_refused():
  with pytest.raises(FieldError, match=r"^task: .* did you mean 'classification'\?$"):
    tasks.build('clasification', {}, 3)


def test_every_head_of_a_task_is_there():
  assert {name for task in tasks.TASKS.values() for name in task.HEADS} <= models.HEADS.keys()
