"""MobileViTs with random weights against transformers and timm: logits, there and back."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  before transformers
import transformers
from small_vits import assert_same

from vit_jax import models, weights
from vit_jax.errors import UsageError
from vit_jax.models.mobilevit import SIZES

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

QUICK = {'xla_backend_optimization_level': 0}  # to compile, which is most of the time
SMALL = {
  'neck_hidden_sizes': [4, 8, 8, 12, 16, 20, 24],
  'hidden_sizes': [8, 12, 16],
  'num_attention_heads': 2,
}
LARGER = {
  'neck_hidden_sizes': [8, 8, 12, 16, 20, 24, 32],
  'hidden_sizes': [16, 24, 32],
  'num_attention_heads': 4,
  'expand_ratio': 2.0,
  'mlp_ratio': 3.0,
  'conv_kernel_size': 5,
  'patch_size': 3,
  'layer_norm_eps': 1e-2,
}


def randomize(model, seed=0):
  """Gives every parameter, and every running statistic, a value of its own."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      deviation = 0.3 if parameter.ndim < 2 else 2.5 * parameter[0].numel() ** -0.5
      parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
    for name, buffer in model.named_buffers():
      if name.endswith('running_mean'):
        buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
      elif name.endswith('running_var'):
        buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    for module in model.modules():
      if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
        module.weight += 1
  return model.eval()


def images_of(size, seed=0):
  return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


def assert_same_logits(ours, theirs):
  spread = np.abs(theirs[0] - theirs[1]).max()
  assert spread > 0.01 * np.abs(theirs).max()
  assert np.abs(ours - theirs).max() <= 1e-4 * spread


@functools.cache
def compiled(model):
  return jax.jit(model.apply, compiler_options=QUICK)


def our_logits(variables, config, images):
  return np.asarray(compiled(config.model)(variables, images))


def torch_logits(model, images):
  with torch.inference_mode():
    outputs = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  return getattr(outputs, 'logits', outputs).numpy()


def hugging_face(folder, sizes=SMALL, size=(64, 64), **more):
  config = transformers.MobileViTConfig(image_size=list(size), num_labels=5, **sizes | more)
  model = randomize(transformers.MobileViTForImageClassification(config))
  model.save_pretrained(folder)
  return model


# Maps of 4x4 and 2x2 at the end; and of 5x7 and 3x4, which patches don't divide.
@pytest.mark.parametrize(
  ('sizes', 'size'), [(SMALL, (64, 64)), (SMALL, (72, 104)), (LARGER, (72, 104))]
)
def test_hugging_face_agrees_and_takes_it_back(tmp_path, sizes, size):
  model = hugging_face(tmp_path / 'theirs', sizes, size)
  variables, config = weights.load(tmp_path / 'theirs')
  assert (config.name, config.image_size, config.num_classes) == ('mobilevit', size, 5)
  images = images_of(size)
  expected = torch_logits(model, images)
  assert_same_logits(our_logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  kind = transformers.MobileViTForImageClassification
  back, info = kind.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  np.testing.assert_array_equal(torch_logits(back.eval(), images), expected)
  again, its_config = weights.load(tmp_path / 'ours')
  assert_same(again, variables)
  assert its_config == config


def test_what_has_no_place_is_refused(tmp_path):
  hugging_face(tmp_path, patch_size=3)
  variables, config = weights.load(tmp_path)
  path, folder = tmp_path / 'mobilevit.safetensors', tmp_path / 'folder'
  with pytest.raises(UsageError, match='num_heads 2 has no place there, 4 has'):
    weights.save(variables, config, path, format='timm')
  with pytest.raises(UsageError, match='patch_size 3 has no place there, 2 has'):
    weights.save(variables, config.replace(num_heads=4), path, format='timm')
  with pytest.raises(UsageError, match=r'strides .* has no place there'):
    weights.save(
      variables, config.replace(strides=(1, 1, 2, 2, 2, 1)), folder, format='huggingface'
    )
  with pytest.raises(UsageError, match='image_size is needed there'):
    weights.save(variables, config.replace(image_size=None), folder, format='huggingface')


def without_head(variables):
  params = {n: tree for n, tree in variables['params'].items() if n != 'output_projection'}
  return variables | {'params': params}


def test_a_hugging_face_model_without_a_head(tmp_path):
  model = hugging_face(tmp_path / 'whole').mobilevit
  model.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  assert config.num_classes == 0
  assert_same(variables, without_head(weights.load(tmp_path / 'whole')[0]))
  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  transformers.MobileViTModel.from_pretrained(tmp_path / 'ours')
  assert_same(weights.load(tmp_path / 'ours')[0], variables)


def test_published_models_take_bgr_and_are_read_as_of_rgb(tmp_path):
  model = hugging_face(tmp_path / 'theirs')
  processor = {
    'feature_extractor_type': 'MobileViTFeatureExtractor',
    'do_flip_channel_order': True,
    'size': 288,
    'crop_size': 256,
  }
  (tmp_path / 'theirs' / 'preprocessor_config.json').write_text(json.dumps(processor))
  variables, config = weights.load(tmp_path / 'theirs')
  assert config.preprocess == models.Preprocessing((0.0,), (1.0,), 'central', 256 / 288)
  assert weights.takes_bgr(tmp_path / 'theirs')
  images = images_of((64, 64))
  expected = torch_logits(model, images[..., ::-1])
  assert_same_logits(our_logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  again, its_config = weights.load(tmp_path / 'ours')
  assert_same(again, variables)
  assert its_config.model == config.model
  assert not weights.takes_bgr(tmp_path / 'ours')
  back = transformers.MobileViTForImageClassification.from_pretrained(tmp_path / 'ours')
  assert_same_logits(torch_logits(back.eval(), images), expected)
  found = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'ours')
  assert not getattr(found, 'do_flip_channel_order', False)


@pytest.mark.parametrize(
  'entry',
  [
    {'hidden_act': 'gelu'},
    {'output_stride': 16},
    {'qkv_bias': False},
    {'hidden_sizes': [8, 12, 20]},
    {'neck_hidden_sizes': None},
    {'num_channels': 1},
    {'patch_size': [2, 2]},
    {'layer_norm_eps': 'x'},
    {'num_attention_heads': 0},
  ],
)
def test_a_config_json_that_is_not_read_or_another_s_is_refused(tmp_path, entry):
  hugging_face(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | entry))
  name = {'layer_norm_eps': 'norm_epsilon'}.get(next(iter(entry)), next(iter(entry)))
  with pytest.raises(UsageError, match=rf'config\.json: {name}'):
    weights.load(tmp_path)


