"""What pictures need of a run directory."""

import pytest
from explain.helpers import VIT

from vit_jax.errors import UsageError
from vit_jax.explain import runs
from vit_jax.models import ModelConfig


def test_a_run_of_an_earlier_version_had_options_of_other_tasks(tmp_path):
  config = ModelConfig.from_dict(VIT)
  assert runs.task_options(tmp_path, config) == {}
  (tmp_path / 'model.json').write_text('{}')
  (tmp_path / 'config.json').write_text('{"loss": {"name": "sigmoid", "box": "l1"}}')
  assert runs.task_options(tmp_path, config) == {'name': 'sigmoid'}
  (tmp_path / 'config.json').write_text('{"loss": 3}')
  with pytest.raises(UsageError, match=r'holds no run \(config\.json names no loss\)'):
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
