"""Hybrids with random weights against transformers, timm and PyTorch: there and back."""

import functools
import json
import re

import jax
import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  before transformers
import transformers
from small_vits import assert_same, logits, random_variables
from torch.nn import functional

from vit_jax import models, weights
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

FIELDS = {
  'name': 'hybrid',
  'hidden_size': 16,
  'mlp_dim': 24,
  'num_layers': 2,
  'num_heads': 2,
  'patches': {'size': (1, 1)},
  'classifier': 'token',
  'num_classes': 5,
}
# What no tensor of timm tells.
TOKEN = {'activation': 'gelu_exact', 'classifier': 'token'}
# Units of the ResNet, patches, images; of the last, sides that nothing divides.
SIZES = [
  ((1, 2), 1, (32, 32)),
  ((2, 1, 1), 1, (33, 63)),
  ((), 2, (24, 40)),
]


def config_of(num_layers, patch, size, **more):
  resnet = {'num_layers': num_layers, 'width_factor': 0.5}
  patches = {'size': (patch, patch)}
  fields = {**FIELDS, 'resnet': resnet, 'patches': patches, 'image_size': size}
  return ModelConfig.from_dict(fields | more)


def images_of(size):
  return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def to_torch(images):
  return torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())


def assert_close(ours, theirs):
  assert np.abs(theirs).max() > 0.1
  assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def randomized(model, seed=0):
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
  return model.eval()


def as_timms_resnet(name):
  """The name in timm of a tensor of transformers' BitModel."""
  name = name.replace('embedder.convolution.', 'stem.conv.').replace('embedder.norm.', 'stem.norm.')
  name = re.sub(r'encoder\.stages\.(\d+)\.layers\.', r'stages.\1.blocks.', name)
  return f'patch_embed.backbone.{name}'


@pytest.mark.parametrize(('num_layers', 'patch', 'size'), SIZES[:2])
def test_transformers_resnet_and_vit_on_it_agree(tmp_path, num_layers, patch, size):
  """Its BitModel of bottlenecks gives maps to its ViT, whose images they are."""
  hidden_sizes = [128 * 2**i for i in range(len(num_layers))]
  resnet = transformers.BitConfig(
    embedding_size=32,
    hidden_sizes=hidden_sizes,
    depths=list(num_layers),
    layer_type='bottleneck',
    global_padding='SAME',
    embedding_dynamic_padding=True,
  )
  resnet = randomized(transformers.BitModel(resnet))
  images = images_of(size)
  with torch.inference_mode():
    maps = resnet(to_torch(images)).last_hidden_state
  vit = transformers.ViTConfig(
    num_channels=hidden_sizes[-1],
    image_size=list(maps.shape[2:]),
    patch_size=patch,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_labels=5,
    layer_norm_eps=1e-6,
  )
  vit = randomized(transformers.ViTForImageClassification(vit), seed=1)
  with torch.inference_mode():
    expected = vit(maps).logits.numpy()

  vit.save_pretrained(tmp_path / 'vit')
  weights.save(*weights.load(tmp_path / 'vit'), tmp_path / 'vit.safetensors', format='timm')
  tensors, _ = files.parse_safetensors((tmp_path / 'vit.safetensors').read_bytes())
  tensors |= {as_timms_resnet(n): t.numpy() for n, t in resnet.state_dict().items()}
  (tmp_path / 'hybrid.safetensors').write_bytes(files.format_safetensors(tensors))
  variables, config = weights.load(
    tmp_path / 'hybrid.safetensors', num_heads=2, image_size=size, **TOKEN
  )
  assert config.backbone.resnet == {'num_layers': num_layers, 'width_factor': 0.5}
  assert_close(logits(variables, config, images), expected)


def timm_model(num_layers, patch, size):
  pytest.importorskip('timm', exc_type=ImportError)
  from timm.layers import HybridEmbed, StdConv2dSame
  from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
  from timm.models.vision_transformer import VisionTransformer

  conv = functools.partial(StdConv2dSame, eps=1e-8)
  common = {'stem_type': 'same', 'preact': False, 'conv_layer': conv}
  if num_layers:
    resnet = ResNetV2(num_layers, num_classes=0, global_pool='', width_factor=0.5, **common)
  else:
    resnet = create_resnetv2_stem(3, 32, **common)
  return randomized(
    VisionTransformer(
      img_size=size,
      patch_size=patch,
      num_classes=5,
      embed_dim=16,
      depth=2,
      num_heads=2,
      mlp_ratio=1.5,
      embed_layer=functools.partial(HybridEmbed, backbone=resnet),
    )
  )


@pytest.mark.parametrize(('num_layers', 'patch', 'size'), SIZES)
def test_timm_agrees_and_takes_it_back(tmp_path, num_layers, patch, size):
  model = timm_model(num_layers, patch, size)
  torch.save(model.state_dict(), tmp_path / 'theirs.pth')
  assert weights.detect(tmp_path / 'theirs.pth') == 'timm'
  variables, config = weights.load(tmp_path / 'theirs.pth', num_heads=2, image_size=size, **TOKEN)
  expected_config = config_of(num_layers, patch, size, numerics='timm', activation='gelu_exact')
  assert config == expected_config
  images = images_of(size)
  with torch.inference_mode():
    expected = model(to_torch(images)).numpy()
  assert_close(logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours.pth', format='timm')
  back = torch.load(tmp_path / 'ours.pth')['state_dict']
  assert back.keys() == model.state_dict().keys()
  for name, tensor in model.state_dict().items():
    torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)
  again, its_config = weights.load(tmp_path / 'ours.pth')
  assert_same(again, variables)
  assert its_config == config


