"""python -m vit_jax.export as a user runs it, and the functions that it writes."""

import importlib.util
import json
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from command_server import command_server
from conftest import ROOT
from PIL import Image
from small_vits import SQUARE, WIDE, random_variables

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.exporting import FORMATS, function, stablehlo
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.predictor import Predictor

RUN = ROOT / 'tests' / 'kept_runs' / 'run'  # on digits
CONVERTER = all(importlib.util.find_spec(name) for name in ('jax2onnx', 'onnxruntime'))
needs_converter = pytest.mark.skipif(not CONVERTER, reason='needs jax2onnx and onnxruntime')
POINTS = ModelConfig.from_dict(
  {
    'name': 'point_transformer',
    'num_layers': 1,
    'hidden_size': 8,
    'mlp_dim': 8,
    'fused_size': 8,
    'head_dims': (8,),
    'num_heads': 2,
    'num_neighbors': 4,
    'num_classes': 3,
    'num_points': 16,
  }
)
LOCALIZER = ModelConfig.from_dict(
  WIDE.to_dict() | {'head': {'name': 'localization', 'hidden_size': 8}}
)
SEGMENTER = ModelConfig.from_dict(SQUARE.to_dict() | {'head': {'name': 'linear'}})
PRETRAINED = ModelConfig.from_dict(
  SQUARE.to_dict()
  | {'num_classes': 0, 'head': {'name': 'mae', 'num_heads': 2, 'num_layers': 1, 'hidden_size': 8}}
)


def variables_of(config):
  """Random variables, with variances above 0."""

  def positive(path, x):
    return abs(x) + 0.5 if path[-1].key == 'var' else x

  return jax.tree_util.tree_map_with_path(positive, random_variables(config))


@pytest.fixture(scope='module')
def export():
  """Runs the command; returns its exit code, output and errors."""
  with command_server('vit_jax.export', 'RUN_OR_WEIGHTS', 'FILE') as run:
    yield run


@pytest.fixture(scope='module')
def exported(export, tmp_path_factory):
  """The folder with the run in each format, and what the command printed, by suffix."""
  folder, printed = tmp_path_factory.mktemp('exported'), {}
  for suffix in FORMATS if CONVERTER else ['.stablehlo']:
    result = export(RUN, folder / f'digits{suffix}')
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''
    printed[suffix] = result.stdout
  return folder, printed


@pytest.fixture(scope='module')
def logits():
  """Maps uint8 images to the run's logits, normalised by hand."""
  variables, config = weights.load(RUN)

  def run(images):
    return np.asarray(config.model.apply(variables, (images / np.float32(255) - 0.5) / 0.5))

  return run


def digits(count):
  return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 1), np.uint8)


def assert_close(theirs, ours):
  assert np.abs(theirs - ours).max() <= 1e-5 * np.abs(ours).max()


@needs_converter
def test_onnxruntime_computes_the_logits_of_a_run(exported, logits):
  import onnxruntime

  folder, printed = exported
  assert 'takes image uint8 [batch, 8, 8, 1]: grey pixels from 0 to 255' in printed['.onnx']
  assert re.search(r'largest difference from vit_jax: \d\.\de-0[6-9]', printed['.onnx'])
  session = onnxruntime.InferenceSession(folder / 'digits.onnx')
  assert [x.name for x in session.get_inputs()] == ['image']
  for count in (2, 5):
    (theirs,) = session.run(['logits'], {'image': digits(count)})
    assert_close(theirs, logits(digits(count)))
  stated = session.get_modelmeta().custom_metadata_map
  assert json.loads(stated['class_names']) == [str(i) for i in range(10)]
  assert stated['size'] == 'the whole image, resized to 8x8 (bicubic)'
  assert json.loads(stated['outputs'])['logits'] == {'shape': ['batch', 10], 'dtype': 'float32'}


def test_stablehlo_computes_the_logits_of_a_run(exported, logits):
  folder, _ = exported
  read = jax.export.deserialize((folder / 'digits.stablehlo').read_bytes())
  assert read.platforms == ('cpu', 'cuda', 'tpu')
  for count in (2, 5):
    assert_close(np.asarray(read.call(digits(count))['logits']), logits(digits(count)))
  stated = json.loads((folder / 'digits.stablehlo.json').read_text())
  assert ModelConfig.from_dict(stated['config']) == weights.load(RUN)[1]
  assert stated['input']['shape'] == ['batch', 8, 8, 1]


