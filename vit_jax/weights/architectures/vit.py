"""The constructor arguments of timm's vision transformers as fields of `ViT`, class by class.

Each argument is a field, is of training alone, or is refused by its name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.errors import FieldError
from vit_jax.weights.architectures import defaults

# Of these, trained models don't depend.
_TRAINING = (
  'drop_rate',
  'pos_drop_rate',
  'patch_drop_rate',
  'proj_drop_rate',
  'attn_drop_rate',
  'drop_path_rate',
  'weight_init',
  'fix_init',
  'head_init_scale',
)
_MOST = 2**31  # of a number that is computed with
ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'gelu_tanh': 'gelu',
  'quick_gelu': 'quick_gelu',
  'silu': 'silu',
  'swish': 'silu',
  'relu': 'relu',
}
_ACTIVATION_CLASSES = {'GELU': 'gelu', 'GELUTanh': 'gelu_tanh', 'SiLU': 'silu', 'ReLU': 'relu'}
POOLINGS = {'token': 'token', 'avg': 'gap', 'max': 'gmp', 'map': 'map'}
NORMS = {'LayerNorm': 'layernorm', 'RmsNorm': 'rmsnorm'}
_NORM_NAMES = {kind: {'name': name, 'eps': 1e-6} for name, kind in NORMS.items()}
_DIFFERENTIAL = ('DiffParallelScalingBlock',)
BLOCKS = {
  'Block': 'pre',
  'ResPostBlock': 'post',
  'ParallelScalingBlock': 'parallel_scaling',
  'DiffParallelScalingBlock': 'parallel_scaling',
  'ParallelThingsBlock': 'parallel',
}


def _is_number(value: Any, *types: type) -> bool:
  return type(value) in types and abs(value) <= _MOST


def _is_list(value: Any) -> bool:
  return isinstance(value, list | tuple) and all(_is_number(item, int) for item in value)


def _is_size(value: Any) -> bool:
  sides = value if isinstance(value, list | tuple) else (value, value)
  return _is_list(sides) and len(sides) == 2 and min(sides) > 0


class Arguments:
  """Arguments of a constructor, of which it is known whether they have been read."""

  def __init__(self, cls: str, given: Mapping[str, Any]):
    """Takes the name of a class and arguments of it; the others have the defaults."""
    self._values = {**defaults(cls), **given}
    self._unread = {n for n, v in given.items() if n not in _TRAINING and self._differs(cls, n, v)}

  @staticmethod
  def _differs(cls: str, name: str, value: Any) -> bool:
    return name not in defaults(cls) or value != defaults(cls)[name]

  def __getitem__(self, name: str) -> Any:
    self._unread.discard(name)
    return self._values[name]

  def whole(self, name: str) -> int:
    """Returns an argument that is a whole number, within reason.

    Raises:
      FieldError: it isn't.
    """
    return self._checked(name, 'whole number', lambda value: _is_number(value, int))

  def number(self, name: str) -> float:
    """Returns an argument that is a number, within reason.

    Raises:
      FieldError: it isn't.
    """
    return self._checked(name, 'number', lambda value: _is_number(value, int, float))

  def pair(self, name: str) -> tuple[int, int]:
    """Returns (height, width) of an argument that has both, or one for both.

    Raises:
      FieldError: it hasn't.
    """
    value = self._checked(name, 'positive number, or two', _is_size)
    return (value, value) if isinstance(value, int) else tuple(value)

  def listed(self, name: str) -> tuple[int, ...]:
    """Returns an argument that lists whole numbers.

    Raises:
      FieldError: it doesn't.
    """
    return tuple(self._checked(name, 'list of whole numbers', _is_list))

  def _checked(self, name: str, what: str, holds: Callable[[Any], bool]) -> Any:
    if not holds(self[name]):
      raise FieldError(name, f'{self.shown(name)} is not a {what}')
    return self[name]

  def choice(self, name: str, allowed: Mapping[str, Any]) -> Any:
    """Returns what the value of an argument, or the function in it, stands for.

    Raises:
      FieldError: it isn't among those allowed.
    """
    value = self[name]
    key = value['name'] if isinstance(value, dict) else value
    if not isinstance(key, str) or key not in allowed:
      raise self.refused(name, ', '.join(allowed))
    return allowed[key]

  def kind(self, name: str, allowed: Mapping[str, Any]) -> Any:
    """Returns what a class or function stands for; no text can name it.

    Raises:
      FieldError: it isn't among those allowed.
    """
    if not isinstance(self[name], dict):
      raise self.refused(name, ', '.join(allowed))
    return self.choice(name, allowed)

  def refuse(self, *names: str) -> None:
    """Raises FieldError for the first of these arguments that is true."""
    for name in names:
      if self[name]:
        raise self.refused(name)

  def refused(self, name: str, allowed: str = '') -> FieldError:
    """Returns the error for a value of an argument."""
    problem = f'one of {allowed}' if allowed else 'read'
    return FieldError(name, f'{self.shown(name)} is not {problem}')

  def shown(self, name: str) -> str:
    """Returns the value of an argument as messages have it."""
    value = self._values[name]
    return repr(value['name'] if isinstance(value, dict) else value)

  def check_all_read(self) -> None:
    """Raises FieldError for an argument that is given and hasn't been read."""
    for name in sorted(self._unread):
      raise self.refused(name)