@pytest.mark.parametrize(
  ('name', 'size'),
  [
    ('vit_tiny_r_s16_p8_224', 'R+Ti/16'),
    ('vit_small_r26_s32_224', 'R26+S/32'),
    ('vit_base_r50_s16_224', 'R50+B/16'),
    ('vit_large_r50_s32_224', 'R50+L/32'),
  ],
)
def test_published_sizes_have_timms_names(tmp_path, name, size):
  """And a file says which model it is, images and heads too."""
  pytest.importorskip('timm', exc_type=ImportError)
  import timm

  from vit_jax.models import hybrid
  from vit_jax.weights import rules
  from vit_jax.weights.table import Source, variable_shapes
  from vit_jax.weights.tables.hybrid import TimmHybrid

  with torch.device('meta'):
    theirs = timm.create_model(name, num_classes=7).state_dict()
  table = TimmHybrid()
  tensors = {table.canonical(n): np.broadcast_to(0.0, t.shape) for n, t in theirs.items()}
  source = Source(tmp_path, tensors)
  config = ModelConfig.from_dict(table.describe(tensors, TOKEN, source))
  fields = hybrid.parse(size) | {'classifier': 'token', 'activation': 'gelu_exact'}
  expected = models.build({'name': 'hybrid', 'numerics': 'timm', **fields}, num_classes=7)
  ours = config.backbone.config()
  assert ours == {**expected.config(), **{k: ours[k] for k in ('dropout_rate', 'class_token')}}
  assert (config.image_size, config.channels) == ((224, 224), 3)
  shapes = variable_shapes(config)
  found = {
    rule.theirs: rule.their_shape(shapes)
    for rule in rules.expand(table.modules(config))
    if shapes.keys() >= set(rule.ours)
  }
  assert found == {n: t.shape for n, t in tensors.items()}


