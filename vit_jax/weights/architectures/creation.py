"""How timm makes a `ViT`: an architecture, and the arguments in which the model is another.

The inverse of `fields_of`, which decides whether the arguments found here are the model's.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_jax.errors import FieldError
from vit_jax.models import ModelConfig
from vit_jax.weights import architectures
from vit_jax.weights.architectures import defaults
from vit_jax.weights.architectures.vit import (
  ACTIVATIONS,
  BLOCKS,
  NORMS,
  POOLINGS,
  fields_of,
)

_TRIED = 8  # architectures: those that, at a glance, differ in the fewest arguments
# timm always leaves pixels after the last patches out, learns no tokens; and has one name for each
# of the others.
_NOT_TOLD = ('class_token', 'stride', 'drop_remainder', 'tokenizer')


class Creation(NamedTuple):
  """How timm makes a model: create_model(architecture, **changes).

  Attributes:
    cls: the class that the architecture makes.
    architecture: its name.
    changes: arguments that aren't the architecture's.
    arguments: all arguments.
  """

  cls: str
  architecture: str
  changes: Mapping[str, Any]
  arguments: Mapping[str, Any]

  @property
  def needs_code(self) -> list[str]:
    """The arguments that are classes or functions, and no values of JSON."""
    return sorted(n for n, value in self.changes.items() if isinstance(value, dict))


def creation_of(config: ModelConfig) -> Creation:
  """Returns how timm makes a model, with as few changes of a known architecture as there can be.

  Args:
    config: of a ViT, with the size of its images.

  Raises:
    FieldError: for a field with a value that none of timm's classes has.
  """
  shaping = config.replace(class_names=None, preprocess=None)
  return _creation_of(json.dumps(shaping.to_dict(), sort_keys=True))


@functools.lru_cache(maxsize=16)  # writing a file asks several times
def _creation_of(text: str) -> Creation:
  config = ModelConfig.from_dict(json.loads(text))
  problems, found = {}, []
  for cls in _INVERSES:
    for given in _inverse(cls, config):
      try:
        fields = fields_of(cls, given)
        differing = _differing(config, fields)
      except FieldError as e:  # such a model of that class there can't be
        differing = [e.field]
      if differing:
        problems[cls] = differing
      else:
        found += [(a, given, fields) for a in architectures.of_class(cls)]
  if not found:
    (field, *_) = min(problems.values(), key=len)
    value = getattr(config.backbone, field, config.name)
    raise FieldError(field, f"{value!r} has no place in timm's vision transformers")
  nearest = sorted(found, key=lambda way: _distance(_changes(*way[:2])))[:_TRIED]
  return min((_creation(*way) for way in nearest), key=lambda made: _distance(made.changes))


def _changes(architecture: architectures.Architecture, given: Mapping[str, Any]) -> dict[str, Any]:
  made = architecture.arguments
  return {n: v for n, v in given.items() if n not in made or made[n] != v}


def _distance(changes: Mapping[str, Any]) -> tuple[int, int]:
  """Returns how many changes need code, and how many there are."""
  return sum(isinstance(value, dict) for value in changes.values()), len(changes)


def _creation(
  architecture: architectures.Architecture, given: Mapping[str, Any], fields: Mapping[str, Any]
) -> Creation:
  """Returns the changes of an architecture with which it is the model of all arguments given."""
  cls, made = architecture.cls, architecture.arguments
  changes = _changes(architecture, given)
  if not _fits(cls, {**made, **changes}, fields):  # other arguments that aren't given count
    changes = {n: v for n, v in {**defaults(cls), **given}.items() if made.get(n) != v}
  kept = ('num_classes', 'in_chans', *(('num_heads',) if 'embed_dim' in changes else ()))
  changes |= {name: given[name] for name in kept if given[name] != defaults(cls).get(name)}
  for name in list(changes):
    fewer = {n: v for n, v in changes.items() if n != name}
    if name not in kept and _fits(cls, {**made, **fewer}, fields):
      changes = fewer
  return Creation(cls, architecture.name, changes, {**made, **changes})


def _fits(cls: str, given: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
  try:
    return fields_of(cls, given) == fields
  except FieldError:
    return False


def _differing(config: ModelConfig, fields: Mapping[str, Any]) -> list[str]:
  """Returns the fields of a ViT that its arguments in timm don't bring back."""
  made = {'num_classes': config.num_classes, 'channels': config.channels, **fields}
  ours = config.backbone
  if fields['name'] != config.name:
    return ['name']
  if config.name == 'hybrid':  # which no argument tells but the function that makes it
    made |= {'resnet': ours.resnet, 'numerics': ours.numerics}
  theirs = ModelConfig.from_dict(made).backbone
  names = (n for n in type(theirs).WEIGHT_FIELDS if n not in _NOT_TOLD)
  differing = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
  return differing + ['class_token'] * (ours.has_class_token != theirs.has_class_token)