def test_the_examples_of_the_page_run(exported, logits, monkeypatch):
  folder, printed = exported
  monkeypatch.chdir(folder)
  Image.fromarray(digits(1)[0, :, :, 0]).save('seven.png')
  page = (ROOT / 'docs' / 'export.md').read_text()
  examples = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
  assert len(examples) == len(FORMATS)
  for example in examples:
    if 'onnxruntime' not in example or '.onnx' in printed:
      names = {}
      exec(example, names)
      assert_close(np.asarray(names['logits']), logits(digits(1)))


def written(config, tmp_path, variables=None, **options):
  """What is read back from a .stablehlo of a model with random variables, and its difference."""
  made = function.make(variables or variables_of(config), config, **options)
  difference = stablehlo.write(tmp_path / 'm.stablehlo', made, platforms=['cpu'])
  return jax.export.deserialize((tmp_path / 'm.stablehlo').read_bytes()), difference


@pytest.mark.parametrize(
  ('config', 'outputs'),
  [(LOCALIZER, ['box', 'probabilities']), (SEGMENTER, ['mask', 'probabilities'])],
)
def test_predictions_are_those_of_predict(tmp_path, config, outputs):
  variables = variables_of(config)
  read, _ = written(config, tmp_path, variables, predictions=True)
  images = np.random.default_rng(0).integers(
    0, 256, (2, *config.image_size, config.channels), np.uint8
  )
  theirs, ours = read.call(images), Predictor(variables, config)(list(images))
  assert [*theirs] == outputs
  for name, value in theirs.items():
    np.testing.assert_allclose(value, ours[name], rtol=1e-5, atol=1e-6)


def test_normalised_inputs_are_taken_as_they_are(tmp_path):
  variables = variables_of(WIDE)
  read, _ = written(WIDE, tmp_path, variables, normalize=False)
  images = np.random.default_rng(0).normal(size=(2, 8, 6, 1)).astype(np.float32)
  ours = np.asarray(WIDE.model.apply(variables, images))
  assert_close(np.asarray(read.call(images)['logits']), ours)
  stated = json.loads((tmp_path / 'm.stablehlo.json').read_text())
  assert stated['input']['values'] == 'grey pixels / 255, less [0.4567], divided by [0.3]'


def test_points_are_centred_and_scaled(tmp_path):
  read, _ = written(POINTS, tmp_path)
  points = np.random.default_rng(0).normal(size=(2, 16, 3)).astype(np.float32)
  here, moved = (np.asarray(read.call(x)['logits']) for x in (points, 4 * points + 8))
  np.testing.assert_allclose(here, moved, rtol=1e-3, atol=1e-4)


def test_a_model_without_classes_gives_its_features(tmp_path):
  variables = variables_of(PRETRAINED)
  read, _ = written(PRETRAINED, tmp_path, variables, normalize=False)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  backbone = PRETRAINED.backbone_variables(variables)
  ours = jax.jit(lambda x: PRETRAINED.backbone.apply(backbone, x, method='features').pooled)(images)
  assert_close(np.asarray(read.call(images)['features']), np.asarray(ours))
  with pytest.raises(UsageError, match='no classes to predict'):
    function.make(variables, PRETRAINED, predictions=True)


def test_bfloat16_is_near(tmp_path):
  variables = variables_of(SQUARE)
  read, _ = written(SQUARE, tmp_path, variables, dtype='bfloat16', normalize=False)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  theirs, ours = read.call(images)['logits'], SQUARE.model.apply(variables, images)
  difference = float(jnp.abs(theirs - ours).max() / jnp.abs(ours).max())
  assert 1e-5 < difference < 5e-2


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
  made = function.make(variables_of(SQUARE), SQUARE)

  class Other:
    def call(self, inputs):
      return {'logits': made.call(inputs)['logits'] * 1.001}

  monkeypatch.setattr(jax.export, 'deserialize', lambda data: Other())
  with pytest.raises(UsageError, match=r'logits differ .* by 1\.0e-03 of the largest, more than'):
    stablehlo.write(tmp_path / 'm.stablehlo', made)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('run', 'message'),
  [
    (lambda x: {'mask': x.sum((2, 3)) % 2}, 'mask is'),
    (lambda x: {'mask': 1 - np.uint8(x[:, 0, 0] % 2)}, '1 of mask are other labels than here'),
  ],
)
def test_other_shapes_and_labels_are_seen(run, message):
  made = function.Function(
    lambda x: {'mask': (x[:, 0, 0] % 2).astype(jnp.uint8)},
    'image',
    (2, 2, 1),
    np.uint8,
    'float32',
    {},
  )
  assert made.check(lambda x: {'mask': np.uint8(x[:, 0, 0] % 2)}) == 0
  with pytest.raises(UsageError, match=message):
    made.check(run)


