"""timm's NaFlexViT, whose positions are one table for images of any size, as options of ViT."""

import jax
import numpy as np
import pytest
import torchvision_operators  # noqa: F401  before timm

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm.models.naflexvit', exc_type=ImportError)

from vit_jax import models  # noqa: E402
from vit_jax.models import layers  # noqa: E402
from vit_jax.models.vit import ViT  # noqa: E402

WIDTH, HEADS, PATCH = 8, 2, 4
FIELDS = {
  'num_classes': 5,
  'mlp_dim': 16,
  'num_layers': 2,
  'num_heads': HEADS,
  'hidden_size': WIDTH,
  'patches': {'size': (PATCH, PATCH)},
  'dropout_rate': 0.0,
  'attention_dropout_rate': 0.0,
  'activation': 'gelu_exact',
  'position_tokens': 'patches',
}
GAP = {'classifier': 'gap', 'fc_norm': True, 'layer_scale': 1e-5, 'num_registers': 4}
SQUARE = {'grid': (4, 4), 'keep_aspect': True}
RADIO = {'classifier': 'token', 'final_norm': False, 'num_registers': 7, 'num_classes': 0}
# Fields here, and timm's arguments for the same, of all of its published models.
MODELS = {
  'gap': (GAP | {'position_table': {'grid': (4, 4)}}, {}),
  'parfac_gap': (
    GAP
    | {'position_table': SQUARE | {'factorized': True, 'method': 'bilinear', 'antialias': False}},
    {'pos_embed_ar_preserving': True, 'pos_embed': 'factorized'},
  ),
  'siglip': (
    {
      'classifier': 'map',
      'activation': 'gelu',
      'position_table': {'grid': (4, 4), 'method': 'bilinear'},
    },
    {'pos_embed_interp_mode': 'bilinear'},
  ),
  'radio': (
    RADIO
    | {
      'position_table': {**SQUARE, 'method': 'bilinear', 'antialias': False}
      | {'align_corners': True}
    },
    {'pos_embed_ar_preserving': True, 'pos_embed_interp_mode': 'bilinear'}
    | {'pos_embed_antialias': False, 'pos_embed_align_corners': True},
  ),
}
POOLING = {'gap': 'avg', 'map': 'map', 'token': 'token'}


def make(name):
  """A model of each library with the same random parameters."""
  changes, arguments = MODELS[name]
  model = ViT(**FIELDS | changes)
  theirs = timm.NaFlexVit(
    timm.NaFlexVitCfg(
      patch_size=PATCH,
      embed_dim=WIDTH,
      depth=model.num_layers,
      num_heads=HEADS,
      mlp_ratio=2,
      init_values=model.layer_scale,
      qkv_bias=model.qkv_bias,
      class_token=model.has_class_token,
      reg_tokens=model.num_registers,
      pos_embed_grid_size=(4, 4),
      global_pool=POOLING[model.classifier],
      fc_norm=model.fc_norm,
      final_norm=model.final_norm,
      act_layer='gelu_tanh' if model.activation == 'gelu' else None,
      **arguments,
    ),
    num_classes=model.num_classes,
  )
  rng, params = np.random.default_rng(0), {}
  for name, shape in sorted(model.variable_shapes((8, 8), 3).items()):
    params[name] = np.float32(name.endswith('scale') + 0.3 * rng.normal(size=shape))
  state = {n: torch.tensor(np.ascontiguousarray(a)) for n, a in tensors(params, model)}
  theirs.load_state_dict(state)
  return model, models.unflatten(params), theirs.eval()


def tensors(params, model):
  """Yields timm's name and value of each parameter."""
  for name, array in params.items():
    parts = name.split('/')
    kind = {'kernel': 'weight', 'scale': 'weight'}.get(parts[-1], parts[-1])
    if name == 'embedding/kernel':
      yield 'embeds.proj.weight', array.reshape(-1, WIDTH).T
    elif name.endswith('pos_embedding'):
      yield 'embeds.pos_embed', array.reshape(1, 4, 4, WIDTH)
    elif 'posembed_input' in name:
      yield f'embeds.pos_embed_{"y" if "rows" in name else "x"}', array
    elif name in ('cls', 'registers'):
      yield {'cls': 'embeds.cls_token', 'registers': 'embeds.reg_token'}[name], array
    elif len(parts) == 2:
      module = {'embedding': 'embeds.proj', 'output_projection': 'head', 'fc_norm': 'fc_norm'}
      if parts[0] in module:
        yield f'{module[parts[0]]}.{kind}', array.T
      else:
        yield 'attn_pool.latent', array
    elif parts[1] == 'encoder_norm':
      yield f'norm.{kind}', array
    elif parts[-2] in ('query', 'key', 'value'):
      if parts[-2] == 'query' and parts[0] != 'MAPHead_0':
        group = [params[name.replace('query', part)] for part in ('query', 'key', 'value')]
        yield f'{prefix(parts)}attn.qkv.{kind}', np.concatenate([flat(a, kind) for a in group])
      elif parts[-2] == 'query':
        yield f'attn_pool.q.{kind}', flat(array, kind)
      elif parts[0] == 'MAPHead_0' and parts[-2] == 'key':
        group = [params[name.replace('key', part)] for part in ('key', 'value')]
        yield f'attn_pool.kv.{kind}', np.concatenate([flat(a, kind) for a in group])
    elif parts[-2] == 'out':
      own = 'proj' if parts[0] == 'MAPHead_0' else 'attn.proj'
      yield (
        f'{prefix(parts)}{own}.{kind}',
        array.reshape(-1, WIDTH).T if kind == 'weight' else array,
      )
    else:
      modules = {'LayerNorm_0': 'norm1', 'LayerNorm_1': 'norm2', 'LayerScale_0': 'ls1'}
      modules |= {'LayerScale_1': 'ls2', 'Dense_0': 'mlp.fc1', 'Dense_1': 'mlp.fc2'}
      own = modules[parts[-2]]
      own = 'norm' if parts[0] == 'MAPHead_0' and own == 'norm1' else own
      yield f'{prefix(parts)}{own}.{kind}', array.T


def prefix(parts):
  return 'attn_pool.' if parts[0] == 'MAPHead_0' else f'blocks.{parts[1].split("_")[1]}.'


def flat(array, kind):
  return array.reshape(WIDTH, -1).T if kind == 'weight' else array.ravel()


@pytest.mark.parametrize('name', MODELS)
def test_images_of_several_sizes(name):
  model, variables, theirs = make(name)
  rng = np.random.default_rng(1)
  images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in ((12, 20), (16, 16), (4, 8))]
  patches = layers.patchify(images, (PATCH, PATCH), 20)
  given = {'patches': patches.pixels.reshape(3, 20, -1), 'patch_coord': patches.places}
  given = {n: torch.tensor(a) for n, a in {**given, 'patch_valid': patches.valid}.items()}
  with torch.no_grad():
    expected = theirs(given).numpy()
    alone = theirs(torch.tensor(images[0][None]).permute(0, 3, 1, 2)).numpy()
  atol = 2e-5 * np.abs(expected).max()
  apply = jax.jit(model.apply)
  np.testing.assert_allclose(apply(variables, patches), expected, atol=atol)
  np.testing.assert_allclose(apply(variables, images[0][None]), alone, atol=atol)
