"""DINO's checkpoints, as main_dino.py saves them: the teacher's backbone, and nothing unread."""

import argparse

import numpy as np
import pytest
from small_vits import SQUARE, assert_same, logits, random_images, random_variables

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.models import Preprocessing

torch = pytest.importorskip('torch')

BACKBONE = SQUARE.replace(
  model=SQUARE.backbone.clone(num_classes=0, activation='gelu_exact'), class_names=None
)
HEAD = {
  'mlp.0.weight': (6, 8),
  'mlp.0.bias': (6,),
  'mlp.2.weight': (4, 6),
  'mlp.2.bias': (4,),
  'last_layer.weight_g': (5, 1),
  'last_layer.weight_v': (5, 4),
}


def checkpoint(path, variables, root='', **more):
  """Writes what main_dino.py does, with a teacher of these variables and another student."""

  def tensors(variables, root):
    weights.save(variables, BACKBONE, path, format='timm')
    tree = torch.load(path, weights_only=True)['state_dict']
    tree = {f'{root}backbone.{name}': x for name, x in tree.items()}
    return tree | {f'{root}head.{name}': torch.ones(shape) for name, shape in HEAD.items()}

  content = {
    'student': tensors(random_variables(BACKBONE, seed=1), 'module.'),
    'teacher': tensors(variables, root) | more,
    'optimizer': {'state': {0: {'exp_avg': torch.ones(3)}}, 'param_groups': [{'lr': 0.1}]},
    'epoch': 3,
    'args': argparse.Namespace(arch='vit_small', clip_grad=3.0),
    'dino_loss': {'center': torch.ones(1, 5)},
  }
  torch.save(content, path)


@pytest.mark.parametrize('root', ['', 'module.'])
def test_the_teacher_s_backbone_is_read(tmp_path, root):
  path, variables = tmp_path / 'checkpoint.pth', random_variables(BACKBONE)
  checkpoint(path, variables, root)
  found, config = weights.load(path, num_heads=2)
  assert_same(found, variables)
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  assert config.preprocess == Preprocessing(mean=mean, std=std, crop='central', crop_fraction=0.875)
  assert (config.num_classes, config.image_size, config.backbone.classifier) == (0, (8, 8), 'token')
  assert (config.backbone.activation, config.backbone.norm_epsilon) == ('gelu_exact', 1e-6)
  images = random_images(BACKBONE)
  np.testing.assert_array_equal(logits(found, config, images), logits(variables, BACKBONE, images))


def test_a_backbone_alone_is_what_timm_s_are(tmp_path):
  path, variables = tmp_path / 'pretrain.pth', random_variables(BACKBONE)
  weights.save(variables, BACKBONE, path, format='timm')
  torch.save(torch.load(path, weights_only=True)['state_dict'], path)
  found, config = weights.load(path, num_heads=2, activation='gelu_exact', classifier='token')
  assert_same(found, variables)
  assert (config.backbone.activation, config.backbone.norm_epsilon) == ('gelu_exact', 1e-6)


def test_a_tensor_that_is_not_read_is_named(tmp_path):
  path = tmp_path / 'checkpoint.pth'
  checkpoint(path, random_variables(BACKBONE), **{'backbone.blocks.0.more': torch.ones(8)})
  with pytest.raises(UsageError, match=r'blocks\.0\.more'):
    weights.load(path, num_heads=2)
