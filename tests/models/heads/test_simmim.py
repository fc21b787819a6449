"""SimMIM's prediction and loss against transformers', with the same parameters and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  before transformers
import transformers

from vit_jax import models, tasks, weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.tasks.simmim import block_mask

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VIT = {
  'small': {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'patch_size': 8},
  'larger': {'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 3, 'patch_size': 4},
}
SWIN = {
  'small': {'embed_dim': 8, 'depths': [2, 1], 'num_heads': [1, 2], 'window_size': 2},
  'larger': {'embed_dim': 12, 'depths': [1, 2, 1], 'num_heads': [2, 3, 4], 'window_size': 2},
}
SHAPES = {'square': (32, 32), 'not square': (32, 48)}
BLOCK = 8


def vit(size, shape, **changes):
  """ViTForMaskedImageModeling, and its encoder."""
  fields = {**VIT[size], 'intermediate_size': 32, 'image_size': list(shape), **changes}
  config = transformers.ViTConfig(encoder_stride=fields['patch_size'], **fields)
  model = transformers.ViTForMaskedImageModeling(config)
  return model, model.vit


def swin(size, shape, **changes):
  """SwinForMaskedImageModeling, and its encoder."""
  fields = {**SWIN[size], 'patch_size': 4, 'image_size': list(shape), **changes}
  stride = 4 * 2 ** (len(fields['depths']) - 1)
  model = transformers.SwinForMaskedImageModeling(
    transformers.SwinConfig(encoder_stride=stride, **fields)
  )
  return model, model.swin


MODELS = {'vit': vit, 'swin': swin}


def randomized(model):
  """The model with a value of its own in each parameter, norms and the mask token too."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
  return model.eval()


def images_and_mask(shape):
  images = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
  keys = jax.random.split(jax.random.key(1), 2)
  return images, jax.vmap(lambda key: block_mask(key, shape, BLOCK, 0.6))(keys)


def their_outputs(model, encoder, images, mask):
  """The reconstruction and the loss, of images that needn't be square, as in transformers."""
  patch, (height, width) = model.config.patch_size, images.shape[1:3]
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  hidden = torch.from_numpy(np.array(mask))[:, None]
  patches = hidden[:, 0, ::patch, ::patch].flatten(1)
  with torch.inference_mode():
    tokens = encoder(pixels, bool_masked_pos=patches).last_hidden_state
    grid = height // model.config.encoder_stride, width // model.config.encoder_stride
    tokens = tokens[:, -grid[0] * grid[1] :].transpose(1, 2)
    found = model.decoder(tokens.reshape(len(tokens), -1, *grid))
    loss = ((found - pixels).abs() * hidden).sum() / (hidden.sum() + 1e-5) / 3
  if height == width:  # all that it does itself
    model.config.image_size = height
    whole = model(pixels, bool_masked_pos=patches)
    torch.testing.assert_close(whole.reconstruction, found)
    torch.testing.assert_close(whole.loss, loss)
  return found.numpy().transpose(0, 2, 3, 1), loss.item()


def ours(model, encoder, folder):
  """Our model, and its variables, with the parameters of theirs."""
  encoder.save_pretrained(folder)
  variables, config = weights.load(folder, allow=r'embeddings\.mask_token')
  decoder = model.decoder[0]
  params = {
    'backbone': variables['params'],
    'mask_token': encoder.embeddings.mask_token.detach().numpy(),
    'decoder': {
      'kernel': decoder.weight.detach().numpy()[:, :, 0, 0].T,
      'bias': decoder.bias.detach().numpy(),
    },
  }
  head = models.registry.find(models.HEADS, 'simmim')
  return head(backbone=config.model, num_classes=0), {'params': params}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', ['small', 'larger'])
@pytest.mark.parametrize('name', MODELS)
def test_reconstruction_and_loss_are_those_of_transformers(tmp_path, name, size, shape):
  theirs = MODELS[name](size, SHAPES[shape])
  randomized(theirs[0])
  images, mask = images_and_mask(SHAPES[shape])
  expected, expected_loss = their_outputs(*theirs, images, mask)
  model, variables = ours(*theirs, tmp_path)
  apply = jax.jit(lambda mask: model.apply(variables, images, mask=mask))
  outputs = apply(mask)
  found = outputs['reconstruction']
  assert np.abs(expected).max() > 0.1
  assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
  task = tasks.build('simmim', {'mask_patch_size': BLOCK}, 0)
  batch = {'image': jnp.asarray(images), 'weight': jnp.ones(2)}
  total, count = task.loss(outputs | {'mask': mask}, batch, None, True)['loss']
  assert float(total / count) == pytest.approx(expected_loss, rel=1e-4)
  assert np.abs(apply(~mask)['reconstruction'] - found).max() > 0.01


def test_any_image_and_dtype_without_a_mask():
  """A Swin pads images of 28 pixels to 32; what it has padded is no part of the prediction."""
  swin = {'name': 'swin', 'embed_dim': 8, 'depths': (1, 1), 'num_heads': (2, 2), 'window_size': 4}
  model = models.build(swin | {'head': {'name': 'simmim'}}, dtype=jnp.bfloat16)
  images = jnp.ones((2, 28, 36, 1))
  found, variables = jax.jit(model.init_with_output)(jax.random.key(0), images)
  assert found['reconstruction'].shape == images.shape
  assert found['reconstruction'].dtype == jnp.float32
  params = variables['params']
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  params['mask_token'] += 1
  apply = jax.jit(lambda hides: model.apply(variables, images, mask=hides)['reconstruction'])
  nothing, whole = (apply(jnp.full(images.shape[:3], hides)) for hides in (False, True))
  np.testing.assert_allclose(nothing, found['reconstruction'], atol=1e-3)
  assert np.abs(whole - nothing).max() > 0.01


def test_mistakes():
  fields = {'name': 'resnet18', 'num_filters': 2, 'head': {'name': 'simmim'}}
  with pytest.raises(FieldError, match=r"^head\.name: 'simmim' hides patches, and ResNet18 has"):
    models.build(fields)
  vit = {'name': 'vit', 'hidden_size': 8, 'mlp_dim': 8, 'num_layers': 2, 'num_heads': 2}
  vit |= {'patches': {'size': (4, 4)}, 'head': {'name': 'simmim'}}
  images, key = jnp.ones((1, 8, 8, 1)), jax.random.key(0)
  with pytest.raises(FieldError, match=r'^stride: \(2, 2\), but patches that overlap'):
    jax.eval_shape(models.build(vit | {'stride': 2}).init, key, images)
  with pytest.raises(FieldError, match=r'^drop_remainder: patches cover 8x8 pixels of 10x8'):
    jax.eval_shape(models.build(vit | {'drop_remainder': True}).init, key, jnp.ones((1, 10, 8, 1)))
  learned = vit | {'tokenizer': {'type': 'dynamic', 'num_tokens': 2}}
  with pytest.raises(UsageError, match='tokens on a grid, or a map; there are none'):
    jax.eval_shape(models.build(learned).init, key, images)
