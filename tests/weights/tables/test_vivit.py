"""ViViTs with random weights against transformers, and scenic's checkpoints, there and back."""

import json

import flax
import jax
import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  before transformers
import transformers

from vit_jax import models, weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NAMES = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads')
SMALL = dict(zip(NAMES, (8, 12, 2, 2), strict=True))
LARGER = dict(zip(NAMES, (24, 20, 3, 3), strict=True))


def hugging_face(folder, frames, size, tubelet, sizes, kind='VivitForVideoClassification', **more):
  """Saves a model of transformers whose every parameter has a value of its own."""
  config = transformers.VivitConfig(
    image_size=list(size), num_frames=frames, tubelet_size=list(tubelet), num_labels=5,
    **sizes, **more,
  )  # fmt: skip
  model = getattr(transformers, kind)(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
  model.save_pretrained(folder)
  return model


def clips_of(config):
  shape = (2, *config.input_size, config.channels)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def our_outputs(variables, config, clips):
  return np.asarray(jax.jit(config.model.apply)(variables, clips))


def their_outputs(model, clips, name='logits'):
  with torch.inference_mode():
    return model(torch.from_numpy(np.moveaxis(clips, -1, 2).copy()))[name].numpy()


def assert_same(first, second):
  first, second = models.flatten(first), models.flatten(second)
  assert first.keys() == second.keys()
  for name in first:
    assert first[name].tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize(
  ('frames', 'size', 'tubelet', 'sizes'),
  [
    (4, (8, 8), (2, 4, 4), SMALL),
    (6, (8, 12), (3, 4, 2), SMALL),
    (8, (12, 12), (2, 4, 4), LARGER),
    (2, (16, 8), (2, 8, 4), LARGER),
  ],
)
def test_hugging_face_agrees_and_takes_it_back(tmp_path, frames, size, tubelet, sizes):
  model = hugging_face(tmp_path / 'theirs', frames, size, tubelet, sizes)
  variables, config = weights.load(tmp_path / 'theirs')
  assert (config.name, config.num_frames, config.image_size) == ('vivit', frames, size)
  clips = clips_of(config)
  expected = their_outputs(model, clips)
  assert np.abs(expected).max() > 0.1
  difference = np.abs(our_outputs(variables, config, clips) - expected).max()
  assert difference <= 1e-4 * np.abs(expected).max()

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back, info = type(model).from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  np.testing.assert_array_equal(their_outputs(back.eval(), clips), expected)
  again, its_config = weights.load(tmp_path / 'ours')
  assert_same(again, variables)
  assert its_config.model == config.model
  assert weights.detect(tmp_path / 'ours') == 'huggingface'
  assert weights.transformers_class(config, 'here') == 'VivitForVideoClassification'


def test_options_of_hugging_face(tmp_path):
  options = {'hidden_act': 'gelu', 'layer_norm_eps': 1e-3, 'qkv_bias': False}
  model = hugging_face(tmp_path, 4, (8, 8), (2, 4, 4), SMALL, num_channels=1, **options)
  variables, config = weights.load(tmp_path)
  assert config.model.activation == 'gelu_exact'
  clips = clips_of(config)
  np.testing.assert_allclose(
    our_outputs(variables, config, clips), their_outputs(model, clips), rtol=1e-4, atol=1e-4
  )


def test_a_hugging_face_model_without_a_head_keeps_its_pooler(tmp_path):
  model = hugging_face(tmp_path / 'theirs', 4, (8, 8), (2, 4, 4), SMALL, kind='VivitModel')
  variables, config = weights.load(tmp_path / 'theirs')
  clips = clips_of(config)
  expected = their_outputs(model, clips, 'pooler_output')
  found = our_outputs(variables, config, clips)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back = transformers.VivitModel.from_pretrained(tmp_path / 'ours').eval()
  np.testing.assert_array_equal(their_outputs(back, clips, 'pooler_output'), expected)


def test_files_as_transformers_4_wrote_them_are_read(tmp_path):
  hugging_face(tmp_path, 4, (8, 8), (2, 4, 4), SMALL)
  variables, _ = weights.load(tmp_path)
  from safetensors.numpy import load_file, save_file

  names = load_file(tmp_path / 'model.safetensors')
  assert 'vivit.encoder.layer.0.attention.attention.query.weight' in names
  new = {
    name.replace('encoder.layer.', 'layers.')
    .replace('attention.attention.query', 'attention.q_proj')
    .replace('intermediate.dense', 'mlp.fc1'): array
    for name, array in names.items()
  }
  save_file(new, tmp_path / 'model.safetensors')
  assert_same(weights.load(tmp_path)[0], variables)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tubelet_size': 2}, 'tubelet_size is 2'),
    ({'tubelet_size': [2, 2, 4]}, r'projection\.weight +8x3x2x4x4 +8x3x2x2x4'),
    ({'num_frames': 8}, r'position_embeddings +1x9x8 +1x17x8'),
    ({'num_frames': 0}, 'num_frames is 0'),
    ({'hidden_act': 'selu'}, "hidden_act: 'selu' is not one of"),
    ({'pooler_act': 'relu'}, "pooler_act: 'relu'"),
    ({'num_attention_heads': 3}, 'num_heads: 3 heads do not divide'),
  ],
)
def test_a_hugging_face_config_of_another_model_is_refused(tmp_path, changes, message):
  hugging_face(tmp_path, 4, (8, 8), (2, 4, 4), SMALL)
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(config | changes))
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path)


