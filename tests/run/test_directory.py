"""The run directory: which configurations are the same."""

import functools
import json
import re

import pytest
from conftest import tiny_config

from vit_jax import config_fields, experiment_config
from vit_jax.errors import UsageError
from vit_jax.models import Backbone
from vit_jax.models.vit import ViT
from vit_jax.run import directory
from vit_jax.train.experiment import Experiment

FORMER = r'(^|/)(bias|scale|pos_embedding|cls|probe)$'


@pytest.fixture
def there(tmp_path):
  """A folder with the config.json of a tiny run, with these changes."""

  def write(**changes):
    config = tiny_config(**changes)
    (tmp_path / 'config.json').write_text(config.to_json_best_effort())
    return tmp_path

  return write


@pytest.mark.parametrize(
  ('old', 'new', 'alike'),
  [
    (FORMER, ViT.NO_DECAY, True),
    (f'{FORMER}|^mask_token$', f'{ViT.NO_DECAY}|^mask_token$', True),
    (f'{FORMER}|^mask_token$', ViT.NO_DECAY, False),
    (FORMER, FORMER, True),
    (FORMER, Backbone.NO_DECAY, False),
    (Backbone.NO_DECAY, FORMER, False),
    (FORMER, '', False),
    (FORMER, 'bias', False),
    ('bias', Backbone.NO_DECAY, False),
    (None, 'None', False),
  ],
)
def test_the_former_default_of_no_decay_is_the_model_s(there, old, new, alike):
  workdir = there(**{'optimizer.no_decay': old})
  config = tiny_config(**{'optimizer.no_decay': new})
  if alike:
    directory.check(workdir, config)
  else:
    with pytest.raises(UsageError, match=r'optimizer\.no_decay '):
      directory.check(workdir, config)


def test_a_resnet_s_run_of_an_earlier_version_goes_on(there):
  config = tiny_config(**{'optimizer.no_decay': Backbone.NO_DECAY})
  config_fields.set_model(config, 'resnet18')
  former = there(**{'optimizer.no_decay': FORMER})
  content = json.loads((former / 'config.json').read_text())
  content['model'] = {'name': 'resnet18', 'num_filters': 64}
  (former / 'config.json').write_text(json.dumps(content))
  directory.check(former, config)
  config.optimizer.no_decay = 'bias'
  with pytest.raises(UsageError, match=r'optimizer\.no_decay '):
    directory.check(former, config)


def test_fields_that_one_side_lacks_do_not_matter(there):
  """As config.model.head and the options of another task, which earlier versions wrote."""
  workdir = there()
  content = json.loads((workdir / 'config.json').read_text())
  content['model']['head'] = {'hidden_size': 512}
  content['loss'] |= {'box': 'mse', 'class_divisor': 1.0}
  (workdir / 'config.json').write_text(json.dumps(content))
  directory.check(workdir, tiny_config())
  with pytest.raises(UsageError, match=r'model\.num_layers 1 there, 2 now'):
    directory.check(workdir, tiny_config(**{'model.num_layers': 2}))


def test_lists_and_tuples_are_the_same(there):
  directory.check(there(freeze=('a', 'b')), tiny_config(freeze=('a', 'b')))
  with pytest.raises(UsageError, match='freeze '):
    directory.check(there(freeze=('a', 'b')), tiny_config(freeze=('b',)))


def test_slices_of_folders_that_an_earlier_version_cut_are_refused(there):
  """It cut them without regard to classes: other images, some trained on, would be tested."""
  changes = {'data.name': 'folder', 'data.dir': 'x', 'data.train_split': 'train[:80%]'}
  workdir, config = there(**changes), tiny_config(**changes)
  directory.check(workdir, config)
  content = json.loads((workdir / 'config.json').read_text())
  del content['data']['val_split']
  (workdir / 'config.json').write_text(json.dumps(content))
  with pytest.raises(UsageError, match=r"data\.train_split='train\[:80%\]' was other examples; "):
    directory.check(workdir, config)
  with pytest.raises(UsageError, match='was other examples'):
    directory.check(workdir, config, only=('model',))


def check_as_former(workdir, without, **changes):
  """Checks a config against that of a run of a version that had not these fields."""
  content = json.loads((workdir / 'config.json').read_text())
  for name in without:
    *path, last = name.split('.')
    del functools.reduce(dict.__getitem__, path, content)[last]
  (workdir / 'config.json').write_text(json.dumps(content))
  given = tiny_config(**changes)
  resolved = Experiment(given).config
  unset = directory.unset_values(resolved, given, experiment_config.defaults(resolved))
  directory.check(workdir, resolved, unset=unset)


LATER = (
  'data.val_split',
  'data.sampling',
  'model.class_token',
  'loss.label_smoothing',
  'evaluators',
  'writers',
)


