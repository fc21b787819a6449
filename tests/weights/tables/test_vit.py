"""Converted models compute what PyTorch computes: Hugging Face's own ViTs, and timm's forward."""

import json
import math

import numpy as np
import pytest
from small_vits import (
  SQUARE,
  WIDE,
  assert_same,
  assert_same_tensors,
  logits,
  random_images,
  random_variables,
)

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.weights import files

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES = {  # hidden_size, layers, heads, mlp
  'small': (16, 1, 2, 24),
  'deeper': (24, 3, 3, 96),
  'wider': (64, 2, 4, 128),
}
SHAPES = {'square': (32, 8), 'not square': ([24, 40], [8, 4])}  # image, patch


def hugging_face_config(size='small', shape='square', **changes):
  width, layers, heads, mlp = SIZES[size]
  image, patch = SHAPES[shape]
  return transformers.ViTConfig(
    **{
      'hidden_size': width,
      'num_hidden_layers': layers,
      'num_attention_heads': heads,
      'intermediate_size': mlp,
      'image_size': image,
      'patch_size': patch,
      'num_labels': 5,
      **changes,
    }
  )


def randomised(model):
  """The model with every parameter, biases and norms too, off its initial value."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
  return model.eval()


def theirs(model, images):
  """Logits, or what the pooler gives, or the normed class token."""
  with torch.no_grad():
    output = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  if 'logits' in output:
    return output.logits.numpy()
  pooled = output.get('pooler_output')
  return (output.last_hidden_state[:, 0] if pooled is None else pooled).numpy()


MODELS = {
  'head': lambda config: transformers.ViTForImageClassification(config),
  'pooler': lambda config: transformers.ViTModel(config),
  'neither': lambda config: transformers.ViTModel(config, add_pooling_layer=False),
}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', MODELS)
def test_hugging_face_models_agree_both_ways(tmp_path, kind, size, shape):
  model = randomised(MODELS[kind](hugging_face_config(size, shape)))
  model.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  images = random_images(config)
  expected = theirs(model, images)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(logits(variables, config, images), expected, rtol=0, atol=1e-4)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  options = {'add_pooling_layer': False} if kind == 'neither' else {}
  back, info = type(model).from_pretrained(tmp_path / 'ours', output_loading_info=True, **options)
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  assert_same_tensors(back, model)
  # How PyTorch rounds depends on where in memory the tensors lie.
  tolerance = 1e-6 * np.abs(expected).max()
  np.testing.assert_allclose(theirs(back.eval(), images), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize('config', [SQUARE, WIDE], ids=['square', 'wide'])
def test_our_models_agree_in_hugging_face(tmp_path, config):
  variables, images = random_variables(config), random_images(config)
  weights.save(variables, config, tmp_path / 'm', format='huggingface')
  model = transformers.ViTForImageClassification.from_pretrained(tmp_path / 'm').eval()
  expected = logits(variables, config, images)
  np.testing.assert_allclose(theirs(model, images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ('changes', 'activation'),
  [
    ({'hidden_act': 'gelu'}, 'gelu_exact'),
    ({'hidden_act': 'gelu_new'}, 'gelu'),
    ({'hidden_act': 'gelu_pytorch_tanh'}, 'gelu'),
    ({'hidden_act': 'relu', 'layer_norm_eps': 0.1}, 'relu'),
    ({'qkv_bias': False, 'num_channels': 1}, 'gelu_exact'),
  ],
)
def test_what_config_json_says_counts(tmp_path, changes, activation):
  model = randomised(MODELS['head'](hugging_face_config(**changes)))
  with torch.no_grad():  # where the variants of GELU differ
    model.vit.layers[0].mlp.fc1.weight *= 5
  model.save_pretrained(tmp_path)
  variables, config = weights.load(tmp_path)
  assert config.backbone.activation == activation
  images = random_images(config)
  np.testing.assert_allclose(
    logits(variables, config, images), theirs(model, images), rtol=0, atol=1e-4
  )


def test_class_names_come_and_go(tmp_path):
  labels = {0: 'cat', 1: 'dog', 2: 'naïve', 3: 'x', 4: 'y'}
  transformers.ViTForImageClassification(hugging_face_config(id2label=labels)).save_pretrained(
    tmp_path
  )
  variables, config = weights.load(tmp_path)
  assert config.class_names == tuple(labels.values())
  weights.save(variables, config, tmp_path / 'again', format='huggingface')
  assert transformers.ViTConfig.from_pretrained(tmp_path / 'again').id2label == labels


def test_the_older_pickled_weights_and_the_newer_names(tmp_path):
  model = randomised(MODELS['head'](hugging_face_config()))
  model.save_pretrained(tmp_path / 'safe')
  expected, config = weights.load(tmp_path / 'safe')
  model.config.save_pretrained(tmp_path / 'old')
  torch.save(model.state_dict(), tmp_path / 'old' / 'pytorch_model.bin')  # transformers 5's names
  variables, its_config = weights.load(tmp_path / 'old')
  assert its_config == config
  assert_same(variables, expected)


@pytest.mark.parametrize('kind', ['safetensors', 'pickled'])
def test_weights_in_shards(tmp_path, kind):
  model = randomised(MODELS['head'](hugging_face_config('deeper')))
  model.save_pretrained(tmp_path / 'whole')
  model.save_pretrained(tmp_path / 'shards', max_shard_size='20KB')
  shards = sorted((tmp_path / 'shards').glob('model-*.safetensors'))
  assert len(shards) > 2
  if kind == 'pickled':
    index = tmp_path / 'shards' / 'model.safetensors.index.json'
    text = index.read_text().replace('model-', 'pytorch_model-').replace('.safetensors"', '.bin"')
    index.with_name('pytorch_model.bin.index.json').write_text(text)
    index.unlink()
    for shard in shards:
      tensors = {
        n: torch.from_numpy(a.copy())
        for n, a in files.parse_safetensors(shard.read_bytes())[0].items()
      }
      torch.save(tensors, shard.with_name(f'pytorch_{shard.stem}.bin'))
      shard.unlink()
  variables, config = weights.load(tmp_path / 'shards')
  expected, expected_config = weights.load(tmp_path / 'whole')
  assert config == expected_config
  assert_same(variables, expected)


def test_a_pooler_beside_a_head_is_not_dropped_in_silence(tmp_path):
  model = MODELS['head'](hugging_face_config())
  model.vit.pooler = transformers.ViTModel(model.config).pooler
  model.save_pretrained(tmp_path)
  with pytest.raises(UsageError, match=r'unexpected +pooler\.dense\.bias'):
    weights.load(tmp_path)
  variables, _ = weights.load(tmp_path, allow=r'pooler\..*')
  assert 'pre_logits' not in variables['params']


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
  """An empty cache, and no network; returns the function that puts a model there."""
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))

  def put(name, model):
    commit = 'c' * 40
    folder = tmp_path / 'hub' / f'models--{name.replace("/", "--")}'
    model.save_pretrained(folder / 'snapshots' / commit)
    (folder / 'refs').mkdir()
    (folder / 'refs' / 'main').write_text(commit)

  return put


@pytest.mark.parametrize('prefix', ['', 'hf:'])
def test_names_on_the_hub_come_from_the_cache_offline(tmp_path, offline_hub, prefix):
  model = randomised(MODELS['pooler'](hugging_face_config()))
  offline_hub('some/vit', model)
  variables, config = weights.load(f'{prefix}some/vit')
  images = random_images(config)
  np.testing.assert_allclose(
    logits(variables, config, images), theirs(model, images), rtol=0, atol=1e-4
  )
  with pytest.raises(UsageError, match=r'^some/other: ') as error:
    weights.load(f'{prefix}some/other')
  assert '\n' not in str(error.value)


def timm_forward(tensors, images, heads, pool):
  """timm's VisionTransformer with these weights, stated anew in PyTorch's functions."""
  functional = torch.nn.functional
  w = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}

  def linear(x, name):
    return functional.linear(x, w[f'{name}.weight'], w.get(f'{name}.bias'))

  def norm(x, name):
    return functional.layer_norm(x, x.shape[-1:], w[f'{name}.weight'], w[f'{name}.bias'], 1e-6)

  def mlp(x, name):
    return linear(functional.gelu(linear(x, f'{name}.fc1')), f'{name}.fc2')

  def split(x, parts):  # [B, N, parts * D] to parts of [B, heads, N, d]
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)

  def attend(q, k, v):
    weights_ = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights_ @ v).transpose(1, 2).flatten(2)

  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  kernel = w['patch_embed.proj.weight']
  x = functional.conv2d(pixels, kernel, w['patch_embed.proj.bias'], stride=kernel.shape[-2:])
  x = x.flatten(2).transpose(1, 2)
  cls = [w['cls_token'].expand(len(x), -1, -1)] if 'cls_token' in w else []
  if w['pos_embed'].shape[1] == x.shape[1]:  # no_embed_class, or no class token
    x = torch.cat([*cls, x + w['pos_embed']], 1)
  else:
    x = torch.cat([*cls, x], 1) + w['pos_embed']
  for i in range(sum(name.endswith('.attn.qkv.weight') for name in w)):
    q, k, v = split(linear(norm(x, f'blocks.{i}.norm1'), f'blocks.{i}.attn.qkv'), 3)
    x = x + linear(attend(q, k, v), f'blocks.{i}.attn.proj')
    x = x + mlp(norm(x, f'blocks.{i}.norm2'), f'blocks.{i}.mlp')
  if 'norm.weight' in w:
    x = norm(x, 'norm')
  if pool == 'map':
    x = x[:, len(cls) :]
    (q,) = split(linear(w['attn_pool.latent'].expand(len(x), -1, -1), 'attn_pool.q'), 1)
    x = linear(attend(q, *split(linear(x, 'attn_pool.kv'), 2)), 'attn_pool.proj')
    x = (x + mlp(norm(x, 'attn_pool.norm'), 'attn_pool.mlp'))[:, 0]
  elif pool == 'token':
    x = x[:, 0]
  else:
    x = x[:, len(cls) :]
    x = x.mean(1) if pool == 'avg' else x.amax(1)
  if 'fc_norm.weight' in w:
    x = norm(x, 'fc_norm')
  return (linear(x, 'head') if 'head.weight' in w else x).numpy()


TIMM = SQUARE.replace(activation='gelu_exact')
# What no tensor tells.
TOKEN = {'activation': 'gelu_exact', 'classifier': 'token'}
POOLS = {'token': 'token', 'avg': 'gap', 'max': 'gmp', 'map': 'map'}


def saved_for_timm(path, config=TIMM, **changes):
  """Writes a state dict as timm has it, without anything of this project's; returns its tensors."""
  config = config.replace(**changes)
  variables = random_variables(config)
  weights.save(variables, config, path, format='timm')
  tensors, _ = files.parse_safetensors(path.read_bytes())
  path.write_bytes(files.format_safetensors(tensors))
  return variables, {name: array.copy() for name, array in tensors.items()}


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('base', [TIMM, TIMM.replace(image_size=(8, 12), num_classes=0)])
def test_timm_computes_the_same(tmp_path, pool, base):
  config = base.replace(classifier=POOLS[pool])
  path, images = tmp_path / 'm.safetensors', random_images(config)
  variables, tensors = saved_for_timm(path, config)
  expected = timm_forward(tensors, images, config.backbone.num_heads, pool)
  np.testing.assert_allclose(logits(variables, config, images), expected, rtol=0, atol=1e-4)
  named = ('num_heads', 'image_size', 'classifier', 'activation')
  known = {key: config[key] for key in named}
  loaded, its_config = weights.load(path, **known)
  assert its_config == config
  assert_same(loaded, variables)


