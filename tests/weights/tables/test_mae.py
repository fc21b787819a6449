"""Masked autoencoders go to transformers and facebookresearch's files, and come back."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_operators  # noqa: F401
from small_vits import SQUARE, assert_same, assert_same_tensors, logits, random_variables

from vit_jax import models, weights
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, layers
from vit_jax.weights import adapt, files
from vit_jax.weights.tables import mae

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

HEAD = {'name': 'mae', 'hidden_size': 12, 'num_layers': 1, 'num_heads': 3, 'norm_pixels': False}
CONFIG = ModelConfig.from_dict(
  SQUARE.to_dict()
  | {'num_classes': 0, 'activation': 'gelu_exact', 'positional_embedding': 'sinusoidal_2d'}
  | {'head': HEAD | {'activation': 'gelu_exact'}}
)
POSITIONS = {
  'fixed': ('sinusoidal_2d', 'sinusoidal_2d'),
  'learned': ('learned_1d', 'learned_1d'),
  'mixed': ('sinusoidal_2d', 'learned_1d'),
}


def config_of(positions='fixed', head=(), **changes):
  encoder, decoder = POSITIONS[positions]
  entries = CONFIG.to_dict()
  options = entries['head'] | {'positional_embedding': decoder} | dict(head)
  return ModelConfig.from_dict(
    entries | {'positional_embedding': encoder, 'head': options} | changes
  )


def their_model(head='ViTMAEForPreTraining', **changes):
  """A random model of transformers, whose own initial positions are zeros."""
  config = transformers.ViTMAEConfig(
    **{
      'hidden_size': 8,
      'num_hidden_layers': 2,
      'num_attention_heads': 2,
      'intermediate_size': 12,
      'image_size': 16,
      'patch_size': 4,
      'decoder_hidden_size': 12,
      'decoder_num_hidden_layers': 1,
      'decoder_num_attention_heads': 3,
      'decoder_intermediate_size': 20,
      **changes,
    }
  )
  model, generator = getattr(transformers, head)(config), torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'pos' in name:
        fixed = layers.sinusoidal_2d(4, 4, parameter.shape[-1]).reshape(1, 16, -1)
        parameter.copy_(torch.tensor(np.pad(fixed, ((0, 0), (1, 0), (0, 0)))))
      else:
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
  return model.eval()


@pytest.mark.parametrize('positions', ['fixed', 'others'])
def test_transformers_models_are_read_and_written(tmp_path, positions):
  theirs = their_model(norm_pix_loss=positions == 'fixed', layer_norm_eps=1e-3)
  if positions == 'others':
    with torch.no_grad():
      for parameter in (
        theirs.decoder.decoder_pos_embed,
        theirs.vit.embeddings.position_embeddings,
      ):
        parameter[0, 3, 1] += 1e-6
  theirs.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  kind = 'sinusoidal_2d' if positions == 'fixed' else 'learned_1d'
  assert config.backbone.positional_embedding == config.model.positional_embedding == kind
  assert config.model.norm_pixels == (positions == 'fixed')
  assert config.model.norm_epsilon == config.backbone.norm_epsilon == 1e-3
  assert (config.model.mlp_dim, config.model.num_heads) == (20, 3)
  noise = np.random.default_rng(0).uniform(size=(2, 16)).astype(np.float32)
  images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
  visible = jnp.argsort(noise, axis=1)[:, :4]
  apply = functools.partial(config.model.apply, visible=lambda _: visible)
  ours = jax.jit(apply, compiler_options={'xla_backend_optimization_level': 0})(variables, images)
  with torch.no_grad():
    expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2)), noise=torch.tensor(noise))
  np.testing.assert_allclose(ours['prediction'], expected.logits.numpy(), rtol=1e-4, atol=1e-4)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back, info = transformers.ViTMAEForPreTraining.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  assert_same_tensors(back, theirs)
  for name, value in theirs.config.to_dict().items():
    if name not in ('_name_or_path', 'dtype', 'torch_dtype', 'transformers_version'):
      assert back.config.to_dict()[name] == value, name
  again, same = weights.load(tmp_path / 'ours')
  assert same == config
  assert_same(again, variables)


def test_both_projects_files_have_the_same_tensors(tmp_path):
  """As transformers' own conversion of facebookresearch's files names them."""
  theirs = their_model()
  theirs.save_pretrained(tmp_path / 'theirs')
  weights.save(*weights.load(tmp_path / 'theirs'), tmp_path / 'm.pth', format='timm')
  found, expected = torch.load(tmp_path / 'm.pth')['model'], theirs.state_dict()
  for block, layer in (
    ('blocks.1', 'vit.layers.1'),
    ('decoder_blocks.0', 'decoder.decoder_layers.0'),
  ):
    qkv = [expected[f'{layer}.attention.{part}_proj.weight'] for part in 'qkv']
    assert torch.equal(found[f'{block}.attn.qkv.weight'], torch.cat(qkv))
    for ours, name in (
      ('norm1.bias', 'layernorm_before.bias'),
      ('norm2.weight', 'layernorm_after.weight'),
      ('attn.proj.weight', 'attention.o_proj.weight'),
      ('mlp.fc1.weight', 'mlp.fc1.weight'),
      ('mlp.fc2.bias', 'mlp.fc2.bias'),
    ):
      assert torch.equal(found[f'{block}.{ours}'], expected[f'{layer}.{name}'])
  for ours, name in (
    ('patch_embed.proj.weight', 'vit.embeddings.patch_embeddings.projection.weight'),
    ('pos_embed', 'vit.embeddings.position_embeddings'),
    ('cls_token', 'vit.embeddings.cls_token'),
    ('norm.weight', 'vit.layernorm.weight'),
    *((n, f'decoder.{n}') for n in ('mask_token', 'decoder_pos_embed', 'decoder_norm.bias')),
    *((n, f'decoder.{n}') for n in ('decoder_embed.weight', 'decoder_pred.weight')),
  ):
    assert torch.equal(found[ours], expected[name]), ours


def test_an_encoder_of_transformers_is_a_vit(tmp_path):
  theirs = their_model('ViTMAEModel', qkv_bias=False, hidden_act='relu')
  theirs.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  assert config.model is config.backbone
  assert (config.backbone.activation, config.num_classes) == ('relu', 0)
  images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
  theirs.config.mask_ratio = 0.0
  with torch.no_grad():
    expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state[:, 0]
  np.testing.assert_allclose(logits(variables, config, images), expected, rtol=0, atol=1e-4)
  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back = transformers.ViTMAEModel.from_pretrained(tmp_path / 'ours').eval()
  assert back.config.mask_ratio == 0  # it sees the whole image, as the model here
  with torch.no_grad():
    found = back(torch.tensor(images.transpose(0, 3, 1, 2))).last_hidden_state[:, 0]
  np.testing.assert_allclose(found, expected, atol=1e-5)
  again, same = weights.load(tmp_path / 'ours')
  assert same == config
  assert_same(again, variables)


def test_the_decoder_of_transformers_without_biases_of_the_attention(tmp_path):
  their_model(qkv_bias=False).save_pretrained(tmp_path)
  flat = models.flatten(weights.load(tmp_path)[0])
  block = 'encoder/encoderblock_0/MultiHeadDotProductAttention_0'
  assert not flat[f'decoder/{block}/key/bias'].any()
  assert flat[f'decoder/{block}/out/bias'].any()


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('positions', POSITIONS)
def test_files_of_facebookresearch_there_and_back(tmp_path, positions, suffix):
  config = config_of(positions)
  variables, path = random_variables(config), tmp_path / f'mae.{suffix}'
  weights.save(variables, config, path, format='timm')
  assert weights.detect(path) == 'timm'
  again, same = weights.load(path)
  assert same == config
  assert_same(again, variables)
  if suffix == 'pth':
    tensors = torch.load(path)['model']
    assert tensors.keys() == {
      *('cls_token', 'pos_embed', 'mask_token', 'decoder_pos_embed'),
      *(f'{m}.{leaf}' for m in facebook_modules(config) for leaf in ('weight', 'bias')),
    }
    assert tensors['pos_embed'].shape == (1, 5, 8)
    assert tensors['decoder_pos_embed'].shape == (1, 5, 12)


def facebook_modules(config):
  """Names of modules in models_mae.py."""
  block = ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
  for prefix, count in (('', config.backbone.num_layers), ('decoder_', config.model.num_layers)):
    yield from (f'{prefix}blocks.{i}.{name}' for i in range(count) for name in block)
  yield from ('patch_embed.proj', 'norm', 'decoder_norm', 'decoder_embed', 'decoder_pred')


def test_a_published_file(tmp_path, monkeypatch):
  assert mae._PUBLISHED == (512, 8)
  monkeypatch.setattr(mae, '_PUBLISHED', (16, 1))
  config = config_of(head={'hidden_size': 16, 'num_heads': 16})
  path = as_facebook_writes(tmp_path / 'm.pth', config)
  with pytest.raises(UsageError, match=r'^num_heads: .* does not tell how many'):
    weights.load(path)
  variables, config = weights.load(path, num_heads=2)
  head = config['head']
  assert (head['num_heads'], head['mlp_dim'], head['norm_pixels']) == (16, None, False)
  assert (config.backbone.activation, head['activation']) == ('gelu_exact', 'gelu_exact')
  assert (config.image_size, config.backbone.positional_embedding) == ((8, 8), 'sinusoidal_2d')
  assert_same(variables, random_variables(config))


def as_facebook_writes(path, config):
  """Writes a file with nothing of this project's in it; returns its path."""
  weights.save(random_variables(config), config, path, format='timm')
  torch.save({'model': torch.load(path)['model']}, path)
  return path


