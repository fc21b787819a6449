"""Fits the loaded weights of a ViT to another model: image, patch, channels, classes, pooling.

As in github.com/google-research/big_vision (models/vit.py, models/proj/flexi/vit.py), for grids and
patches that need not be square.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import numpy as np
import scipy.ndimage

from vit_jax.errors import UsageError, check_choice
from vit_jax.models import layers
from vit_jax.weights import table
from vit_jax.weights.model_config import POSITIONS, Shape, square_image

HEADS = ('auto', 'new', 'keep')

_KERNEL = 'embedding/kernel'
_BACKBONE = re.compile(r'^(batch_stats/)?backbone/')
# What reads a model's features: of the model itself, or in its place the task localization's.
_HEADS = ('output_projection', 'class_head', 'box_head')
# What the parameters' shapes don't tell.
_FUNCTION = ('activation', 'norm_epsilon', 'num_heads', 'positional_embedding')


def resize_position_embeddings(
  embeddings: np.ndarray,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  num_prefix: int = 0,
) -> np.ndarray:
  """Interpolates position embeddings linearly, the corners of one grid on those of the other.

  The same grid gives the same bits.

  Args:
    embeddings: float32 [1, num_prefix + rows * columns, D].
    old_grid: its (rows, columns).
    new_grid: (rows, columns) of the result. A single row or column takes the first there was.
    num_prefix: how many embeddings, the class token's, stand before the grid; they are kept.

  Returns:
    float32 [1, num_prefix + new rows * new columns, D].
  """
  if tuple(old_grid) == tuple(new_grid):
    return embeddings
  prefix, grid = embeddings[:, :num_prefix], embeddings[0, num_prefix:]
  zoom = (new_grid[0] / old_grid[0], new_grid[1] / old_grid[1], 1)
  # The default mode takes the last row, where rounding puts it outside (8 to 26), for zeros.
  grid = scipy.ndimage.zoom(grid.reshape(*old_grid, -1), zoom, order=1, mode='nearest')
  return np.concatenate([prefix, grid.reshape(1, math.prod(new_grid), -1)], axis=1)


def resample_patch_kernel(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resamples a patch kernel by the pseudo-inverse of resizing patches (arXiv 2212.08013).

  With B the matrix that resizes a patch, the new kernel is the least-squares solution v of
  B^T v = w: on patches resized to a larger size it computes what w did on the patches. B is
  bilinear with pixel centres at halves and, as big_vision's, without antialiasing, so that much
  smaller kernels come from those pixels alone that such a resize reads. The same size gives the
  same bits.

  Args:
    kernel: float32 [height, width, C, D].
    size: (height, width) of the result.

  Returns:
    float32 [*size, C, D].
  """
  if kernel.shape[:2] == tuple(size):
    return kernel
  # B is the Kronecker product of its two axes' matrices, and so is its pseudo-inverse.
  rows, columns = (
    np.linalg.pinv(_resize_matrix(old, new).T)
    for old, new in zip(kernel.shape[:2], size, strict=True)
  )
  resampled = np.einsum('ih,jw,hwcd->ijcd', rows, columns, kernel, optimize=True)
  return resampled.astype(np.float32)


