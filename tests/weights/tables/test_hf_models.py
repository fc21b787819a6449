"""transformers' vision models compute the same here, and come back to it tensor for tensor."""

import json
import os

import numpy as np
import pytest
from small_vits import assert_same, logits, random_images

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.weights import tables
from vit_jax.weights.tables.vit import HuggingFaceRelative

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
StrictDataclassError = pytest.importorskip('huggingface_hub.errors').StrictDataclassError

SIZES = {
  'hidden_size': 16,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 24,
  'image_size': 16,
  'patch_size': 4,
}
TWO_LAYERS = {'num_hidden_layers': 2}
LABELS = {'num_labels': 5}
TEXT = {
  'hidden_size': 8,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 12,
  'vocab_size': 20,
  'max_position_embeddings': 8,
}
TOWERS = {'vision_config': SIZES, 'text_config': TEXT}
DINO = {name: size for name, size in SIZES.items() if name != 'intermediate_size'}
# Class of the model, class of its config, fields of it.
MODELS = {
  'vit_msn': ('ViTMSNForImageClassification', 'ViTMSNConfig', SIZES | LABELS | TWO_LAYERS),
  'ijepa': ('IJepaForImageClassification', 'IJepaConfig', SIZES | LABELS),
  'deit': ('DeiTForImageClassification', 'DeiTConfig', SIZES | LABELS),
  'deit with a teacher': ('DeiTForImageClassificationWithTeacher', 'DeiTConfig', SIZES | LABELS),
  'clip projected': (
    'CLIPVisionModelWithProjection',
    'CLIPVisionConfig',
    SIZES | TWO_LAYERS | {'projection_dim': 6},
  ),
  'clip': ('CLIPModel', 'CLIPConfig', TOWERS | {'projection_dim': 6}),
  'siglip': ('SiglipModel', 'SiglipConfig', TOWERS),
  'siglip classifier': ('SiglipForImageClassification', 'SiglipConfig', TOWERS | LABELS),
  'siglip2': (
    'Siglip2Model',
    'Siglip2Config',
    {'vision_config': {**SIZES, 'num_patches': 16}, 'text_config': TEXT},
  ),
  'dinov2 classifier': ('Dinov2ForImageClassification', 'Dinov2Config', DINO | LABELS),
  'dinov2_with_registers': (
    'Dinov2WithRegistersForImageClassification',
    'Dinov2WithRegistersConfig',
    DINO | LABELS | {'num_register_tokens': 3},
  ),
  'dinov3_vit': (
    'DINOv3ViTModel',
    'DINOv3ViTConfig',
    SIZES | TWO_LAYERS | {'num_register_tokens': 3},
  ),
  'beit': (
    'BeitForImageClassification',
    'BeitConfig',
    SIZES | LABELS | {'use_relative_position_bias': True},
  ),
  'data2vec-vision': (
    'Data2VecVisionForImageClassification',
    'Data2VecVisionConfig',
    SIZES | LABELS | {'use_absolute_position_embeddings': True, 'layer_scale_init_value': 0.0},
  ),
}
# Others of the same types.
VARIANTS = {
  'ijepa without a head': ('IJepaModel', 'IJepaConfig', SIZES),
  'deit with a pooler': ('DeiTModel', 'DeiTConfig', SIZES | {'qkv_bias': False}),
  'clip alone': ('CLIPVisionModel', 'CLIPVisionConfig', SIZES),
  'siglip alone': ('SiglipVisionModel', 'SiglipVisionConfig', SIZES | {'image_size': 18}),
  'siglip without a head': (
    'SiglipVisionModel',
    'SiglipVisionConfig',
    SIZES | {'vision_use_head': False},
  ),
  'dinov2': ('Dinov2Model', 'Dinov2Config', DINO),
  'dinov2 giant': ('Dinov2Model', 'Dinov2Config', DINO | {'use_swiglu_ffn': True}),
  'dinov3_vit plus': (
    'DINOv3ViTModel',
    'DINOv3ViTConfig',
    SIZES | {'use_gated_mlp': True, 'hidden_act': 'silu', 'key_bias': True},
  ),
  'beit pre-trained': (
    'BeitModel',
    'BeitConfig',
    SIZES
    | {
      'use_shared_relative_position_bias': True,
      'use_mean_pooling': False,
      'use_mask_token': True,
    },
  ),
}
# Fields of config.json that are followed, whose change computes something else.
USUAL = {'hidden_act', 'layer_norm_eps', 'num_attention_heads'}
FOLLOWED = {
  'beit': {'hidden_act', 'layer_norm_eps'},
  'beit pre-trained': {'hidden_act', 'layer_norm_eps'},
  'dinov2 giant': {'layer_norm_eps', 'num_attention_heads'},
  'dinov3_vit': USUAL | {'rope_theta'},
  'dinov3_vit plus': USUAL | {'rope_theta'},
}
# What transformers raises for a config.json that it makes no model of.
REFUSED = (IndexError, RuntimeError, ValueError, StrictDataclassError)
# Of a checkpoint of two towers, the vision tower comes back.
TOWER_OF = {
  'CLIPModel': 'CLIPVisionModelWithProjection',
  'SiglipModel': 'SiglipVisionModel',
  'Siglip2Model': 'Siglip2VisionModel',
}
# Those that pool nothing, where the mean is taken here.
MEANS = ('IJepaModel', 'SiglipVisionModel')


