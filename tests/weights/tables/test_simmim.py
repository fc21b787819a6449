"""Models that SimMIM has pre-trained: transformers' and Microsoft's files, there and back."""

import json

import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  before transformers
import transformers
from small_vits import assert_same, assert_same_tensors

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import adapt, files

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

_SWIN = {'embed_dim': 8, 'depths': [1, 2], 'num_heads': [1, 2], 'patch_size': 4, 'window_size': 4}
FIELDS = {
  'ViT': {
    'hidden_size': 8,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'intermediate_size': 12,
    'patch_size': 8,
  },
  'Swin': _SWIN,
  'Swinv2': _SWIN,
}


def hugging_face(kind, folder, **changes):
  """A saved ...ForMaskedImageModeling with a value of its own in each parameter."""
  config = getattr(transformers, f'{kind}Config')
  fields = {'image_size': 32, 'encoder_stride': 8, **FIELDS[kind], **changes}
  model = getattr(transformers, f'{kind}ForMaskedImageModeling')(config(**fields))
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
  model.save_pretrained(folder)
  return model.eval()


@pytest.mark.parametrize('kind', FIELDS)
def test_hugging_face_there_and_back(tmp_path, kind):
  model = hugging_face(kind, tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  assert (config['head'], config.num_classes) == ({'name': 'simmim'}, 0)
  assert config.image_size == (32, 32)
  images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  side = 32 // config.backbone.patch_size[0]
  hidden = np.random.default_rng(1).random((2, side, side)) < 0.5
  with torch.inference_mode():
    expected = model(
      torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
      bool_masked_pos=torch.from_numpy(hidden.reshape(2, -1)),
    ).reconstruction.numpy()
  mask = hidden.repeat(32 // side, axis=1).repeat(32 // side, axis=2)
  found = config.model.apply(variables, images, mask=mask)['reconstruction']
  tolerance = 1e-4 * np.abs(expected).max()
  np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, rtol=0, atol=tolerance)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back, info = type(model).from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  assert_same_tensors(back, model)
  names = ('architectures', 'encoder_stride')
  written, read = (
    json.loads((tmp_path / n / 'config.json').read_text()) for n in ('ours', 'theirs')
  )
  assert [written[name] for name in names] == [read[name] for name in names]
  again, its_config = weights.load(tmp_path / 'ours')
  assert_same(again, variables)
  assert its_config.model == config.model
  with pytest.raises(UsageError, match='the model predicts no classes'):
    weights.transformers_class(config, 'it')
  with pytest.raises(UsageError, match='a model for simmim has no place there'):
    weights.save(variables, config, tmp_path / 'ours.pth', format='timm')


def test_the_encoder_goes_into_a_classifier(tmp_path):
  hugging_face('Swin', tmp_path)
  variables, config = weights.load(tmp_path)
  fields = config.to_dict() | {'head': None, 'num_classes': 3, 'image_size': (48, 48)}
  fitted, notes = adapt.adapt(variables, config, ModelConfig.from_dict(fields), tmp_path)
  assert_same(fitted, {'params': variables['params']['backbone']})
  assert notes == ['head: new, 3 classes', 'decoder: left out', 'mask_token: left out']


@pytest.mark.parametrize(
  ('kind', 'changes', 'message'),
  [
    ('ViT', {'image_size': [32, 16]}, r'image_size \(32, 16\) has no place in .*; squares have'),
    # As many numbers for each position, but of 4x4 pixels.
    (
      'ViT',
      {'patch_size': [8, 2], 'encoder_stride': 4},
      r'patches \(8, 2\) has no place in .*; squares have',
    ),
    ('ViT', {'encoder_stride': 16}, r'decoder\.0\.weight'),
  ],
)
def test_what_is_not_reconstructed_is_refused(tmp_path, kind, changes, message):
  hugging_face(kind, tmp_path, **changes)
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path)


def microsofts(folder):
  """A Swin's state dict as github.com/microsoft/SimMIM saves it."""
  state, parts = {}, {}
  tensors, _ = files.parse_safetensors((folder / 'model.safetensors').read_bytes())
  for name, tensor in tensors.items():
    name = name.removeprefix('swin.')
    for theirs, microsofts in (
      ('embeddings.mask_token', 'mask_token'),
      ('embeddings.patch_embeddings.projection', 'patch_embed.proj'),
      ('embeddings.norm', 'patch_embed.norm'),
      ('encoder.layers', 'layers'),
      ('layernorm_before', 'norm1'),
      ('layernorm_after', 'norm2'),
      ('attention.self', 'attn'),
      ('attention.output.dense', 'attn.proj'),
      ('intermediate.dense', 'mlp.fc1'),
      ('output.dense', 'mlp.fc2'),
      ('layernorm', 'norm'),
    ):
      name = name.replace(theirs, microsofts)
    name = name if name.startswith('decoder.') else f'encoder.{name}'
    part = next((p for p in ('query', 'key', 'value') if f'.{p}.' in name), None)
    if part:
      parts.setdefault(name.replace(f'.{part}.', '.qkv.'), {})[part] = tensor
    else:
      state[name] = tensor
  for name, part in parts.items():
    state[name] = np.concatenate([part['query'], part['key'], part['value']])
  state['encoder.layers.0.blocks.0.attn.relative_position_index'] = np.zeros((16, 16))
  return {name: torch.tensor(tensor) for name, tensor in state.items()}


def test_microsofts_swin_is_that_of_transformers(tmp_path):
  hugging_face('Swin', tmp_path / 'theirs')
  path = tmp_path / 'simmim.pth'
  torch.save({'model': microsofts(tmp_path / 'theirs')}, path)
  with pytest.raises(FieldError, match=r'^image_size: .*simmim\.pth does not tell it'):
    weights.load(path)
  variables, config = weights.load(path, image_size=(32, 32))
  expected, its_config = weights.load(tmp_path / 'theirs')
  assert_same(variables, expected)
  assert config.model == its_config.model


def test_microsofts_vit_is_refused_by_its_name(tmp_path):
  names = ('patch_embed.proj.weight', 'blocks.0.norm1.weight', 'blocks.0.gamma_1', 'mask_token')
  state = {f'encoder.{name}': torch.zeros(1) for name in names}
  state |= {'decoder.0.weight': torch.zeros(1), 'decoder.0.bias': torch.zeros(1)}
  torch.save({'model': state}, tmp_path / 'vit.pth')
  with pytest.raises(UsageError, match=r"^.*vit\.pth: Microsoft's SimMIM of a ViT has BEiT's"):
    weights.load(tmp_path / 'vit.pth')
