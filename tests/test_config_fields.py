"""The fields of a backbone and of a task in a configuration."""

from ml_collections import ConfigDict

from vit_jax import config_fields, models


def test_values_that_do_not_fit_another_backbone_s_fields_are_its_defaults(monkeypatch):
  known = {
    'one': {'num_heads': 3, 'width': 8, 'rate': 0, 'name': 'one'},
    'other': {'num_heads': (3, 6), 'width': 16, 'rate': 0.5, 'name': 'other'},
  }
  monkeypatch.setattr(models, 'default_config', lambda name: ConfigDict(known[name]))
  config = ConfigDict({'model': known['one'] | {'num_heads': 4, 'width': 32, 'rate': 1}})
  config_fields.set_model(config, 'other')
  expected = {'num_heads': (3, 6), 'width': 32, 'rate': 1.0, 'name': 'other'}
  assert config.model.to_dict() == expected
