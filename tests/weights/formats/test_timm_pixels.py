"""Photographs through timm's transforms and through what its config.json is read as: no bit apart.

`python -m pytest tests/weights/formats/test_timm_pixels.py -m sweep -s` prints the table of all
combinations that published models have.
"""

import collections
import json

import numpy as np
import pytest
import torchvision_operators  # noqa: F401  before timm
from photographs import apart, photographs, prepared, to_pillow
from small_vits import random_variables

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.weights.formats import timm as timm_format
from vit_jax.weights.table import Source

TINY = {  # vit_tiny_patch16_224
  'name': 'vit',
  'hidden_size': 192,
  'mlp_dim': 768,
  'num_layers': 12,
  'num_heads': 3,
  'patches': {'size': (16, 16)},
  'classifier': 'token',
  'activation': 'gelu_exact',
  'norm_epsilon': 1e-6,
  'num_classes': 5,
  'image_size': (224, 224),
}
IMAGENET = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}
TAGS = [
  'beit',
  'beit3',
  'bit',
  'byobnet',
  'convmixer',
  'deit',
  'efficientnet',
  'eva',
  'hiera',
  'mobilenetv3',
  'mobilevit',
  'naflexvit',
  'resnet',
  'resnetv2',
  'swin_transformer',
  'swin_transformer_v2',
  'vision_transformer',
  'vision_transformer_hybrid',
  'vision_transformer_relpos',
  'vision_transformer_sam',
]


def read(own=None, place='tensors', **cfg):
  """(preprocessing, image size) that config.json with these fields stands for.

  Beside it stands `own`, what this project says of pixels, in the file of the tensors or in it.
  """
  theirs = {'architecture': 'm', 'pretrained_cfg': {'input_size': [3, 64, 64], **IMAGENET, **cfg}}
  entries = {} if own is None else {'preprocess': own}
  if place == 'config':
    theirs, entries = theirs | {'vit_jax': entries}, {}
  theirs = json.loads(json.dumps(theirs))
  source = Source('f', {}, entries, their_config=theirs, entries_path='config.json')
  entries = timm_format.TimmTable().read_config(source)
  return entries['preprocess'], tuple(entries['image_size'])


def transforms(**cfg):
  """timm's function of an image, by its own reading of these fields: uint8 [H, W, C]."""
  data = pytest.importorskip('timm.data')
  resolved = data.resolve_data_config(pretrained_cfg={'input_size': (3, 64, 64), **IMAGENET, **cfg})
  function = data.create_transform(**resolved, normalize=False)
  return (lambda image: function(to_pillow(image)).permute(1, 2, 0).numpy()), resolved


def worst(images, **cfg):
  """The largest difference of any of the images, and of the means and deviations."""
  function, resolved = transforms(**cfg)
  ours, mean, std = prepared(*read(**cfg))
  np.testing.assert_allclose(mean, resolved['mean'], rtol=0, atol=1e-6)
  np.testing.assert_allclose(std, resolved['std'], rtol=0, atol=1e-6)
  return max(apart(ours(image), function(image)) for image in images)


@pytest.mark.parametrize(
  'cfg',
  [
    {},  # what timm takes where nothing is said
    {'crop_pct': 0.9, 'interpolation': 'bicubic', 'crop_mode': 'center'},
    {'crop_pct': 0.95, 'interpolation': 'bilinear', 'input_size': (3, 57, 57)},
    {'crop_pct': 0.95, 'crop_mode': 'squash'},
    {'crop_pct': 1.0, 'crop_mode': 'squash', 'interpolation': 'bilinear'},
    {'crop_pct': 0.888, 'crop_mode': 'border', 'input_size': (3, 63, 50)},
    {'crop_pct': 0.875, 'interpolation': 'lanczos', 'input_size': (3, 44, 71)},
    {'crop_pct': 0.7, 'interpolation': 'nearest', 'input_size': (3, 64, 64)},
    {'crop_pct': 1.15, 'input_size': (3, 64, 64)},  # on black
  ],
)
def test_pixels_are_timm_s(cfg):
  assert worst(list(photographs(6)), **cfg) == 0