def _resize_matrix(old: int, new: int) -> np.ndarray:
  """Returns the float64 [new, old] matrix of bilinear resizing along one axis."""
  positions = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
  return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(old)))


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Returns a patch kernel, [height, width, C, D], for images of another number of channels.

  From 1 to 3 each gets a third, from 3 to 1 they are summed, so that grey images give the same
  tokens, stored as they are or as RGB. The same number gives the same bits.

  Raises:
    UsageError: for other numbers of channels.
  """
  match kernel.shape[2], channels:
    case old, new if old == new:
      return kernel
    case 1, 3:
      return np.repeat(kernel / np.float32(3), 3, axis=2)
    case 3, 1:
      return kernel.sum(axis=2, keepdims=True)
  raise UsageError(
    f'config.data.channels: {channels}, but the weights are for images of {kernel.shape[2]}; '
    'only 1 can be turned into 3, and 3 into 1'
  )


def adapt(
  params: table.Params,
  config: Mapping[str, Any],
  shapes: Mapping[str, Shape],
  target: Mapping[str, Any],
  path: object,
  *,
  head: str = 'auto',
  allow: str | None = None,
) -> tuple[table.Params, list[str]]:
  """Fits the weights of a model, as `weights.load` returns them, to another of its architecture.

  ViT and TokenLearnerViT are one; all of a ResNet but its head must fit. As to ViTs: position
  embeddings and the patch kernel are resized. The class token, its position, MAPHead_0, pre_logits,
  fc_norm with encoder_norm, and TokenLearner's modules are kept where both models have them alike,
  else left out or left to the target's initialisation. The position of a class token that the
  source lacks is zeros, since its parameter holds the others' too. Where a task has put a head of
  its own on the features of either (`head` in its config), those are fitted all the same, without
  the `backbone/` in their names.

  Args:
    params: the source's tree.
    config: its model config, see `model_config`; `name`, `stride` and `tokenizer` count as well.
    shapes: path -> shape of all the target's parameters.
    target: the target's model config, with the entries that `config` has.
    path: where the weights are from, for messages.
    head: 'keep' the head, start a 'new' one, or 'auto': keep it where the class names are the
      same (the number of classes, where one side doesn't name them; for `box_head`, which knows no
      classes, where both sides have the same `box_sigmoid`), its own shapes too, and it reads
      neither pre_logits nor MAPHead_0 nor fc_norm that are new or left out.
    allow: a regular expression; parameters whose whole path, without `backbone/`, it matches may be
      missing, left over or of another shape: they are left out.

  Returns:
    (tree, notes): the target's parameters that come from the source, float32 and in its shapes;
    and a line for everything that was changed, left out or starts anew.

  Raises:
    UsageError: fields of the two configs contradict, the grid of the source's positions isn't
      known, the head to keep doesn't fit, or, with a table, other parameters don't.
  """
  check_choice('config.init_options.head', head, HEADS)
  _check_function(config, target, path)
  flat, notes = _without_backbone(table.flatten(params)), []
  full_names = dict(zip(_without_backbone(shapes), shapes, strict=True))
  shapes = _without_backbone(shapes)
  if _KERNEL in flat.keys() & shapes.keys():
    flat[_KERNEL] = _fit_kernel(flat[_KERNEL], target, notes)
  if POSITIONS in flat.keys() & shapes.keys():
    flat[POSITIONS] = _fit_positions(flat[POSITIONS], config, target, path, notes)

  ours = {name: array.shape for name, array in flat.items()}
  differing = _differing_modules(ours, shapes, config, target)
  differing += [
    module
    for module in _HEADS
    if not _keeps_head(module, head, ours, shapes, differing, config, target, path)
  ]
  for module in differing:
    label = 'head' if module == _HEADS[0] else module
    classes = f', {target["num_classes"]} classes' if module in _HEADS[:2] else ''
    notes.append(f'{label}: new{classes}' if _parts(shapes, module) else f'{label}: left out')

  flat = _without(flat, differing)
  expected = _without(shapes, differing)
  fitting = table.check(flat, expected, path, allow, option='config.init_options.allow')
  for names, fate in (
    (sorted(expected.keys() - fitting.keys()), 'new'),
    (sorted(flat.keys() - expected.keys()), 'left out'),
  ):
    if names:
      more = f' and {len(names) - 3} more' if len(names) > 3 else ''
      notes.append(f'{", ".join(names[:3])}{more}: {fate}, allowed by config.init_options.allow')
  fitting = {full_names[name]: array for name, array in fitting.items()}
  return flax.traverse_util.unflatten_dict(fitting, sep='/'), notes


def _without_backbone(flat: Mapping[str, Any]) -> dict[str, Any]:
  return {_BACKBONE.sub(r'\1', name): leaf for name, leaf in flat.items()}


def _check_function(config: Mapping[str, Any], target: Mapping[str, Any], path: object) -> None:
  """Raises UsageError where the target would compute something else with the same parameters."""
  for field in _FUNCTION:
    theirs, ours = config.get(field), target.get(field)
    if None in (theirs, ours) or theirs == ours:
      continue
    if field == 'norm_epsilon' and math.isclose(float(theirs), float(ours), rel_tol=1e-6):
      continue
    raise UsageError(f'config.model.{field}: {ours!r}, but {path} has weights for {theirs!r}')


def _fit_kernel(kernel: np.ndarray, target: Mapping[str, Any], notes: list[str]) -> np.ndarray:
  """Returns the patch kernel with the target's channels and patch size."""
  adapted = adapt_channels(kernel, target['channels'])
  if adapted.shape != kernel.shape:
    notes.append(f'patch kernel: from {kernel.shape[2]} to {adapted.shape[2]} channels')
  size = layers.as_pair(target['patches']['size'])
  if adapted.shape[:2] != size:
    notes.append(f'patch kernel: resampled from {_text(adapted.shape[:2])} to {_text(size)}')
  return resample_patch_kernel(adapted, size)


