"""Views augmented on the device, each as `augment` does another example."""

import jax
import numpy as np
import pytest
from image_files import MEAN, NUM_CLASSES, STD, augmentations, photographs, scene
from image_files import keys as make_keys

from vit_jax.data import augment
from vit_jax.errors import FieldError, UsageError

STRONG = augmentations(
  crop_padding=3, flip=True, color_jitter={'brightness': 0.4, 'contrast': 0.4, 'hue': 0.1}
)
WEAK = augmentations(flip=True, shift=2)


def run(views, batch, keys=None):
  keys = make_keys(len(next(iter(batch.values())))) if keys is None else keys
  f = jax.jit(lambda keys, batch: augment.augment_views(views, keys, batch, MEAN, STD))
  return jax.tree.map(np.asarray, f(keys, batch))


def augmented(config, number, batch):
  """A batch as `augment` makes it with the keys of a view."""
  count = len(batch['image'])
  keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(make_keys(count))
  f = jax.jit(lambda keys, batch: augment.augment(config, keys, batch, NUM_CLASSES, MEAN, STD))
  return jax.tree.map(np.asarray, f(keys, batch))


def test_views_of_one_image_are_augmented_by_keys_of_their_own():
  images = photographs(4)
  batch = {'image': images, 'label': np.arange(4), 'slot': np.arange(4)}
  made = run({'global': [STRONG, WEAK], 'local': [STRONG]}, batch)
  assert made.keys() == {'image/global', 'image/local', 'label', 'slot'}
  assert made['image/global'].shape == (4, 2, 12, 16, 3)
  views = made['image/global'][:, 0], made['image/global'][:, 1], made['image/local'][:, 0]
  for number, (config, view) in enumerate(zip((STRONG, WEAK, STRONG), views, strict=True)):
    expected = augmented(config, number, {'image': images})['image']
    np.testing.assert_allclose(view, expected, atol=1e-5)
  assert (views[0] != views[2]).any((1, 2, 3)).all()
  np.testing.assert_array_equal(made['label'], np.arange(4))


def test_views_that_the_host_made_are_augmented_in_their_sizes():
  large, small = photographs(6, 12, 16).reshape(3, 2, 12, 16, 3), photographs(9, 6, 6)
  small = small.reshape(3, 3, 6, 6, 3)
  batch = {'image/global': large, 'image/local': small}
  made = run({'global': [STRONG, WEAK], 'local': [WEAK] * 3}, batch)
  assert made.keys() == {'image/global', 'image/local'}
  for group, given, configs, first in (
    ('global', large, [STRONG, WEAK], 0),
    ('local', small, [WEAK] * 3, 2),
  ):
    assert made[f'image/{group}'].shape == given.shape
    for i, config in enumerate(configs):
      expected = augmented(config, first + i, {'image': given[:, i]})['image']
      np.testing.assert_allclose(made[f'image/{group}'][:, i], expected, atol=1e-5)


def test_masks_and_boxes_move_with_their_view_where_all_views_of_the_group_keep_them():
  records = [scene(seed) for seed in range(4)]
  batch = {name: np.stack([r[name] for r in records]) for name in ('image', 'mask', 'box')}
  mixed = [WEAK, augmentations(rand_augment={'num_ops': 1})]
  made = run({'global': [WEAK, WEAK], 'local': mixed}, batch)
  assert made.keys() == {'image/global', 'mask/global', 'box/global', 'image/local'}
  for i in range(2):
    expected = augmented(WEAK, i, batch)
    for name in batch:
      np.testing.assert_allclose(made[f'{name}/global'][:, i], expected[name], atol=1e-5)


def test_views_depend_on_their_examples_keys_alone():
  images, keys = photographs(4), make_keys(4)
  whole = run({'global': [STRONG] * 2}, {'image': images}, keys)['image/global']
  part = run({'global': [STRONG] * 2}, {'image': images[2:]}, keys[2:])['image/global']
  np.testing.assert_allclose(part, whole[2:], atol=1e-5)


def test_mistakes():
  with pytest.raises(FieldError, match=r'^mixup_alpha: 0\.2, but views are not mixed'):
    run({'global': [augmentations(mixup_alpha=0.2)]}, {'image': photographs(2)})
  views = {'image/global': photographs(4).reshape(2, 2, 12, 16, 3)}
  with pytest.raises(UsageError, match='image/global holds views'):
    augment.augment(WEAK, make_keys(2), views, NUM_CLASSES, MEAN, STD)


def test_a_view_has_the_augmentations_of_all_and_its_own():
  common = augmentations(flip=True, solarize={'threshold': 0.3})
  changes = {'solarize.probability': 0.2}
  group = augment.ViewGroup((6, 8), (0.1, 0.4), [{}, changes, changes])
  first, second, third = group.configs(common, crop=True)
  assert first.solarize.to_dict() == {'probability': 0.0, 'threshold': 0.3}
  assert second == third
  assert second.solarize.to_dict() == {'probability': 0.2, 'threshold': 0.3}
  assert second.flip
  assert second.resized_crop.to_dict() == {'area': (0.1, 0.4), 'size': (6, 8)}
  on_host = group.configs(common, crop=False)[1]
  assert on_host.resized_crop.to_dict() == {'area': (), 'size': ()}
  made = run({'local': [second] * 3}, {'image': photographs(2)})
  assert made['image/local'].shape == (2, 3, 6, 8, 3)
  common.solarize.probability = 0.5
  with pytest.raises(FieldError, match=r'^solarize\.probability: 0\.5, but each view has a value'):
    group.configs(common, crop=False)
