"""Swin Transformers with random weights against transformers and timm: logits, there and back."""

import json

import jax
import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  before transformers
import transformers

from vit_jax import models, weights
from vit_jax.errors import FieldError, UsageError

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HUGGING_FACE = {
  1: (transformers.SwinConfig, transformers.SwinForImageClassification),
  2: (transformers.Swinv2Config, transformers.Swinv2ForImageClassification),
}
SMALL = {'embed_dim': 12, 'depths': [2, 2, 1], 'num_heads': [2, 3, 4]}
LARGER = {'embed_dim': 24, 'depths': [1, 3], 'num_heads': [3, 6]}


def randomize(model, seed=0):
  """Gives every parameter, norms and biases too, a value of its own."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
  return model.eval()


def images_of(size, seed=0):
  return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


def assert_same_logits(ours, theirs):
  assert np.abs(theirs).max() > 0.1
  assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def our_logits(variables, config, images):
  return np.asarray(jax.jit(config.model.apply)(variables, images))


def torch_logits(model, images):
  with torch.inference_mode():
    outputs = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  return getattr(outputs, 'logits', outputs).numpy()


def assert_same_variables(first, second):
  first, second = models.flatten(first), models.flatten(second)
  assert first.keys() == second.keys()
  for name in first:
    assert first[name].tobytes() == second[name].tobytes(), name


def hugging_face(folder, version, size, window, sizes, **more):
  config, model = HUGGING_FACE[version]
  config = config(image_size=list(size), window_size=window, num_labels=5, **sizes, **more)
  model = randomize(model(config))
  model.save_pretrained(folder)
  return model


@pytest.mark.parametrize(
  ('version', 'size', 'window', 'sizes'),
  [
    (1, (64, 96), 4, SMALL),  # the window divides
    (1, (64, 64), 4, LARGER),
    (1, (56, 56), 4, LARGER),  # it doesn't
    (1, (36, 44), 3, SMALL),
    (2, (64, 96), 4, SMALL),
    (2, (80, 80), 3, LARGER),
  ],
)
def test_hugging_face_agrees_and_takes_it_back(tmp_path, version, size, window, sizes):
  model = hugging_face(tmp_path / 'theirs', version, size, window, sizes)
  variables, config = weights.load(tmp_path / 'theirs')
  assert (config.name, config.image_size, config.num_classes) == ('swin', size, 5)
  images = images_of(size)
  expected = torch_logits(model, images)
  assert_same_logits(our_logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back, info = HUGGING_FACE[version][1].from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  np.testing.assert_array_equal(torch_logits(back.eval(), images), expected)
  again, its_config = weights.load(tmp_path / 'ours')
  assert_same_variables(again, variables)
  assert its_config.model == config.model


@pytest.mark.parametrize('options', [{'qkv_bias': False}, {'use_absolute_embeddings': True}])
def test_options_of_hugging_face(tmp_path, options):
  model = hugging_face(tmp_path, 1, (32, 32), 4, LARGER, hidden_act='gelu_new', **options)
  variables, config = weights.load(tmp_path)
  images = images_of((32, 32))
  assert_same_logits(our_logits(variables, config, images), torch_logits(model, images))


def test_a_hugging_face_model_without_a_head(tmp_path):
  config = transformers.SwinConfig(image_size=32, window_size=4, **LARGER)
  model = randomize(transformers.SwinModel(config))
  model.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  images = images_of((32, 32))
  with torch.inference_mode():
    expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).pooler_output.numpy()
  assert_same_logits(our_logits(variables, config, images), expected)
  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  assert_same_variables(weights.load(tmp_path / 'ours')[0], variables)


@pytest.mark.parametrize('size', [(56, 56), (36, 48)])
def test_windows_that_hugging_face_counts_otherwise_are_refused(tmp_path, size):
  hugging_face(tmp_path, 2, size, 4, SMALL)
  with pytest.raises(UsageError, match=r'have windows of .* in a Hugging Face Swin Transformer v2'):
    weights.load(tmp_path)


def test_another_epsilon_is_refused(tmp_path):
  hugging_face(tmp_path, 1, (32, 32), 4, LARGER, layer_norm_eps=1e-6)
  with pytest.raises(UsageError, match='layer_norm_eps 1e-06 is not read'):
    weights.load(tmp_path)


TIMM = {1: 'SwinTransformer', 2: 'SwinTransformerV2'}


def timm_model(version, size, window, sizes, **more):
  pytest.importorskip('timm', exc_type=ImportError)
  from timm.models import swin_transformer, swin_transformer_v2

  module = {1: swin_transformer, 2: swin_transformer_v2}[version]
  cls = getattr(module, TIMM[version])
  return randomize(cls(img_size=size, window_size=window, num_classes=5, **sizes, **more))


def save_as_timm(model, folder, architecture, size, **more):
  """As on the hub: config.json, and the state dict."""
  folder.mkdir()
  config = {
    'architecture': architecture,
    'num_classes': 5,
    'global_pool': 'avg',
    'model_args': {'global_pool': 'avg', 'in_chans': 3, 'num_classes': 5},
    'pretrained_cfg': {'input_size': [3, *size], 'mean': [0.5], 'std': [0.5], 'crop_pct': 0.9},
    **more,
  }
  (folder / 'config.json').write_text(json.dumps(config))
  torch.save(model.state_dict(), folder / 'pytorch_model.bin')


@pytest.mark.parametrize(
  ('version', 'size', 'window', 'sizes'),
  [
    (1, (64, 64), 4, LARGER),
    (1, (36, 44), 3, SMALL),
    (1, (32, 80), 4, SMALL),
    (2, (56, 56), 4, SMALL),
    (2, (64, 96), 4, LARGER),
  ],
)
def test_timm_agrees_and_takes_it_back(tmp_path, version, size, window, sizes):
  model = timm_model(version, size, window, sizes)
  name = f'swin{"v2" if version == 2 else ""}_tiny_window{window}_{size[0]}'
  save_as_timm(model, tmp_path / 'theirs', name, size)
  variables, config = weights.load(tmp_path / 'theirs')
  images = images_of(size)
  expected = torch_logits(model, images)
  assert_same_logits(our_logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours.pth', format='timm')
  model.load_state_dict(torch.load(tmp_path / 'ours.pth')['state_dict'])
  np.testing.assert_array_equal(torch_logits(model, images), expected)
  again, its_config = weights.load(tmp_path / 'ours.pth')
  assert_same_variables(again, variables)
  assert its_config.model == config.model


def scales_of(model):
  """The buffers with the scale of positions, which Microsoft's files have, and timm's haven't."""
  return {n: b for n, b in model.named_buffers() if n.endswith('relative_coords_table')}


