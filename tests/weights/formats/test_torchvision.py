"""torchvision's files: every bit kept, what the file says, and what is refused, without PyTorch."""

import json

import numpy as np
import pytest
from small_vits import SQUARE, assert_same, random_variables

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files
from vit_jax.weights.adapt import adapt

CONFIG = ModelConfig.from_dict(
  {
    'name': 'resnet18',
    'num_filters': 2,
    'num_classes': 3,
    'image_size': (224, 224),
    'preprocess': {
      'mean': (0.485, 0.456, 0.406),
      'std': (0.229, 0.224, 0.225),
      'crop': 'central',
      'crop_fraction': 0.875,
      'interpolation': 'bilinear',
      'rounding': 'nearest',
    },
  }
)
GREY = ModelConfig.from_dict(
  CONFIG.to_dict()
  | {
    'name': 'resnet34',
    'channels': 1,
    'image_size': (48, 32),
    'class_names': ['cat', 'dög', 'cat'],
    'preprocess': {'mean': (0.4567,), 'std': (0.3,), 'crop': 'resize'},
  }
)
MODELS = {
  'rgb': CONFIG,
  'grey': GREY,
  'without a head': CONFIG.replace(num_classes=0, preprocess=None),
}


def saved(folder, config=CONFIG, **changes):
  """Path of a file whose tensors are changed; None leaves one out."""
  path = folder / 'm.safetensors'
  weights.save(random_variables(config), config, path, format='torchvision')
  tensors, metadata = files.parse_safetensors(path.read_bytes())
  tensors = {n: t for n, t in (tensors | changes).items() if t is not None}
  path.write_bytes(files.format_safetensors(tensors, **metadata))
  return path


@pytest.mark.parametrize('model', MODELS)
def test_every_bit_and_word_is_kept(tmp_path, model):
  config, path = MODELS[model], tmp_path / 'm.safetensors'
  variables = random_variables(config)
  assert set(variables['batch_stats']['layer4_0']['downsample_bn']) == {'mean', 'var'}
  for _ in range(2):
    weights.save(variables, config, path, format='torchvision')
    assert weights.detect(path) == 'torchvision'
    loaded, its_config = weights.load(path)
    assert its_config == config
    assert_same(loaded, variables)
    variables, config = loaded, its_config


def test_a_bare_state_dict_is_one_of_imagenet(tmp_path):
  path = saved(tmp_path)
  tensors, _ = files.parse_safetensors(path.read_bytes())
  counters = {name for name in tensors if name.endswith('num_batches_tracked')}
  assert len(counters) == 20
  bare = {name: tensors[name] for name in tensors.keys() - counters}  # as very old files
  path.write_bytes(files.format_safetensors(bare))
  assert weights.load(path)[1] == CONFIG
  assert weights.load(path, image_size=(64, 96))[1] == CONFIG.replace(image_size=(64, 96))


def test_the_name_of_a_file_is_not_what_tells(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'vit.safetensors', format='timm')
  assert weights.detect(tmp_path / 'vit.safetensors') == 'timm'
  with pytest.raises(
    UsageError, match=r"not torchvision's ResNet: no 'conv1\.weight'; its tensors"
  ):
    weights.load(tmp_path / 'vit.safetensors', format='torchvision')
  assert weights.detect(saved(tmp_path)) == 'torchvision'
  assert_same(weights.load(saved(tmp_path), format='timm')[0], random_variables(CONFIG))
  with pytest.raises(UsageError, match=r'gone\.pth: no such file$'):
    weights.load(tmp_path / 'gone.pth')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'layer2.1.bn1.running_var': None}, r'missing +layer2\.1\.bn1\.running_var'),
    ({'fc.bias': np.zeros(4, np.float32)}, r'misshapen +fc\.weight'),
    ({'layer1.2.conv1.weight': np.zeros((2, 2, 3, 3), np.float32)}, r'of 3-2-2-2 basic blocks'),
    ({'layer1.0.conv3.weight': np.zeros(1, np.float32)}, r'of 2-2-2-2 bottleneck blocks is none'),
    (
      {'conv1.weight': np.zeros(3, np.float32)},
      r'ResNet: conv1\.weight has the shape \(3,\)',
    ),
    ({'conv1.bias': np.zeros(2, np.float32)}, r'unexpected +conv1\.bias'),
  ],
)
def test_tensors_that_do_not_fit(tmp_path, changes, message):
  with pytest.raises(UsageError, match=message):
    weights.load(saved(tmp_path, **changes))


def test_options_and_models_that_have_no_place(tmp_path):
  with pytest.raises(
    UsageError, match=r"^num_heads: 3, but .*m\.safetensors is torchvision's ResNet"
  ):
    weights.load(saved(tmp_path), num_heads=3)
  with pytest.raises(
    UsageError, match=r"a model 'vit' has no place there; .*'resnet18' and 'resnet34' and "
  ):
    weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'n.pth', format='torchvision')
  localizer = ModelConfig.from_dict(CONFIG.to_dict() | {'head': {'name': 'localization'}})
  with pytest.raises(UsageError, match='a model for localization has no place there'):
    weights.save(random_variables(CONFIG), localizer, tmp_path / 'n.pth', format='torchvision')
  for format in weights.WRITABLE.keys() - {'torchvision', 'timm', 'huggingface'}:
    with pytest.raises(UsageError, match="a model 'resnet18' has no place there"):
      weights.save(random_variables(CONFIG), CONFIG, tmp_path / 'n', format=format)
  text = json.dumps({'name': 'vit', 'num_heads': 2})
  tensors, _ = files.parse_safetensors(saved(tmp_path).read_bytes())
  data = files.format_safetensors(tensors, **{files.CONFIG_KEY: text})
  (tmp_path / 'm.safetensors').write_bytes(data)
  with pytest.raises(UsageError, match='not one of a model resnet18 or resnet34'):
    weights.load(tmp_path / 'm.safetensors')


def test_other_classes_mean_a_new_head_and_all_else_stays():
  variables, target = random_variables(CONFIG), CONFIG.replace(num_classes=7)
  fitted, notes = adapt(variables, CONFIG, target, 'm.pth')
  assert notes == ['head: new, 7 classes']
  params = {n: tree for n, tree in variables['params'].items() if n != 'output_projection'}
  assert_same(fitted, variables | {'params': params})
  fitted, notes = adapt(variables, CONFIG, CONFIG, 'm.pth')
  assert not notes
  assert_same(fitted, variables)
  with pytest.raises(UsageError, match=r'misshapen +conv1/kernel +7x7x3x2 +7x7x1x2'):
    adapt(variables, CONFIG, CONFIG.replace(channels=1, preprocess=None), 'm.pth')
