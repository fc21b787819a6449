"""Position tables on other grids, against PyTorch, timm's NaFlexViT and by their properties."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vit_jax.errors import FieldError
from vit_jax.models import layers
from vit_jax.models.layers.resize import resize_weights

RNG = np.random.default_rng(0)
METHODS = [
  {'method': 'bilinear', 'antialias': False},
  {'method': 'bilinear', 'antialias': True},
  {'method': 'bilinear', 'antialias': False, 'align_corners': True},
  {'method': 'bicubic', 'antialias': False},
  {'method': 'bicubic', 'antialias': True},
]


def make(grid=(4, 4), width=6, **options):
  """The module and random parameters."""
  module = layers.PositionTable({'grid': grid, **options}, width)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), (2, 2)))['params']
  return module, jax.tree.map(lambda s: np.float32(RNG.normal(size=s.shape)), shapes)


@pytest.mark.parametrize('options', METHODS, ids=str)
def test_weights_are_those_of_pytorch(options):
  torch = pytest.importorskip('torch')
  for old, new in ((16, 24), (16, 11), (128, 37), (5, 5), (4, 1), (1, 3)):
    maps = RNG.normal(size=(1, 2, old, 3)).astype(np.float32)
    names = {'method': 'mode'}
    theirs = torch.nn.functional.interpolate(
      torch.tensor(maps), size=(new, 3), **{names.get(n, n): v for n, v in options.items()}
    )
    for xp in (np, jnp) if new == 11 else (np,):
      weights = resize_weights(np.arange(new), new, old, xp=xp, **options)
      assert weights.dtype == np.float32
      np.testing.assert_allclose(np.einsum('io,bcow->bciw', weights, maps), theirs, atol=5e-6)


@pytest.mark.parametrize('keep_aspect', [False, True])
@pytest.mark.parametrize('factorized', [False, True])
def test_as_naflexvit(factorized, keep_aspect):
  torch = pytest.importorskip('torch')
  import torchvision_operators  # noqa: F401  before timm

  timm = pytest.importorskip('timm.models.naflexvit', exc_type=ImportError)
  # timm interpolates those of rows and columns linearly.
  method = {'method': 'bilinear', 'antialias': False} if factorized else {'method': 'bicubic'}
  grid = (4, 4) if keep_aspect else (4, 5)
  module, params = make(grid, keep_aspect=keep_aspect, factorized=factorized, **method)
  theirs = timm.NaFlexEmbeds(
    2,
    embed_dim=6,
    proj_type='linear',
    class_token=False,
    pos_embed='factorized' if factorized else 'learned',
    pos_embed_grid_size=grid,
    pos_embed_ar_preserving=keep_aspect,
  ).requires_grad_(False)
  theirs.proj.bias.zero_()
  if factorized:
    theirs.pos_embed_y.copy_(torch.tensor(params['pos_embedding_rows']))
    theirs.pos_embed_x.copy_(torch.tensor(params['pos_embedding_columns']))
  else:
    theirs.pos_embed.copy_(torch.tensor(params['pos_embedding'].reshape(1, *grid, 6)))
  grids = [(7, 3), (4, 5), (3, 6), (2, 2)]
  apply = jax.jit(lambda grid, places: module.apply({'params': params}, grid, places))
  patches = max(h * w for h, w in grids)
  places = np.zeros((len(grids), patches, 2), np.int32)
  alone = []
  for i, (h, w) in enumerate(grids):
    ours = module.apply({'params': params}, (h, w))
    expected, _ = theirs(torch.zeros(1, 3, 2 * h, 2 * w))
    np.testing.assert_allclose(ours, expected[0], atol=5e-6)
    places[i, : h * w] = np.stack(np.mgrid[:h, :w], -1).reshape(-1, 2)
    alone.append(ours)
  together = apply(np.array(grids), places)
  for ours, one in zip(together, alone, strict=True):
    np.testing.assert_allclose(ours[: len(one)], one, atol=5e-6)


def test_the_grid_of_the_table_keeps_its_embeddings():
  for options in METHODS:
    module, params = make((3, 4), **options, keep_aspect=True)
    embeddings = module.apply({'params': params}, (3, 4))
    np.testing.assert_allclose(embeddings, params['pos_embedding'][0], atol=1e-6)
  # Of a wide image, the rows of a square.
  module, params = make((3, 3), keep_aspect=True)
  embeddings = module.apply({'params': params}, (2, 3))
  np.testing.assert_allclose(embeddings, params['pos_embedding'][0, :6], atol=1e-6)


def test_what_rises_evenly_rises_evenly_on_another_grid():
  module, params = make((4, 4), width=2, align_corners=True, antialias=False, method='bilinear')
  params['pos_embedding'] = np.mgrid[:4, :4].reshape(2, 16).T[None].astype(np.float32)
  embeddings = module.apply({'params': params}, (7, 10)).reshape(7, 10, 2)
  np.testing.assert_allclose(embeddings[:, 3, 0], np.linspace(0, 3, 7), atol=1e-5)
  np.testing.assert_allclose(embeddings[2, :, 1], np.linspace(0, 3, 10), atol=1e-5)
  gradient = jax.grad(lambda p: jnp.sum(module.apply({'params': p}, (7, 10))))(params)
  np.testing.assert_allclose(gradient['pos_embedding'].sum(), 2 * 70, rtol=1e-5)


def test_no_table_without_a_grid():
  assert layers.resolve_position_table(None) is None
  config = ml_collections.ConfigDict(layers.POSITION_TABLE)
  assert layers.resolve_position_table(config.to_dict()) is None


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (16, 'position_table: 16 is not a dict'),
    ({'gird': (2, 2)}, 'position_table.gird: no such option; did you mean .grid'),
    ({'method': 'bilinear'}, 'position_table.grid: not set'),
    ({'grid': (2, 0)}, r'position_table.grid: \(2, 0\) is not \(rows, columns\)'),
    ({'grid': (2, 2), 'method': 'cubic'}, "position_table.method: 'cubic' is not one of"),
    ({'grid': (2, 2), 'keep_aspect': 1}, 'position_table.keep_aspect: 1 is not True or False'),
    ({'grid': (2, 2), 'align_corners': True}, 'position_table.align_corners: True, but antialias'),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(FieldError, match=message):
    layers.resolve_position_table(options)