def test_the_pixels_of_hugging_face_s_processor_are_the_same(tmp_path):
  """It subtracts 1 from pixels times 1 / 127.5, and normalises what that gives."""
  hugging_face(tmp_path, 4, (8, 8), (2, 4, 4), SMALL)
  processor = transformers.VivitImageProcessor(
    size={'shortest_edge': 8}, crop_size={'height': 8, 'width': 8}, image_mean=[0.4, 0.5, 0.6]
  )
  processor.save_pretrained(tmp_path)
  preprocess = weights.load(tmp_path)[1].preprocess
  clip = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
  expected = np.moveaxis(processor(list(clip), return_tensors='np')['pixel_values'][0], 1, -1)
  found = (clip / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
  np.testing.assert_allclose(found, expected, atol=1e-5)


# scenic.

SIZES = {'mlp_dim': 12, 'num_layers': 2, 'num_heads': 2}
FIELDS = {
  'name': 'vivit', 'hidden_size': 8, 'num_classes': 3, 'channels': 1,
  'patches': {'size': (4, 2, 2)}, 'temporal_encoding_config': {'method': '3d_conv'},
  'image_size': (8, 8), 'num_frames': 6,
}  # fmt: skip
TWO = {
  'name': 'space_time_vivit',
  **{f'{part}_{name}': n for part in ('spatial', 'temporal') for name, n in SIZES.items()},
  'temporal_num_layers': 1,
  'attention_config': {'type': 'factorized_encoder', 'spatial_only_baseline': False},
}
LEARNS = {'type': 'video', 'num_tokens': 2}
SAMPLED = {
  'patches': {'size': (4, 2)},
  'temporal_encoding_config': {'method': 'temporal_sampling', 'n_sampled_frames': 3},
}


def config_of(**changes):
  one = {} if 'spatial_num_heads' in changes else SIZES
  default = {'attention_config': {'type': 'spacetime'}, 'classifier': 'token'}
  return ModelConfig.from_dict(FIELDS | one | default | changes)


def random_variables(config):
  rng = np.random.default_rng(0)
  shapes = sorted(config.variable_shapes().items())
  return models.unflatten({n: rng.normal(size=s).astype(np.float32) for n, s in shapes})


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {**SAMPLED, 'activation': 'relu', 'image_size': (4, 8)},
    {'attention_config': {'type': 'factorized_self_attention_block'}, 'classifier': 'gmp'},
    {'attention_config': {'type': 'factorized_dot_product_attention'}, 'classifier': 'gap'},
    {'tokenizer': LEARNS, 'representation_size': 5},
    {**TWO, 'image_size': (4, 8)},
    {**TWO, **SAMPLED},
    {**TWO, 'attention_config': {'type': 'factorized_encoder', 'spatial_only_baseline': True}},
  ],
)
def test_scenic_s_checkpoints_keep_every_bit_and_field(tmp_path, changes):
  config = config_of(**changes)
  variables, path = random_variables(config), tmp_path / 'checkpoint_3'
  weights.save(variables, config, path, format='scenic')
  again, its_config = weights.load(path)
  assert_same(again, variables)
  assert its_config.to_dict() == config.to_dict()


