"""Photographs through transformers' image processors and what is read of them: no bit apart.

`python -m pytest tests/weights/formats/test_image_processors.py -m sweep -s` prints the table.
"""

import json

import numpy as np
import pytest
import torchvision_operators  # noqa: F401  before transformers
from photographs import apart, photographs, prepared, to_pillow
from PIL import Image

from vit_jax.data import decode_image
from vit_jax.errors import UsageError, UsageWarning
from vit_jax.models import Preprocessing
from vit_jax.weights.formats import image_processors

transformers = pytest.importorskip('transformers')
transformers.logging.set_verbosity_error()

EDGE, CROP = {'shortest_edge': 256}, {'height': 224, 'width': 224}
# Of every type of model that is read: as transformers makes it, and as published files have it.
CASES = {
  'ViT': [{}, {'size': {'height': 48, 'width': 64}, 'resample': 3}, {'resample': 0}],
  'Beit': [{}, {'size': 256, 'do_center_crop': True, 'image_mean': [0.4, 0.5, 0.6]}],
  'Bit': [{}, {'size': EDGE, 'crop_size': CROP}, {'size': {'shortest_edge': 237}, 'resample': 1}],
  'CLIP': [{}, {'size': {'shortest_edge': 336}, 'crop_size': {'height': 336, 'width': 336}}],
  'ConvNext': [
    {},
    {'size': {'shortest_edge': 224}},
    {'size': {'shortest_edge': 288}, 'crop_pct': 0.95, 'resample': 2},
  ],
  'DeiT': [{}, {'size': {'height': 438, 'width': 438}, 'crop_size': 384}, {'crop_size': 223}],
  'MobileViT': [{}, {'size': {'shortest_edge': 288}}, {'size': {'shortest_edge': 255}}],
  'Segformer': [
    {},
    {'size': {'height': 128, 'width': 128}, 'do_center_crop': True, 'crop_size': 64},
  ],
  'Siglip': [{}, {'size': {'height': 384, 'width': 384}}],
  'VideoMAE': [{}, {'size': {'shortest_edge': 249}}],
  'Vivit': [{}, {'offset': False, 'rescale_factor': 1 / 255}],
}
SIMPLE = [
  {'do_resize': False, 'do_center_crop': True, 'crop_size': {'height': 61, 'width': 333}},
  {'do_rescale': False, 'image_mean': [120.0, 110.0, 100.0], 'image_std': [60.0, 61.0, 62.0]},
  {'do_normalize': False},
  {'resample': 4},
  {'resample': 5},
]


def processor(kind, **options):
  """transformers' processor that resizes with Pillow."""
  name = f'{kind}ImageProcessor'
  make = getattr(transformers, f'{name}Pil', None) or getattr(transformers, name)
  return make(**options)


def their_pixels(function, kind, photograph):
  """Normalised pixels, float32 [H, W, 3], in RGB."""
  image = to_pillow(photograph)
  is_video = kind in ('VideoMAE', 'Vivit')
  values = function([[image]] if is_video else image, return_tensors='np')['pixel_values']
  pixels = np.asarray(values, np.float32).reshape(values.shape[-3:]).transpose(1, 2, 0)
  return pixels[..., ::-1] if kind == 'MobileViT' else pixels


def read(folder, model_type=None):
  """(preprocessing, image size) of the preprocessor_config.json in a folder."""
  config = folder / 'config.json'
  theirs = image_processors.read(config, model_type)
  return image_processors.preprocessing(theirs, image_processors.path_of(config))


def worst(folder, images, kind, function):
  """The largest difference of any of the images; normalised ones have to be the same, too."""
  function.save_pretrained(folder)
  preprocess, size = read(folder)
  ours, mean, std = prepared(preprocess, size)
  differences = []
  for image in images:
    pixels, theirs = ours(image), their_pixels(function, kind, image)
    differences.append(apart(pixels, np.rint((theirs * std + mean) * 255).astype(int)))
    if not differences[-1]:
      np.testing.assert_allclose((pixels / 255 - mean) / std, theirs, rtol=1e-5, atol=1e-5)
  return max(differences)


@pytest.mark.parametrize(
  ('kind', 'options'),
  [(kind, case) for kind, cases in CASES.items() for case in cases[-1:]]
  + [('ViT', case) for case in SIMPLE[:2]],
)
def test_pixels_are_transformers_(tmp_path, kind, options):
  assert worst(tmp_path, list(photographs(3)), kind, processor(kind, **options)) == 0


