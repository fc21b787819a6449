"""The linear head on any backbone, and sliding windows, against NumPy and PyTorch."""

import itertools

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models.heads.segmentation import Segmenter

K = 4
BACKBONES = {
  'vit': {
    'name': 'vit',
    'hidden_size': 8,
    'mlp_dim': 8,
    'num_layers': 1,
    'num_heads': 1,
    'patches': {'size': (4, 4)},
    'classifier': 'token',
  },
  'vit without the rest': {'drop_remainder': True},
  'swin': {'name': 'swin', 'embed_dim': 4, 'depths': (1, 1), 'num_heads': (1, 2)}
  | {'window_size': 2, 'patches': {'size': (4, 4)}},
  'resnet': {'name': 'resnet18', 'num_filters': 2},
}


BACKBONES['vit without the rest'] |= BACKBONES['vit']


def build(backbone, image_size, options=()):
  config = BACKBONES[backbone] | {'head': {'name': 'linear', **dict(options)}}
  model = models.build(config, num_classes=K)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, *image_size, 3)).astype(np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype('f'), variables)
  return model, variables, images


def upsampled(maps, covered, size):
  maps = torch.tensor(np.array(maps)).permute(0, 3, 1, 2)
  large = functional.interpolate(maps, size=covered, mode='bilinear', align_corners=False)
  large = large[:, :, : size[0], : size[1]]
  large = functional.pad(
    large, (0, size[1] - large.shape[3], 0, size[0] - large.shape[2]), 'replicate'
  )
  return large.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
  ('backbone', 'size'),
  [
    ('vit', (8, 8)),
    ('vit', (12, 20)),
    ('vit without the rest', (11, 10)),
    ('swin', (16, 24)),
    ('resnet', (40, 48)),
  ],
)
def test_logits_are_a_linear_layer_of_the_features_upsampled(backbone, size):
  model, variables, images = build(backbone, size)
  params = variables['params']

  def compute(variables):
    inner = {name: tree['backbone'] for name, tree in variables.items()}
    method = type(model.backbone).features
    return model.apply(variables, images), model.backbone.apply(inner, images, method=method)

  outputs, found = jax.jit(compute)(variables)
  if backbone.startswith('vit'):
    grid = size[0] // 4, size[1] // 4
    levels = [
      (np.asarray(found.tokens)[:, 1:].reshape(2, *grid, -1), tuple(4 * side for side in grid))
    ]
  else:
    levels = [
      (level, (level.shape[1] * rows, level.shape[2] * columns))
      for level, (rows, columns) in zip(found.maps, found.strides, strict=True)
    ]
  expected = sum(
    upsampled(level @ params[f'linear_{i}']['kernel'], covered, size)
    for i, (level, covered) in enumerate(levels)
  )
  expected += params['linear_0']['bias']
  assert outputs.keys() == {'logits'}
  np.testing.assert_allclose(outputs['logits'], expected, rtol=1e-4, atol=1e-4)
  assert params.keys() - {'backbone'} == {f'linear_{i}' for i in range(len(levels))}


def slide(apply, images, window, stride):
  """As mmsegmentation's slide_inference: sums over windows, divided by how many see a pixel."""
  (height, width), (h, w) = images.shape[1:3], window
  total, count = np.zeros((*images.shape[:3], K)), np.zeros((height, width, 1))
  rows = max(height - h + stride[0] - 1, 0) // stride[0] + 1
  columns = max(width - w + stride[1] - 1, 0) // stride[1] + 1
  places = []
  for row, column in itertools.product(range(rows), range(columns)):
    bottom, right = min(row * stride[0] + h, height), min(column * stride[1] + w, width)
    top, left = max(bottom - h, 0), max(right - w, 0)
    total[:, top:bottom, left:right] += apply(images[:, top:bottom, left:right])
    count[top:bottom, left:right] += 1
    places.append((top, left))
  return total / count, places


@pytest.mark.parametrize('stride', [(), (5, 8), (3, 4)])
def test_logits_of_overlapping_windows_are_averaged(stride):
  model, variables, images = build('vit', (12, 20), {'window': (8, 8), 'stride': stride})
  positions = variables['params']['backbone']['Transformer']['posembed_input']['pos_embedding']
  assert positions.shape == (1, 5, 8), 'of a window, with the class token'
  apply = jax.jit(lambda x: model.apply(variables, x))
  expected, places = slide(lambda x: apply(x)['logits'], images, (8, 8), stride or (6, 6))
  found = apply(images)
  np.testing.assert_allclose(found['logits'], expected, rtol=1e-4, atol=1e-4)
  assert len(set(places)) == found['rows'].shape[1]
  corners = np.stack([found['rows'][0, :, 0], found['columns'][0, :, 0]], axis=1)
  assert sorted(corners.tolist()) == sorted(map(list, places))
  assert found['columns'].shape[2] == 8


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'window': (8,)}, r'^head\.window: \(8,\) is not \(\) or 2 whole numbers'),
    ({'stride': (4, 4)}, r'^head\.stride: \(4, 4\), but window is \(\)'),
    ({'window': (8, 8), 'stride': (4, 9)}, r'^head\.stride: \(4, 9\) is more than window'),
    ({'window': (16, 8)}, r'^head\.window: \(16, 8\) is larger than images of \(12, 20\)'),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(UsageError, match=message):
    build('vit', (12, 20), options)


def test_learned_tokens_are_refused():
  tokenizer = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 0}
  config = BACKBONES['vit'] | {'name': 'token_learner', 'tokenizer': tokenizer}
  model = models.build(config | {'head': {'name': 'linear'}}, num_classes=K)
  assert isinstance(model, Segmenter)
  with pytest.raises(UsageError, match='tokens on a grid, or maps; there are none'):
    jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
