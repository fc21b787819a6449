"""Names of model sizes: 'B/16' and the like."""

import pytest

from vit_jax.errors import UsageError
from vit_jax.models import sizes


@pytest.mark.parametrize(
  ('variant', 'width', 'depth', 'mlp', 'heads', 'patch'),
  [
    ('Ti/4', 192, 12, 768, 3, (4, 4)),
    ('S/8', 384, 12, 1536, 6, (8, 8)),
    ('B/16', 768, 12, 3072, 12, (16, 16)),
    ('B/16x8', 768, 12, 3072, 12, (16, 8)),
    ('L/14', 1024, 24, 4096, 16, (14, 14)),
    ('H/14', 1280, 32, 5120, 16, (14, 14)),
    ('g/14', 1408, 40, 6144, 16, (14, 14)),
    ('G/14', 1664, 48, 8192, 16, (14, 14)),
  ],
)
def test_published_sizes(variant, width, depth, mlp, heads, patch):
  assert sizes.parse(variant) == {
    'hidden_size': width,
    'num_layers': depth,
    'mlp_dim': mlp,
    'num_heads': heads,
    'patches': {'size': patch},
  }
  assert width % heads == 0


@pytest.mark.parametrize(
  ('variant', 'nearest'),
  [
    ('b/16', "'B'"),
    ('Tiny/4', "'Ti'"),
    ('base/16', "'B'"),
    ('TI/4', "'Ti'"),
    ('B/16x', "'B/16'"),
    ('L/0', "'L/16'"),
    ('S/', "'S/16'"),
    ('S', "'S/16'"),
    ('S/8x8x8', "'S/8x8'"),
    ('S/-4', "'S/4'"),
  ],
)
def test_mistakes_suggest_the_nearest_name(variant, nearest):
  with pytest.raises(UsageError, match=f'did you mean {nearest}'):
    sizes.parse(variant)


@pytest.mark.parametrize('variant', ['', '/4', 'XL/2', 'resnet'])
def test_sizes_that_resemble_none(variant):
  with pytest.raises(UsageError, match=r'is not one of Ti, S, B, L, H, g, G$'):
    sizes.parse(variant)