def _inverse(cls: str, config: ModelConfig) -> list[dict[str, Any]]:
  """Returns arguments with which a class makes about such a model; there may be several ways."""
  m = config.backbone
  width, pools = m.hidden_size, {ours: theirs for theirs, ours in POOLINGS.items()}
  norms = {kind: name for name, kind in NORMS.items()}
  activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  given = {
    'img_size': list(config.image_size),
    'patch_size': list(m.patch_size),
    'in_chans': config.channels,
    'num_classes': config.num_classes,
    'embed_dim': width,
    'depth': m.num_layers,
    'num_heads': m.num_heads,
    'mlp_ratio': _ratio(m.mlp_dim, width),
    'norm_layer': {'name': norms[m.norm], 'eps': m.norm_epsilon},
    'init_values': m.layer_scale,
    'qkv_bias': bool(m.qkv_bias),
    'global_pool': pools.get(m.classifier, 'token'),
  }
  known = defaults(cls)
  if given['norm_layer'] == {'name': 'LayerNorm', 'eps': 1e-6}:
    given['norm_layer'] = known['norm_layer'] and given['norm_layer']
  shared = {
    'act_layer': None if m.activation == 'gelu_exact' else activations[m.activation],
    'class_token': m.has_class_token,
    'qk_norm': m.qk_norm,
    'fc_norm': None if m.fc_norm == _fc_norm(cls, m.classifier) else m.fc_norm,
    'use_fc_norm': None if m.fc_norm == (m.classifier == 'gap') else m.fc_norm,
    'use_abs_pos_emb': m.positional_embedding == 'learned_1d',
    'no_embed_class': m.position_tokens == 'patches',
    'scale_mlp': m.mlp_norm,
    'swiglu_mlp': m.mlp == 'glu',
  }
  given |= {name: value for name, value in shared.items() if name in known}
  return [given | own for own in _INVERSES[cls](config)]


def _fc_norm(cls: str, classifier: str) -> bool | None:
  """Returns whether a class norms what it pools, where that isn't given."""
  if cls == 'VisionTransformerRelPos':
    return None
  return classifier == 'gap' or (classifier == 'gmp' and cls != 'NaFlexVit')


def _ratio(size: int, width: int) -> float:
  """Returns a ratio whose product with the width, rounded down, is the size."""
  ratio = size / width
  return ratio if int(width * ratio) == size else (size + 0.5) / width


def _to_vision_transformer(config: ModelConfig) -> list[dict[str, Any]]:
  m = config.backbone
  embedding = {'name': 'PatchEmbed'}
  if config.name == 'hybrid':
    network = {'name': 'ResNetV2', 'layers': list(m.resnet['num_layers'])}
    embedding = {'name': 'HybridEmbed', 'backbone': network}
  block = {kind: name for name, kind in reversed(BLOCKS.items())}[m.block]
  if m.differential and m.block == 'parallel_scaling':
    block = 'DiffParallelScalingBlock'
  norm = {'name': {k: n for n, k in NORMS.items()}[m.norm], 'eps': m.norm_epsilon}
  given = {
    'embed_layer': embedding,
    'block_fn': {'name': block},
    'attn_layer': 'diff' if m.differential and m.block != 'parallel_scaling' else None,
    'proj_bias': m.use_bias,
    'scale_attn_norm': m.attention_norm,
    'scale_mlp_norm': m.mlp_norm,
    'pre_norm': m.pre_norm,
    'embed_norm_layer': norm if m.patch_norm else None,
    'reg_tokens': m.num_registers,
    'final_norm': m.final_norm,
    'pos_embed': 'learn' if m.positional_embedding == 'learned_1d' else 'none',
    'pool_include_prefix': m.pool_prefix,
  }
  given = {name: value for name, value in given.items() if name != 'attn_layer' or value}
  if m.mlp != 'glu':
    return [given]
  packed = {
    'mlp_layer': {'name': 'GluMlp', 'act_layer': {'name': 'SiLU'}, 'gate_last': False},
    'mlp_ratio': _ratio(2 * m.mlp_dim, m.hidden_size),
  }
  return [given | {'mlp_layer': {'name': 'SwiGLU'}}, given | packed]