def test_the_heads_of_an_unpublished_decoder_are_not_guessed(tmp_path):
  path = as_facebook_writes(tmp_path / 'm.pth', CONFIG)
  with pytest.raises(UsageError, match='does not tell how many heads its decoder has'):
    weights.load(path, num_heads=2)


def test_positions_that_a_file_lacks_or_that_contradict_what_it_states(tmp_path):
  weights.save(random_variables(CONFIG), CONFIG, tmp_path / 'm.safetensors', format='timm')
  tensors, own = files.read_state_dict(tmp_path / 'm.safetensors')
  tensors['decoder_pos_embed'] = tensors['decoder_pos_embed'] + 1
  for message in (r'unexpected +decoder_pos_embed', "no 'decoder_pos_embed'"):
    data = files.format_safetensors(tensors, **{files.CONFIG_KEY: own})
    (tmp_path / 'm.safetensors').write_bytes(data)
    with pytest.raises(UsageError, match=message):
      weights.load(tmp_path / 'm.safetensors')
    tensors.pop('decoder_pos_embed', None)


def test_the_encoder_goes_into_a_classifier(tmp_path):
  config = config_of('learned')
  variables = random_variables(config)
  target = config.replace(image_size=(16, 8))
  target = ModelConfig.from_dict(
    {n: v for n, v in target.to_dict().items() if n != 'head'} | {'num_classes': 3}
  )
  fitted, notes = adapt.adapt(variables, config, target, 'mae.pth')
  assert notes == [
    'position embeddings: resized from 2x2 to 4x2',
    'head: new, 3 classes',
    'decoder: left out',
  ]
  flat, source = models.flatten(fitted), models.flatten(config.backbone_variables(variables))
  assert flat.keys() == source.keys()
  for name in flat.keys() - {'Transformer/posembed_input/pos_embedding'}:
    np.testing.assert_array_equal(flat[name], source[name])


