"""BiT with random weights against transformers, timm and big_transfer's code: there and back."""

import functools
import json

import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  before transformers
import transformers
from small_vits import assert_same, logits, random_variables
from torch.nn import functional

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, Preprocessing

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL = {'depths': (1, 2), 'width_factor': 0.5}
LARGER = {'depths': (2, 1, 1), 'width_factor': 1.0}
SIZES = [(SMALL, (64, 64)), (LARGER, (47, 66))]


def config_of(sizes=SMALL, **more):
  return ModelConfig.from_dict({'name': 'bit', 'num_classes': 5, **sizes, **more})


def images_of(size, channels=3):
  return np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)


def to_torch(images):
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def assert_close(ours, theirs):
  assert np.abs(theirs).max() > 0.1
  assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def randomized(model):
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
  return model.eval()


def torch_logits(model, images):
  with torch.inference_mode():
    outputs = model(to_torch(images))
  return getattr(outputs, 'logits', outputs).numpy()


def hugging_face(sizes=SMALL, **more):
  filters, depths = int(64 * sizes['width_factor']), list(sizes['depths'])
  hidden_sizes = [4 * filters * 2**i for i in range(len(depths))]
  config = {'embedding_size': filters, 'hidden_sizes': hidden_sizes, 'depths': depths}
  return transformers.BitConfig(**config, **{'num_labels': 5, **more})


@pytest.mark.parametrize(('sizes', 'size'), SIZES)
def test_hugging_face_agrees_and_takes_it_back(tmp_path, sizes, size):
  model = randomized(transformers.BitForImageClassification(hugging_face(sizes)))
  model.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  assert (config.backbone.depths, config.backbone.width_factor) == tuple(sizes.values())
  images = images_of(size)
  expected = torch_logits(model, images)
  assert_close(logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back, info = transformers.BitForImageClassification.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  np.testing.assert_array_equal(torch_logits(back.eval(), images), expected)
  again, its_config = weights.load(tmp_path / 'ours')
  assert_same(again, variables)
  assert its_config == config


def test_a_hugging_face_model_without_a_head(tmp_path):
  model = randomized(transformers.BitModel(hugging_face()))
  model.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  images = images_of((64, 64))
  with torch.inference_mode():
    expected = model(to_torch(images)).pooler_output[:, :, 0, 0].numpy()
  assert_close(logits(variables, config, images), expected)
  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  assert_same(weights.load(tmp_path / 'ours')[0], variables)


def test_the_processor_of_hugging_face_says_the_size_of_images(tmp_path):
  randomized(transformers.BitModel(hugging_face())).save_pretrained(tmp_path)
  transformers.BitImageProcessor(
    size={'shortest_edge': 72}, crop_size={'height': 64, 'width': 64}
  ).save_pretrained(tmp_path)
  _, config = weights.load(tmp_path)
  assert config.image_size == (64, 64)
  assert config.preprocess.crop_fraction == 64 / 72


@pytest.mark.parametrize(
  'entry',
  [
    {'layer_type': 'bottleneck'},
    {'hidden_act': 'gelu'},
    {'global_padding': 'SAME'},
    {'embedding_dynamic_padding': True},
    {'num_groups': 16},
    {'num_channels': 4},
    {'width_factor': 3},
    {'output_stride': 4},
    {'hidden_sizes': [128, 128]},
    {'embedding_size': 64},
    {'depths': [2, 2]},
  ],
)
def test_what_hugging_face_computes_otherwise_is_refused(tmp_path, entry):
  transformers.BitModel(hugging_face()).save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | entry))
  with pytest.raises(UsageError, match=f'config.json: {next(iter(entry))}'):
    weights.load(tmp_path)


def timm_model(sizes=SMALL, channels=3):
  pytest.importorskip('timm', exc_type=ImportError)
  from timm.layers import StdConv2d
  from timm.models.resnetv2 import ResNetV2

  return randomized(
    ResNetV2(
      list(sizes['depths']),
      width_factor=sizes['width_factor'],
      num_classes=5,
      in_chans=channels,
      stem_type='fixed',
      conv_layer=functools.partial(StdConv2d, eps=1e-8),
    )
  )