@pytest.mark.parametrize(
  ('pool', 'fc_norm', 'class_token'),
  [
    ('avg', True, None),
    ('avg', True, True),
    ('avg', False, True),
    ('max', True, True),
    ('map', True, True),
  ],
)
def test_timm_norm_after_pooling_and_class_token_that_is_not_pooled(
  tmp_path, pool, fc_norm, class_token
):
  changes = {'classifier': POOLS[pool], 'fc_norm': fc_norm, 'class_token': class_token}
  config = TIMM.replace(num_layers=1, **changes)
  path, images = tmp_path / 'm.safetensors', random_images(config)
  variables, tensors = saved_for_timm(path, config)
  assert ('cls_token' in tensors) == bool(class_token)
  assert ('fc_norm.weight' in tensors) == fc_norm == ('norm.weight' not in tensors)
  expected = timm_forward(tensors, images, config.backbone.num_heads, pool)
  np.testing.assert_allclose(logits(variables, config, images), expected, rtol=0, atol=1e-4)
  known = TOKEN | {'classifier': config.backbone.classifier}
  if pool == 'map':
    del known['classifier']
  loaded, its_config = weights.load(path, num_heads=2, **known)
  assert its_config == config
  assert_same(loaded, variables)


def resave(path, tensors):
  path.write_bytes(files.format_safetensors(tensors))