def _fit_positions(
  positions: np.ndarray,
  config: Mapping[str, Any],
  target: Mapping[str, Any],
  path: object,
  notes: list[str],
) -> np.ndarray:
  """Returns the position embeddings on the target's grid, with its class token or without."""
  had, has = (_num_class_tokens(c) for c in (config, target))
  count, new_grid = positions.shape[1] - had, _grid(target)
  if config.get('image_size') is not None:
    old_grid = _grid(config)
  elif count == math.prod(new_grid):
    old_grid = new_grid
  else:
    old_grid = square_image(count, (1, 1), path)
  if count != math.prod(old_grid):
    raise UsageError(
      f'{path}: {count} position embeddings, but {_text(old_grid)} patches in its images of '
      f'{_text(config["image_size"])}'
    )
  if old_grid != new_grid:
    notes.append(f'position embeddings: resized from {_text(old_grid)} to {_text(new_grid)}')
  positions = resize_position_embeddings(positions, old_grid, new_grid, had)
  if had and not has:
    notes.append('position of the class token: left out')
    positions = positions[:, 1:]
  if has and not had:
    notes.append('position of the class token: zeros')
    positions = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
  return positions


def _num_class_tokens(config: Mapping[str, Any]) -> int:
  own = config.get('class_token')
  return int(config['classifier'] == 'token' if own is None else own)


def _grid(config: Mapping[str, Any]) -> tuple[int, int]:
  """Returns (rows, columns) of a model's patches."""
  patch = layers.as_pair(config['patches']['size'])
  stride = patch if config.get('stride') is None else layers.as_pair(config['stride'])
  return layers.patch_grid(config['image_size'], patch, stride)


def _differing_modules(
  ours: Mapping[str, Shape],
  theirs: Mapping[str, Shape],
  config: Mapping[str, Any],
  target: Mapping[str, Any],
) -> list[str]:
  """Returns the modules that may differ between source and target, and do."""

  def on_one_side(*modules):
    return [m for m in modules if bool(_parts(ours, m)) != bool(_parts(theirs, m))]

  differing = []
  if any(config.get(field) != target.get(field) for field in ('classifier', 'class_token')):
    differing += on_one_side('cls', 'MAPHead_0')
  if on_one_side('fc_norm'):
    differing += on_one_side('fc_norm', 'Transformer/encoder_norm')
  if _parts(ours, 'pre_logits') != _parts(theirs, 'pre_logits'):
    differing.append('pre_logits')
  tokenizer = re.compile(r'Transformer/Token(Learner|Fuser)\w*')
  modules = sorted({m[0] for name in {*ours, *theirs} if (m := tokenizer.match(name))})
  alike = _tokenizer_layer(config) == _tokenizer_layer(target) and all(
    _parts(ours, module) == _parts(theirs, module) for module in modules
  )
  return differing if alike else differing + modules


def _tokenizer_layer(config: Mapping[str, Any]) -> int | None:
  """Returns the layer that TokenLearner precedes, which no parameter tells."""
  if config.get('tokenizer') is None:
    return None
  layer = config['tokenizer']['tokenlearner_loc']
  return config['num_layers'] // 2 if layer is None else layer


def _keeps_head(
  module: str,
  head: str,
  ours: Mapping[str, Shape],
  theirs: Mapping[str, Shape],
  differing: Sequence[str],
  config: Mapping[str, Any],
  target: Mapping[str, Any],
  path: object,
) -> bool:
  """Whether nothing about a head starts anew or is left out; see `adapt`."""
  old, new = _parts(ours, module), _parts(theirs, module)
  if head == 'keep' and old != new:
    kernels = [
      ', '.join(_text(shape) for name, shape in parts.items() if name.endswith('kernel')) or 'none'
      for parts in (old, new)
    ]
    raise UsageError(
      f"config.init_options.head: 'keep', but the head in {path} is {kernels[0]}, "
      f'that of this model {kernels[1]}'
    )
  if head == 'keep' or not (old or new):
    return True
  if head == 'new' or not (old and new):
    return False
  if {'pre_logits', 'MAPHead_0', 'fc_norm'} & set(differing):
    return False
  if config.get('head') != target.get('head') and old != new:
    return False
  if module == 'box_head':
    return config['head']['box_sigmoid'] == target['head']['box_sigmoid']
  names = [c.get('class_names') for c in (config, target)]
  if None in names:
    return config['num_classes'] == target['num_classes']
  return list(names[0]) == list(names[1])


def _is_in(name: str, module: str) -> bool:
  return f'{name}/'.startswith(f'{module}/')


def _parts(shapes: Mapping[str, Shape], module: str) -> dict[str, Shape]:
  """Returns those parameters that are `module` or in it."""
  return {name: shape for name, shape in shapes.items() if _is_in(name, module)}


def _without(flat: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
  """Returns those parameters that are in none of the modules."""
  return {n: leaf for n, leaf in flat.items() if not any(_is_in(n, m) for m in modules)}


def _text(shape: Sequence[int]) -> str:
  return 'x'.join(map(str, shape))