@pytest.mark.parametrize('version', [1, 2])
def test_microsofts_layout(tmp_path, version):
  """Merging at the end of a stage, `head`, and the buffers that Microsoft's files have."""
  model = timm_model(version, (32, 32), 4, SMALL)
  state = {}
  for name, tensor in model.state_dict().items():
    parts = name.split('.')
    if 'downsample' in parts:
      parts[1] = str(int(parts[1]) - 1)
    state['.'.join(parts).replace('head.fc.', 'head.')] = tensor
  state['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(16, 16, dtype=torch.long)
  if version == 2:
    state |= scales_of(model)
  torch.save({'model': state}, tmp_path / 'swin.pth')
  variables, config = weights.load(tmp_path / 'swin.pth', image_size=(32, 32))
  assert config.backbone.windowing == 'microsoft'
  images = images_of((32, 32))
  assert_same_logits(our_logits(variables, config, images), torch_logits(model, images))


def test_version_2_without_its_window_is_refused(tmp_path):
  torch.save(timm_model(2, (32, 32), 4, LARGER).state_dict(), tmp_path / 'swin.pth')
  with pytest.raises(FieldError, match=r'^window_size: .*swin\.pth does not tell it'):
    weights.load(tmp_path / 'swin.pth')


def test_pretrained_windows_of_version_2(tmp_path):
  sizes = {'embed_dim': 12, 'depths': [1, 1, 1, 1], 'num_heads': [2, 3, 4, 6]}
  model = timm_model(2, (64, 64), 4, sizes, pretrained_window_sizes=(12, 12, 12, 6))
  save_as_timm(model, tmp_path / 'theirs', 'swinv2_base_window12to4_192to64', (64, 64))
  variables, config = weights.load(tmp_path / 'theirs')
  assert config.backbone.pretrained_window_sizes == (12, 12, 12, 6)
  images = images_of((64, 64))
  expected = torch_logits(model, images)
  assert_same_logits(our_logits(variables, config, images), expected)
  weights.save(variables, config, tmp_path / 'hf', format='huggingface')
  back = HUGGING_FACE[2][1].from_pretrained(tmp_path / 'hf')
  assert_same_logits(torch_logits(back.eval(), images), expected)


def test_the_scale_of_positions_comes_from_buffers(tmp_path):
  sizes = {'embed_dim': 12, 'depths': [1, 1], 'num_heads': [2, 3]}
  model = timm_model(2, (32, 32), 4, sizes, pretrained_window_sizes=(3, 0))
  torch.save(model.state_dict() | scales_of(model), tmp_path / 'swin.pth')
  variables, config = weights.load(tmp_path / 'swin.pth', image_size=(32, 32))
  assert config.backbone.pretrained_window_sizes == (3, 0)
  images = images_of((32, 32))
  assert_same_logits(our_logits(variables, config, images), torch_logits(model, images))

  torch.save(model.state_dict(), tmp_path / 'bare.pth')
  with pytest.raises(FieldError, match=r'^pretrained_window_sizes: .*bare\.pth does not tell them'):
    weights.load(tmp_path / 'bare.pth', image_size=(32, 32), window_size=4)
  other = {name: 1.1 * buffer for name, buffer in scales_of(model).items()}
  torch.save(model.state_dict() | other, tmp_path / 'other.pth')
  with pytest.raises(UsageError, match='has another scale than that of a window'):
    weights.load(tmp_path / 'other.pth', image_size=(32, 32))
  keys = {'layers.0.blocks.0.attn.k_bias': torch.ones(12)}
  torch.save(model.state_dict() | scales_of(model) | keys, tmp_path / 'keys.pth')
  with pytest.raises(UsageError, match='k_bias is not zero'):
    weights.load(tmp_path / 'keys.pth', image_size=(32, 32))


@pytest.mark.parametrize(
  ('version', 'entry'),
  [
    (1, {'depths': 5}),
    (1, {'depths': ['a', 'b']}),
    (1, {'num_heads': None}),
    (2, {'pretrained_window_sizes': None}),
    (1, {'depths': [100, 100]}),
    (1, {'mlp_ratio': 'x'}),
    (1, {'window_size': 0}),
  ],
)
def test_damaged_configs_end_in_a_line(tmp_path, version, entry):
  hugging_face(tmp_path, version, (32, 32), 4, LARGER)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | entry))
  with pytest.raises(UsageError, match=f'config.json: .*{next(iter(entry))}'):
    weights.load(tmp_path)


