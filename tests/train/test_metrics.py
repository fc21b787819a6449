"""`config.metrics` in runs: what they write, the user's own as monitor, resumption, mistakes."""

import json
import shutil
import types

import numpy as np
import pytest
from conftest import tiny_config
from sklearn.metrics import f1_score, recall_score

from vit_jax import tasks
from vit_jax.errors import FieldError, UsageError
from vit_jax.run import plots, results
from vit_jax.run.writers import read_history
from vit_jax.train import loop, metrics, predictions
from vit_jax.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures('brief_ends')

METRICS = ('recall', 'macro_f1', 'accuracy', 'user_metrics:cost', 'user_metrics:shares')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run of 8 steps: (config, workdir, results)."""
  changes = {'metrics': METRICS, 'monitor': 'test/cost', 'optimizer.learning_rate': 1e-2}
  config = tiny_config(num_steps=8, eval_every=4, log_every=4, **changes)
  workdir = tmp_path_factory.mktemp('metrics') / 'run'
  return config, workdir, loop.train_and_evaluate(config, workdir)


@pytest.fixture(scope='module')
def evaluated(finished):
  """What --mode=eval finds, and the predictions that it writes."""
  config, workdir, _ = finished
  path = workdir.parent / 'predictions.npz'
  return loop.evaluate(config, workdir, str(path)), dict(np.load(path))


def test_they_are_those_of_the_predictions_that_are_written(finished, evaluated):
  found, rows = evaluated
  best = {name: value for name, value in finished[2]['best'].items() if name.startswith('test/')}
  assert {'step': finished[2]['best']['step'], **best} == pytest.approx(found)
  label, predicted = rows['label'], rows['predicted']
  source, _ = Experiment(finished[0]).sets['test']
  assert rows['index'].tolist() == list(range(len(source)))
  assert label.tolist() == [record['label'] for record in source], 'in the order of the split'
  np.testing.assert_array_equal(predicted, rows['probabilities'].argmax(axis=1))
  np.testing.assert_array_equal(rows['probability'], rows['probabilities'].max(axis=1))
  assert best['test/accuracy'] == pytest.approx((label == predicted).mean())
  assert best['test/macro_f1'] == pytest.approx(f1_score(label, predicted, average='macro'))
  recalls = [best[f'test/recall/{c}'] for c in range(10)]
  assert recalls == pytest.approx(recall_score(label, predicted, average=None))
  shares = [best[f'test/shares/{c}'] for c in range(10)]
  assert shares == pytest.approx(rows['probabilities'].mean(axis=0))


def test_a_metric_of_the_users_own_is_monitored(finished):
  _, workdir, found = finished
  lines = [line for line in read_history(workdir / 'metrics.jsonl') if 'test/cost' in line]
  assert [line['step'] for line in lines] == [4, 8]
  assert found['best']['test/cost'] == min(line['test/cost'] for line in lines)
  assert found['metrics']['cost'] == {'unit': '', 'higher_is_better': False, 'label': 'cost'}


def test_they_are_in_the_table_and_the_curves(finished):
  _, workdir, found = finished
  table = results.table(found, workdir)
  assert f'test/macro_f1 {100 * found["final"]["test/macro_f1"]:.2f} %' in table
  assert 'best recall  0 ' in table
  figure = plots.curves(read_history(workdir / 'metrics.jsonl'), '', found['metrics'])
  labels = [axis.get_ylabel() for axis in figure.axes]
  assert labels == ['loss', 'accuracy (%)', 'macro F1 (%)', 'cost']


def test_a_resumed_run_finds_the_same_and_may_ask_for_more(finished, tmp_path):
  config, workdir, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '8')
  (tmp_path / 'run' / 'results.json').unlink()
  config = config.copy_and_resolve_references()
  config.metrics += ('balanced_accuracy',)
  loop.train_and_evaluate(config, tmp_path / 'run')
  (before, after) = (
    read_history(path / 'metrics.jsonl')[-1] for path in (workdir, tmp_path / 'run')
  )
  assert after.pop('test/balanced_accuracy') == pytest.approx(
    np.mean([after[f'test/recall/{c}'] for c in range(10)])
  )
  assert after == before


def classification(num_classes=4):
  return tasks.build('classification', {}, num_classes)


def further(*names, task=None):
  record = {'label': 1}
  return metrics.further(names, 'test/loss', task or classification(), record)


@pytest.mark.parametrize(
  ('name', 'problem'),
  [
    ('macro_f2', "'macro_f2' is not one of loss, .*; did you mean 'macro_f1'?"),
    ('hamming_loss', "'hamming_loss' is not one of"),  # of several labels
    (
      'user_metrics:costs',
      "'user_metrics:costs': user_metrics has no 'costs'; did you mean 'cost'",
    ),
    ('user_metrics:number', "'user_metrics:number' is not a function"),
    ('user_metrics:text', "'user_metrics:text' returned 'high', not a number or 4 numbers"),
    ('user_metrics:too_many', r"'user_metrics:too_many' returned array\(.*, not a number or 4 num"),
    ('user_metrics:accuracy', "'user_metrics:accuracy': there is another metric 'accuracy'"),
  ],
)
def test_mistakes_name_what_is_wrong(name, problem):
  with pytest.raises(FieldError, match=f'^metrics: {problem}') as error:
    further(name)
  assert '\n' not in str(error.value)


def test_a_task_without_classes_of_whole_examples_refuses_them():
  segmentation = tasks.build('segmentation', {}, 4)
  expected = "metrics: 'macro_f1', but the task has loss, mean_iou, pixel_accuracy, iou alone"
  with pytest.raises(FieldError, match=expected):
    further('iou', 'macro_f1', task=segmentation)


def test_a_run_knows_what_may_be_monitored():
  with pytest.raises(UsageError, match=r"^config\.monitor: 'test/recall' is not one of .*/cost;"):
    Experiment(tiny_config(metrics=('recall', 'user_metrics:cost'), monitor='test/recall'))
  assert [*Experiment(tiny_config(monitor='test/macro_f1')).further_metrics] == ['macro_f1']


def of_split(probabilities, needed, *names):
  """The metrics of rows alone; the task's own are 1."""
  sums = dict.fromkeys(classification().metrics, (1.0, 1.0))
  labels = np.zeros(len(probabilities), np.int32)  # all of class 'a'
  rows = {'probabilities': probabilities, 'label': labels}
  found = metrics.of_split(classification(), further(*names), (sums, rows), 'abcd', needed)
  return {name: value for name, value in found.items() if name not in sums}