def foreign(path, config):
  """A checkpoint without this project's metadata."""
  params = random_variables(config)['params']
  path.write_bytes(flax.serialization.msgpack_serialize({'params': params, 'global_step': 3}))
  return params


@pytest.mark.parametrize(
  ('changes', 'known'),
  [
    ({}, {'image_size': (8, 8)}),
    (
      {
        'attention_config': {'type': 'factorized_self_attention_block'},
        'classifier': 'gap',
        'image_size': (4, 8),
      },
      {
        'image_size': (4, 8),
        'attention_config': {'type': 'factorized_self_attention_block'},
      },
    ),
    (
      {'attention_config': {'type': 'factorized_dot_product_attention'}, 'classifier': 'gsp'},
      {
        'image_size': (8, 8),
        'classifier': 'gsp',
        'attention_config': {'type': 'factorized_dot_product_attention'},
      },
    ),
    ({**TWO, 'image_size': (8, 4)}, {}),
    ({**TWO, 'image_size': (4, 8)}, {'image_size': (4, 8)}),
  ],
)
def test_what_scenic_wrote_itself_is_read(tmp_path, changes, known):
  config, path = config_of(**changes), tmp_path / 'checkpoint_3'
  params = foreign(path, config)
  variables, found = weights.load(path, **known)
  assert_same(variables, {'params': params})
  assert found.to_dict() == config.to_dict()


@pytest.mark.parametrize(
  ('changes', 'known', 'error', 'message'),
  [
    ({}, {}, FieldError, 'image_size: .* has 24 tubelets, and does not say of which clips'),
    ({}, {'image_size': (8, 20)}, UsageError, '24 tubelets are not of images of 8x20'),
    (
      {'attention_config': {'type': 'factorized_dot_product_attention'}, 'classifier': 'gap'},
      {'image_size': (8, 8)},
      FieldError,
      'attention_config: .* does not tell; give',
    ),
    (
      {'attention_config': {'type': 'factorized_self_attention_block'}, 'classifier': 'gap'},
      {'image_size': (8, 8)},
      FieldError,
      'attention_config: .* does not tell the order; give',
    ),
    (TWO, {}, FieldError, 'image_size: .* has 8 patches a frame, no square grid'),
    ({'tokenizer': LEARNS}, {'image_size': (8, 8)}, UsageError, 'unexpected'),
  ],
)
def test_what_a_checkpoint_leaves_open_has_to_be_given(tmp_path, changes, known, error, message):
  path = tmp_path / 'checkpoint_3'
  foreign(path, config_of(**changes))
  with pytest.raises(error, match=message):
    weights.load(path, **known)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'classifier': 'gap'}, "classifier 'gap' is not token"),
    (SAMPLED, "method 'temporal_sampling' is not 3d_conv"),
    (
      {'attention_config': {'type': 'factorized_self_attention_block'}, 'classifier': 'gap'},
      "'factorized_self_attention_block' is not spacetime|classifier 'gap'",
    ),
    ({'tokenizer': LEARNS}, 'tokens that are learned'),
    ({'image_size': None}, 'image_size is needed there'),
    ({'num_frames': None}, 'num_frames is needed there'),
    (TWO, "a model 'space_time_vivit' has no place there"),
  ],
)
def test_models_without_a_place_in_hugging_face_are_refused(tmp_path, changes, message):
  config = config_of(**changes)
  with pytest.raises(UsageError, match=message):
    weights.save(random_variables(config), config, tmp_path / 'm', format='huggingface')