def test_damaged_weights_and_unknown_platforms_are_refused(tmp_path):
  variables = jax.tree.map(lambda x: np.full_like(x, np.nan), variables_of(SQUARE))
  with pytest.raises(UsageError, match='not finite; its weights are damaged'):
    written(SQUARE, tmp_path, variables)
  with pytest.raises(FieldError, match=r"platforms: 'gpu' is not one of cpu, cuda, rocm, tpu"):
    stablehlo.write(tmp_path / 'm', function.make(variables, SQUARE), platforms=['gpu'])


def test_parameters_beyond_one_file_are_refused(monkeypatch):
  monkeypatch.setattr(function, '_MOST_BYTES', 100)
  with pytest.raises(UsageError, match='one file holds less than 2 GiB'):
    function.make(variables_of(SQUARE), SQUARE)


def test_missing_packages_name_the_extra(monkeypatch, tmp_path):
  made = function.make(variables_of(SQUARE), SQUARE)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    UsageError, match=r'jax2onnx and onnxruntime not .*pip install jax2onnx .*extra onnx'
  ):
    FORMATS['.onnx'].write(tmp_path / 'm.onnx', made)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('m.h5',), 'm.h5: give a name that ends in .onnx or .stablehlo'),
    (('there.onnx',), 'there.onnx: there already; remove it or give another name'),
    (('there.stablehlo',), 'there.stablehlo.json: there already; remove it or give another name'),
    (('m.onnx', '--dtype=bfloat16'), '--dtype: .onnx has no such choice'),
    (('m.onnx', '--platforms=cpu'), '--platforms: .onnx has no such choice'),
    (('m.stablehlo', '--platforms=gpu'), "--platforms: 'gpu' is not one of cpu, cuda, rocm, tpu"),
    (('m.stablehlo', '--platforms='), '--platforms: give one or more of cpu, cuda, rocm, tpu'),
    ((), 'FILE is missing, as in: python -m vit_jax.export RUN|WEIGHTS FILE.onnx|FILE.stablehlo'),
  ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(export, tmp_path, args, message):
  there = {tmp_path / 'there.onnx', tmp_path / 'there.stablehlo.json'}
  for path in there:
    path.write_text('')
  result = export(RUN, *(arg if arg.startswith('-') else tmp_path / arg for arg in args))
  assert result.returncode == 2
  assert message in result.stderr.replace(f'{tmp_path}/', '')
  assert result.stderr.count('\n') == 1
  assert {*tmp_path.iterdir()} == there


@pytest.mark.parametrize(
  ('preprocess', 'text'),
  [
    (
      {'crop': 'central', 'crop_fraction': 0.8, 'interpolation': 'lanczos'},
      'the central 8x8 of the image, resized (lanczos, keeping its shape) to just cover 10x10',
    ),
    (
      {'crop': 'squash', 'crop_fraction': 0.5},
      'central 8x8 of the image, resized (bicubic) to 16x',
    ),
    ({'crop': 'border', 'crop_fraction': 1.0}, 'keeping its shape) into 8x8, on the mean'),
    ({'crop': 'cut'}, 'the central 8x8 of the image, not resized, on black'),
    ({'crop': 'none'}, 'an image of 8x8'),
  ],
)
def test_it_says_how_images_are_brought_to_size(preprocess, text):
  config = SQUARE.replace(preprocess=Preprocessing(**preprocess))
  assert text in function.make(random_variables(SQUARE), config).description['size']
