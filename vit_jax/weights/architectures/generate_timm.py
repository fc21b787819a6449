"""Writes timm.json: `python -m vit_jax.weights.architectures.generate_timm`. It needs timm.

The file has the constructor arguments of timm's vision transformers, and what is done to the images
of their published weights. Classes (functions of layers) stand as {"name": ..., argument: value}.
"""

import dataclasses
import functools
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from absl import app

FILE = Path(__file__).with_name('timm.json')
MODULES = (
  'vision_transformer',
  'deit',
  'beit',
  'eva',
  'vision_transformer_relpos',
  'vision_transformer_sam',
  'vision_transformer_hybrid',
  'naflexvit',
)
# Of an entry point's arguments, what isn't the constructor's.
_BUILDING = (
  'pretrained_cfg',
  'pretrained_cfg_overlay',
  'pretrained_filter_fn',
  'pretrained_strict',
  'feature_cfg',
  'kwargs_filter',
)
# Of the metadata of published weights, what bears on numbers.
_METADATA = (
  'input_size',
  'num_classes',
  'mean',
  'std',
  'interpolation',
  'crop_pct',
  'crop_mode',
)


def generate() -> dict[str, Any]:
  """Returns what the file has.

  timm: its version.
  classes: class -> constructor argument -> default.
  metadata: of published weights, key -> default.
  architectures: name -> {'class': ..., argument: value}, of arguments that aren't the default.
  tags: architecture -> tag -> {key: value}, of metadata that isn't the default; timm's own default
    comes first.
  """
  import timm  # which nothing else here needs
  from timm.models import _pretrained, _registry

  classes, architectures, tags = {}, {}, {}
  for module in MODULES:
    for name in timm.list_models(module=module):
      cls, arguments = _constructor(importlib.import_module(f'timm.models.{module}'), name)
      defaults = classes.setdefault(cls.__name__, _defaults(cls))
      values = {n: _plain(value) for n, value in arguments.items()}
      differing = {n: v for n, v in values.items() if n not in defaults or v != defaults[n]}
      architectures[name] = {'class': cls.__name__, **differing}
      tags[name] = dict(_tags(_registry._model_default_cfgs[name]))
  published = {f.name: f.default for f in dataclasses.fields(_pretrained.PretrainedCfg)}
  return {
    'timm': timm.__version__,
    'classes': classes,
    'metadata': {name: _plain(published[name]) for name in _METADATA},
    'architectures': dict(sorted(architectures.items())),
    'tags': {name: cfgs for name, cfgs in sorted(tags.items()) if cfgs},
  }


def _constructor(module: Any, name: str) -> tuple[type, Mapping[str, Any]]:
  """Returns the class that an entry point of timm makes, and the arguments that it gives it."""
  calls = []

  def build(cls: type, variant: str, pretrained: bool = False, **kwargs: Any) -> None:
    del variant, pretrained
    calls.append((cls, kwargs))

  with mock.patch.object(module, 'build_model_with_cfg', build):
    vision = importlib.import_module('timm.models.vision_transformer')
    with mock.patch.object(vision, 'build_model_with_cfg', build):  # for deit's
      getattr(module, name)()
  ((cls, kwargs),) = calls
  kwargs = {name: value for name, value in kwargs.items() if name not in _BUILDING}
  cfg = kwargs.pop('cfg', None)  # of NaFlexVit, whose other arguments stand before it
  return cls, {**(dataclasses.asdict(cfg) if cfg else {}), **kwargs}


def _defaults(cls: type) -> dict[str, Any]:
  """Returns the arguments of a class and of its bases, with the defaults."""
  found = {}
  for base in reversed(cls.__mro__):
    if '__init__' in vars(base) and base.__module__.startswith('timm.'):
      for name, parameter in inspect.signature(base).parameters.items():
        if name == 'cfg':  # of NaFlexVit
          made = importlib.import_module(base.__module__).NaFlexVitCfg()
          found |= {n: _plain(v) for n, v in dataclasses.asdict(made).items()}
        elif parameter.default is not inspect.Parameter.empty:
          found[name] = _plain(parameter.default)
  return {n: v for n, v in found.items() if n not in ('device', 'dtype')}


def _tags(cfgs: Any) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (tag, metadata) of the weights of an architecture that are published."""
  for tag in cfgs.tags:
    if (cfg := cfgs.cfgs[tag]).has_weights:
      default = type(cfg)()
      stated = {name: getattr(cfg, name) for name in _METADATA}
      yield tag, {n: _plain(v) for n, v in stated.items() if v != getattr(default, n)}


def _plain(value: Any) -> Any:
  """Returns a value as JSON has it."""
  if isinstance(value, tuple | list):
    return [_plain(item) for item in value]
  if isinstance(value, functools.partial):
    given = {name: _plain(item) for name, item in value.keywords.items()}
    return {**_called(value.func), **given}
  if value is None or isinstance(value, str | int | float):
    return value
  return _called(value) if inspect.isclass(value) or inspect.isfunction(value) else _module(value)


def _called(value: Callable[..., Any]) -> dict[str, Any]:
  """Returns the name of a class or function, and the epsilon of a norm, which differs by class."""
  parameter = inspect.signature(value).parameters.get('eps')
  return {'name': value.__name__, **({} if parameter is None else {'eps': parameter.default})}


def _module(module: Any) -> dict[str, Any]:
  """Returns what a hybrid's convolutional network is made of."""
  if hasattr(module, 'stages'):  # ResNetV2
    return {'name': 'ResNetV2', 'layers': [len(stage.blocks) for stage in module.stages]}
  if hasattr(module, 'layer1'):  # ResNet
    stages = [stage for name, stage in module.named_children() if name.startswith('layer')]
    return {'name': 'ResNet', 'layers': [len(stage) for stage in stages]}
  if hasattr(module, 'pool'):  # a ResNetV2 without stages
    return {'name': 'ResNetV2', 'layers': []}
  convolutions = [child.conv for child in module.children()]
  return {
    'name': type(module).__name__,
    'channels': [conv.out_channels for conv in convolutions],
    'kernel_size': [conv.kernel_size[0] for conv in convolutions],
    'stride': [conv.stride[0] for conv in convolutions],
  }


def write(content: Mapping[str, Any], path: Path = FILE) -> None:
  """Writes the file, with a line for each class, architecture and tag."""
  sections = [f'{_json(name)}: {_section(value)}' for name, value in content.items()]
  path.write_text('{\n' + ',\n'.join(sections) + '\n}\n')


def _section(value: Any) -> str:
  if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
    return _json(value)
  return '{\n' + ',\n'.join(f'  {_json(n)}: {_json(item)}' for n, item in value.items()) + '\n}'


def _json(value: Any) -> str:
  return json.dumps(value, separators=(', ', ': '))


def main(argv: list[str]) -> None:
  """Writes the file."""
  del argv
  write(generate())


if __name__ == '__main__':
  app.run(main)