def test_fields_that_a_run_lacks_had_their_defaults(tmp_path):
  (tmp_path / 'config.json').write_text(Experiment(tiny_config()).config.to_json_best_effort())
  check_as_former(tmp_path, LATER, writers=())


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('data.val_split', '10%', "data.val_split '' there, '10%' now"),
    ('data.sampling', 'balanced', "data.sampling 'uniform' there, 'balanced' now"),
    ('model.class_token', True, 'model.class_token None there, True now'),
    ('loss.label_smoothing', 0.1, 'loss.label_smoothing 0.0 there, 0.1 now'),
    ('evaluators.knn.enabled', True, 'evaluators.knn.enabled False there, True now'),
  ],
)
def test_and_no_other_values(tmp_path, name, value, message):
  (tmp_path / 'config.json').write_text(Experiment(tiny_config()).config.to_json_best_effort())
  with pytest.raises(UsageError, match=re.escape(message)):
    check_as_former(tmp_path, LATER, **{name: value})


def test_how_a_run_is_followed_may_change(there):
  workdir = there(writers=('tensorboard',), profile=(1, 2))
  config = tiny_config(writers=('wandb',), profile=(), metrics=('f1',))
  directory.check(workdir, config)
  assert directory.changed_reports(workdir, config, {}) == ['metrics', 'profile', 'writers']


@pytest.mark.parametrize(('name', 'alike'), [('mnist', True), ('folder', False), ('a:b', False)])
def test_the_place_of_data_matters_where_it_decides_what_they_are(there, name, alike):
  workdir = there(**{'data.name': name, 'data.dir': 'here'})
  config = tiny_config(**{'data.name': name, 'data.dir': 'there'})
  if alike:
    directory.check(workdir, config)
  else:
    with pytest.raises(UsageError, match=r"data\.dir 'here' there, 'there' now"):
      directory.check(workdir, config)


@pytest.fixture(scope='module')
def experiment():
  return Experiment(tiny_config())


@pytest.mark.parametrize('left', ['', 'config.tmp', 'config.json', 'config.json model.tmp'])
def test_what_a_killed_start_left_is_taken_over(experiment, tmp_path, left):
  for name in left.split():
    (tmp_path / name).write_text('{"cut')
  with directory.claimed(tmp_path, experiment.config, experiment.model_config):
    pass
  assert {path.name for path in tmp_path.iterdir()} == {'config.json', 'model.json'}
  assert directory.read_section(tmp_path, 'data')['name'] == 'digits'


def test_other_files_are_not(experiment, tmp_path):
  (tmp_path / 'config.tmp').write_text('')
  (tmp_path / 'notes.txt').write_text('')
  with (
    pytest.raises(UsageError, match='is not empty and holds no run'),
    directory.claimed(tmp_path, experiment.config, experiment.model_config),
  ):
    pass


def test_a_checkpoint_that_was_being_written_is_none(experiment, there):
  """So that a run killed in it starts from its weights again, and may have another config."""
  workdir = there()
  for name in ('4.orbax-checkpoint-tmp', 'damaged_2'):
    (workdir / 'checkpoints' / name).mkdir(parents=True)
  assert not directory.has_checkpoints(workdir)
  config = experiment.config.copy_and_resolve_references()
  config.seed = 5
  with directory.claimed(workdir, config, experiment.model_config):
    assert directory.read_config(workdir)['seed'] == 5
  for name in ('10', '9'):
    (workdir / 'checkpoints' / name).mkdir()
  assert directory.checkpoint_steps(workdir / 'checkpoints') == [9, 10]


@pytest.mark.parametrize('name', ['', 'checkpoints', 'plots', 'tensorboard'])
def test_a_file_in_place_of_a_folder_is_named(tmp_path, name):
  path = tmp_path / 'run' / name
  path.parent.mkdir(exist_ok=True)
  path.write_text('')
  with pytest.raises(UsageError, match=rf'^--workdir: {path} is not a folder$'):
    directory.check_folders(tmp_path / 'run')


@pytest.mark.parametrize(
  ('content', 'problem'),
  [
    ('null', 'config.json: damaged: holds a NoneType, not an object'),
    ('{"seed": 0, ', 'config.json: damaged: not valid JSON'),
    ('{"data": [1]}', r'holds no run \(config.json names no data\)'),
    (None, 'config.json: cannot be read \\(Is a directory'),
  ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path, content, problem):
  path = tmp_path / 'config.json'
  path.mkdir() if content is None else path.write_text(content)
  with pytest.raises(UsageError, match=problem):
    directory.read_section(tmp_path, 'data')


def test_a_length_that_is_damaged_is_another_configuration(there):
  workdir = there(num_steps=4)
  path = workdir / 'config.json'
  path.write_text(path.read_text().replace('"num_steps": 4', '"num_steps": "4"'))
  with pytest.raises(UsageError, match=r"configuration \(num_steps '4' there, 5 now"):
    directory.check(workdir, tiny_config(num_steps=5), depending=lambda old, done: [])