def make(name):
  """A model with every parameter off its initial value."""
  kind, config, fields = (MODELS | VARIANTS)[name]
  torch.manual_seed(0)
  model = getattr(transformers, kind)(getattr(transformers, config)(**fields))
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn(parameter.shape)
  return model.eval()


def theirs(model, images):
  """What a model makes of images: logits, an embedding, or pooled tokens."""
  inputs = {'pixel_values': torch.from_numpy(images.transpose(0, 3, 1, 2).copy())}
  if type(model).__name__.startswith('Siglip2'):
    inputs = patches(images)
  with torch.no_grad():
    if hasattr(model, 'get_image_features'):
      return model.get_image_features(**inputs, return_dict=True).pooler_output.numpy()
    output = model(**inputs, return_dict=True)
  for name in ('logits', 'image_embeds', 'pooler_output'):
    if output.get(name) is not None:
      return output[name].numpy()
  tokens = output.last_hidden_state
  return (tokens.mean(1) if type(model).__name__ in MEANS else tokens[:, 0]).numpy()


def patches(images, size=4):
  """What SigLIP 2 takes of images, with patches of one size."""
  batch, height, width, channels = images.shape
  rows, columns = height // size, width // size
  cut = images.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
  return {
    'pixel_values': torch.from_numpy(cut.reshape(batch, rows * columns, -1).copy()),
    'pixel_attention_mask': torch.ones(batch, rows * columns),
    'spatial_shapes': torch.tensor([[rows, columns]] * batch),
  }


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('name', MODELS)
def test_models_agree_both_ways(tmp_path, name):
  model = make(name)
  model.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  images = random_images(config)
  expected = theirs(model, images)
  assert np.abs(expected).max() > 0.01
  assert_close(logits(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  kind = TOWER_OF.get(type(model).__name__, type(model).__name__)
  written = json.loads((tmp_path / 'ours' / 'config.json').read_text())
  assert written['architectures'] == [kind]
  back, info = getattr(transformers, kind).from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  assert_close(theirs(back.eval(), images), expected)
  before, after = model.state_dict(), back.state_dict()
  for key, tensor in after.items():
    if not key.endswith('mask_token'):  # which takes no part, and isn't read
      source = before.get(key, before.get(f'vision_model.{key}'))
      assert tensor.numpy().tobytes() == source.numpy().tobytes(), key

  again, its_config = weights.load(tmp_path / 'ours')
  assert its_config == config
  assert_same(again, variables)


def changed(value):
  """Values of the same type as one in config.json, or of those that it may have."""
  match value:
    case bool():
      return [not value]
    case int():
      return [value + 1, 2 * value]
    case float():
      return [2 * value + 0.5]
    case str():
      return ['relu']
    case None:
      return [True, 1, 0.5, 'relu', {}]
    case [*values]:
      return [values[::-1], [*values, 1], []]
  return []


def all_fields(config):
  """What can stand in a config.json of this class, and in those within it."""
  fields = {('head_dim',): None, **{(name,): value for name, value in config.to_dict().items()}}
  for field, value in getattr(config, 'vision_config', config).to_dict().items():
    if ('vision_config',) in fields:
      fields['vision_config', field] = value
  # With another return_dict they are the same, in a tuple.
  return {field: value for field, value in fields.items() if field[-1] != 'return_dict'}


@pytest.mark.parametrize('name', VARIANTS)
def test_variants_agree_both_ways(tmp_path, name):
  test_models_agree_both_ways(tmp_path, name)


# A sweep changes the fields of these; EVERY_MODEL=1 those of all, which takes some minutes.
SWEPT = ('beit', 'clip', 'dinov2 classifier', 'dinov3_vit')
if os.environ.get('EVERY_MODEL'):
  SWEPT = (*MODELS, *VARIANTS)


@pytest.mark.parametrize('name', SWEPT)
def test_every_field_of_config_json_counts(tmp_path, name):
  """Whatever is changed there, a file is refused, or gives what transformers makes of it."""
  model = make(name)
  model.save_pretrained(tmp_path)
  variables, config = weights.load(tmp_path)
  first = logits(variables, config, random_images(config))
  path, wrong, followed = tmp_path / 'config.json', [], set()
  written = path.read_text()
  changes = [
    (field, new) for field, value in all_fields(model.config).items() for new in changed(value)
  ]
  changes += [((field,), None) for field in json.loads(written)]  # left out
  for (*outer, field), new in changes:
    given = json.loads(written)
    within = given[outer[0]] if outer else given
    if new is None:
      del within[field]
    else:
      within[field] = new
    path.write_text(json.dumps(given))
    try:
      variables, its_config = weights.load(tmp_path)
    except (UsageError, FieldError):
      continue
    try:
      other, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    except REFUSED:  # transformers has no such model
      continue
    if info['missing_keys'] or info['mismatched_keys']:
      continue
    same = its_config.replace(class_names=None) == config.replace(class_names=None)
    try:
      its_images = random_images(its_config)
      found = first if same else logits(variables, its_config, its_images)
      assert_close(found, theirs(other.eval(), its_images))
    except Exception as error:
      wrong.append((outer, field, new, str(error)[:100]))
      continue
    if np.shape(found) == np.shape(first) and not np.allclose(found, first, rtol=1e-3):
      followed.add(field)
  assert not wrong, wrong
  assert followed >= FOLLOWED.get(name, USUAL)


@pytest.mark.parametrize('name', ['dinov2 classifier', 'beit', 'dinov3_vit', 'deit'])
def test_images_that_are_no_squares(tmp_path, name):
  """They are as wide as high to types of models that interpolate positions in each call."""
  kind, config, fields = MODELS[name]
  config = getattr(transformers, config)(**fields | {'image_size': [8, 32]})
  model = getattr(transformers, kind)(config).eval()
  model.save_pretrained(tmp_path)
  if name in ('dinov2 classifier', 'beit'):
    with pytest.raises(UsageError, match=r'config\.json: image_size \[8, 32\] is not read'):
      weights.load(tmp_path)
  else:
    variables, config = weights.load(tmp_path)
    images = random_images(config)
    assert_close(logits(variables, config, images), theirs(model, images))


@pytest.mark.parametrize('kind', ['CLIP', 'Siglip'])
def test_an_older_name_of_a_tower_s_fields_is_read_as_transformers_does(tmp_path, kind):
  config = getattr(transformers, f'{kind}Config')(**TOWERS)
  model = getattr(transformers, f'{kind}Model')(config)
  model.save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  written = json.loads(path.read_text())
  path.write_text(json.dumps(written | {'vision_config_dict': SIZES | {'hidden_act': 'relu'}}))
  expected = type(config).from_pretrained(tmp_path).vision_config.hidden_act
  found = weights.load(tmp_path)[1].backbone.activation
  assert {'relu': 'relu', 'gelu_pytorch_tanh': 'gelu'}[expected] == found
  path.write_text(json.dumps(written | {'vision_config': [1]}))
  with pytest.raises(UsageError, match=r'config\.json: vision_config is \[1\], not an object'):
    weights.load(tmp_path)


def test_what_config_json_leaves_out_is_transformers_default():
  owners = {}
  for _, config, _ in MODELS.values():
    own = getattr(transformers, config)()
    for part in (own, getattr(own, 'vision_config', own)):
      owners[part.model_type] = getattr(part, 'vision_config', part)
  relatives = [t for t in tables.all_tables() if isinstance(t, HuggingFaceRelative)]
  assert owners.keys() == {table.model_type for table in relatives} | {'clip', 'siglip2'}
  for table in relatives:
    for field, value in table.defaults.items():
      assert getattr(owners[table.model_type], field) == value, (table.title, field)
