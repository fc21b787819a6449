"""A run in this process: what it writes, when it stops, what moves its learning rate."""

import errno
import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
from accuracies import assert_accuracy
from conftest import tiny_config
from PIL import Image

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.run import directory
from vit_jax.run.checkpoints import Checkpointer, read_variables
from vit_jax.run.ending import NonFiniteError
from vit_jax.run.writers import read_history
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures('brief_ends')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run of 12 steps: (config, workdir, results)."""
  config = make_config()
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  return config, workdir, loop.train_and_evaluate(config, workdir)


def make_config(**changes):
  return tiny_config(**{'num_steps': 12, 'eval_every': 4, 'log_every': 2, **changes})


def logits_and_labels(experiment, params):
  """Of the test images, all in one batch."""
  source, _ = experiment.sets['test']
  records = [source[i] for i in range(len(source))]
  images = np.stack([r['image'] for r in records]).astype(np.float32) / 255
  logits = experiment.model.apply({'params': params}, (images - 0.5) / 0.5, train=False)
  return logits, [r['label'] for r in records]


def test_the_run_directory_is_complete(finished):
  _, workdir, results = finished
  names = {p.name for p in workdir.iterdir()}
  files = {'config.json', 'model.json', 'metrics.jsonl', 'results.json'}
  assert names == files | {'tensorboard', 'checkpoints', 'plots'}
  assert json.loads((workdir / 'results.json').read_text()) == results
  assert list((workdir / 'tensorboard').glob('events.out.tfevents.*'))


def test_metrics_are_written_when_they_are_due(finished):
  _, workdir, _ = finished
  history = read_history(workdir / 'metrics.jsonl')
  assert [line['step'] for line in history if 'train/loss' in line] == [2, 4, 6, 8, 10, 12]
  assert [line['step'] for line in history if 'test/loss' in line] == [4, 8, 12]
  assert history[-1].keys() == {'step', 'test/loss', 'test/accuracy', 'test/top5_accuracy'}


def test_results_are_those_of_the_last_checkpoint(finished):
  """Recomputed from the saved parameters."""
  config, workdir, results = finished
  experiment = Experiment(config)
  checkpointer = Checkpointer(workdir / 'checkpoints', read_only=True)
  state, meta = checkpointer.restore(experiment.initial_state())
  checkpointer.close()
  recomputed = logits_and_labels(experiment, state.params)
  assert_accuracy(results['final']['test/accuracy'], *recomputed)
  assert meta['best'] == {
    'step': results['best']['step'],
    'value': results['best']['test/accuracy'],
  }
  assert results['parameters'] == sum(x.size for x in jax.tree.leaves(state.params))
  assert results['training']['images_per_second'] > 0


def test_a_complete_run_says_what_is_asked_of_it_too_late(finished, capsys):
  config, workdir, _ = finished
  config = config.copy_and_resolve_references()
  config.update(metrics=('f1',), profile=(1, 2), reference={'test/accuracy': 0.5})
  before = (workdir / 'config.json').read_text()
  loop.train_and_evaluate(config, workdir)
  line = capsys.readouterr().out.splitlines()[1]
  assert line == (
    f'{workdir}: config.metrics, config.profile, config.reference: changed too late to have an '
    'effect; --mode=eval gives these metrics'
  )
  assert (workdir / 'config.json').read_text() == before


def test_curves_show_something(finished):
  _, workdir, _ = finished
  with Image.open(workdir / 'plots' / 'curves.png') as image:
    assert image.width > 900
    assert len(np.unique(np.asarray(image.convert('L')))) > 30


def test_the_saved_config_is_resolved(finished):
  _, workdir, _ = finished
  config = json.loads((workdir / 'config.json').read_text())
  assert config['dtype'] == 'float32'
  assert config['checkpoint_every'] == 4
  assert config['eval_batch_size'] == 64


def test_early_stopping_keeps_the_best(tmp_path):
  """With a learning rate of 0 nothing ever improves, so the first evaluation stays the best."""
  config = make_config(early_stopping_patience=2, num_steps=100)
  config.optimizer.learning_rate = 0.0
  results = loop.train_and_evaluate(config, tmp_path)
  assert results['stopped_early']
  assert results['step'] == 12
  assert results['best']['step'] == 4
  again = loop.train_and_evaluate(config, tmp_path)
  assert again['step'] == 12, 'a run that stopped early stays stopped'
  assert (tmp_path / 'checkpoints' / '4').is_dir()


def test_plateau_multiplies_the_learning_rate(tmp_path):
  config = make_config(num_steps=24)
  config.schedule.name = 'constant'
  config.optimizer.learning_rate = 1e-12  # nothing improves
  config.plateau.update(factor=0.5, patience=2)
  loop.train_and_evaluate(config, tmp_path)
  history = read_history(tmp_path / 'metrics.jsonl')
  rates = [line['learning_rate'] for line in history if 'learning_rate' in line]
  # Evaluations at 4 (sets the best), 8, 12 (two without improvement: halved), 16, 20 (again)
  expected = [1e-12] * 6 + [0.5e-12] * 4 + [0.25e-12] * 2
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  config = make_config(num_steps=40, checkpoint_every=4)
  config.schedule.name = 'constant'
  config.optimizer.update(name='sgd', learning_rate=1e30)
  with pytest.raises(
    NonFiniteError, match=r'^the (loss|gradient norm) of step \d+ is not'
  ) as error:
    loop.train_and_evaluate(config, tmp_path)
  assert 'nothing was saved yet' in str(error.value)


def test_the_last_good_checkpoint_is_kept(tmp_path):
  """The learning rate explodes after some good steps: linear warmup to an absurd peak."""
  config = make_config(num_steps=40)
  config.update(eval_every=2, log_every=2)
  config.optimizer.update(name='sgd', learning_rate=1e12)
  config.schedule.update(name='rsqrt', warmup_steps=30)
  config.augment.shift = 0
  with pytest.raises(NonFiniteError) as error:
    loop.train_and_evaluate(config, tmp_path)
  step = int(re.search(r'of step (\d+) is not finite', str(error.value))[1])
  kept = int(re.search(r'the checkpoint of step (\d+) is kept', str(error.value))[1])
  assert kept == (step - 1) // 2 * 2
  checkpointer = Checkpointer(tmp_path / 'checkpoints', read_only=True)
  state, _ = checkpointer.restore(Experiment(config).initial_state())
  checkpointer.close()
  assert state.step == kept
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_the_moving_average_is_evaluated(tmp_path):
  config = make_config(ema_decay=0.999, num_steps=48)
  config.optimizer.learning_rate = 0.01
  results = loop.train_and_evaluate(config, tmp_path)
  # After 48 steps the average is still almost the initial parameters, whose logits are 0.
  assert results['final']['test/loss'] == pytest.approx(np.log(10), abs=0.02)
  assert results['final']['train/loss'] < results['final']['test/loss'] - 0.3


def test_evaluate_reports_the_best(finished, capsys):
  config, workdir, results = finished
  metrics = loop.evaluate(config, workdir)
  assert metrics.pop('step') == results['best']['step']
  assert metrics == {k: v for k, v in results['best'].items() if k.startswith('test/')}
  assert 'test/accuracy' in capsys.readouterr().out


def test_bfloat16_trains_with_float32_parameters(tmp_path):
  config = make_config(dtype='bfloat16', num_steps=48)
  config.optimizer.learning_rate = 0.01
  results = loop.train_and_evaluate(config, tmp_path)
  assert results['dtype'] == 'bfloat16'
  assert results['final']['train/loss'] < 2.0
  state = Experiment(config).initial_state()
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype('float32')}


def test_a_test_loss_that_is_not_finite_is_never_the_best(tmp_path):
  """One step that ruins the parameters while its own loss and gradient are still finite."""
  config = make_config(num_steps=40, eval_every=1)
  config.schedule.name = 'constant'
  config.optimizer.update(name='sgd', learning_rate=1e38)
  with pytest.raises(NonFiniteError, match=r'^(test/loss after step 1|the .* of step \d+) is not'):
    loop.train_and_evaluate(config, tmp_path)
  assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()


def test_a_folder_in_which_nothing_was_saved_is_taken_over(tmp_path):
  config = make_config()
  config.schedule.name = 'constant'
  config.optimizer.update(name='sgd', learning_rate=1e38)
  with pytest.raises(NonFiniteError):
    loop.train_and_evaluate(config, tmp_path)
  corrected = make_config()
  assert loop.train_and_evaluate(corrected, tmp_path)['step'] == 12


def test_one_process_at_a_time(tmp_path):
  experiment = Experiment(make_config())
  in_use = pytest.raises(UsageError, match='another process is training in')
  with directory.claimed(tmp_path, experiment.config, experiment.model_config), in_use:
    loop.train_and_evaluate(make_config(), tmp_path)
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_evaluation_asks_only_for_what_the_checkpoint_depends_on(finished):
  config, workdir, _ = finished
  other = config.copy_and_resolve_references()
  other.update(eval_batch_size=60, num_steps=99, seed=5)
  best = logits_and_labels(Experiment(config), weights.load(workdir)[0]['params'])
  assert_accuracy(loop.evaluate(other, workdir)['test/accuracy'], *best)
  other.model.mlp_dim = 32
  with pytest.raises(UsageError, match=r'model\.mlp_dim 16 there, 32 now'):
    loop.evaluate(other, workdir)


def test_a_reference_may_change(finished, tmp_path):
  config, workdir, results = finished
  assert results['reference'] == {}
  saved = json.loads((workdir / 'config.json').read_text())
  saved['reference'] = {'test/accuracy': 0.8, 'source': 'another'}
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  changed = Experiment(config).config
  changed.reference.update({'test/accuracy': 0.7, 'source': 'a write-up'})
  directory.check(tmp_path, changed)
  changed.seed = 1
  with pytest.raises(UsageError, match=r'\(seed 0 there, 1 now\)'):
    directory.check(tmp_path, changed)


def test_a_field_that_an_older_version_lacked_does_not_matter(finished, tmp_path):
  config, workdir, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  saved = json.loads((workdir / 'config.json').read_text())
  del saved['plateau']['min_scale']
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(saved))
  assert loop.train_and_evaluate(config, tmp_path / 'run')['step'] == 12


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_steps': -5}, 'config.num_steps: -5 is not a whole number from 0 on'),
    (
      {'early_stopping_patience': -1},
      'config.early_stopping_patience: -1 is not a whole number',
    ),
    ({'plateau.patience': 0}, 'config.plateau.patience: 0 is not a whole number from 1 on'),
    ({'plateau.factor': 0.0}, 'config.plateau.factor: 0.0 is not a number above 0 and up to 1'),
    ({'ema_decay': 1.0}, r'config.ema_decay: 1.0 is not a number from 0 to below 1'),
    ({'seed': -1}, 'config.seed: -1 is not a whole number from 0 to'),
    ({'data.prefetch': 0}, 'config.data.prefetch: 0 is not a whole number from 1 to'),
    ({'batch_size': 15, 'augment.mixup_alpha': 0.2}, 'config.batch_size: 15 gives a device 15'),
    ({'data.std': (0.0,)}, 'config.data.std'),
    ({'optimizer.learning_rate': float('nan')}, 'config.optimizer.learning_rate: nan'),
    ({'optimizer.b1': 2.0}, r'config.optimizer.b1: 2.0 is not a number from 0 to below 1'),
    (
      {'model.representation_size': 0},
      'config.model.representation_size: 0 is not a whole number',
    ),
    ({'profile': (3, 2)}, r'config.profile: \(3, 2\) is not \(first, last\) of the steps 1 to '),
    ({'profile': (3, 9999)}, r'config.profile: \(3, 9999\) is not'),
    ({'writers': ('none',)}, "config.writers: 'none' is not one of tensorboard, wandb"),
    ({'augment.own': ('invert',)}, "config.augment.own: 'invert' is not written as"),
  ],
)
def test_mistakes_are_found_before_the_folder_is_made(tmp_path, changes, message):
  with pytest.raises(UsageError, match=message):
    loop.train_and_evaluate(make_config(**changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def run_until_a_disk_fills(config, workdir, monkeypatch, limit, after):
  """Trains, and lets no file grow beyond `limit` once `after` checkpoints are saved."""
  resource = pytest.importorskip('resource')
  limits, save, saved = resource.getrlimit(resource.RLIMIT_FSIZE), loop.Run.save, []

  def limited_save(run):
    save(run)
    run.checkpointer.wait()
    saved.append(run.step)
    if len(saved) == after:
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))

  with monkeypatch.context() as patch:
    patch.setattr(loop.Run, 'save', limited_save)
    try:
      with pytest.raises(UsageError) as error:
        loop.train_and_evaluate(config, workdir)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  return str(error.value)


def test_a_disk_that_fills_is_one_line_and_costs_no_bit(finished, tmp_path, monkeypatch, capfd):
  config, expected, _ = finished
  workdir = tmp_path / 'run'
  message = run_until_a_disk_fills(config, workdir, monkeypatch, limit=3000, after=2)
  assert message.startswith(f'--workdir: {workdir}')
  assert message.endswith('cannot be written (File too large); what was saved before is intact')
  assert '\n' not in message
  assert capfd.readouterr().err == ''
  assert max(directory.checkpoint_steps(workdir / 'checkpoints')) == 8
  results = loop.train_and_evaluate(config, workdir)
  assert 'going on after step 8' in capfd.readouterr().out
  assert results['final'] == json.loads((expected / 'results.json').read_text())['final']
  found, wanted = (read_variables(path / 'checkpoints') for path in (workdir, expected))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
  ('code', 'is_disk'), [(errno.ENOSPC, True), (errno.EISDIR, True), (errno.ENOENT, False)]
)
def test_only_what_a_disk_does_is_told_of_a_file_of_the_run(tmp_path, code, is_disk):
  error = OSError(code, os.strerror(code), str(tmp_path / 'notes.txt'))
  with pytest.raises(UsageError if is_disk else OSError), loop._disk_errors(tmp_path):
    raise error


def test_results_that_are_damaged_are_written_anew(finished, tmp_path, capsys):
  config, workdir, results = finished
  shutil.copytree(workdir, tmp_path / 'run')
  path = tmp_path / 'run' / 'results.json'
  path.write_text(path.read_text()[:99])
  again = loop.train_and_evaluate(config, tmp_path / 'run')
  assert f'{path}: damaged: not valid JSON' in capsys.readouterr().out
  assert json.loads(path.read_text()) == again
  assert again['final'] == results['final']
  assert again['best'] == results['best']


def test_a_damaged_meta_falls_back_and_is_set_aside(finished, tmp_path, capsys):
  """A flipped digit of the best value, say, which would make another checkpoint the best."""
  config, workdir, results = finished
  shutil.copytree(workdir, tmp_path / 'run')
  folder = tmp_path / 'run' / 'checkpoints'
  meta = folder / '12' / 'meta' / 'metadata'
  meta.write_text(re.sub(r'("value": 0\.)\d', r'\g<1>9', meta.read_text()))
  evaluated = loop.evaluate(config, tmp_path / 'run')
  out = capsys.readouterr().out
  assert f'{folder}/12: damaged checkpoint (ValueError: meta differs from its checksum)' in out
  assert evaluated['step'] < 12
  assert meta.exists(), 'evaluation changes nothing'
  again = loop.train_and_evaluate(config, tmp_path / 'run')
  assert 'going on after step 8' in capsys.readouterr().out
  assert (folder / 'damaged_12').is_dir()
  assert again['final'] == results['final']
  assert again['best'] == results['best']


def test_another_place_is_told_where_a_run_goes_on(tmp_path, capsys):
  config = make_config(num_steps=2, **{'schedule.name': 'constant'})
  for num_steps, resident, expected in ((2, 'yes', 0), (4, 'no', 1), (6, 'no', 0)):
    config.num_steps, config.data.resident = num_steps, resident
    loop.train_and_evaluate(config, tmp_path)
    out = capsys.readouterr().out
    line = (
      f'{tmp_path}: data resident before, streamed now: numbers may be added up in another order'
    )
    assert out.count(line) == out.count('another order') == expected


@pytest.mark.parametrize(
  'changes',
  [
    {'augment.mixup_alpha': 0.2, 'augment.cutmix_alpha': 1.0, 'loss.label_smoothing': 0.1,
     'grad_accum_steps': 2, 'ema_decay': 0.9, 'freeze': ('embedding',)},
    {'loss.name': 'sigmoid', 'model.remat': True, 'model.stride': (2, 2), 'dtype': 'bfloat16',
     'augment.random_erasing.probability': 0.5, 'model.stochastic_depth': 0.1},
  ],
)  # fmt: skip
def test_options_work_together(tmp_path, changes):
  changes = changes | {
    'num_steps': 200,
    'eval_every': 100,
    'log_every': 20,
    'optimizer.learning_rate': 0.01,
  }
  results = loop.train_and_evaluate(make_config(**changes), tmp_path)
  history = read_history(tmp_path / 'metrics.jsonl')
  losses = [line['train/loss'] for line in history if 'train/loss' in line]
  assert losses[-1] < 0.97 * losses[0]
  assert results['final']['test/accuracy'] > 0.15


@pytest.mark.parametrize(
  ('name', 'arg'), [('vit', 'Ti/4x2,digits'), ('token_learner', 'Ti/4,digits')]
)
def test_named_configs_train(tmp_path, name, arg):
  from configs import token_learner, vit

  config = {'vit': vit, 'token_learner': token_learner}[name].get_config(arg)
  config.model.update(hidden_size=16, mlp_dim=16, num_layers=2, num_heads=2)
  config.update(batch_size=64, num_steps=4)
  results = loop.train_and_evaluate(config, tmp_path)
  assert results['step'] == 4
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['model']['patches']['size'] == [4, 4 if arg == 'Ti/4,digits' else 2]
