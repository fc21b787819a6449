"""ViT tells the shapes of its variables by tracing few of its layers: the same as of all."""

import pytest

from vit_jax.models.backbone import trace_shapes
from vit_jax.models.vit import ViT

SIZES = {'mlp_dim': 8, 'num_layers': 4, 'num_heads': 2, 'hidden_size': 8, 'num_classes': 3}
IMAGE = (12, 8)
OPTIONS = {
  'scenic': {},
  'without biases, with norms': {
    'norm': 'rmsnorm',
    'use_bias': False,
    'qkv_bias': False,
    'patch_bias': False,
    'qk_norm': True,
    'attention_norm': True,
    'mlp_norm': True,
    'pre_norm': True,
    'patch_norm': True,
    'final_norm': False,
  },
  'parallel': {'block': 'parallel', 'layer_scale': 0.1, 'mlp': 'glu', 'qkv_bias': 'qv'},
  'tokens': {
    'classifier': 'token',
    'num_registers': 2,
    'distillation': True,
    'position_tokens': 'patches',
    'layer_scale': 0.1,
    'layer_scale_mlp': False,
  },
  'map': {'classifier': 'map', 'map_num_heads': 4, 'map_mlp_dim': 6, 'num_kv_heads': 1},
  'differential': {'differential': True},
  'heads of each layer': {'num_kv_heads': (1, 2, 2, 1)},
  'windows and all': {
    'window_size': 2,
    'global_layers': (1, 3),
    'relative_positions': {'type': 'decomposed'},
    'neck': 4,
  },
  'windows and heads': {'window_size': 2, 'global_layers': (1,), 'num_kv_heads': (1, 2, 2, 1)},
  'all layers global': {'window_size': 2, 'global_layers': (0, 1, 2, 3)},
  'shared positions': {'relative_positions': {'type': 'bias', 'shared': True}},
  'positions of each layer': {'relative_positions': {'type': 'mlp'}, 'block': 'post'},
  'rotary': {'rotary': {'type': 'axial'}, 'positional_embedding': 'none'},
}


@pytest.mark.parametrize('name', OPTIONS)
def test_shapes_are_those_of_a_full_trace(name):
  model = ViT(patches={'size': (4, 4)}, **SIZES, **OPTIONS[name])
  found = model.variable_shapes(IMAGE, 3)
  assert found == trace_shapes(model, IMAGE, 3)