def published():
  """(fields, how many tags have them), most frequent first."""
  timm = pytest.importorskip('timm')
  names = ('input_size', 'crop_mode', 'crop_pct', 'interpolation')
  count = collections.Counter()
  architectures = {name for module in TAGS for name in timm.list_models(module=module)}
  for tag in timm.list_pretrained():
    if tag.partition('.')[0] in architectures:
      resolved = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(tag).to_dict()
      )
      count[tuple(resolved[name] for name in names)] += 1
  return [(dict(zip(names, key, strict=True)), number) for key, number in count.most_common()]


def test_all_that_is_published():
  images, wrong = list(photographs(40)), []
  print(
    f'\n{"tags":>5} {"size":>11} {"mode":>7} {"crop_pct":>8} {"interpolation":>13} {"apart":>5}'
  )
  for cfg, tags in published():
    difference = worst(images, **cfg)
    height, width = cfg['input_size'][1:]
    print(
      f'{tags:5} {f"{height} x {width}":>11} {cfg["crop_mode"]:>7} {cfg["crop_pct"]:8} '
      f'{cfg["interpolation"]:>13} {difference:5}',
      flush=True,
    )
    wrong += [cfg] if difference else []
  assert not wrong


@pytest.mark.parametrize('size', [(64, 64), (57, 91)])
@pytest.mark.parametrize('crop', ['resize', 'central', 'squash', 'border'])
@pytest.mark.parametrize('fraction', [0.9, 64 / 71, None])
def test_what_is_written_is_read_again_and_made_the_same(size, crop, fraction):
  rounding = {} if crop == 'resize' else {'rounding': 'nearest', 'crop_fraction': fraction or 0.875}
  given = Preprocessing((0.4, 0.5, 0.6), (0.3,), crop, interpolation='bilinear', **rounding)
  written = timm_format.timm_pixels(given, size)
  assert written['std'] == [0.3] * 3
  found, its_size = read(**written)
  assert (found.to_dict() | {'std': (0.3,)}, its_size) == (given.to_dict(), size)
  down = Preprocessing(**{**given.to_dict(), 'rounding': 'down'})
  for place in ('tensors', 'config'):
    found, _ = read(down.to_dict(), place, **timm_format.timm_pixels(down, size))
    assert found.rounding == 'down'
  assert worst(list(photographs(2)), **written) == 0


@pytest.mark.parametrize(
  'how',
  [
    {'crop': 'resize'},
    {'crop': 'squash', 'crop_fraction': 0.95, 'interpolation': 'bilinear'},
    {'crop': 'border', 'crop_fraction': 0.9, 'rounding': 'nearest'},
  ],
)
def test_a_folder_has_all_that_is_done_to_images(tmp_path, how):
  given = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), **how)
  config = ModelConfig.from_dict({**TINY, 'preprocess': given})
  weights.save(random_variables(config), config, tmp_path / 'm', format='timm')
  assert weights.load(tmp_path / 'm')[1].preprocess == given
  cfg = json.loads((tmp_path / 'm' / 'config.json').read_text())['pretrained_cfg']
  assert cfg == cfg | timm_format.timm_pixels(given, (224, 224))


def test_a_side_that_is_whole_but_for_floating_point_stays():
  """18 of 28 pixels of a side, which timm's own division alone would make fewer."""
  kept, whole = 18, 28
  assert int(kept / (kept / whole)) == whole - 1
  given = Preprocessing(crop='squash', crop_fraction=kept / whole)
  assert int(kept / timm_format.timm_pixels(given, (kept, kept))['crop_pct']) == whole


@pytest.mark.parametrize(
  ('cfg', 'message'),
  [
    ({'crop_mode': 'random'}, "config.json: crop_mode: 'random' is not one of center, squash, "),
    ({'interpolation': 'random'}, "config.json: interpolation: 'random' is not one of bicubic, "),
    ({'interpolation': 3}, 'config.json: interpolation: 3 is not one of bicubic, '),
    ({'crop_pct': 2.1}, r'config.json: crop_pct: 2\.1 is not over 0 and up to 2'),
    ({'crop_pct': '1'}, "config.json: crop_pct: '1' is not over 0 and up to 2"),
    ({'mean': 'x'}, "config.json: mean: 'x' is not a tuple of numbers"),
  ],
)
def test_what_is_not_read_is_named(cfg, message):
  with pytest.raises(UsageError, match=f'^{message}'):
    read(**cfg)
  with pytest.raises(FieldError, match=r"^preprocess\.crop: timm has no crop 'cut'"):
    timm_format.timm_pixels(Preprocessing(crop='cut'), (8, 8))
