"""What goes with weights to use them on images: read, kept, refused, and handed to Hugging Face."""

import json

import numpy as np
import pytest
from small_vits import SQUARE, WIDE, random_variables

from vit_jax import weights
from vit_jax.data.preprocess import make_preprocess
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.weights import files
from vit_jax.weights.table import Table

FILES = {'augreg': 'm.npz', 'huggingface': 'folder', 'timm': 'm.safetensors', 'scenic': 'm.msgpack'}
IMAGENET = {
  'mean': (0.485, 0.456, 0.406),
  'std': (0.229, 0.224, 0.225),
  'crop': 'central',
  'crop_fraction': 0.8,
}
PROCESSOR = 'preprocessor_config.json'


@pytest.mark.parametrize('format', FILES)
def test_formats_keep_what_is_done_to_images(tmp_path, format):
  config = SQUARE.replace(preprocess=Preprocessing(**IMAGENET))
  weights.save(random_variables(config), config, tmp_path / FILES[format], format=format)
  assert weights.load(tmp_path / FILES[format])[1] == config
  its_config = weights.load(tmp_path / FILES[format], preprocess=None)[1]
  assert its_config.preprocess is None


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'std': (0.5, 0.0, 0.5)}, r'preprocess\.std: '),
    ({'std': (float('nan'),)}, r'preprocess\.std: '),
    ({'mean': (float('inf'),)}, r'preprocess\.mean: '),
    ({'mean': ()}, r'preprocess\.mean: '),
    ({'mean': 0.5}, r'preprocess\.mean: '),
    ({'mean': ('0.5',)}, r'preprocess\.mean: '),
    ({'crop': 'inception'}, r'preprocess\.crop: '),
    ({'crop_fraction': 0}, r'preprocess\.crop_fraction: '),
    ({'crop_fraction': 2.01}, r'preprocess\.crop_fraction: '),
    ({'crop_fraction': '0.8'}, r'preprocess\.crop_fraction: '),
    ({'crop': 'resize'}, r'preprocess\.crop_fraction: '),
    ({'size': 3}, r'preprocess\.size: '),
    ({'mean': (0.5, 0.5)}, r'preprocess\.mean: 2 values, but images have 3 channels'),
    ({'std': (0.5,) * 4}, r'preprocess\.std: 4 values, but images have 3 channels'),
  ],
)
def test_values_that_it_cannot_have_are_one_line(tmp_path, monkeypatch, change, message):
  bad, good = IMAGENET | change, tmp_path / 'good.msgpack'
  weights.save(random_variables(SQUARE), SQUARE, good, format='scenic')
  own_config = Table.own_config
  monkeypatch.setattr(
    Table, 'own_config', lambda self, config: own_config(self, config) | {'preprocess': bad}
  )
  for format, name in FILES.items():
    weights.save(random_variables(SQUARE), SQUARE, tmp_path / name, format=format)
    if format == 'huggingface':
      path = tmp_path / name / 'config.json'
      path.write_text(
        json.dumps(json.loads(path.read_text()) | {files.CONFIG_KEY: {'preprocess': bad}})
      )
    with pytest.raises(UsageError, match=f'^{tmp_path}.*{message}') as error:
      weights.load(tmp_path / name)
    assert '\n' not in str(error.value)
  with pytest.raises(UsageError, match=f'^{message}'):
    weights.load(good, preprocess=bad)


def read(folder, config=SQUARE, **processor):
  """What comes of a folder with this preprocessor_config.json."""
  weights.save(random_variables(config), config, folder, format='huggingface')
  (folder / PROCESSOR).write_text(json.dumps(processor))
  return weights.load(folder)[1].preprocess.to_dict()


def test_hugging_face_defaults_may_be_left_out(tmp_path):
  expected = {'mean': (0.5,), 'std': (0.5,), 'crop': 'resize', 'interpolation': 'bilinear'}
  assert read(tmp_path) == expected
  assert read(tmp_path, image_mean=None, do_rescale=None) == expected


@pytest.mark.parametrize(
  ('size', 'crop_size', 'crop', 'fraction'),
  [
    ({'shortest_edge': 248}, {'height': 224, 'width': 224}, 'central', 224 / 248),
    (256, 224, 'squash', 0.875),  # a number alone is a square of ViT's processor
    ({'height': 10, 'width': 10}, {'height': 8, 'width': 8}, 'squash', 0.8),
    ({'shortest_edge': 8}, {'height': 8, 'width': 8}, 'central', 1.0),
    (8, 8, 'resize', None),
    ({'height': 8, 'width': 8}, {'height': 8, 'width': 8}, 'resize', None),
    ({'height': 16, 'width': 8}, [12, 6], 'squash', 0.75),
  ],
)
def test_hugging_face_s_margin_around_the_crop(tmp_path, size, crop_size, crop, fraction):
  its_preprocess = read(tmp_path, do_center_crop=True, size=size, crop_size=crop_size)
  assert its_preprocess.get('crop_fraction') == fraction
  assert its_preprocess['crop'] == crop