def test_timm_without_qkv_bias_or_a_position_for_the_class_token(tmp_path):
  path, images = tmp_path / 'm.safetensors', random_images(TIMM)
  _, tensors = saved_for_timm(path)
  tensors = {n: a for n, a in tensors.items() if not n.endswith('qkv.bias')}
  tensors['pos_embed'] = tensors['pos_embed'][:, 1:]
  resave(path, tensors)
  expected = timm_forward(tensors, images, 2, 'token')
  variables, config = weights.load(path, num_heads=2, **TOKEN)
  np.testing.assert_allclose(logits(variables, config, images), expected, rtol=0, atol=1e-4)
  weights.save(variables, config, path, format='timm')
  again, _ = files.parse_safetensors(path.read_bytes())
  assert {name: array.tobytes() for name, array in again.items()} == {
    name: array.tobytes() for name, array in tensors.items()
  }


def test_timm_fc_norm_of_a_class_token(tmp_path):
  path, images = tmp_path / 'm.safetensors', random_images(TIMM)
  _, tensors = saved_for_timm(path)
  tensors = {n.replace('norm.', 'fc_norm.') if n.startswith('norm.') else n: a
             for n, a in tensors.items()}  # fmt: skip
  resave(path, tensors)
  variables, config = weights.load(path, num_heads=2, **TOKEN)
  expected = timm_forward(tensors, images, 2, 'token')
  np.testing.assert_allclose(logits(variables, config, images), expected, rtol=0, atol=1e-4)
  weights.save(variables, config, path, format='timm')
  assert files.parse_safetensors(path.read_bytes())[0].keys() == tensors.keys()


