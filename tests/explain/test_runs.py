"""What pictures need of a run directory."""

import json

import image_files
import pytest
from explain.helpers import VIT

from vit_jax.errors import UsageError
from vit_jax.explain import runs
from vit_jax.models import ModelConfig


def write_config(folder, **data):
  entries = {'name': 'digits', 'test_split': 'test[:20]', 'dir': ''} | data
  (folder / 'config.json').write_text(json.dumps({'data': entries}))


def test_the_records_of_the_test_split_have_a_name(tmp_path):
  write_config(tmp_path)
  records, name = runs.test_split(tmp_path)
  assert name == 'digits, test[:20]'
  assert len(records) == 20
  assert records[0]['image'].shape == (8, 8, 1)


def test_a_folder_of_images_has_its_own_name(tmp_path):
  image_files.make_folder(tmp_path / 'birds')
  write_config(tmp_path, name='folder', test_split='test', dir=f'{tmp_path}/birds/')
  assert runs.test_split(tmp_path)[1] == 'birds, test'


def test_a_wrong_split_is_named_as_the_config_does(tmp_path):
  write_config(tmp_path, test_split='tset')
  with pytest.raises(UsageError, match=r'^config\.data\.test_split: '):
    runs.test_split(tmp_path)


@pytest.mark.parametrize('config', [{}, {'data': {'name': 'digits'}}, []])
def test_a_config_without_data_is_no_run(tmp_path, config):
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(
    UsageError, match=r'^--workdir: .* holds no run \(config.json names no data\)'
  ):
    runs.test_split(tmp_path)


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
