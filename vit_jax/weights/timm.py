"""timm's VisionTransformer: state dicts, .safetensors or .pth, and names on the Hugging Face hub.

github.com/huggingface/pytorch-image-models. timm's models use exact GELU, but for some of SigLIP,
and a LayerNorm epsilon of 1e-6. Nothing in a state dict tells the number of heads: it is that of
the named size (`models.sizes`) of the same width, depth and MLP, or has to be given. What is
otherwise, class names and preprocessing, `save` puts into the file's metadata; on the hub, most of
it is in config.json.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UsageError, check_choice
from vit_jax.models.sizes import SIZES
from vit_jax.weights import files, hub, model_config, table
from vit_jax.weights.table import CONV, DENSE, FROM_HEADS, NORM, TO_HEADS, Module, tensor

_OURS = 'Transformer/encoderblock_{}'
_ATTENTION = f'{_OURS}/MultiHeadDotProductAttention_0'
_POOL = 'MAPHead_0/MultiHeadDotProductAttention_0'

_TABLE = (
  tensor('cls', 'cls_token'),
  tensor(model_config.POSITIONS, 'pos_embed'),
  Module('embedding', 'patch_embed.proj', CONV),
  Module(f'{_OURS}/LayerNorm_0', 'blocks.{}.norm1', NORM),
  Module(
    tuple(f'{_ATTENTION}/{part}' for part in ('query', 'key', 'value')),
    'blocks.{}.attn.qkv',
    TO_HEADS,
  ),
  Module(f'{_ATTENTION}/out', 'blocks.{}.attn.proj', FROM_HEADS),
  Module(f'{_OURS}/LayerNorm_1', 'blocks.{}.norm2', NORM),
  Module(f'{_OURS}/MlpBlock_0/Dense_0', 'blocks.{}.mlp.fc1', DENSE),
  Module(f'{_OURS}/MlpBlock_0/Dense_1', 'blocks.{}.mlp.fc2', DENSE),
  Module('Transformer/encoder_norm', 'norm', NORM),
  Module('fc_norm', 'fc_norm', NORM),
  tensor('MAPHead_0/probe', 'attn_pool.latent'),
  Module(f'{_POOL}/query', 'attn_pool.q', TO_HEADS),
  Module((f'{_POOL}/key', f'{_POOL}/value'), 'attn_pool.kv', TO_HEADS),
  Module(f'{_POOL}/out', 'attn_pool.proj', FROM_HEADS),
  Module('MAPHead_0/LayerNorm_0', 'attn_pool.norm', NORM),
  Module('MAPHead_0/MlpBlock_0/Dense_0', 'attn_pool.mlp.fc1', DENSE),
  Module('MAPHead_0/MlpBlock_0/Dense_1', 'attn_pool.mlp.fc2', DENSE),
  Module('output_projection', 'head', DENSE),
)

SUFFIXES = files.STATE_DICTS
_ACTIVATIONS = {'gelu': 'gelu_exact', 'gelu_tanh': 'gelu', 'relu': 'relu'}  # timm's act_layer
# The architectures whose act_layer is gelu_tanh without their config.json saying it.
_TANH = re.compile(
  r'vit_((base_patch32|so400m_patch16|giantopt_patch16)_siglip|large_patch16_siglip_(gap_)?512)'
)
_CLASSIFIERS = {'token': 'token', 'avg': 'gap', 'max': 'gmp', 'map': 'map'}  # of timm's global_pool


def looks_like(path: str) -> bool:
  """Whether it is a state dict, a folder with timm's config.json, or [hf:]timm/NAME."""
  config = Path(path) / hub.CONFIG
  if config.exists():
    return 'architecture' in hub.read_json(config, "a model's config.json")
  return files.has_suffix(path, SUFFIXES) or (
    hub.is_name(path) and path.removeprefix('hf:').startswith('timm/')
  )