def resnet_by_torch(params, images, num_layers, standardize, epsilon, root_epsilon):
  """models_resnet.py of vision_transformer, from our parameters: the last map, [B, h, w, C]."""

  def same(x, size, stride, value):
    height, width = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])
    padding = (width // 2, width - width // 2, height // 2, height - height // 2)
    return functional.pad(x, padding, value=value)

  def conv(x, p, stride=1):
    kernel = torch.from_numpy(p['kernel'].transpose(3, 2, 0, 1).copy())
    kernel = kernel - kernel.mean(dim=(1, 2, 3), keepdim=True)
    variance = kernel.square().mean(dim=(1, 2, 3), keepdim=True)
    return functional.conv2d(
      same(x, kernel.shape[-1], stride, 0.0), kernel / standardize(variance), stride=stride
    )

  def norm(x, p, epsilon=epsilon):
    scale, bias = torch.from_numpy(p['scale']), torch.from_numpy(p['bias'])
    return functional.group_norm(x, 32, scale, bias, epsilon)

  x = conv(to_torch(images), params['conv_root'], 2)
  x = torch.relu(norm(x, params['gn_root'], root_epsilon))
  x = functional.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
  for stage, depth in enumerate(num_layers, start=1):
    for unit in range(1, depth + 1):
      p, stride = params[f'block{stage}'][f'unit{unit}'], 2 if stage > 1 and unit == 1 else 1
      y = torch.relu(norm(conv(x, p['conv1']), p['gn1']))
      y = torch.relu(norm(conv(y, p['conv2'], stride), p['gn2']))
      y = norm(conv(y, p['conv3']), p['gn3'])
      if 'conv_proj' in p:
        x = norm(conv(x, p['conv_proj'], stride), p['gn_proj'])
      x = torch.relu(x + y)
  return x.numpy().transpose(0, 2, 3, 1)


# As their code has them; filters are small here, so that these numbers count.
NUMERICS = {
  'vision_transformer': (lambda v: torch.sqrt(v) + 1e-5, 1e-6, 1e-6),
  'timm': (lambda v: torch.sqrt(v + 1e-8), 1e-5, 1e-5),
  'scenic': (lambda v: torch.sqrt(v + 1e-10), 1e-4, 1e-6),
}


@pytest.mark.parametrize('numerics', NUMERICS)
def test_the_small_numbers_are_those_of_each_library(numerics):
  size, (num_layers, patch, _) = (29, 40), SIZES[0]
  config = config_of(num_layers, patch, size, numerics=numerics)
  rng, flat = np.random.default_rng(0), models.flatten(random_variables(config))
  for name in flat:
    if re.search(r'(^|/)conv\w+/', name):
      flat[name] = rng.normal(size=flat[name].shape).astype(np.float32) * 1e-4
  variables, images = models.unflatten(flat), images_of(size)
  apply = functools.partial(
    config.model.apply, capture_intermediates=lambda module, _: module.name == 'embedding'
  )
  captured = jax.jit(lambda v, x: apply(v, x)[1]['intermediates']['embedding'])(variables, images)
  (ours,) = captured['__call__']

  def expected(library):
    maps = resnet_by_torch(variables['params'], images, num_layers, *NUMERICS[library])
    return maps @ flat['embedding/kernel'][0, 0] + flat['embedding/bias']

  assert_close(np.asarray(ours), expected(numerics))
  for other in NUMERICS.keys() - {numerics}:
    with pytest.raises(AssertionError):
      assert_close(np.asarray(ours), expected(other))


PUBLISHED = {
  'conv_root/kernel',
  'gn_root/scale',
  'block1/unit1/conv_proj/kernel',
  'block1/unit1/gn_proj/bias',
  'block2/unit2/conv3/kernel',
  'block2/unit2/gn3/scale',
  'embedding/kernel',
  'cls',
  'Transformer/posembed_input/pos_embedding',
  'Transformer/encoderblock_1/LayerNorm_2/scale',
  'head/bias',
}


@pytest.mark.parametrize(('num_layers', 'patch', 'size'), SIZES)
def test_google_s_files(tmp_path, num_layers, patch, size):
  config = config_of(num_layers, patch, size)
  variables = random_variables(config)
  weights.save(variables, config, tmp_path / 'ours.npz', format='augreg')
  again, its_config = weights.load(tmp_path / 'ours.npz')
  assert its_config == config
  assert_same(again, variables)
  with np.load(tmp_path / 'ours.npz') as archive:
    tensors = {name: archive[name] for name in archive.files}
  if num_layers == (1, 2):
    assert tensors.keys() >= PUBLISHED
  old = {n: t[None, None, None] if '/gn' in f'/{n}' else t for n, t in tensors.items()}
  np.savez(tmp_path / 'old.npz', **old)
  assert weights.detect(tmp_path / 'old.npz') == 'augreg'
  known = {} if size[0] == size[1] else {'image_size': size}
  again, its_config = weights.load(tmp_path / 'old.npz', **known)
  assert its_config == config
  assert_same(again, variables)


@pytest.mark.parametrize(('num_layers', 'patch', 'size'), SIZES)
def test_timm_reads_our_npz(tmp_path, num_layers, patch, size):
  model, config = timm_model(num_layers, patch, size), config_of(num_layers, patch, size)
  variables = random_variables(config)
  weights.save(variables, config, tmp_path / 'ours.npz', format='augreg')
  model.load_pretrained(tmp_path / 'ours.npz')
  with pytest.raises(UsageError, match=r"numerics 'vision_transformer' have no place there"):
    weights.save(variables, config, tmp_path / 'ours.pth', format='timm')
  weights.save(variables, config.replace(numerics='timm'), tmp_path / 'ours.pth', format='timm')
  ours = torch.load(tmp_path / 'ours.pth')['state_dict']
  for name, tensor in model.state_dict().items():
    torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_scenic_s_checkpoints(tmp_path):
  config = config_of(*SIZES[0], numerics='scenic')
  variables = random_variables(config)
  weights.save(variables, config, tmp_path / 'checkpoint_1', format='scenic')
  again, its_config = weights.load(tmp_path / 'checkpoint_1')
  assert its_config == config
  assert_same(again, variables)
  other = config.replace(numerics='timm')
  with pytest.raises(UsageError, match=r"numerics 'timm' have no place there"):
    weights.save(variables, other, tmp_path / 'checkpoint_2', format='scenic')


def test_padding_that_is_not_read_is_refused(tmp_path):
  config = config_of(*SIZES[0], numerics='timm', activation='gelu_exact')
  weights.save(random_variables(config), config, tmp_path / 'model.safetensors', format='timm')
  theirs = {'architecture': 'vit_base_r50_s16_224', 'pretrained_cfg': {'input_size': [3, 32, 32]}}
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(theirs))
  assert weights.load(tmp_path, num_heads=2)[1].backbone == config.backbone
  path.write_text(json.dumps(theirs | {'model_args': {'padding_same': False}}))
  with pytest.raises(UsageError, match=r'config\.json: model_args padding_same=False is not read'):
    weights.load(tmp_path, num_heads=2)


def test_other_hybrids_of_timm_are_refused(tmp_path):
  """Those on timm's own ResNets have other tensors."""
  config = config_of(*SIZES[0], numerics='timm', activation='gelu_exact')
  weights.save(random_variables(config), config, tmp_path / 'm.safetensors', format='timm')
  tensors, _ = files.parse_safetensors((tmp_path / 'm.safetensors').read_bytes())
  other = {
    n.replace('stem.conv', 'conv1.0').replace('stem.norm', 'bn1'): t for n, t in tensors.items()
  }
  (tmp_path / 'other.safetensors').write_bytes(files.format_safetensors(other))
  with pytest.raises(
    UsageError, match='a convolutional network before the patches; give what timm calls it'
  ):
    weights.load(tmp_path / 'other.safetensors', num_heads=2, **TOKEN)
