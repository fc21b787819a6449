"""Every backbone and head in ONNX; python -m pytest tests/exporting/test_onnx.py -m sweep -s.

It prints the largest difference of each, as docs/export.md has them.
"""

import importlib.util

import jax
import pytest
from small_vits import SQUARE, random_variables

from vit_jax.errors import UsageError
from vit_jax.exporting import function, onnx, stablehlo
from vit_jax.models import BACKBONES, ModelConfig
from vit_jax.models.vit import CLASSIFIERS

pytestmark = pytest.mark.skipif(
  not all(importlib.util.find_spec(name) for name in ('jax2onnx', 'onnxruntime')),
  reason='needs jax2onnx and onnxruntime',
)
SMALL = {'hidden_size': 8, 'mlp_dim': 12, 'num_layers': 2, 'num_heads': 2}
VIT = {'name': 'vit', **SMALL, 'patches': {'size': (4, 4)}, 'classifier': 'token'}
SWIN = {'name': 'swin', 'embed_dim': 12, 'depths': (1, 2), 'num_heads': (2, 3), 'window_size': 4}
LARGE = {'image_size': (64, 48)}  # for those that halve their maps often
RESNET = {'name': 'resnet18', 'num_filters': 4, **LARGE}
TUBELETS = {'method': '3d_conv', 'kernel_init_method': 'central_frame_initializer'}
VIDEO = {'patches': {'size': (4, 4, 2)}, 'temporal_encoding_config': TUBELETS, 'num_frames': 4}
POINTS = {
  **{'hidden_size': 8, 'mlp_dim': 8, 'num_layers': 1, 'num_heads': 2, 'num_points': 16},
  **{'fused_size': 8, 'head_dims': (8,), 'num_neighbors': 4},
}
MOBILEVIT = {
  **{'hidden_sizes': (16, 16, 16), 'depths': (1, 1, 1), **LARGE},
  'neck_hidden_sizes': (4, 8, 8, 8, 16, 16, 16),
}
TOKENS = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 1}
HYBRID = {**VIT, 'name': 'hybrid', 'patches': {'size': (1, 1)}, 'image_size': (32, 32)}
PARTS = {'name': 'part_segmentation', 'hidden_size': 8}
MODELS = {
  **{f'ViT, {classifier}': VIT | {'classifier': classifier} for classifier in CLASSIFIERS},
  'ViT, overlapping patches': VIT | {'stride': (2, 2)},
  'ViT, gated, registers, rotary': VIT
  | {'norm': 'rmsnorm', 'layer_scale': 0.1, 'qk_norm': True, 'mlp': 'glu', 'activation': 'silu'}
  | {'num_registers': 2, 'rotary': {'type': 'axial'}, 'num_kv_heads': 1},
  'ViT, mixed rotary': VIT | {'rotary': {'type': 'mixed'}, 'position_tokens': 'patches'},
  'ViT, relative positions': VIT | {'relative_positions': {'type': 'bias'}, 'qkv_bias': 'qv'},
  'ViT, differential': VIT | {'differential': True, 'block': 'parallel'},
  'ViT, windows': VIT
  | {'relative_positions': {'type': 'decomposed'}, 'window_size': 3, 'global_layers': (1,)}
  | {'classifier': 'gap', 'neck': 4, 'block': 'parallel_scaling'},
  'TokenLearner': VIT | {'name': 'token_learner', 'tokenizer': TOKENS},
  'TokenLearner, fused': VIT
  | {'name': 'token_learner', 'tokenizer': TOKENS | {'use_tokenfuse': True, 'use_v11': False}}
  | {'classifier': 'gap'},
  'Swin, version 1': SWIN | LARGE,
  'Swin, version 2': SWIN | LARGE | {'version': 2},
  **{
    f'ViViT, {kind}': {'name': 'vivit', **SMALL, **VIDEO, 'attention_config': {'type': kind}}
    for kind in (
      'spacetime',
      'factorized_self_attention_block',
      'factorized_dot_product_attention',
    )
  },
  'ViViT, factorized_encoder': {
    **{'name': 'space_time_vivit', 'hidden_size': 8, **VIDEO},
    **{f'spatial_{n}': v for n, v in SMALL.items() if n != 'hidden_size'},
    **{f'temporal_{n}': v for n, v in SMALL.items() if n != 'hidden_size'},
    'attention_config': {'type': 'factorized_encoder'},
  },
  'MobileViT': {'name': 'mobilevit', **MOBILEVIT},
  **{f'ResNet-{n}': RESNET | {'name': f'resnet{n}'} for n in (18, 50)},
  **{
    f'MobileNetV3-{size}': {'name': f'mobilenet_v3_{size}', 'width_multiplier': 0.25, **LARGE}
    for size in ('large', 'small')
  },
  'BiT': {'name': 'bit', 'depths': (1, 1), 'width_factor': 0.5, **LARGE},
  'Hybrid': HYBRID | {'resnet': {'num_layers': (1, 1), 'width_factor': 0.5}},
  'VNT-Net': {'name': 'vnt', **POINTS},
  'Point transformer': {'name': 'point_transformer', **POINTS},
  'Localization, ViT': VIT | {'head': {'name': 'localization', 'hidden_size': 8}},
  'Linear segmentation, ViT': VIT | {'head': {'name': 'linear'}},
  'Linear segmentation, ViT, windows': VIT
  | {'image_size': (24, 16), 'head': {'name': 'linear', 'window': (16, 16)}},
  'Linear segmentation, Swin': SWIN | LARGE | {'head': {'name': 'linear'}},
  'Linear segmentation, ResNet': RESNET | {'head': {'name': 'linear'}},
  'SegViT': VIT | {'head': {'name': 'segvit', 'num_heads': 2, 'num_layers': 1}},
  'Parts, VNT-Net': {'name': 'vnt', **POINTS, 'head': PARTS},
  'Parts, point transformer': {'name': 'point_transformer', **POINTS, 'head': PARTS},
  'MAE, features': VIT
  | {'num_classes': 0, 'head': {'name': 'mae', 'num_heads': 2, 'num_layers': 1, 'hidden_size': 8}},
}