def load(
  path: str | os.PathLike, *, allow: str | None = None, **known: Any
) -> tuple[table.Params, dict[str, Any]]:
  """Returns (params, model config) of a state dict.

  Position embeddings that leave the class token out (no_embed_class) get a row of zeros for it.

  Args:
    path: .safetensors or, PyTorch being installed, .pth; local, gs:// or https://. Or a folder with
      config.json, or the name of one on the hub, as for `huggingface.load`. Its
      interpolation isn't taken over, which is bicubic here.
    allow: as for `augreg.load`.
    **known: entries of the model config that the file doesn't say: `num_heads`, `classifier`,
      `activation`, `norm_epsilon`, `image_size`.

  Raises:
    UsageError: the file can't be read, isn't a ViT, doesn't say enough, or tensors don't fit.
  """
  name, says, stated = os.fspath(path), path, {}
  if Path(path).is_dir() or (hub.is_name(name) and not files.has_suffix(name, SUFFIXES)):
    says, path = hub.find(path)
    stated = _read_config(says)
    tensors, text = hub.read_weights(path), None
  else:
    tensors, text = files.read_state_dict(path)
  if any(re.match(r'(vit\.)?embeddings\.', name) for name in tensors):
    raise UsageError(f'{path}: a Hugging Face file; give its folder, which has config.json as well')
  anchors = (
    'patch_embed.proj.weight',
    'pos_embed',
    'blocks.0.norm1.weight',
    'blocks.0.mlp.fc1.bias',
  )
  model_config.require(tensors, anchors, path, "timm's VisionTransformer")
  if [tensors[name].ndim for name in anchors] != [4, 3, 1, 1]:
    raise UsageError(f"{path}: not timm's VisionTransformer: its tensors have other ranks")
  with files.reading(path, 'a file with a model config'):
    stated = model_config.from_json(text, path) if text else stated
    known = model_config.combine(stated, known, says)
  _settle_fc_norm(tensors, known, path)
  with files.reading(path, 'a ViT'):
    config = _describe(tensors, known, path)
    _add_zeros(tensors, config)
  rules = table.expand(_TABLE, config['num_layers'])
  return table.to_ours(tensors, rules, config, path, allow), config


def save(
  params: table.Params,
  config: Mapping[str, Any],
  path: str | os.PathLike,
  *,
  allow: str | None = None,
) -> None:
  """Writes a state dict, .safetensors or .pth.

  timm loads it into VisionTransformer(global_pool=..., class_token=..., fc_norm=...) with 'token',
  'avg', 'max' or 'map' for the classifiers 'token', 'gap', 'gmp' and 'map', and the other two as in
  the config.

  Raises:
    UsageError: timm's ViT can't compute what this model does, or parameters without a place there
      aren't matched by `allow`.
  """
  config = model_config.describe_params(table.flatten(params), config, path)
  classifiers = ('token', 'gap', 'gmp', 'map')
  check_choice(f"{path}: classifier of timm's ViT", config['classifier'], classifiers)
  check_choice(f"{path}: positions of timm's ViT", config['positional_embedding'], ('learned_1d',))
  rules = table.expand(_TABLE, config['num_layers'])
  tensors = table.to_theirs(params, rules, config, path, allow)
  text = model_config.to_json(config)
  if files.is_safetensors(path):
    data = files.format_safetensors(tensors, **{files.CONFIG_KEY: text})
  else:
    data = files.format_torch({'state_dict': tensors, files.CONFIG_KEY: text}, path)
  files.write(path, data)


def _read_config(path: Path) -> dict[str, Any]:
  """Returns what timm's config.json says beside the shapes, as entries of a model config."""
  what = "timm's config.json"
  config = hub.read_json(path, what)
  with files.reading(path, what):
    cfg = config.get('pretrained_cfg', config)  # older ones have it all in one
    made_with = config.get('model_args', {})
    act_layer = 'gelu_tanh' if _TANH.match(config.get('architecture', '')) else 'gelu'
    act_layer = made_with.get('act_layer', act_layer)
    check_choice(f'{path}: act_layer', act_layer, _ACTIVATIONS)
    stated = {'activation': _ACTIVATIONS[act_layer]}
    if pool := config.get('global_pool'):
      check_choice(f'{path}: global_pool', pool, _CLASSIFIERS)
      stated['classifier'] = _CLASSIFIERS[pool]
    if heads := made_with.get('num_heads'):
      stated['num_heads'] = heads
    channels, *size = cfg.get('input_size', (3,))
    size = made_with.get('img_size', size)
    if size:
      stated['image_size'] = [size, size] if isinstance(size, int) else size
    if isinstance(names := config.get('label_names', cfg.get('label_names')), list):
      stated['class_names'] = names
    alike = made_with.get('in_chans', channels) == channels
    if 'mean' in cfg and 'std' in cfg and alike:
      preprocess = {'mean': cfg['mean'], 'std': cfg['std'], 'crop': 'resize'}
      if cfg.get('crop_mode') != 'squash':
        preprocess['crop'] = 'central'
        if 'crop_pct' in cfg:
          preprocess['crop_fraction'] = cfg['crop_pct']
      stated['preprocess'] = preprocess
    return model_config.said(stated, path)