@pytest.mark.parametrize(
  ('processor', 'expected'),
  [
    ({'size': 8, 'crop_pct': 0.8}, ('central', 0.8)),
    ({'size': {'shortest_edge': 8}}, ('central', 0.875)),
    ({'size': 384, 'crop_pct': 0.8}, ('resize', None)),
  ],
)
@pytest.mark.parametrize('key', ['image_processor_type', 'feature_extractor_type'])
def test_the_margin_of_convnext_s_processor(tmp_path, processor, expected, key):
  found = read(tmp_path, **{key: 'ConvNextImageProcessor'}, **processor)
  assert (found['crop'], found.get('crop_fraction')) == expected


def test_mobilevit_s_processor_does_not_normalise_and_turns_colours_round(tmp_path):
  processor = {'image_processor_type': 'MobileViTImageProcessor', 'size': 288, 'crop_size': 256}
  with pytest.raises(UsageError, match=r'do_flip_channel_order is not read for a Hugging Face ViT'):
    read(tmp_path, **processor)
  found = read(tmp_path, do_flip_channel_order=False, **processor)
  assert found == {'mean': (0.0,), 'std': (1.0,), 'crop': 'central', 'crop_fraction': 256 / 288}


@pytest.mark.parametrize(
  ('processor', 'size'),
  [
    ({'size': 96}, (96, 96)),
    ({'image_processor_type': 'BitImageProcessor', 'size': 96, 'crop_size': 64}, (64, 64)),
    ({'size': 96, 'crop_size': 64}, (96, 96)),
    ({'image_processor_type': 'ViTImageProcessor', 'size': [32, 64]}, (32, 64)),
    ({}, (384, 384)),  # as ConvNextImageProcessor, which ResNets have
    ({'do_resize': False}, (224, 224)),
  ],
)
def test_where_config_json_has_no_image_size_the_processor_has(tmp_path, processor, size):
  resnet = ModelConfig.from_dict(
    {'name': 'resnet18', 'num_filters': 2, 'num_classes': 3, 'image_size': (32, 32)}
  )
  weights.save(random_variables(resnet), resnet, tmp_path, format='huggingface')
  config = json.loads((tmp_path / 'config.json').read_text())
  del config['image_size']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  (tmp_path / PROCESSOR).write_text(json.dumps(processor))
  assert weights.load(tmp_path)[1].image_size == size