def timm_model(size):
  """A MobileViT of timm's, at a published size."""
  pytest.importorskip('timm', exc_type=ImportError)
  from timm.models import mobilevit

  return randomize(getattr(mobilevit, f'mobilevit_{size.lower()}')(num_classes=5))


def save_as_timm(model, folder, architecture, **more):
  """As on the hub: config.json, and the state dict."""
  folder.mkdir()
  cfg = {'input_size': [3, 64, 96], 'mean': [0.0], 'std': [1.0], 'crop_pct': 0.9}
  made_with = {'num_classes': 5, 'in_chans': 3, 'global_pool': 'avg'}
  config = {'architecture': architecture, 'model_args': made_with, 'pretrained_cfg': cfg, **more}
  (folder / 'config.json').write_text(json.dumps(config))
  torch.save(model.state_dict(), folder / 'pytorch_model.bin')


@pytest.mark.parametrize(('name', 'size'), [('XXS', (64, 96)), ('S', (72, 72))])
def test_timm_agrees_and_takes_it_back(tmp_path, name, size):
  model = timm_model(name)
  save_as_timm(model, tmp_path / 'theirs', f'mobilevit_{name.lower()}.cvnets_in1k')
  assert weights.detect(tmp_path / 'theirs') == 'timm'
  variables, config = weights.load(tmp_path / 'theirs')
  model_config = config.backbone
  found = model_config.neck_hidden_sizes, model_config.hidden_sizes, model_config.expand_ratio
  assert (found, config.image_size) == (SIZES[name], (64, 96))
  images = images_of(size)
  expected = torch_logits(model, images)
  assert_same_logits(our_logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours.pth', format='timm')
  model.load_state_dict(torch.load(tmp_path / 'ours.pth')['state_dict'])
  np.testing.assert_array_equal(torch_logits(model, images), expected)
  again, its_config = weights.load(tmp_path / 'ours.pth')
  assert_same(again, variables)
  assert its_config == config
  weights.save(variables, config, tmp_path / 'hf', format='huggingface')
  back = transformers.MobileViTForImageClassification.from_pretrained(tmp_path / 'hf')
  assert_same_logits(torch_logits(back.eval(), images), expected)


@pytest.mark.parametrize(
  ('entry', 'message'),
  [
    ({'architecture': 'semobilevit_s'}, "architecture: 'semobilevit_s' is not one of mobilevit_xx"),
    ({'model_args': {'act_layer': 'relu'}}, 'model_args act_layer are not read'),
    ({'model_args': {'global_pool': 'max'}}, "global_pool: 'max' is not one of avg"),
    ({'model_args': {}, 'global_pool': 'max'}, "global_pool: 'max' is not one of avg"),
  ],
)
def test_timm_s_other_models_are_refused(tmp_path, entry, message):
  model = timm_model('XXS')
  save_as_timm(model, tmp_path / 'theirs', **{'architecture': 'mobilevit_xxs'} | entry)
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path / 'theirs')
