"""Runs with a validation split: it chooses, and the test split is evaluated once, at the end."""

import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config
from image_files import make_folder

from vit_jax.comparison import runs
from vit_jax.data import ArraySource, load_source, opening
from vit_jax.data.sources.held_out import Subset
from vit_jax.errors import UsageError
from vit_jax.run import results
from vit_jax.run.checkpoints import Checkpointer
from vit_jax.run.writers import read_history
from vit_jax.train import loop, step
from vit_jax.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures('brief_ends')


def make_config(**changes):
  """Of a run whose best evaluation on the validation split isn't its last."""
  fields = {'num_steps': 12, 'eval_every': 4, 'log_every': 4, 'data.val_split': '10%'}
  fields |= {'schedule.name': 'constant', 'optimizer.learning_rate': 0.2}
  return tiny_config(**fields | changes)


def run(workdir, **changes):
  return loop.train_and_evaluate(make_config(**changes), workdir)


@functools.cache
def initial_state():
  return Experiment(make_config()).initial_state()


def last_state(workdir):
  checkpointer = Checkpointer(workdir / 'checkpoints', read_only=True)
  state, meta = checkpointer.restore(initial_state())
  checkpointer.close()
  return state, meta


def assert_same_bits(workdir, other):
  (state, meta), (expected, expected_meta) = last_state(workdir), last_state(other)
  assert meta == expected_meta
  jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run: (workdir, results, the splits that were evaluated, and 'compiled')."""
  workdir, evaluated = tmp_path_factory.mktemp('validation') / 'run', []
  metrics_of, prepare = loop._metrics_of, step.prepare

  def counting(*args):
    evaluated.append('compiled')
    return prepare(*args)

  def recording(experiment, split, *args):
    evaluated.append(split)
    return metrics_of(experiment, split, *args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, '_metrics_of', recording)
    experiment = Experiment(make_config())
    patch.setattr(loop, 'Experiment', lambda *_: experiment)
    patch.setattr(step, 'prepare', counting)  # which is traced
    return workdir, run(workdir), evaluated


def test_the_test_split_is_evaluated_once_with_the_last_and_the_best(finished):
  workdir, found, evaluated = finished
  assert evaluated == ['val', 'compiled', 'val', 'val', 'test', 'test']
  history = read_history(workdir / 'metrics.jsonl')
  assert [line['step'] for line in history if 'val/loss' in line] == [4, 8, 12]
  assert [line['step'] for line in history if 'test/loss' in line] == [12]
  values = {line['step']: line['val/accuracy'] for line in history if 'val/loss' in line}
  assert found['best']['step'] == max(values, key=values.get) == 8
  assert found['monitor'] == 'val/accuracy'
  assert json.loads((workdir / 'config.json').read_text())['monitor'] == 'val/accuracy'
  for done, part in {12: found['final'], 8: found['best']}.items():
    assert part['val/accuracy'] == values[done]
    assert {'test/loss', 'test/accuracy', 'test/top5_accuracy'} < part.keys()
  assert found['final']['test/loss'] != found['best']['test/loss']


def test_evaluation_finds_the_same_of_the_best(finished):
  workdir, found, _ = finished
  again = loop.evaluate(make_config(), workdir)
  assert list(again)[1:] == [f'{s}/{n}' for s in ('val', 'test') for n in METRICS]
  assert again == {name: found['best'][name] for name in again}
  with pytest.raises(UsageError, match=r'\(seed 0 there, 1 now\)'):
    loop.evaluate(make_config(seed=1), workdir)
  alone = loop.evaluate(make_config(**{'data.val_split': ''}, seed=1), workdir)
  assert alone == {name: again[name] for name in again if not name.startswith('val/')}


METRICS = ('accuracy', 'loss', 'top5_accuracy')


def test_summary_and_comparison_say_which_is_which(finished):
  workdir, found, _ = finished
  table = results.table(found, workdir)
  rows = dict(re.split(r'\s{2,}', line.strip(), maxsplit=1) for line in table.splitlines())
  assert rows['final'].startswith('val/accuracy')
  assert 'test/' not in rows['final']
  for name in ('final', 'best'):
    assert f'test/accuracy {100 * found[name]["test/accuracy"]:.2f} %' in rows[f'{name}, test']
  assert rows['best, test'].endswith('(step 8)')
  compared = runs.read(str(workdir))['metrics']
  assert compared == {'test/accuracy': {'ours': found['best']['test/accuracy'], 'published': None}}


def test_shuffled_test_labels_choose_the_same_step_and_bits(finished, tmp_path, monkeypatch):
  workdir, found, _ = finished

  def load(name, split, *rest):
    source = load_source(name, split, *rest)
    if split == 'test':
      arrays = {'image': np.stack([record['image'] for record in source])}
      labels = np.random.default_rng(0).permutation(source.labels())
      source = ArraySource(arrays | {'label': labels}, source.class_names)
    return source

  monkeypatch.setattr(opening, 'load_source', load)
  shuffled = run(tmp_path / 'run')
  assert shuffled['best']['test/loss'] != found['best']['test/loss']
  for part in ('final', 'best'):
    assert without_test(shuffled[part]) == without_test(found[part])
  assert_same_bits(tmp_path / 'run', workdir)


def without_test(values):
  return {name: v for name, v in values.items() if not name.startswith('test/')}


def test_a_resumed_run_ends_with_the_same_bits(finished, tmp_path):
  workdir, found, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')
  (tmp_path / 'run' / 'results.json').unlink()
  again = run(tmp_path / 'run')
  assert (again['final'], again['best']) == (found['final'], found['best'])
  assert_same_bits(tmp_path / 'run', workdir)


def test_a_run_killed_in_its_last_evaluation_does_it_again(finished, tmp_path):
  """Killed after test metrics were written, but not the results."""
  workdir, found, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'results.json').unlink()
  again = run(tmp_path / 'run')
  assert (again['final'], again['best']) == (found['final'], found['best'])
  assert read_history(tmp_path / 'run' / 'metrics.jsonl') == read_history(workdir / 'metrics.jsonl')


def test_no_process_tests_alone_what_process_0_finds_complete(finished, monkeypatch):
  workdir, _, _ = finished
  monkeypatch.setattr(loop, '_is_main', lambda: False)
  monkeypatch.setattr(loop, '_agreed', lambda value: True)
  monkeypatch.setattr(loop.Run, 'test', None)
  assert run(workdir)['step'] == 12


def test_a_best_checkpoint_that_is_damaged_is_not_tested(finished, tmp_path, capsys):
  workdir, found, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'results.json').unlink()
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '8' / 'state')
  again = run(tmp_path / 'run')
  assert 'checkpoints/8: damaged checkpoint' in capsys.readouterr().out
  assert again['final'] == found['final']
  assert again['best'] == without_test(found['best'])


def test_early_stopping_goes_by_the_validation_split(tmp_path):
  rate = {'optimizer.learning_rate': 0.0}  # nothing improves
  found = run(tmp_path, num_steps=100, early_stopping_patience=1, **rate)
  assert (found['step'], found['best']['step'], found['stopped_early']) == (8, 4, True)
  assert found['best']['test/loss'] == found['final']['test/loss']


def test_evaluators_are_judged_on_the_validation_split():
  experiment = Experiment(make_config(monitor='knn/accuracy', **{'evaluators.knn.enabled': True}))
  train, held = (experiment.evaluators.sources[name] for name in ('train', 'test'))
  assert isinstance(held, Subset)
  assert (len(train), len(held)) == (1293, 144)
  expected = 'by knn/accuracy, on val (10% of train, stratified by class);'
  assert expected in experiment.describe()


def test_a_description_says_what_chooses():
  def line(**changes):
    return Experiment(make_config(**changes)).describe().splitlines()[3]

  assert line(**{'data.val_split': ''}) == (
    "the best checkpoint is chosen by test/accuracy, on test; --config.data.val_split='10%' would "
    'choose on a part of train, and spare test'
  )
  knn = {'evaluators.knn.enabled': True, 'monitor': 'knn/accuracy'}
  own = knn | {'evaluators.knn.data.test_split': 'train[:99]'}
  assert line(**own).endswith('is chosen by knn/accuracy, on train[:99]')
  assert line(**knn, **{'data.val_split': ''}).startswith(
    'the best checkpoint is chosen by knn/accuracy, on test; '
  )
  parts = {'data.train_split': 'train[:90%]', 'data.val_split': 'train[90%:]'}
  assert 'val/accuracy, on val (train[90%:]); test' in line(**parts)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'monitor': 'test/accuracy'}, r"^config\.monitor: 'test/accuracy', but .* give 'accuracy'"),
    ({'monitor': 'val/accuracy', 'data.val_split': ''},
     r"^config\.monitor: 'val/accuracy', but config\.data\.val_split is empty"),
    ({'monitor': 'val/acuracy'}, r"^config\.monitor: .* did you mean 'val/accuracy'\?$"),
    ({'data.val_split': '0%'}, r"^config\.data\.val_split: '0%' is not between"),
    ({'data.val_split': 'valid'}, r"^config\.data\.val_split: 'valid' is not one of"),
    ({'data.val_split': 'train[90%:]'}, r"^config\.data\.val_split: .* config\.data\.train_split="),
    ({'data.val_split': 'test[:9]'}, r"^config\.data\.val_split: .* config\.data\.test_split="),
    ({'seed': -1}, r'^config\.seed: -1 is not a whole number from 0 to'),
  ],
)  # fmt: skip
def test_mistakes(changes, message):
  with pytest.raises(UsageError, match=message):
    Experiment(make_config(**changes))


def test_a_folder_whose_val_stands_for_test_has_none_to_choose_by(tmp_path):
  root = make_folder(tmp_path, splits=('train', 'val'))
  folder = {'data.name': 'folder', 'data.dir': root, 'data.test_split': 'test'}
  with pytest.raises(UsageError, match=r"val_split: 'validation' has examples of .*test_split="):
    Experiment(make_config(**folder, **{'data.val_split': 'validation'}))
  experiment = Experiment(make_config(**folder, **{'data.val_split': '25%'}))
  assert [len(source) for source, _ in experiment.sets.values()] == [6, 2, 8]
  assert experiment.sets['val'][0].labels().tolist() == [0, 1]