@pytest.mark.parametrize(('sizes', 'size'), SIZES)
def test_timm_agrees_and_takes_it_back(tmp_path, sizes, size):
  model = timm_model(sizes)
  torch.save(model.state_dict(), tmp_path / 'theirs.pth')
  assert weights.detect(tmp_path / 'theirs.pth') == 'timm'
  variables, config = weights.load(tmp_path / 'theirs.pth')
  images = images_of(size)
  expected = torch_logits(model, images)
  assert_close(logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours.pth', format='timm')
  model.load_state_dict(torch.load(tmp_path / 'ours.pth')['state_dict'])
  np.testing.assert_array_equal(torch_logits(model, images), expected)
  again, its_config = weights.load(tmp_path / 'ours.pth')
  assert_same(again, variables)
  assert its_config == config


@pytest.mark.parametrize('size', ['50x1', '101x3', '152x4'])
def test_published_sizes_have_timms_names(size):
  pytest.importorskip('timm', exc_type=ImportError)
  import timm

  from vit_jax.models.bit import SIZES as PUBLISHED
  from vit_jax.weights import rules
  from vit_jax.weights.table import variable_shapes
  from vit_jax.weights.tables.bit import TimmBiT

  with torch.device('meta'):
    theirs = timm.create_model(f'resnetv2_{size}_bit', num_classes=7).state_dict()
  depths, width = PUBLISHED[f'R{size}']
  config = config_of({'depths': depths, 'width_factor': width}, num_classes=7)
  shapes = variable_shapes(config)
  found = {
    rule.theirs: rule.their_shape(shapes)
    for rule in rules.expand(TimmBiT().modules(config))
    if shapes.keys() >= set(rule.ours)
  }
  found['head.fc.weight'] += (1, 1)
  assert found == {name: tuple(tensor.shape) for name, tensor in theirs.items()}


def save_hub_folder(model, folder, **config):
  folder.mkdir()
  cfg = {'input_size': [3, 48, 48], 'mean': [0.5] * 3, 'std': [0.5] * 3, 'crop_pct': 1.0}
  config = {'architecture': 'resnetv2_50x1_bit', 'pretrained_cfg': cfg, **config}
  (folder / 'config.json').write_text(json.dumps(config))
  torch.save(model.state_dict(), folder / 'pytorch_model.bin')
  return folder


@pytest.mark.parametrize('name', ['resnetv2_50x1_bit', 'resnetv2_50x1_bitm_in21k'])
def test_timms_hub_folders(tmp_path, name):
  made_with = {'global_pool': 'avg', 'in_chans': 3}
  folder = save_hub_folder(timm_model(), tmp_path / 'm', architecture=name, model_args=made_with)
  _, config = weights.load(folder)
  assert config.image_size == (48, 48)
  expected = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, crop='central', crop_fraction=1.0)
  assert config.preprocess == expected


@pytest.mark.parametrize(
  ('entry', 'message'),
  [
    ({'architecture': 'resnetv2_50'}, "architecture 'resnetv2_50' is not read"),
    ({'model_args': {'stem_type': ''}}, 'model_args stem_type are not read'),
    ({'global_pool': 'max'}, 'global_pool'),
    ({'model_args': {'global_pool': 'max'}}, 'global_pool'),
  ],
)
def test_other_resnets_of_timm_are_refused(tmp_path, entry, message):
  with pytest.raises(UsageError, match=rf'config\.json: {message}'):
    weights.load(save_hub_folder(timm_model(), tmp_path / 'm', **entry))