def _to_eva(config: ModelConfig) -> list[dict[str, Any]]:
  m, rotary = config.backbone, config.backbone.rotary or {}
  kinds = {'axial': 'cat'}
  given = {
    'attn_type': 'rope' if m.qkv_bias is True else 'eva',
    'num_kv_heads': m.num_kv_heads and _plain(m.num_kv_heads),
    'scale_attn_inner': m.attention_norm,
    'attn_only_layer_scale': not m.layer_scale_mlp,
    'use_post_norm': m.block == 'post',
    'use_pre_transformer_norm': m.pre_norm,
    'use_post_transformer_norm': None if m.final_norm else False,
    'num_reg_tokens': m.num_registers,
    'attn_pool_num_heads': m.map_num_heads,
    'attn_pool_mlp_ratio': m.map_mlp_dim and _ratio(m.map_mlp_dim, m.hidden_size),
    'use_rot_pos_emb': bool(rotary),
  }
  if rotary:
    grid = rotary['reference_grid']
    named = ('temperature', 'grid_offset', 'grid_indexing', 'rotate_half')
    named += ('shift_coords', 'jitter_coords', 'rescale_coords')
    given |= {f'rope_{name}': rotary[name] for name in named}
    given |= {'rope_type': kinds.get(rotary['type'], rotary['type'])}
    given |= {'ref_feat_shape': grid and list(grid)}
  return [given | {'attn_type': 'rope'}, given] if m.qkv_bias is False else [given]


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def _to_beit(config: ModelConfig) -> list[dict[str, Any]]:
  relative = config.backbone.relative_positions or {}
  return [
    {
      'use_rel_pos_bias': bool(relative) and not relative['shared'],
      'use_shared_rel_pos_bias': bool(relative) and relative['shared'],
    }
  ]


def _to_relpos(config: ModelConfig) -> list[dict[str, Any]]:
  m, relative = config.backbone, config.backbone.relative_positions
  if not relative or relative['type'] == 'decomposed':
    return []
  kind = {'cr': 'mlp', 'swin': 'mlp-swin'}[relative['coordinates']]
  is_mlp = relative['type'] == 'mlp'
  given = {
    'block_fn': {'name': 'ResPostRelPosBlock' if m.block == 'post' else 'RelPosBlock'},
    'rel_pos_type': kind if is_mlp else 'bias',
    'rel_pos_dim': relative['hidden_dim'] if is_mlp else None,
    'shared_rel_pos': relative['shared'],
  }
  return [given]


def _to_sam(config: ModelConfig) -> list[dict[str, Any]]:
  m = config.backbone
  return [
    {
      'pre_norm': m.pre_norm,
      'use_abs_pos': m.positional_embedding == 'learned_1d',
      'use_rel_pos': m.relative_positions is not None,
      'window_size': m.window_size or 0,
      'global_attn_indexes': list(m.global_layers),
      'neck_chans': m.neck,
      'global_pool': 'avg',
    }
  ]


def _to_naflex(config: ModelConfig) -> list[dict[str, Any]]:
  m, table = config.backbone, config.backbone.position_table
  if table is None:
    return []
  given = {
    'img_size': None,
    'pos_embed': 'factorized' if table['factorized'] else 'learned',
    'pos_embed_grid_size': list(table['grid']),
    'pos_embed_ar_preserving': table['keep_aspect'],
    'pos_embed_interp_mode': table['method'],
    'pos_embed_antialias': table['antialias'],
    'pos_embed_align_corners': table['align_corners'],
    'scale_attn_inner_norm': m.attention_norm,
    'scale_mlp_norm': m.mlp_norm,
    'proj_bias': m.use_bias,
    'pre_norm': m.pre_norm,
    'final_norm': m.final_norm,
    'reg_tokens': m.num_registers,
    'pool_include_prefix': m.pool_prefix,
    'attn_pool_num_heads': m.map_num_heads,
    'attn_pool_mlp_ratio': m.map_mlp_dim and _ratio(m.map_mlp_dim, m.hidden_size),
  }
  return [given]


# For each class, what it has of its own.
_INVERSES: Mapping[str, Callable[[ModelConfig], list[dict[str, Any]]]] = {
  'VisionTransformer': _to_vision_transformer,
  'VisionTransformerDistilled': _to_vision_transformer,
  'Eva': _to_eva,
  'Beit': _to_beit,
  'VisionTransformerRelPos': _to_relpos,
  'VisionTransformerSAM': _to_sam,
  'NaFlexVit': _to_naflex,
}
