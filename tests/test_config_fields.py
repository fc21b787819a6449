"""The fields of a backbone and of a task in a configuration."""

import dataclasses

import flax.linen as nn
import pytest
from conftest import tiny_config
from ml_collections import ConfigDict

from vit_jax import config_fields, models, tasks
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import registry
from vit_jax.tasks.localization import Localization
from vit_jax.train import resolve


def test_values_that_do_not_fit_another_backbone_s_fields_are_its_defaults(monkeypatch):
  known = {
    'one': {'num_heads': 3, 'width': 8, 'rate': 0, 'name': 'one'},
    'other': {'num_heads': (3, 6), 'width': 16, 'rate': 0.5, 'name': 'other'},
  }
  monkeypatch.setattr(models, 'default_config', lambda name, **_: ConfigDict(known[name]))
  config = ConfigDict({'model': known['one'] | {'num_heads': 4, 'width': 32, 'rate': 1}})
  config_fields.set_model(config, 'other')
  expected = {'num_heads': (3, 6), 'width': 32, 'rate': 1.0, 'name': 'other'}
  assert config.model.to_dict() == expected


class _Wide(nn.Module):
  size: int = 4
  rate: float = 0.5


class _Deep(nn.Module):
  depth: int = 2
  rate: float = 0.1


def test_a_task_with_several_heads_takes_the_one_that_is_named(monkeypatch):
  heads = {'wide': _Wide, 'deep': _Deep}
  monkeypatch.setattr(registry, 'find', lambda table, name: heads[name])
  task = dataclasses.make_dataclass(
    'Task', [], bases=(Localization,), namespace={'HEADS': tuple(heads)}, frozen=True
  )
  monkeypatch.setitem(tasks.TASKS, 'several', task)
  config = ConfigDict({'model': {'name': 'vit'}})
  config_fields.set_task(config, 'several')
  assert config.model.head.to_dict() == {'name': 'wide', 'size': 4, 'rate': 0.5}
  config.model.head.rate = 0.2
  config_fields.set_head(config, 'deep')
  assert config.model.head.to_dict() == {'name': 'deep', 'depth': 2, 'rate': 0.2}
  config_fields.set_task(config, 'several')
  assert config.model.head.name == 'deep'
  config_fields.set_task(config, 'classification')
  assert 'head' not in config.model
  config_fields.set_task(config, 'several')
  with pytest.raises(FieldError, match=r"^name: 'flat' is not one of wide, deep"):
    config_fields.set_head(config, 'flat')


def test_another_task_s_head_is_refused():
  config = tiny_config()
  config_fields.set_task(config, 'localization')
  config.model.head.name = 'wide'
  with pytest.raises(UsageError, match=r"^config\.model\.head\.name: 'wide' is not one of local"):
    resolve.build_model(config, 3)
