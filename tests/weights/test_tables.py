"""Which table a file is of, and that a table and a format are added without changing others."""

import sys

import numpy as np
import pytest
from small_vits import SQUARE, assert_same, random_variables

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files, tables

RESNET = ModelConfig.from_dict({'name': 'resnet18', 'num_filters': 2, 'num_classes': 3})
# What timm's tensors don't tell.
KNOWN = {'num_heads': 2, 'activation': 'gelu', 'classifier': 'token'}
FORMATS = {'timm': SQUARE, 'torchvision': RESNET, 'huggingface': SQUARE}


def saved_as(folder, format, name):
  """A state dict of a format under another name, which states nothing itself."""
  path = folder / f'{format}.safetensors'
  if format == 'huggingface':
    weights.save(random_variables(SQUARE), SQUARE, folder / 'hf', format=format)
    path = folder / 'hf' / 'model.safetensors'
  else:
    config = FORMATS[format]
    weights.save(random_variables(config), config, path, format=format)
  tensors, _ = files.parse_safetensors(path.read_bytes())
  renamed = folder / name
  if name.endswith('.safetensors'):
    renamed.write_bytes(files.format_safetensors(tensors))
  else:
    renamed.write_bytes(files.format_torch(tensors, renamed))
  return renamed


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'resnet18.pth', 'vit.safetensors'])
@pytest.mark.parametrize('format', FORMATS)
def test_tensors_tell_a_state_dict_whatever_its_name(tmp_path, format, name):
  if not name.endswith('.safetensors'):
    pytest.importorskip('torch')
  path = saved_as(tmp_path, format, name)
  assert weights.detect(path) == format
  if format == 'huggingface':
    with pytest.raises(UsageError, match=rf'^{path}: a Hugging Face file; give its folder'):
      weights.load(path)
  else:
    known = KNOWN if format == 'timm' else {}
    assert_same(weights.load(path, **known)[0], random_variables(FORMATS[format]))


def test_only_the_names_of_safetensors_are_read_to_detect_them(tmp_path, monkeypatch):
  path, sizes = saved_as(tmp_path, 'timm', 'm.safetensors'), []
  read = files.read
  monkeypatch.setattr(files, 'read', lambda path, size=-1: sizes.append(size) or read(path, size))
  assert weights.detect(path) == 'timm'
  assert 0 < max(sizes) < path.stat().st_size / 2
  assert min(sizes) > 0
  del sizes[:]
  weights.load(path, **KNOWN)
  assert sizes == [-1], 'a file is read once to load it'


@pytest.mark.parametrize('size', [0, 4, 2**63])
def test_headers_of_safetensors_that_are_none(tmp_path, size):
  path = tmp_path / 'm.safetensors'
  path.write_bytes(size.to_bytes(8, 'little') + b'[1]x')
  with pytest.raises(UsageError, match=r'cannot be read as a \.safetensors file') as error:
    weights.detect(path)
  assert '\n' not in str(error.value)


def test_tensors_of_two_models_are_one_line(tmp_path):
  both = {}
  for format in ('timm', 'torchvision'):
    path = saved_as(tmp_path, format, 'm.safetensors')
    both |= files.parse_safetensors(path.read_bytes())[0]
  path.write_bytes(files.format_safetensors(both))
  for function in (weights.detect, weights.load):
    with pytest.raises(FieldError, match=r'^format: .*m\.safetensors has the tensors of ') as error:
      function(path)
    assert "timm's VisionTransformer" in str(error.value)
    assert "torchvision's ResNet" in str(error.value)
    assert "give 'torchvision' or 'timm'" in str(error.value)
    assert '\n' not in str(error.value)
  with pytest.raises(UsageError, match=r'unexpected +layer1\.0\.bn1\.bias'):
    weights.load(path, format='timm', **KNOWN)


def test_two_names_of_one_tensor_are_one_line(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path, format='huggingface')
  path = tmp_path / 'model.safetensors'
  tensors, _ = files.parse_safetensors(path.read_bytes())
  old, new = 'vit.embeddings.position_embeddings', 'embeddings.position_embeddings'
  path.write_bytes(files.format_safetensors(tensors | {new: tensors[old] + 1}))
  with pytest.raises(UsageError, match=rf"^{path}: '.*' and '.*' are one tensor of ") as error:
    weights.load(tmp_path)
  assert f"'{old}'" in str(error.value)
  assert f"'{new}'" in str(error.value)
  assert '\n' not in str(error.value)


def test_tensors_of_no_model_are_one_line(tmp_path):
  path = tmp_path / 'm.safetensors'
  path.write_bytes(files.format_safetensors({'a': np.zeros(2, np.float32)}))
  for function in (weights.detect, weights.load):
    with pytest.raises(UsageError, match=rf'^{path}: ') as error:
      function(path)
    message = str(error.value)
    assert message.count('; not ') + 1 == message.count(": no '") == 3, 'of all tables a few'
    assert message.endswith(
      '; its tensors are a, ...; `python -m vit_jax.convert --list` prints what is read'
    )