def made_of(fields, **options):
  """The function of a model with random parameters, of variances above 0."""
  size = {} if 'num_points' in fields else {'image_size': (16, 16)}
  config = ModelConfig.from_dict({'num_classes': 3, **size, **fields})

  def positive(path, x):
    return abs(x) + 0.5 if path[-1].key == 'var' else x

  variables = jax.tree_util.tree_map_with_path(positive, random_variables(config))
  return function.make(variables, config, **options)


def test_every_backbone_is_among_the_models():
  deeper = {'resnet34', 'resnet101', 'resnet152'}  # more of the same blocks
  assert {fields['name'] for fields in MODELS.values()} == {*BACKBONES} - deeper


@pytest.mark.parametrize('name', MODELS)
def test_every_model_is_exported(name, tmp_path):
  exact = onnx.write(tmp_path / 'm.onnx', made_of(MODELS[name]))
  if MODELS[name].get('num_classes', 3) and name != 'ViT, none':  # which gives tokens
    predicted = onnx.write(tmp_path / 'p.onnx', made_of(MODELS[name], predictions=True))
    exact = max(exact, predicted)
  same = stablehlo.write(tmp_path / 'm.stablehlo', made_of(MODELS[name]))
  print(f'| {name} | {exact:.0e} | {same:.0e} |')


def test_what_the_converter_does_not_know_is_named(tmp_path):
  made = function.make(random_variables(SQUARE), SQUARE)

  def call(inputs):
    logits = made.call(inputs)['logits']
    return {'logits': jax.lax.platform_dependent(logits, default=abs, cpu=lambda x: x)}

  other = function.Function(call, 'image', made.shape, made.dtype, 'float32', made.description)
  with pytest.raises(UsageError, match=r"jax2onnx cannot convert the model: .*'platform_index'"):
    onnx.write(tmp_path / 'm.onnx', other)
  assert not list(tmp_path.iterdir())
