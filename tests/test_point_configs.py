"""Configs of models of points: which data sets they take, and the parts that they learn."""

import pytest
from point_models import register

from configs import common, datasets, part_segmentation
from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models import BACKBONES


@pytest.fixture
def config():
  register()
  yield common.get_config('cloud')
  del BACKBONES['cloud']


def test_a_path_is_a_folder_of_points_which_have_no_pixels(config):
  datasets.apply(config, './shapes')
  assert (config.data.name, config.data.dir) == ('point_folder', './shapes')
  assert (config.data.num_points, config.data.image_size, config.data.channels) == (1024, (), 0)
  assert (config.data.mean, config.augment.flip) == ((0.5,), False)


def test_data_sets_by_name(config):
  datasets.apply(config, 'modelnet40')
  assert (config.data.name, config.data.num_points) == ('modelnet40', 1024)
  assert (config.augment.point_scale, config.augment.point_shift) == (0.25, 0.1)
  datasets.apply(config, 'digits_in_space')
  options = {'num_points': 256, 'depth': 1.0, 'thickness': 0.1, 'digits': 1}
  assert config.data.options.to_dict() == options


def test_parts_of_digits_in_space_and_of_shapenet():
  digits = part_segmentation.get_config('small,digits_in_space')
  assert (digits.task, digits.model.head.name) == ('part_segmentation', 'part_segmentation')
  assert (digits.data.options.digits, digits.model.head.category) == (2, False)
  objects = part_segmentation.get_config('base,shapenet_part')
  assert (objects.data.name, objects.model.head.category) == ('shapenet_part', True)
  assert digits.dtype == objects.dtype == 'float32'
  assert models.build(objects.model, num_classes=50).INPUT == 'points'
  with pytest.raises(UsageError, match='SIZE,DATASET'):
    part_segmentation.get_config('a,b,c')