@pytest.mark.parametrize(
  ('names', 'reason'),
  [
    (['a'], 'of no model here'),
    (
      ['conv1.weight', 'layer1.0.bn1.running_mean'],
      "not timm's ResNet: no 'layer1.0.conv2.weight'",
    ),
  ],
)
def test_a_model_whose_config_json_names_no_table_is_named(tmp_path, names, reason):
  tensors = dict.fromkeys(names, np.zeros(2, np.float32))
  (tmp_path / 'model.safetensors').write_bytes(files.format_safetensors(tensors))
  (tmp_path / 'config.json').write_text('{"architecture": "convnext_atto"}')
  with pytest.raises(UsageError) as error:
    weights.load(tmp_path)
  assert str(error.value) == (
    f"{tmp_path}/model.safetensors: architecture is 'convnext_atto'; {reason}; "
    f'its tensors are {", ".join(names)}, ...; '
    '`python -m vit_jax.convert --list` prints what is read'
  )
  (tmp_path / 'config.json').write_text('{"model_type": "gpt2"}')
  with pytest.raises(UsageError, match=r"config\.json: model_type is 'gpt2', which is not read; `"):
    weights.load(tmp_path)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(
    UsageError, match=r'config\.json: neither model_type nor architecture is there'
  ):
    weights.load(tmp_path)


TABLE = '''
from vit_jax.weights.rules import DENSE, Module
from vit_jax.weights.table import Table


class Plain(Table):
  """A ResNet without anything but its head, in a format of its own."""

  format, models, title, marks = 'plain', ('resnet18',), 'a plain ResNet', {'last.weight': 2}

  def describe(self, tensors, entries, source):
    if source.their_config:
      {}['a fault of this table']
    num_classes, width = tensors['last.weight'].shape
    return {'name': 'resnet18', 'num_filters': width // 8, 'num_classes': num_classes, **entries}

  def modules(self, config, names=()):
    return [Module('output_projection', 'last', DENSE)]


TABLES = (Plain(),)
'''


@pytest.fixture
def plain(tmp_path, monkeypatch):
  """A format, and a file with a table of it, beside the others."""
  (tmp_path / 'tables').mkdir()
  (tmp_path / 'tables' / 'plain.py').write_text(TABLE)
  monkeypatch.setattr(tables, '__path__', [*tables.__path__, str(tmp_path / 'tables')])
  tables.all_tables.cache_clear()

  class Format:
    """Text of numbers: tensors by name."""

    SUFFIXES, ON_HUB = ('.plain',), False
    config = None

    @staticmethod
    def holds(path):
      return files.has_suffix(path, ('.plain',))

    @classmethod
    def read(cls, path):
      with np.load(path) as archive:
        return weights.table.Source(path, dict(archive), their_config=cls.config)

    @staticmethod
    def write(path, tensors, config, table):
      with open(path, 'wb') as f:
        np.savez(f, **tensors)

  monkeypatch.setitem(weights.FORMATS, 'plain', Format)
  monkeypatch.setitem(weights.WRITABLE, 'plain', Format)
  yield Format
  tables.all_tables.cache_clear()
  sys.modules.pop('vit_jax.weights.tables.plain', None)


def test_a_table_is_a_file_and_a_format_a_module(tmp_path, plain):
  path, variables = tmp_path / 'm.plain', random_variables(RESNET)
  allow = r'(?!output_projection/).*'
  with pytest.raises(UsageError, match='tensors that do not fit'):
    weights.save(variables, RESNET, path, format='plain')
  weights.save(variables, RESNET, path, format='plain', allow=allow)
  assert weights.detect(path) == 'plain'
  with pytest.raises(UsageError, match=r'missing +bn1/bias'):
    weights.load(path)
  loaded, config = weights.load(path, allow=allow)
  assert config == RESNET
  head = variables['params']['output_projection']
  assert_same(loaded, {'params': {'output_projection': head}})
  with pytest.raises(UsageError, match="a model 'vit' has no place there; 'resnet18' have"):
    weights.save(random_variables(SQUARE), SQUARE, path, format='plain')


def test_a_fault_of_a_table_is_not_a_damaged_file(tmp_path, plain, monkeypatch):
  path = tmp_path / 'm.plain'
  weights.save(random_variables(RESNET), RESNET, path, format='plain', allow='(?!output).*')
  monkeypatch.setattr(plain, 'config', {'model_type': 'plain'})
  table = next(table for table in tables.all_tables() if table.format == 'plain')
  monkeypatch.setattr(type(table), 'owns_config', lambda self, config: True)
  with pytest.raises(KeyError, match='a fault of this table'):
    weights.load(path)


@pytest.mark.parametrize(
  ('tensor', 'feature'),
  [
    ('blocks.1.ls2.gamma', 'layer scale'),
    ('patch_embed.backbone.conv1.weight', 'a convolutional network before the patches'),
  ],
)
def test_what_a_state_dict_alone_has_is_named_and_the_architecture_asked_for(
  tmp_path, tensor, feature
):
  path = saved_as(tmp_path, 'timm', 'm.safetensors')
  tensors, _ = files.parse_safetensors(path.read_bytes())
  path.write_bytes(files.format_safetensors({**tensors, tensor: np.ones(8, np.float32)}))
  with pytest.raises(FieldError) as error:
    weights.load(path, **KNOWN)
  assert str(error.value) == f'architecture: {path} has {feature}; give what timm calls it'


def test_what_timm_has_and_a_model_here_has_not_is_named(tmp_path):
  fields = {'name': 'swin', 'num_classes': 3, 'image_size': (32, 32), 'window_size': (4,)}
  fields |= {'embed_dim': 4, 'depths': (1,), 'num_heads': (1,), 'patches': {'size': (4, 4)}}
  config, path = ModelConfig.from_dict(fields), tmp_path / 'm.safetensors'
  weights.save(random_variables(config), config, path, format='timm')
  tensors, metadata = files.parse_safetensors(path.read_bytes())
  tensors['layers.0.blocks.0.ls1.gamma'] = np.ones(4, np.float32)
  path.write_bytes(files.format_safetensors(tensors, vit_jax=metadata['vit_jax']))
  with pytest.raises(UsageError, match='safetensors: layer scale not expected; tensors that do'):
    weights.load(path)