@pytest.mark.parametrize('known', [{}, {'classifier': 'token'}, {'activation': 'gelu_exact'}])
def test_timm_state_dicts_alone_do_not_tell_everything(tmp_path, known):
  path = tmp_path / 'm.safetensors'
  saved_for_timm(path)
  field = 'classifier' if 'activation' in known else 'activation'
  missing = ' and '.join(name for name in TOKEN if name not in known)
  with pytest.raises(
    UsageError, match=rf"^{field}: .*; give architecture=NAME, or {missing}; .*'avg' is gap"
  ):
    weights.load(path, num_heads=2, **known)


def test_timm_heads_are_those_of_the_named_size_or_asked_for(tmp_path):
  path = tmp_path / 'm.safetensors'
  saved_for_timm(path)
  with pytest.raises(
    UsageError, match=r'^num_heads: .* width 8, depth 2, MLP 12 is no named size; give the number$'
  ):
    weights.load(path, **TOKEN)
  saved_for_timm(path, hidden_size=192, num_layers=12, mlp_dim=768, num_heads=3)
  assert weights.load(path, **TOKEN)[1].backbone.num_heads == 3


@pytest.mark.parametrize('around', ['state_dict', 'model', None])
def test_timm_pickled_state_dicts(tmp_path, around):
  variables, tensors = saved_for_timm(tmp_path / 'm.safetensors')
  state = {name: torch.from_numpy(array) for name, array in tensors.items()}
  torch.save({around: state, 'epoch': 3} if around else state, tmp_path / 'm.pth')
  loaded, config = weights.load(tmp_path / 'm.pth', num_heads=2, **TOKEN)
  assert config == TIMM
  assert_same(loaded, variables)


def test_timm_pickled_state_dicts_are_written_too(tmp_path):
  config = WIDE.replace(class_names=['a', 'b', 'c'])
  variables = random_variables(config)
  weights.save(variables, config, tmp_path / 'm.pth', format='timm')
  state = torch.load(tmp_path / 'm.pth', weights_only=True)['state_dict']
  assert state['blocks.0.attn.qkv.weight'].shape == (24, 8)
  loaded, its_config = weights.load(tmp_path / 'm.pth')
  assert its_config == config
  assert_same(loaded, variables)


@pytest.mark.parametrize('format', ['huggingface', 'timm'])
def test_poolings_without_a_counterpart_are_refused(tmp_path, format):
  config = SQUARE.replace(classifier='gsp', num_layers=1)
  with pytest.raises(UsageError, match="'gsp' is not one of token"):
    weights.save(random_variables(config), config, tmp_path / 'm', format=format)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'levit'}, "model_type is 'levit'"),
    ({'hidden_act': 'selu'}, "hidden_act: 'selu' is not one of gelu"),
    ({'pooler_act': 'relu'}, "pooler_act: 'relu' is not one of tanh"),
    ({'hidden_size': 'many'}, "hidden_size is 'many'"),
    ({'num_hidden_layers': 10**9}, 'num_hidden_layers is 1000000000'),
    ({'patch_size': [8, 8, 8]}, 'config.json'),
    ({'num_attention_heads': 3}, '3 heads do not divide'),
  ],
)
def test_configs_that_do_not_fit_are_one_line(tmp_path, change, message):
  MODELS['head'](hugging_face_config()).save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(UsageError, match=message) as error:
    weights.load(tmp_path)
  assert '\n' not in str(error.value)


def test_a_config_of_another_size_is_a_table(tmp_path):
  MODELS['head'](hugging_face_config()).save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'intermediate_size': 48}))
  with pytest.raises(UsageError, match='tensors that do not fit: 3') as error:
    weights.load(tmp_path)
  assert 'encoder.layer.0.intermediate.dense.weight  24x16  48x16' in str(error.value)
