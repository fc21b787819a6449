"""Evaluators in runs: when they judge, what they read, and that resumed runs find the same."""

import dataclasses
import shutil
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from image_files import make_folder, pixels, save
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import tasks, weights
from vit_jax.data import load_source
from vit_jax.errors import UsageError
from vit_jax.run import plots
from vit_jax.run.writers import MetricWriter, read_history
from vit_jax.tasks import Metric
from vit_jax.train import evaluators, loop
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import put_on_devices

pytestmark = pytest.mark.usefixtures('brief_ends')

ON = {'evaluators.knn.enabled': True}


def make_config(**changes):
  return tiny_config(**{'num_steps': 12, 'eval_every': 4, 'log_every': 12, **ON, **changes})


@dataclasses.dataclass(frozen=True)
class Shrinking(tasks.Task):
  """Makes features small, whatever the labels are."""

  LEARNS_CLASSES: ClassVar[bool] = False

  @property
  def metrics(self):
    return {'loss': Metric(label='size')}

  def loss(self, outputs, batch, rng, train):
    squares = jnp.square(outputs['logits']).mean(-1) * batch['weight']
    return {'loss': (squares.sum(), batch['weight'].sum())}


@pytest.fixture(autouse=True)
def _made_task(monkeypatch):
  monkeypatch.setitem(tasks.TASKS, 'shrinking', Shrinking)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run: (config, workdir, results)."""
  config = make_config(
    **{
      'evaluators.linear.enabled': True,
      'evaluators.linear.every': 5,
      'evaluators.linear.max_steps': 5,
      'monitor': 'linear/accuracy',
      'optimizer.learning_rate': 1e-2,
    }
  )
  workdir = tmp_path_factory.mktemp('evaluators') / 'run'
  return config, workdir, loop.train_and_evaluate(config, workdir)


def column(history, name):
  return {line['step']: line[name] for line in history if name in line}


def test_each_judges_at_its_own_period_and_before_the_first_step(finished):
  history = read_history(finished[1] / 'metrics.jsonl')
  assert [*column(history, 'test/accuracy')] == [4, 8, 12]
  assert [*column(history, 'knn/accuracy')] == [0, 4, 8, 12]
  assert [*column(history, 'linear/accuracy')] == [0, 5, 10, 12]


def test_results_have_the_random_features_and_the_best_by_the_monitor(finished):
  _, workdir, results = finished
  found = column(read_history(workdir / 'metrics.jsonl'), 'linear/accuracy')
  assert results['start'].keys() == {'knn/accuracy', 'linear/accuracy'}
  assert results['start']['linear/accuracy'] == found.pop(0)
  assert results['best']['step'] == max(found, key=found.get)
  assert results['best']['linear/accuracy'] == max(found.values())
  assert (workdir / 'checkpoints' / str(results['best']['step'])).is_dir()
  assert {'test/accuracy', 'knn/accuracy', 'linear/accuracy'} <= results['final'].keys()
  assert results['metrics']['knn/accuracy']['unit'] == '%'


def test_they_are_drawn_in_the_panel_of_accuracy_and_told_to_tensorboard(finished):
  _, workdir, results = finished
  figure = plots.curves(read_history(workdir / 'metrics.jsonl'), '', results['metrics'])
  (panel,) = (axis for axis in figure.axes if axis.get_ylabel() == 'accuracy (%)')
  assert [line.get_label() for line in panel.lines] == ['train', 'test', 'knn', 'linear']
  assert list(panel.lines[2].get_xdata()) == [0, 4, 8, 12]
  (events,) = (workdir / 'tensorboard').iterdir()
  assert b'knn/accuracy' in events.read_bytes()


def test_the_accuracy_is_that_of_the_saved_model(finished):
  """Recomputed by scikit-learn, from features of images one reads by hand."""
  _, workdir, results = finished
  variables, config = weights.load(workdir)

  def features(split):
    source = load_source('digits', split)
    images = np.stack([record['image'] for record in source]) / 127.5 - 1
    labels = [record['label'] for record in source]
    found = config.model.apply(variables, images.astype(np.float32), method='features')
    return np.asarray(found.pooled, np.float64), labels

  classifier = KNeighborsClassifier(
    20, weights=lambda d: np.exp((1 - d) / 0.07), metric='cosine', algorithm='brute'
  )
  score = classifier.fit(*features('train')).score(*features('test'))
  metrics = loop.evaluate(finished[0], workdir)
  assert metrics['step'] == results['best']['step']
  # Of the 360 images two may be so close to a tie that other roundings settle them otherwise.
  assert 360 * metrics['knn/accuracy'] == pytest.approx(360 * score, abs=2.1)


def test_a_resumed_run_finds_the_same(finished, tmp_path):
  config, workdir, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  kept = tmp_path / 'run' / 'checkpoints'
  last = max(int(path.name) for path in kept.iterdir())
  shutil.rmtree(kept / str(last))
  (tmp_path / 'run' / 'results.json').unlink()
  results = loop.train_and_evaluate(config, tmp_path / 'run')

  def accuracies(path):
    lines = read_history(path / 'metrics.jsonl')
    return [
      {k: v for k, v in line.items() if 'images' not in k and 'peak' not in k} for line in lines
    ]

  assert accuracies(tmp_path / 'run') == accuracies(workdir)
  assert results['best'] == finished[2]['best']


def test_a_run_that_saved_nothing_writes_its_first_line_once(tmp_path):
  for _ in range(2):
    with MetricWriter(tmp_path, make_config(), start_step=0) as writer:
      writer.write(0, {'knn/accuracy': 0.5})
  with MetricWriter(tmp_path, make_config(), start_step=1):
    pass
  assert read_history(tmp_path / 'metrics.jsonl') == [{'step': 0, 'knn/accuracy': 0.5}]


def judged(**changes):
  """What evaluators find before the first step."""
  experiment = Experiment(make_config(**changes))
  variables = put_on_devices(experiment.initial_state().eval_variables)
  return experiment.evaluators(experiment.evaluators.periods, variables)


def test_a_task_without_classes_streamed_and_resident():
  changes = {'task': 'shrinking', 'loss': {}, 'monitor': 'test/loss', 'model.patches.size': (2, 2)}
  found = [judged(**changes, **{'data.resident': r}) for r in ('no', 'yes')]
  assert found[0] == found[1]
  assert 0.3 < found[0]['knn/accuracy'] < 1


def test_data_of_their_own_are_brought_to_the_size_that_the_model_takes(tmp_path):
  folder = make_folder(tmp_path, count=6)  # 4x4 pixels in colour, of which pictures are copies
  shutil.rmtree(tmp_path / 'test')
  shutil.copytree(tmp_path / 'train', tmp_path / 'test')
  knn = {'k': 1, 'data.name': 'folder', 'data.dir': folder}
  knn = {f'evaluators.knn.{name}': value for name, value in knn.items()}
  assert judged(**knn) == {'knn/accuracy': 1.0}


@pytest.mark.parametrize(
  ('run', 'own', 'expected'),
  [
    (('mnist', 'X', 'train[:9]'), ('', '', ''), ('mnist', 'X', '')),
    (('mnist', 'X', 'train[:9]'), ('', '', 'test'), ('mnist', 'X', 'test')),
    (('mnist', 'X', 'train[:9]'), ('cifar10', '', ''), ('cifar10', 'X', 'train')),
    (('folder', 'X', 'train[:9]'), ('mnist', '', ''), ('mnist', '', 'train')),
    (('folder', 'X', 'train[:9]'), ('', 'Y', ''), ('folder', 'Y', 'train')),
  ],
)
def test_what_is_not_given_is_the_runs_where_it_can_be(run, own, expected):
  config, names = make_config(), ('name', 'dir', 'train_split')
  config.data.update(dict(zip(names, run, strict=True)))
  config.evaluators.knn.data.update(dict(zip(names, own, strict=True)))
  reading = evaluators._Reading.of(config.data, config.evaluators.knn)
  assert (reading.name, reading.dir, reading.splits[0]) == expected


def test_features_that_are_not_finite_end_in_no_accuracy():
  experiment = Experiment(make_config())
  variables = jax.tree.map(lambda x: x * np.nan, experiment.initial_state().eval_variables)
  found = experiment.evaluators(['knn'], put_on_devices(variables))
  assert np.isnan(found['knn/accuracy'])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'every': -1}, 'every: -1 is not a whole number from 0 on'),
    ({'k': 0}, 'k: 0 is not a whole number from 1 on'),
    ({'k': 2000}, 'k: 2000, but the training split has 1437 examples'),
    ({'pooling': 'max'}, "pooling: 'max' is not one of head, token, mean"),
    ({'pooling': 'token'}, "pooling: 'token', but the model has no class token"),
    ({'layer': 1}, 'layer: 1 is not from 0 to 0, as the layers of the model'),
    ({'data.name': 'digit'}, 'data.name: '),
    ({'data.test_split': 'tset'}, 'data.test_split: '),
  ],
)
def test_mistakes_name_the_field(changes, message):
  changes = {f'evaluators.knn.{name}': value for name, value in changes.items()}
  with pytest.raises(UsageError, match=f'^config.evaluators.knn.{message}') as error:
    Experiment(make_config(**changes))
  assert '\n' not in str(error.value)


@pytest.fixture
def unlabelled(tmp_path):
  """The configuration of a run on images without labels."""
  for i in range(4):
    save(tmp_path / f'{i}.png', pixels(8, 8, 1, seed=i))
  data = {'data.name': 'folder', 'data.dir': str(tmp_path), 'data.test_split': 'train'}
  return {**data, 'task': 'shrinking', 'loss': {}, 'monitor': 'test/loss'}


def test_a_run_without_labels_is_judged_by_other_data(unlabelled):
  experiment = Experiment(make_config(**unlabelled, **{'evaluators.knn.data.name': 'digits'}))
  assert (experiment.num_classes, experiment.model_config.class_names) == (0, None)
  variables = put_on_devices(experiment.initial_state().eval_variables)
  assert 0.2 < experiment.evaluators(['knn'], variables)['knn/accuracy'] < 1


def test_data_without_labels_are_refused(unlabelled):
  with pytest.raises(UsageError, match=r'^config\.evaluators\.knn\.data: needs a label of each'):
    Experiment(make_config(**unlabelled))
  unlabelled |= {'task': 'classification', 'evaluators.knn.enabled': False}
  with pytest.raises(UsageError, match=r"^config\.task: 'classification' needs labels, and"):
    Experiment(make_config(**unlabelled))


def test_a_monitor_needs_its_evaluator():
  with pytest.raises(UsageError, match=r"config\.monitor: 'linear/accuracy' is not one of"):
    Experiment(make_config(monitor='linear/accuracy'))


@pytest.mark.parametrize(
  ('of_run', 'name', 'expected'),
  [
    ('mnist', 'cifar10', 'there'),
    ('my_data:load', 'mnist', ''),
    ('folder', 'my_data:load', 'there'),
  ],
)
def test_data_of_their_own_lie_where_the_run_s_do_if_they_are_of_its_sort(of_run, name, expected):
  changes = {'data.name': of_run, 'data.dir': 'there', 'evaluators.knn.data.name': name}
  config = make_config(**changes)
  assert evaluators._Reading.of(config.data, config.evaluators.knn).dir == expected