def test_between_timm_and_hugging_face(tmp_path):
  model = timm_model(1, (64, 64), 4, SMALL)
  save_as_timm(model, tmp_path / 'theirs', 'swin_tiny_window4_64', (64, 64))
  variables, config = weights.load(tmp_path / 'theirs')
  weights.save(variables, config, tmp_path / 'hf', format='huggingface')
  images = images_of((64, 64))
  back = HUGGING_FACE[1][1].from_pretrained(tmp_path / 'hf')
  assert_same_logits(torch_logits(back.eval(), images), torch_logits(model, images))


def test_maps_smaller_than_a_window(tmp_path):
  """timm makes a table for the smaller window; Hugging Face's tables are all of one size."""
  model = timm_model(1, (32, 32), 4, SMALL)
  save_as_timm(model, tmp_path / 'theirs', 'swin_tiny_window4_32', (32, 32))
  variables, config = weights.load(tmp_path / 'theirs')
  images = images_of((32, 32))
  assert_same_logits(our_logits(variables, config, images), torch_logits(model, images))
  with pytest.raises(UsageError, match='have maps smaller than windows of 4'):
    weights.save(variables, config, tmp_path / 'hf', format='huggingface')


def test_padding_that_the_other_does_otherwise_is_refused(tmp_path):
  hugging_face(tmp_path / 'hf', 1, (56, 56), 4, SMALL)
  variables, config = weights.load(tmp_path / 'hf')
  with pytest.raises(UsageError, match=r'timm pads or shifts the maps of \(14, 14\) otherwise'):
    weights.save(variables, config, tmp_path / 'swin.safetensors', format='timm')
  model = timm_model(1, (56, 56), 4, SMALL)
  save_as_timm(model, tmp_path / 'timm', 'swin_tiny_window4_56', (56, 56))
  variables, config = weights.load(tmp_path / 'timm')
  with pytest.raises(UsageError, match='in a Hugging Face Swin Transformer'):
    weights.save(variables, config, tmp_path / 'folder', format='huggingface')


def test_options_that_are_not_read_are_refused(tmp_path):
  model = timm_model(1, (32, 32), 4, LARGER)
  for name, args, message in (
    ('a', {'always_partition': True}, 'model_args always_partition are not read'),
    ('b', {'global_pool': 'max'}, "global_pool: 'max' is not one of avg"),
  ):
    save_as_timm(model, tmp_path / name, 'swin_x', (32, 32), model_args=args)
    with pytest.raises(UsageError, match=message):
      weights.load(tmp_path / name)