@pytest.mark.parametrize('several', [False, True])
def test_a_function_is_tried_on_examples_of_every_class(several):
  seen = []

  def each(probabilities, labels):
    seen.append((probabilities, labels))
    return probabilities.mean(axis=0)

  assert metrics._users('m:each', each, 5, several).per_class
  ((probabilities, labels),) = seen
  assert (probabilities.shape, probabilities.dtype) == ((10, 5), np.float32)
  counts = labels.sum(axis=0) if several else np.bincount(labels)
  assert counts.tolist() == [2] * 5
  if not several:
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_what_is_not_defined_is_left_out_unless_it_is_monitored():
  right = np.eye(4, dtype=np.float32)[[0, 0, 1]]
  names = 'recall', 'roc_auc', 'user_metrics:undefined'
  assert of_split(right, 'accuracy', *names) == {'recall/a': pytest.approx(2 / 3)}
  assert np.isnan(of_split(right, 'roc_auc', *names)['roc_auc'])
  assert of_split(right * np.nan, 'roc_auc', *names) == {}, 'the loss tells'


def test_a_function_that_changes_its_mind_is_refused():
  answers = iter([0.5, np.ones(4)])
  module = types.ModuleType('fickle')
  module.fickle = lambda probabilities, labels: next(answers)
  found = metrics._users('fickle:fickle', module.fickle, 4, several=False)
  with pytest.raises(FieldError, match=r"'fickle:fickle' returned array\(.*, not a number$"):
    found.value(np.eye(4), np.arange(4))


@pytest.mark.parametrize(
  ('changes', 'path', 'problem'),
  [
    ({}, 'a.txt', r'--predictions: a\.txt does not end in \.csv, \.json, \.npz'),
    ({}, 'nowhere/a.csv', r'--predictions: .*a\.csv cannot be written \(No such file'),
    ({'task': 'simmim', 'loss': {}}, 'a.csv', 'the task simmim predicts no class of each example'),
  ],
)
def test_a_file_of_predictions_is_checked_first(changes, path, problem, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  experiment = types.SimpleNamespace(
    sets={'test': ([{'label': 1}], None)},
    task=tasks.build(changes.get('task', 'classification'), {}, 4),
    config=types.SimpleNamespace(**changes),
  )
  with pytest.raises(UsageError, match=problem), predictions.writer(experiment, path):
    pass


def test_paths_of_files_are_written(tmp_path):
  source = type('Folder', (list,), {'files': ('a/1.png', 'b/2.png')})([{'label': 1}])
  experiment = types.SimpleNamespace(
    sets={'test': (source, None)},
    task=classification(2),
    model_config=types.SimpleNamespace(class_names=('a', 'b')),
  )
  rows = {
    'probabilities': np.float32([[0.25, 0.75], [1, 0]]),
    'label': np.array([0, 1]),
    'predicted': np.array([1, 0]),
  }
  with predictions.writer(experiment, str(tmp_path / 'p.json')) as write:
    write(rows)
  first, second = json.loads((tmp_path / 'p.json').read_text())['predictions']
  assert (first['path'], first['label'], first['predicted']) == ('a/1.png', 'a', 'b')
  assert (second['path'], second['probability']) == ('b/2.png', 1.0)
