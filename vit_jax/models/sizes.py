"""The sizes of vision transformers that have names, and names such as 'B/16'."""

import re
from typing import Any

from vit_jax.errors import UsageError

# (hidden_size, num_layers, mlp_dim, num_heads). Ti to L and g, G: arXiv 2106.04560, table 2;
# H: arXiv 2010.11929, table 1.
SIZES = {
  'Ti': (192, 12, 768, 3),
  'S': (384, 12, 1536, 6),
  'B': (768, 12, 3072, 12),
  'L': (1024, 24, 4096, 16),
  'H': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
}


def parse(variant: str) -> dict[str, Any]:
  """Returns the fields of `config.model` that a name such as 'Ti/4' or 'B/16x8' stands for.

  The part before the slash is a key of `SIZES`; the part after it is the patch in pixels, one side
  of a square or height x width.

  Raises:
    UsageError: the size or the patch is not one; names the nearest that is.
  """
  size, _, patch = variant.partition('/')
  if size not in SIZES:
    names = ', '.join(SIZES)
    raise UsageError(f'--config: model size {size!r} is not one of {names}{_nearest_size(size)}')
  sides = re.fullmatch(r'([1-9]\d*)(?:x([1-9]\d*))?', patch)
  if not sides:
    nearest = 'x'.join(re.findall(r'[1-9]\d*', patch)[:2]) or '16'
    raise UsageError(
      f'--config: model patch {patch!r} is not a number of pixels or HEIGHTxWIDTH; '
      f"did you mean '{size}/{nearest}'?"
    )
  height = int(sides[1])
  hidden_size, num_layers, mlp_dim, num_heads = SIZES[size]
  return {
    'hidden_size': hidden_size,
    'mlp_dim': mlp_dim,
    'num_layers': num_layers,
    'num_heads': num_heads,
    'patches': {'size': (height, int(sides[2] or height))},
  }


def _nearest_size(given: str) -> str:
  # The names are too short for edit distance: 'b' and 'Base' mean 'B', 'tiny' means 'Ti'.
  close = [size for size in SIZES if given and given.lower()[: len(size)] == size.lower()]
  return f"; did you mean '{close[0]}'?" if close else ''
