"""The splits of a run's data, as features and pictures read them."""

import json

import image_files
import pytest
from conftest import tiny_config

from vit_jax.errors import UsageError
from vit_jax.run import splits
from vit_jax.train.experiment import Experiment


def write_config(folder, **data):
  entries = {'name': 'digits', 'train_split': 'train', 'test_split': 'test[:20]', 'dir': ''} | data
  (folder / 'config.json').write_text(json.dumps({'seed': 0, 'data': entries}))


def test_the_records_of_the_test_split_have_a_name(tmp_path):
  write_config(tmp_path)
  records, name = splits.read_split(tmp_path, 'test')
  assert name == 'digits, test[:20]'
  assert len(records) == 20
  assert records[0]['image'].shape == (8, 8, 1)


@pytest.mark.parametrize('val_split', ['20%', 'test[20:30]'])
def test_what_is_trained_on_and_what_is_held_out_are_the_run_s(tmp_path, val_split):
  config = tiny_config(seed=3, **{'data.train_split': 'train[:50]', 'data.val_split': val_split})
  config.data.test_split = 'test[:20]'
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  for split, (source, _) in Experiment(config).sets.items():
    records, name = splits.read_split(tmp_path, split)
    assert name.startswith('digits, ')
    assert records.labels().tolist() == source.labels().tolist()
  assert splits.read_split(tmp_path, 'val')[1].startswith(f'digits, {val_split}')


def test_a_run_without_a_validation_split_has_none(tmp_path):
  write_config(tmp_path)
  with pytest.raises(UsageError, match=r'^--split: .* has no validation split$'):
    splits.read_split(tmp_path, 'val')


def test_a_folder_of_images_has_its_own_name(tmp_path):
  image_files.make_folder(tmp_path / 'birds')
  write_config(tmp_path, name='folder', test_split='test', dir=f'{tmp_path}/birds/')
  assert splits.read_split(tmp_path, 'test')[1] == 'birds, test'


def test_a_wrong_split_is_named_as_the_config_does(tmp_path):
  write_config(tmp_path, test_split='tset')
  with pytest.raises(UsageError, match=r'^config\.data\.test_split: '):
    splits.read_split(tmp_path, 'test')


@pytest.mark.parametrize('config', [{}, {'data': None}])
def test_a_config_without_data_is_no_run(tmp_path, config):
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UsageError, match=r' holds no run \(config.json names no data\)'):
    splits.read_split(tmp_path, 'test')


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('data.name', 5),
    ('data.dir', None),
    ('data.test_split', ['test']),
    ('data.val_split', 0.1),
    ('data.options', 'x'),
    ('seed', '0'),
  ],
)
def test_a_value_of_a_wrong_type_is_named(tmp_path, field, value):
  write_config(tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  group, _, name = field.rpartition('.')
  (config[group] if group else config)[name] = value
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UsageError, match=rf'config\.json: damaged: {field} is missing or of a wrong'):
    splits.read_split(tmp_path, 'test')