def _settle_fc_norm(tensors: files.Tensors, known: Mapping[str, Any], path: object) -> None:
  """Makes `fc_norm` the final norm where the head reads the class token, which is the same."""
  if not {'fc_norm.weight', 'cls_token'} <= tensors.keys() or 'attn_pool.latent' in tensors:
    return
  if 'classifier' not in known:
    raise UsageError(
      f'{path}: fc_norm beside a class token, and the file does not say what the head reads; '
      "timm's global_pool 'avg' is --classifier=gap, 'max' is gmp, 'token' is token"
    )
  if known['classifier'] == 'token':
    for name in {'fc_norm.weight', 'fc_norm.bias'} & tensors.keys():
      tensors[name.removeprefix('fc_')] = tensors.pop(name)


def _describe(tensors: files.Tensors, known: Mapping[str, Any], path: object) -> dict[str, Any]:
  """Returns the model config; see `model_config.describe`."""
  hidden_size, channels, *patch = tensors['patch_embed.proj.weight'].shape
  num_layers = model_config.count_layers(tensors, r'blocks\.(\d+)\.')
  mlp_dim = len(tensors['blocks.0.mlp.fc1.bias'])
  num_heads = known.get('num_heads') or _num_heads(hidden_size, num_layers, mlp_dim, path)
  pooling = model_config.describe_pooling(
    known,
    probe='attn_pool.latent' in tensors,
    class_token='cls_token' in tensors,
    fc_norm='fc_norm.weight' in tensors,
  )
  config = {
    'name': 'vit',
    'hidden_size': hidden_size,
    'mlp_dim': mlp_dim,
    'num_layers': num_layers,
    'num_heads': num_heads,
    'patches': {'size': tuple(patch)},
    **pooling,
    'positional_embedding': 'learned_1d',
    'representation_size': None,
    'norm_epsilon': 1e-6,
    'activation': 'gelu_exact',
    'num_classes': len(tensors['head.bias']) if 'head.bias' in tensors else 0,
    'channels': channels,
    'image_size': None,
    'class_names': None,
    'preprocess': None,
    **known,
  }
  model_config.check_said(config, path)
  if config['image_size'] is None:
    positions = tensors['pos_embed'].shape[1]
    own = 'cls_token' in tensors and model_config.has_class_position(positions, patch, None)
    config['image_size'] = model_config.square_image(positions - own, patch, path)
  return config


def _num_heads(hidden_size: int, num_layers: int, mlp_dim: int, path: object) -> int:
  for *size, heads in SIZES.values():
    if size == [hidden_size, num_layers, mlp_dim]:
      return heads
  raise UsageError(
    f'{path}: a state dict does not tell the number of heads, and width {hidden_size}, depth '
    f'{num_layers}, MLP {mlp_dim} is no named size; give it: --num_heads=N'
  )


def _add_zeros(tensors: files.Tensors, config: Mapping[str, Any]) -> None:
  """Adds what models here always have, and timm's may lack: zeros do nothing."""
  positions, image = tensors['pos_embed'], config['image_size']
  if 'cls_token' in tensors and not model_config.has_class_position(
    positions.shape[1], config['patches']['size'], image
  ):
    tensors['pos_embed'] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
  if not any(re.fullmatch(r'blocks\.\d+\.attn\.qkv\.bias', name) for name in tensors):
    for layer in range(config['num_layers']):
      zeros = np.zeros(3 * config['hidden_size'], np.float32)
      tensors[f'blocks.{layer}.attn.qkv.bias'] = zeros
