"""What pictures need of a run directory."""

import json

import image_files
import pytest
from conftest import tiny_config
from explain.helpers import VIT

from vit_jax.errors import UsageError
from vit_jax.explain import runs
from vit_jax.models import ModelConfig
from vit_jax.train.experiment import Experiment


def write_config(folder, **data):
  entries = {'name': 'digits', 'train_split': 'train', 'test_split': 'test[:20]', 'dir': ''} | data
  (folder / 'config.json').write_text(json.dumps({'seed': 0, 'data': entries}))


def test_the_records_of_the_test_split_have_a_name(tmp_path):
  write_config(tmp_path)
  records, name = runs.read_split(tmp_path, 'test')
  assert name == 'digits, test[:20]'
  assert len(records) == 20
  assert records[0]['image'].shape == (8, 8, 1)


@pytest.mark.parametrize('val_split', ['20%', 'test[20:30]'])
def test_what_is_trained_on_and_what_is_held_out_are_the_run_s(tmp_path, val_split):
  config = tiny_config(seed=3, **{'data.train_split': 'train[:50]', 'data.val_split': val_split})
  config.data.test_split = 'test[:20]'
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  for split, (source, _) in Experiment(config).sets.items():
    records, name = runs.read_split(tmp_path, split)
    assert name.startswith('digits, ')
    assert records.labels().tolist() == source.labels().tolist()
  assert runs.read_split(tmp_path, 'val')[1].startswith(f'digits, {val_split}')


def test_a_run_without_a_validation_split_has_none(tmp_path):
  write_config(tmp_path)
  with pytest.raises(UsageError, match=r'^--split: .* has no validation split$'):
    runs.read_split(tmp_path, 'val')


def test_a_folder_of_images_has_its_own_name(tmp_path):
  image_files.make_folder(tmp_path / 'birds')
  write_config(tmp_path, name='folder', test_split='test', dir=f'{tmp_path}/birds/')
  assert runs.read_split(tmp_path, 'test')[1] == 'birds, test'


def test_a_wrong_split_is_named_as_the_config_does(tmp_path):
  write_config(tmp_path, test_split='tset')
  with pytest.raises(UsageError, match=r'^config\.data\.test_split: '):
    runs.read_split(tmp_path, 'test')


@pytest.mark.parametrize('config', [{}, {'data': {'name': 'digits'}}, []])
def test_a_config_without_data_is_no_run(tmp_path, config):
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(
    UsageError, match=r'^--workdir: .* holds no run \(config.json names no data\)'
  ):
    runs.read_split(tmp_path, 'test')


def test_a_run_of_an_earlier_version_had_options_of_other_tasks(tmp_path):
  config = ModelConfig.from_dict(VIT)
  assert runs.task_options(tmp_path, config) == {}
  (tmp_path / 'model.json').write_text('{}')
  (tmp_path / 'config.json').write_text('{"loss": {"name": "sigmoid", "box": "l1"}}')
  assert runs.task_options(tmp_path, config) == {'name': 'sigmoid'}
  (tmp_path / 'config.json').write_text('[]')
  with pytest.raises(UsageError, match=r'^--workdir: .* \(config\.json names no loss\)'):
    runs.task_options(tmp_path, config)


def test_curves_are_drawn_once_something_is_logged(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('')
  assert runs.curves(tmp_path) == 'nothing is logged yet'
  path.write_text('{"step": 2, "train/loss": 1.5}\n{"step": 4, "train/loss": 0.5}\n')
  figure = runs.curves(tmp_path)
  assert figure.get_suptitle() == f'Training of {tmp_path.name}'
  (line,) = figure.axes[0].lines
  assert line.get_xydata().tolist() == [[2, 1.5], [4, 0.5]]