@pytest.mark.parametrize(
  ('changes', 'head', 'formats', 'message'),
  [
    ({'image_size': (8, 12)}, {}, ('timm', 'huggingface'), r'image_size \(8, 12\) has no place'),
    ({'patches': {'size': (4, 2)}}, {}, ('timm', 'huggingface'), r'patches \(4, 2\) has no place'),
    ({'classifier': 'gap'}, {}, ('timm', 'huggingface'), "classifier 'gap' is not one of token"),
    ({'representation_size': 4}, {}, ('timm', 'huggingface'), 'representation_size 4 is not one'),
    ({}, {'norm_epsilon': 1e-5}, ('huggingface',), 'head.norm_epsilon 1e-05 has no place there'),
    ({}, {'activation': 'relu'}, ('huggingface',), 'head.activation relu has no place there'),
    ({}, {}, ('augreg', 'scenic'), 'a model for mae has no place there'),
  ],
)
def test_what_has_no_place(tmp_path, changes, head, formats, message):
  config = config_of(head=head, **changes)
  for format in formats:
    with pytest.raises(UsageError, match=message):
      weights.save(random_variables(config), config, tmp_path / 'm', format=format)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'hidden_act': 'selu'}, "hidden_act: 'selu' is not one of"),
    ({'decoder_num_attention_heads': 5}, r'head\.num_heads: 5 heads do not divide'),
    ({'decoder_hidden_size': '12'}, "decoder_hidden_size is '12'"),
    ({'norm_pix_loss': 'yes'}, r"head\.norm_pixels: 'yes' is not True or False"),
    ({'decoder_num_hidden_layers': 2}, 'tensors that do not fit'),
  ],
)
def test_configs_that_do_not_fit_are_one_line(tmp_path, change, message, folder):
  shutil.copytree(folder, tmp_path / 'm')
  path = tmp_path / 'm' / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path / 'm')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('vit_mae') / 'm'
  weights.save(random_variables(CONFIG), CONFIG, path, format='huggingface')
  return path