def big_transfer(tensors, images):
  """The forward pass of bit_pytorch/models.py, from the tensors of an .npz file."""
  tensors = {n.removeprefix('resnet/'): torch.from_numpy(t) for n, t in tensors.items()}

  def conv(x, name, stride=1, padding=0):
    kernel = tensors[f'{name}/standardized_conv2d/kernel'].permute(3, 2, 0, 1)
    variance, mean = torch.var_mean(kernel, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return functional.conv2d(
      x, (kernel - mean) / torch.sqrt(variance + 1e-10), None, stride, padding
    )

  def norm_relu(x, name):
    scale, bias = (tensors[f'{name}group_norm/{leaf}'] for leaf in ('gamma', 'beta'))
    return torch.relu(functional.group_norm(x, 32, scale, bias, 1e-5))

  x = functional.pad(conv(to_torch(images), 'root_block', 2, 3), (1, 1, 1, 1))
  x = functional.max_pool2d(x, 3, 2)
  for unit in sorted({name.partition('/a/')[0] for name in tensors if '/a/' in name}):
    stride = 2 if unit.endswith('unit01') and not unit.startswith('block1/') else 1
    y = norm_relu(x, f'{unit}/a/')
    if f'{unit}/a/proj/standardized_conv2d/kernel' in tensors:
      x = conv(y, f'{unit}/a/proj', stride)
    y = norm_relu(conv(y, f'{unit}/a'), f'{unit}/b/')
    y = norm_relu(conv(y, f'{unit}/b', stride, 1), f'{unit}/c/')
    x = x + conv(y, f'{unit}/c')
  x = norm_relu(x, '').mean(dim=(2, 3))
  return (x @ tensors['head/conv2d/kernel'][0, 0] + tensors['head/conv2d/bias']).numpy()


def published_file(folder, sizes, seed=0, scale=1.0):
  """An .npz with the names of the published ones, made here from them, and its tensors."""
  rng, tensors, before = np.random.default_rng(seed), {}, int(64 * sizes['width_factor'])

  def make(name, *shape):
    factor = scale if len(shape) == 4 and 'head' not in name else 0.3
    tensors[f'resnet/{name}'] = (factor * rng.normal(size=shape)).astype(np.float32)

  def make_unit_part(name, sides, inputs, filters, norms):
    make(f'{name}/standardized_conv2d/kernel', sides, sides, inputs, filters)
    for leaf in ('gamma', 'beta'):
      make(f'{name}/group_norm/{leaf}', norms)

  make('root_block/standardized_conv2d/kernel', 7, 7, 3, before)
  middle = before
  for stage, depth in enumerate(sizes['depths'], start=1):
    for number in range(1, depth + 1):
      unit = f'block{stage}/unit{number:02d}'
      make_unit_part(f'{unit}/a', 1, before, middle, before)
      make_unit_part(f'{unit}/b', 3, middle, middle, middle)
      make_unit_part(f'{unit}/c', 1, middle, 4 * middle, middle)
      if number == 1:
        make(f'{unit}/a/proj/standardized_conv2d/kernel', 1, 1, before, 4 * middle)
      before = 4 * middle
    middle *= 2
  for leaf in ('gamma', 'beta'):
    make(f'group_norm/{leaf}', before)
  make('head/conv2d/kernel', 1, 1, before, 5)
  make('head/conv2d/bias', 5)
  np.savez(folder / 'BiT.npz', **tensors)
  return folder / 'BiT.npz', tensors


@pytest.mark.parametrize(('sizes', 'size'), SIZES)
def test_published_files_agree_and_are_written_again(tmp_path, sizes, size):
  path, tensors = published_file(tmp_path, sizes)
  assert weights.detect(path) == 'augreg'
  variables, config = weights.load(path)
  assert (config.backbone.depths, config.backbone.width_factor) == tuple(sizes.values())
  images = images_of(size)
  assert_close(logits(variables, config, images), big_transfer(tensors, images))
  weights.save(variables, config, tmp_path / 'ours.npz', format='augreg')
  with np.load(tmp_path / 'ours.npz') as archive:
    found = {name: archive[name] for name in archive.files}
  assert found.keys() == tensors.keys()
  assert all(found[name].tobytes() == tensors[name].tobytes() for name in tensors)


def test_timm_reads_published_files_likewise(tmp_path):
  """timm takes their kernels as they are, whatever the epsilon."""
  path, _ = published_file(tmp_path, SMALL)
  model = timm_model()
  model.load_pretrained(path)
  variables, config = weights.load(path)
  same = config.replace(weight_epsilon=1e-8)
  weights.save(variables, same, tmp_path / 'ours.pth', format='timm')
  ours = torch.load(tmp_path / 'ours.pth')['state_dict']
  assert ours.keys() == model.state_dict().keys()
  for name, tensor in model.state_dict().items():
    torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_numbered_modules_of_published_files_are_read(tmp_path):
  path, tensors = published_file(tmp_path, SMALL)
  numbered = {
    n.replace('c/standardized_conv2d', 'c/standardized_conv2d_2'): t for n, t in tensors.items()
  }
  assert numbered.keys() != tensors.keys()
  np.savez(tmp_path / 'numbered.npz', **numbered)
  assert_same(weights.load(tmp_path / 'numbered.npz')[0], weights.load(path)[0])


@pytest.mark.parametrize('format', ['huggingface', 'timm'])
def test_another_epsilon_is_made_up_for(tmp_path, format):
  """Filters so small that the epsilons differ by half: as they are, they'd give other logits."""
  path, tensors = published_file(tmp_path, SMALL, scale=1e-4)
  variables, config = weights.load(path)
  assert config.backbone.weight_epsilon == 1e-10
  images = images_of((64, 64))
  expected = big_transfer(tensors, images)
  target = tmp_path / ('hf' if format == 'huggingface' else 'm.pth')
  weights.save(variables, config, target, format=format)
  if format == 'huggingface':
    model = transformers.BitForImageClassification.from_pretrained(target).eval()
  else:
    model = timm_model()
    model.load_state_dict(torch.load(target)['state_dict'])
  assert_close(torch_logits(model, images), expected)
  again, its_config = weights.load(target)
  assert_close(logits(again, its_config, images), expected)
  weights.save(again, its_config, tmp_path / 'back.npz', format='augreg')
  again, its_config = weights.load(tmp_path / 'back.npz')
  assert_close(logits(again, its_config, images), expected)
  unscaled = its_config.replace(weight_epsilon=1e-8)
  with pytest.raises(AssertionError):
    assert_close(logits(variables, unscaled, images), expected)


def test_what_a_file_states_is_read(tmp_path):
  config = config_of(
    channels=1,
    image_size=(48, 32),
    class_names=('a', 'b', 'c', 'd', 'e'),
    preprocess=Preprocessing(mean=(0.4,), std=(0.3,), crop='central', crop_fraction=1.0),
  )
  variables = random_variables(config)
  for path, format in (('m.npz', 'augreg'), ('m.safetensors', 'timm'), ('hf', 'huggingface')):
    weights.save(variables, config.replace(weight_epsilon=1e-8), tmp_path / path, format=format)
    _, found = weights.load(tmp_path / path)
    epsilon = 1e-10 if format == 'augreg' else 1e-8
    assert found == config.replace(weight_epsilon=epsilon)