def test_all_that_is_read(tmp_path):
  images, wrong = list(photographs(40)), []
  print()
  for kind, options in [
    *((kind, case) for kind, cases in CASES.items() for case in cases),
    *(('ViT', case) for case in SIMPLE),
  ]:
    difference = worst(tmp_path, images, kind, processor(kind, **options))
    print(f'{difference:3} apart: {kind}ImageProcessor {options or "(defaults)"}', flush=True)
    wrong += [(kind, options)] if difference else []
  assert not wrong


def test_dinov3_s_pixels_are_one_apart_at_most(tmp_path):
  """Its processor resizes floats, which aren't rounded to whole pixels again."""
  pytest.importorskip('torchvision')  # it alone
  function = transformers.DINOv3ViTImageProcessor(size={'height': 96, 'width': 96})
  assert worst(tmp_path, list(photographs(3)), 'DINOv3ViT', function) <= 1


def test_siglip_2_s_pixels_are_those_of_its_square_images(tmp_path):
  """Photographs of another shape keep it there, of which a warning tells."""
  function = processor('Siglip2', patch_size=16, max_num_patches=9)
  function.save_pretrained(tmp_path)
  with pytest.warns(UsageWarning, match=r'Siglip2ImageProcessor keeps the shape of images; here'):
    preprocess, _ = read(tmp_path, 'siglip2')
  (photograph,) = photographs(1)
  photograph = photograph[:100, :100]
  patches = function(to_pillow(photograph), return_tensors='np')['pixel_values'][0]
  theirs = patches.reshape(3, 3, 16, 16, 3).swapaxes(1, 2).reshape(48, 48, 3)
  ours, mean, std = prepared(preprocess, (48, 48))
  assert apart(ours(photograph), np.rint((theirs * std + mean) * 255).astype(int)) == 0


@pytest.mark.parametrize('kind', CASES)
def test_what_a_file_leaves_out_is_the_processor_s_default(tmp_path, kind):
  processor(kind).save_pretrained(tmp_path)
  path = tmp_path / 'preprocessor_config.json'
  whole = json.loads(path.read_text())
  assert {'image_mean', 'do_resize', 'rescale_factor', 'size'} <= whole.keys()
  expected = read(tmp_path)
  for name in (f'{kind}ImageProcessor', f'{kind}ImageProcessorFast', f'{kind}FeatureExtractor'):
    key = 'feature_extractor_type' if name.endswith('Extractor') else 'image_processor_type'
    path.write_text(json.dumps({key: name}))
    found = read(tmp_path)
    assert found[1] == expected[1]
    for field in ('crop', 'crop_fraction', 'interpolation', 'rounding'):
      assert getattr(found[0], field) == getattr(expected[0], field)
    for field in ('mean', 'std'):
      value = getattr(expected[0], field)
      np.testing.assert_allclose(np.broadcast_to(getattr(found[0], field), np.shape(value)), value)


def test_a_type_of_model_has_the_processor_that_transformers_gives_it(tmp_path):
  from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES as NAMES

  path = tmp_path / 'preprocessor_config.json'
  types = 'vit vit_mae vit_msn ijepa swin swinv2 deit beit data2vec-vision clip siglip siglip2'
  types += ' dinov2 dinov3_vit resnet bit hiera mobilevit mobilevitv2 vivit videomae timesformer'
  types += ' segformer'
  for model_type in types.split():
    path.write_text('{}')
    found = image_processors.read(path, model_type)
    path.write_text(json.dumps({'image_processor_type': NAMES[model_type]['torchvision']}))
    assert image_processors.read(path, model_type) == found


@pytest.mark.parametrize(
  ('preprocess', 'size'),
  [
    ({'crop': 'resize', 'interpolation': 'lanczos'}, (30, 47)),
    ({'crop': 'central', 'crop_fraction': 0.9}, (61, 61)),
    ({'crop': 'squash', 'crop_fraction': 0.875}, (61, 45)),
    ({'crop': 'cut'}, (100, 333)),
  ],
)
def test_what_is_written_makes_the_same_pixels(tmp_path, preprocess, size):
  ours = Preprocessing((0.4, 0.5, 0.6), (0.3,), **preprocess)
  options = image_processors.written(ours, size, 3)
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(options))
  function = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend='pil')
  found, its_size = read(tmp_path)
  assert (found.crop, found.interpolation, its_size) == (ours.crop, ours.interpolation, size)
  made, mean, std = prepared(ours, size)
  for image in photographs(3):
    theirs = their_pixels(function, 'ViT', image)
    assert apart(made(image), np.rint((theirs * std + mean) * 255).astype(int)) == 0