@pytest.mark.parametrize(
  'processor',
  [
    {'rescale_factor': 1 / 255, 'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.4, 0.5, 0.6]},
    {'rescale_factor': 1 / 127.5, 'image_mean': [1.0, 1.0, 1.0], 'image_std': 1},
    {'do_rescale': False, 'image_mean': [120, 110, 100], 'image_std': [60.0, 61.0, 62.0]},
    {'do_normalize': False, 'image_mean': [0.1, 0.2, 0.3]},
    {'do_normalize': False, 'do_rescale': False},
  ],
)
def test_hugging_face_normalisation_in_other_units_is_the_same_here(tmp_path, processor):
  """Their order of operations, on every value that a pixel can have, against ours."""
  given = {'rescale_factor': 1 / 255, 'image_mean': 0.5, 'image_std': 0.5} | processor
  pixels = np.tile(np.arange(256.0)[:, None], 3)
  expected = pixels * given['rescale_factor'] if given.get('do_rescale', True) else pixels
  if given.get('do_normalize', True):
    expected = (expected - given['image_mean']) / given['image_std']
  ours = read(tmp_path, **processor)
  np.testing.assert_allclose((pixels / 255 - ours['mean']) / ours['std'], expected, atol=1e-12)


@pytest.mark.parametrize(
  ('processor', 'message'),
  [
    ({'rescale_factor': 0}, f"{PROCESSOR}: cannot be read as an image processor's config"),
    ({'rescale_factor': 'x'}, f"{PROCESSOR}: cannot be read as an image processor's config"),
    ({'image_std': [1, 0, 1]}, rf'{PROCESSOR}: std: '),
    ({'image_mean': [0.1, 0.2]}, r'preprocess\.mean: 2 values, but images have 3 channels'),
    ({'image_mean': []}, f'{PROCESSOR}: .*image_mean'),
  ],
)
def test_hugging_face_values_that_make_no_sense_are_one_line(tmp_path, processor, message):
  with pytest.raises(UsageError, match=message) as error:
    read(tmp_path, **processor)
  assert '\n' not in str(error.value)
  (tmp_path / PROCESSOR).write_text('[')
  with pytest.raises(UsageError, match=f"{PROCESSOR}: cannot be read as an image processor's"):
    weights.load(tmp_path)


def test_nothing_is_written_where_nothing_is_known(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path, format='huggingface')
  assert not (tmp_path / PROCESSOR).exists()
  assert weights.load(tmp_path)[1].preprocess is None


def test_what_hugging_face_has_no_words_for_is_found_again_here(tmp_path):
  preprocess = {'mean': (0.1307,), 'std': (0.3081,), 'crop': 'central', 'crop_fraction': 0.9}
  config = WIDE.replace(preprocess=Preprocessing(**preprocess))
  weights.save(random_variables(WIDE), config, tmp_path, format='huggingface')
  assert not (tmp_path / PROCESSOR).exists()
  assert weights.load(tmp_path)[1].preprocess.to_dict() == preprocess
  theirs = json.loads((tmp_path / 'config.json').read_text())
  for own in ([], {'preprocess': {'mean': 'x'}}):
    (tmp_path / 'config.json').write_text(json.dumps(theirs | {'vit_jax': own}))
    with pytest.raises(UsageError, match=r'config\.json: '):
      weights.load(tmp_path)


def load_processor(folder, config, preprocess):
  transformers = pytest.importorskip('transformers')
  config = config.replace(preprocess=Preprocessing(**preprocess))
  weights.save(random_variables(config), config, folder, format='huggingface')
  return transformers.AutoImageProcessor.from_pretrained(folder, backend='pil')


@pytest.mark.parametrize(
  'crop',
  [{'crop': 'resize'}, *({'crop': 'central', 'crop_fraction': f} for f in (0.875, 0.9, 1.0))],
)
@pytest.mark.parametrize(
  ('channels', 'mean', 'std'),
  [(3, IMAGENET['mean'], IMAGENET['std']), (3, (0.5,), (0.25,)), (1, (0.1307,), (0.3081,))],
)
def test_hugging_face_s_processor_gives_the_same_pixels(tmp_path, channels, mean, std, crop):
  """Of an image of another size: the same bicubic resize and crop, and (x / 255 - mean) / std."""
  config = SQUARE.replace(image_size=(28, 28), channels=channels)
  processor = load_processor(tmp_path, config, {'mean': mean, 'std': std} | crop)
  for height, width in ((64, 64), (50, 71), (67, 40)):
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    record = make_preprocess((28, 28), channels, train=False, **crop)({'image': image})
    expected = (record['image'] / 255 - np.array(mean)) / np.array(std)
    options = {'input_data_format': 'channels_last', 'return_tensors': 'np'}
    (theirs,) = processor(image, **options)['pixel_values']
    np.testing.assert_allclose(theirs.transpose(1, 2, 0), expected, rtol=0, atol=1e-5)


def test_views_stand_beside_the_processor(tmp_path):
  transformers = pytest.importorskip('transformers')
  preprocess = {'crop': 'central', 'crop_fraction': 0.8, 'spatial_crops': 3}
  processor = load_processor(tmp_path, SQUARE, preprocess)
  assert isinstance(processor, transformers.BaseImageProcessor)
  config = weights.load(tmp_path)[1]
  assert config.preprocess.spatial_crops == 3
  assert config.preprocess.crop_fraction == pytest.approx(0.8)
  written = json.loads((tmp_path / 'config.json').read_text())
  written['vit_jax']['preprocess']['spatial_crops'] = 2
  (tmp_path / 'config.json').write_text(json.dumps(written))
  with pytest.raises(UsageError, match=r'config\.json: preprocess\.spatial_crops: 2 is not 1 or 3'):
    weights.load(tmp_path)


def test_hugging_face_s_vit_processor_reads_it_too(tmp_path):
  transformers = pytest.importorskip('transformers')
  load_processor(
    tmp_path, SQUARE, {'mean': IMAGENET['mean'], 'std': IMAGENET['std'], 'crop': 'resize'}
  )
  processor = transformers.ViTImageProcessor.from_pretrained(tmp_path)
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)  # of the right size
  (theirs,) = processor(image, return_tensors='np')['pixel_values']
  expected = (image / 255 - np.array(IMAGENET['mean'])) / np.array(IMAGENET['std'])
  np.testing.assert_allclose(theirs.transpose(1, 2, 0), expected, rtol=0, atol=1e-5)


def test_what_transformers_writes_is_read(tmp_path):
  transformers = pytest.importorskip('transformers')
  weights.save(random_variables(SQUARE), SQUARE, tmp_path, format='huggingface')
  transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
  expected = {
    'mean': (0.1, 0.2, 0.3),
    'std': (0.5, 0.5, 0.5),
    'crop': 'resize',
    'interpolation': 'bilinear',
  }
  assert weights.load(tmp_path)[1].preprocess.to_dict() == expected