def fields_of(cls: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the entries of a model config that a constructor's arguments stand for.

  Args:
    cls: the name of the class, one of `CLASSES`.
    given: arguments, as `architectures` has them; the others have the defaults.

  Raises:
    FieldError: for an argument whose value isn't known here.
  """
  arguments = Arguments(cls, given)
  fields = CLASSES[cls](arguments)
  arguments.check_all_read()
  patch = fields['patches']['size']
  if any(side % part for side, part in zip(fields['image_size'] or patch, patch, strict=True)):
    fields['drop_remainder'] = True
  return {'name': 'vit', **{n: value for n, value in fields.items() if value is not None}}


def _sizes(a: Arguments) -> dict[str, Any]:
  a['dynamic_img_size']  # sizes of images are not changed here
  a.refuse('dynamic_img_pad')
  return _plain_sizes(a)


def _plain_sizes(a: Arguments) -> dict[str, Any]:
  a['num_classes'], a['in_chans']  # which tensors tell
  return {
    'hidden_size': a.whole('embed_dim'),
    'num_layers': a.whole('depth'),
    'num_heads': a.whole('num_heads'),
    'patches': {'size': a.pair('patch_size')},
    'image_size': a.pair('img_size') if a['img_size'] else None,
  }


def _norm(a: Arguments, name: str = 'norm_layer') -> dict[str, Any]:
  layer = a[name] or _NORM_NAMES['layernorm']
  if isinstance(layer, str):
    layer = _NORM_NAMES.get(layer.replace('_', '').lower(), {})
  if not isinstance(layer, dict) or layer.get('name') not in NORMS:
    raise a.refused(name, ', '.join(NORMS))
  return {'norm': NORMS[layer['name']], 'norm_epsilon': layer['eps']}


def _activation(a: Arguments) -> dict[str, Any]:
  if a['act_layer'] is None:
    return {'activation': 'gelu_exact'}
  classes = {name: ACTIVATIONS[called] for name, called in _ACTIVATION_CLASSES.items()}
  return {'activation': a.choice('act_layer', ACTIVATIONS | classes)}


def _width(a: Arguments, ratio: str = 'mlp_ratio') -> int:
  """Returns the hidden width of an MLP, as timm rounds it, by the name of its ratio."""
  return int(a.whole('embed_dim') * a.number(ratio))


def _mlp(a: Arguments) -> dict[str, Any]:
  """The MLPs of VisionTransformer, two of which have a gate: in a tensor of its own, or in fc1."""
  kind = a.kind('mlp_layer', {'Mlp': 'mlp', 'SwiGLU': 'glu', 'GluMlp': 'glu'})
  packed = isinstance(a['mlp_layer'], dict) and a['mlp_layer']['name'] == 'GluMlp'
  if packed and a['mlp_layer'].get('gate_last', True):
    raise a.refused('mlp_layer', 'Mlp, SwiGLU, GluMlp whose gate is first')
  return {'mlp': kind, 'mlp_dim': _width(a) // 2 if packed else _width(a)}


def _pooling(a: Arguments, *, class_token: bool, norms: tuple[bool, bool]) -> dict[str, Any]:
  """What the head reads.

  Args:
    a: the arguments.
    class_token: whether there is one.
    norms: whether tokens are normed after the last block, and whether what is pooled of them is.
  """
  classifier = a.choice('global_pool', POOLINGS)
  if all(norms):
    raise a.refused('use_post_transformer_norm')
  return {
    'classifier': classifier,
    'class_token': True if class_token and classifier != 'token' else None,
    'final_norm': any(norms),
    'fc_norm': norms[1],
  }


def _map_head(fields: Mapping[str, Any], num_heads: int, mlp_dim: int) -> dict[str, Any]:
  """What the MAP head has of its own, where it isn't the blocks'."""
  if fields['classifier'] != 'map':
    return {}
  return {
    'map_num_heads': None if num_heads == fields['num_heads'] else num_heads,
    'map_mlp_dim': None if mlp_dim == fields['mlp_dim'] else mlp_dim,
  }


def _pre_norm(a: Arguments, name: str = 'pre_norm') -> dict[str, Any]:
  """A norm before the first block, in whose place the patches have no bias."""
  return {'patch_bias': not a[name], 'pre_norm': a[name]}


def _attention_pool(a: Arguments, fields: Mapping[str, Any]) -> dict[str, Any]:
  """The MAP head whose size arguments of its own may give."""
  ratio = 'attn_pool_mlp_ratio' if a['attn_pool_mlp_ratio'] else 'mlp_ratio'
  return _map_head(fields, a['attn_pool_num_heads'] or a['num_heads'], _width(a, ratio))


def _fc_norm(a: Arguments, name: str) -> bool:
  """Whether what is pooled is normed: by default where it is an average."""
  return a['global_pool'] == 'avg' if a[name] is None else a[name]


def _final_or_fc_norm(a: Arguments, fc_norm: bool) -> tuple[bool, bool]:
  """Which of the two norms after the blocks there is, where `final_norm` asks for one."""
  return a['final_norm'] and not fc_norm, a['final_norm'] and fc_norm


def _layer_scale(value: float | None) -> dict[str, Any]:
  return {'layer_scale': value if value else None}


def _vision_transformer(a: Arguments) -> dict[str, Any]:
  block = a.kind('block_fn', BLOCKS)
  kinds = {'Attention': False, '': False, 'attn': False, 'diff': True}
  differential = a.choice('attn_layer', kinds) or a['block_fn']['name'] in _DIFFERENTIAL
  pooled, scale = a['global_pool'] in ('avg', 'max'), a['init_values']
  fc_norm = pooled if a['fc_norm'] is None else a['fc_norm']
  embedding = a.kind('embed_layer', {'PatchEmbed': 'vit', 'HybridEmbed': 'hybrid'})
  if embedding == 'hybrid' and a['embed_layer']['backbone']['name'] != 'ResNetV2':
    raise FieldError('embed_layer', f'{a["embed_layer"]["backbone"]["name"]!r} is not read')
  resnet = None
  if embedding == 'hybrid':
    resnet = {'num_layers': tuple(a['embed_layer']['backbone']['layers']), 'width_factor': 1.0}
  a.choice('pos_embed', {'': None, 'none': None, 'learn': None})
  fields = {
    'name': embedding,
    'resnet': resnet,
    **_sizes(a),
    **_norm(a),
    **_activation(a),
    **_mlp(a),
    **_pooling(
      a,
      class_token=a['class_token'],
      norms=_final_or_fc_norm(a, fc_norm),
    ),
    **_layer_scale(None if block == 'post' else scale),
    'block': block,
    'differential': differential,
    'qkv_bias': a['qkv_bias'],
    'use_bias': a['proj_bias'],
    'qk_norm': a['qk_norm'],
    'attention_norm': a['scale_attn_norm'],
    'mlp_norm': a['scale_mlp_norm'],
    **_pre_norm(a),
    'patch_norm': a['embed_norm_layer'] is not None,
    'num_registers': a['reg_tokens'],
    'position_tokens': 'patches' if a['no_embed_class'] else 'all',
    'positional_embedding': 'learned_1d' if a['pos_embed'] == 'learn' else 'none',
    'pool_prefix': a['pool_include_prefix'] and a['global_pool'] != 'token',
  }
  if fields['patch_norm'] and _norm(a, 'embed_norm_layer') != _norm(a):
    raise FieldError('embed_norm_layer', f'{a.shown("embed_norm_layer")} differs from norm_layer')
  return fields | _map_head(fields, a['num_heads'], _width(a))


def _distilled(a: Arguments) -> dict[str, Any]:
  return _vision_transformer(a) | {'distillation': True}


def _eva_mlp(a: Arguments) -> dict[str, Any]:
  width, align = _width(a), a.whole('swiglu_align_to')
  if a['swiglu_mlp'] and (a['scale_mlp'] or (align and not a['use_post_norm'])):
    width += -width % (align or 1)
  kind, activation = ('glu', 'silu') if a['swiglu_mlp'] else ('mlp', 'gelu_exact')
  return {'mlp': kind, 'mlp_dim': width, 'activation': activation, 'mlp_norm': a['scale_mlp']}


def _rotary(a: Arguments) -> dict[str, Any] | None:
  if not a['use_rot_pos_emb']:
    return None
  kind = a.choice('rope_type', {'cat': 'axial', 'mixed': 'mixed', 'dinov3': 'dinov3'})
  grid = a['ref_feat_shape'] and a.pair('ref_feat_shape')
  options = {
    'temperature': float(a.number('rope_temperature')),
    'grid_offset': a['rope_grid_offset'] if kind != 'mixed' else 0.0,
    'grid_indexing': a['rope_grid_indexing'],
    'rotate_half': a['rope_rotate_half'],
    'reference_grid': grid if grid and kind == 'axial' else None,
    **{name: a[f'rope_{name}'] for name in ('shift_coords', 'jitter_coords', 'rescale_coords')},
  }
  return {'type': kind, **{n: value for n, value in options.items() if value is not None}}


def _eva(a: Arguments) -> dict[str, Any]:
  fc_norm = _fc_norm(a, 'use_fc_norm')
  final_norm = a['use_post_transformer_norm']
  biased = a.choice('attn_type', {'eva': 'qv', 'rope': True})
  key_heads = a['num_kv_heads']
  if isinstance(key_heads, list | tuple):
    key_heads = a.listed('num_kv_heads')
  elif key_heads is not None:
    key_heads = a.whole('num_kv_heads')
  heads = {*key_heads} if isinstance(key_heads, tuple) else {key_heads}
  a['qkv_fused']  # which tensors there are tells
  fields = {
    **_sizes(a),
    **_norm(a),
    **_eva_mlp(a),
    **_pooling(
      a,
      class_token=a['class_token'],
      norms=(not fc_norm if final_norm is None else final_norm, fc_norm),
    ),
    **_layer_scale(None if a['use_post_norm'] else a['init_values']),
    'layer_scale_mlp': not a['attn_only_layer_scale'],
    'block': 'post' if a['use_post_norm'] else 'pre',
    'qkv_bias': biased if a['qkv_bias'] else False,
    'num_kv_heads': None if heads <= {None, a['num_heads']} else key_heads,
    'qk_norm': a['qk_norm'],
    'attention_norm': a['scale_attn_inner'],
    **_pre_norm(a, 'use_pre_transformer_norm'),
    'num_registers': a['num_reg_tokens'],
    'position_tokens': 'patches' if a['no_embed_class'] else 'all',
    'positional_embedding': 'learned_1d' if a['use_abs_pos_emb'] else 'none',
    'rotary': _rotary(a),
    'pool_prefix': a['global_pool'] == 'map',
  }
  if a['swiglu_mlp'] and fields['classifier'] == 'map':
    raise a.refused('global_pool')  # the activation of the head's MLP is another than the blocks'
  return fields | _attention_pool(a, fields)


def _beit(a: Arguments) -> dict[str, Any]:
  fc_norm = _fc_norm(a, 'use_fc_norm')
  if a['use_rel_pos_bias'] and a['use_shared_rel_pos_bias']:
    raise a.refused('use_shared_rel_pos_bias')
  relative = a['use_rel_pos_bias'] or a['use_shared_rel_pos_bias']
  kind, activation = ('glu', 'silu') if a['swiglu_mlp'] else ('mlp', 'gelu_exact')
  return {
    **_plain_sizes(a),
    **_norm(a),
    **_pooling(a, class_token=True, norms=(not fc_norm, fc_norm)),
    **_layer_scale(a['init_values']),
    'mlp': kind,
    'mlp_dim': _width(a),
    'mlp_norm': a['scale_mlp'],
    'activation': activation,
    'qkv_bias': 'qv' if a['qkv_bias'] else False,
    'positional_embedding': 'learned_1d' if a['use_abs_pos_emb'] else 'none',
    'relative_positions': {'type': 'bias', 'shared': a['use_shared_rel_pos_bias']}
    if relative
    else None,
  }


def _relative(a: Arguments) -> dict[str, Any]:
  """The relative positions of VisionTransformerRelPos."""
  coordinates = a.choice('rel_pos_type', {'bias': None, 'mlp': 'cr', 'mlp-swin': 'swin'})
  if coordinates is None:
    return {'type': 'bias', 'shared': a['shared_rel_pos']}
  return {
    'type': 'mlp',
    'shared': a['shared_rel_pos'],
    'hidden_dim': a['rel_pos_dim'] or 128,
    'coordinates': coordinates,
  }


def _relpos(a: Arguments) -> dict[str, Any]:
  block = a.kind('block_fn', {'RelPosBlock': 'pre', 'ResPostRelPosBlock': 'post'})
  a.kind('embed_layer', {'PatchEmbed': None})
  scale = a['init_values']
  return {
    **_plain_sizes(a),
    **_norm(a),
    **_activation(a),
    **_pooling(a, class_token=a['class_token'], norms=(not a['fc_norm'], a['fc_norm'])),
    **_layer_scale(None if block == 'post' else scale),
    'block': block,
    'mlp_dim': _width(a),
    'qkv_bias': a['qkv_bias'],
    'qk_norm': a['qk_norm'],
    'positional_embedding': 'none',
    'relative_positions': _relative(a),
  }


def _sam(a: Arguments) -> dict[str, Any]:
  a.refuse('use_rope', 'head_hidden_size')
  a.kind('block_fn', {'Block': None})
  a.kind('mlp_layer', {'Mlp': None})
  a.kind('embed_layer', {'PatchEmbed': None})
  a.choice('global_pool', {'avg': None})
  fields = {
    **_plain_sizes(a),
    **_norm(a),
    **_activation(a),
    **_layer_scale(a['init_values']),
    'classifier': 'gap',
    'mlp_dim': _width(a),
    'qkv_bias': a['qkv_bias'],
    'qk_norm': a['qk_norm'],
    **_pre_norm(a),
    'positional_embedding': 'learned_1d' if a['use_abs_pos'] else 'none',
    'relative_positions': {'type': 'decomposed', 'shared': False} if a['use_rel_pos'] else None,
    'window_size': a['window_size'] or None,
    'global_layers': a.listed('global_attn_indexes') if a['window_size'] else (),
    'neck': a['neck_chans'],
  }
  epsilon = fields['norm_epsilon']
  if not fields['neck'] and epsilon != 1e-6:
    raise FieldError('norm_layer', f'epsilon {epsilon}, but without neck_chans the last has 1e-06')
  return fields


def _naflex(a: Arguments) -> dict[str, Any]:
  """Images of one size alone, which need no mask; positions are interpolated to their grid."""
  fc_norm = _fc_norm(a, 'fc_norm')
  kind = a.choice('pos_embed', {'learned': 'table', 'factorized': 'sums', '': None, 'none': None})
  table = {'grid': a['pos_embed_grid_size'] and a.pair('pos_embed_grid_size')}
  table |= {'keep_aspect': a['pos_embed_ar_preserving']}
  mode, antialias = a['pos_embed_interp_mode'], a['pos_embed_antialias']
  if kind == 'table':
    table |= {'method': mode, 'antialias': antialias, 'align_corners': a['pos_embed_align_corners']}
  else:
    table |= {'method': 'bilinear', 'antialias': False, 'factorized': True}
  if kind and table['grid'] is None:
    raise a.refused('pos_embed_grid_size')
  fields = {
    **_plain_sizes(a),
    **_norm(a),
    **_activation(a),
    **_pooling(
      a,
      class_token=a['class_token'],
      norms=_final_or_fc_norm(a, fc_norm),
    ),
    **_layer_scale(a['init_values']),
    'mlp_dim': _width(a),
    'qkv_bias': a['qkv_bias'],
    'use_bias': a['proj_bias'],
    'qk_norm': a['qk_norm'],
    'attention_norm': a['scale_attn_inner_norm'],
    'mlp_norm': a['scale_mlp_norm'],
    **_pre_norm(a),
    'num_registers': a['reg_tokens'],
    'position_tokens': 'patches',
    'positional_embedding': 'learned_1d' if kind else 'none',
    'position_table': table if kind else None,
    'pool_prefix': a['pool_include_prefix'] and a['global_pool'] != 'token',
  }
  return fields | _attention_pool(a, fields)


# What reads the arguments of each class.
CLASSES: Mapping[str, Callable[[Arguments], dict[str, Any]]] = {
  'VisionTransformer': _vision_transformer,
  'VisionTransformerDistilled': _distilled,
  'Eva': _eva,
  'Beit': _beit,
  'VisionTransformerRelPos': _relpos,
  'VisionTransformerSAM': _sam,
  'NaFlexVit': _naflex,
}