def test_images_that_stay_as_they_are(tmp_path):
  options = image_processors.written(Preprocessing(crop='none'), (20, 30), 3)
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(options))
  preprocess, size = read(tmp_path)
  assert (preprocess.crop, size) == ('none', None)
  function = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend='pil')
  (image,) = (photograph[:20, :30] for photograph in photographs(1))
  theirs = their_pixels(function, 'ViT', image)
  np.testing.assert_allclose(theirs, (image / 255 - 0.5) / 0.5, atol=1e-6)
  np.testing.assert_array_equal(prepared(preprocess, (20, 30))[0](image), image)


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGBA', 'CMYK'])
def test_grey_palettes_and_what_is_transparent_become_rgb_alike(tmp_path, mode):
  """What is transparent lies on white, in both."""
  function = processor('Siglip', size={'height': 33, 'width': 47})
  function.save_pretrained(tmp_path)
  (photograph,) = photographs(1)
  image = to_pillow(photograph)
  if mode in ('LA', 'RGBA'):
    image.putalpha(to_pillow(photograph[::-1]).convert('L'))
  image, path = image.convert(mode), tmp_path / ('x.jpg' if mode == 'CMYK' else 'x.png')
  image.save(path, **({'transparency': 3} if mode == 'P' else {}))
  ours, mean, std = prepared(*read(tmp_path))
  theirs = function(Image.open(path), return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)
  np.testing.assert_array_equal(np.rint((theirs * std + mean) * 255), ours(decode_image(path, 3)))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'do_pad': True}, 'do_pad is not read'),
    ({'use_square_size': True}, 'use_square_size is not read'),
    ({'size': {'shortest_edge': 224}}, 'size: shortest_edge without do_center_crop'),
    ({'size': {'shortest_edge': 224, 'longest_edge': 1333}}, 'size: shortest_edge, longest_edge'),
    ({'size': {'max_height': 8, 'max_width': 8}}, 'size: max_height, max_width is not read'),
    ({'size': 'large'}, r"cannot be read as .* \(size is 'large'\)"),
    ({'size': {'height': 8, 'width': 0.5}}, r'cannot be read as .* \(size is'),
    ({'resample': 9}, r'cannot be read as .* \(resample is 9\)'),
    ({'rescale_factor': [0.1, 0.2]}, r'cannot be read as .* \(rescale_factor is \[0\.1, 0\.2\]\)'),
    ({'image_mean': []}, r'cannot be read as .* \(image_mean is \[\]\)'),
    ({'image_std': [0.5, '1']}, r'cannot be read as .* \(image_std is '),
    (
      {'image_processor_type': 'ConvNextImageProcessor', 'size': 224, 'crop_pct': [0.8, 0.9]},
      r'cannot be read as .* \(crop_pct is \[0\.8, 0\.9\]\)',
    ),
    ({'do_center_crop': True}, r'cannot be read as .* \(crop_size is None\)'),
    (
      {'do_center_crop': True, 'crop_size': 640},
      r'crop_fraction: 2\.8\d* is not a number above 0 and up',
    ),
    ({'do_center_crop': True, 'crop_size': [224, 56]}, r'crop_size: \(224, 56\) is not of the'),
    ({'image_processor_type': 'Siglip2ImageProcessor'}, "image_processor_type: 'Siglip2Image"),
    (
      {'image_processor_type': 'BitImageProcessor', 'crop_size': [224, 56]},
      r'crop_size: \(224, 56\), no square, beside shortest_edge is not read',
    ),
    (
      {'image_processor_type': 'ConvNextImageProcessor', 'size': [8, 8]},
      r'size: \[8, 8\] is not read for ConvNext',
    ),
    (
      {'image_processor_type': 'ConvNextImageProcessor', 'size': 224, 'crop_pct': 0},
      'crop_pct: 0 is not over 0 and up to 2',
    ),
  ],
)
def test_what_is_not_read_is_named(tmp_path, options, message):
  path = tmp_path / 'preprocessor_config.json'
  path.write_text(json.dumps(options))
  with pytest.raises(UsageError, match=f'^{path}: {message}') as error:
    read(tmp_path)
  assert '\n' not in str(error.value)
