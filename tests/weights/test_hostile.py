"""Folders whose config.json or tensors are wrong in one place: a line each, and no memory taken."""

import itertools
import json
import os

import numpy as np
import pytest
from hostile import mutations, open_changed, tensor_mutations
from small_vits import SQUARE, random_variables

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files
from vit_jax.weights.table import check_positions, check_sizes

TINY = SQUARE.replace(num_layers=1, activation='gelu_exact')
# What transformers' models are made with, if they have such fields.
SIZES = {
  'hidden_size': 8,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 12,
  'image_size': 8,
  'patch_size': 4,
  'num_labels': 2,
  'decoder_hidden_size': 8,
  'decoder_num_hidden_layers': 1,
  'decoder_num_attention_heads': 2,
  'decoder_intermediate_size': 12,
  'projection_dim': 4,
}
SWIN = {'embed_dim': 4, 'depths': [1, 1], 'num_heads': [1, 2], 'window_size': 2}
SWIN |= {'image_size': 8, 'patch_size': 2, 'num_labels': 2}
CLASSES = {
  'ViTForImageClassification': SIZES,
  'ViTMAEForPreTraining': SIZES,
  'ViTMSNForImageClassification': SIZES,
  'IJepaForImageClassification': SIZES,
  'DeiTForImageClassification': SIZES,
  'DeiTForImageClassificationWithTeacher': SIZES,
  'SiglipVisionModel': SIZES,
  'CLIPVisionModelWithProjection': SIZES,
  'Dinov2ForImageClassification': SIZES,
  'Dinov2WithRegistersForImageClassification': SIZES,
  'DINOv3ViTModel': SIZES,
  'BeitForImageClassification': SIZES,
  'Data2VecVisionForImageClassification': SIZES,
  'SwinForImageClassification': SWIN,
  'Swinv2ForImageClassification': SWIN,
}
ARCHITECTURES = (
  'vit_base_patch16_224',
  'deit_base_distilled_patch16_224',
  'eva02_tiny_patch14_224',
  'beit_base_patch16_224',
  'vit_relpos_small_patch16_224',
  'samvit_base_patch16',
  'vit_small_patch16_dinov3',
  'vit_base_patch16_rope_mixed_224',
  'vit_pe_core_tiny_patch16_384',
)


@pytest.fixture(scope='module', params=['timm', 'huggingface'])
def saved(request, tmp_path_factory):
  """A folder of this format, which opens, and its config.json."""
  folder = tmp_path_factory.mktemp(request.param) / 'folder'
  weights.save(random_variables(TINY), TINY, folder, format=request.param)
  weights.load(folder)
  return folder, json.loads((folder / 'config.json').read_text())


# What is wrong -> in timm's model_args, in Hugging Face's config.json.
CLAIMS = {
  'depth': ({'depth': 10**9}, {'num_hidden_layers': 10**9}),
  'width': ({'embed_dim': 10**9}, {'hidden_size': 10**9}),
  'no heads': ({'num_heads': 0}, {'num_attention_heads': 0}),
  'heads in words': ({'num_heads': 'x'}, {'num_attention_heads': 'x'}),
  'heads in lists': ({'num_heads': [[2]]}, {'num_attention_heads': [[2]]}),
  'fewer than no tokens': ({'reg_tokens': -1}, {'num_channels': -1}),
  'bool for number': ({'depth': True}, {'num_hidden_layers': True}),
  'not a number': ({'mlp_ratio': float('nan')}, {'layer_norm_eps': float('nan')}),
  'words for a number': ({'init_values': 'x'}, {'layer_norm_eps': 'x'}),
  'a number too long': ({'img_size': 10**400}, {'image_size': 10**400}),
  'a large image': ({'img_size': 10**6}, {'image_size': 10**6}),
  'none': ({'depth': None}, {'num_hidden_layers': None}),
}


@pytest.mark.parametrize('claim', CLAIMS)
def test_a_claim_that_the_tensors_do_not_bear_out_is_one_line(saved, tmp_path, claim):
  folder, config = saved
  timm, hugging_face = CLAIMS[claim]
  if 'model_args' in config:
    config = {**config, 'model_args': config['model_args'] | timm}
  else:
    config = config | hugging_face
  assert open_changed(folder, tmp_path / 'copy', config) is None
  with pytest.raises(UsageError):
    weights.load(tmp_path / 'copy')


@pytest.mark.parametrize(
  ('entries', 'message'),
  [
    ({'num_layers': 2}, '^num_layers: 2 is more than a file of this size can hold$'),
    ({'rotary': {'x': [10**5]}}, '^rotary: 100000 is more than a file of this size can hold$'),
    ({'num_heads': -1}, '^num_heads: -1 is negative$'),
  ],
)
def test_a_size_that_tensors_do_not_bear_out_is_told_in_words(entries, message):
  with pytest.raises(FieldError, match=message):
    check_sizes(entries, {'weight': np.zeros(3)})


def test_a_table_of_pairs_of_positions_is_not_made(tmp_path):
  """Of a file whose tensors are as large as its windows want."""
  config = SQUARE.replace(num_layers=1).to_dict()
  config = ModelConfig.from_dict(config | {'image_size': (4, 4 * 2**12 + 4)})
  with pytest.raises(UsageError, match='relative_positions: 4097 positions, more than 4096'):
    config.replace(relative_positions={'type': 'bias'}, classifier='gap').variable_shapes()


@pytest.mark.parametrize('pool_prefix', [False, True])
def test_tokens_of_an_image_that_is_too_large_are_not_listed(pool_prefix):
  config = SQUARE.replace(classifier='map', pool_prefix=pool_prefix, image_size=(10**9, 10**9))
  with pytest.raises(FieldError, match=r'^image_size: 10+x10+ is larger than is read$'):
    check_positions(config)


def test_memory_that_is_taken_is_seen(saved, tmp_path, monkeypatch):
  def load(path):
    np.zeros(2**30 + 1, np.uint8)

  monkeypatch.setattr(weights, 'load', load)
  for _ in range(2):  # also where the process has had as much before
    assert open_changed(saved[0], tmp_path / 'copy') == '1024 MiB taken'


# Of so many changes a sweep makes one; HOSTILE_STEP=1 makes all, which takes a minute a model.
STEP = int(os.environ.get('HOSTILE_STEP', '16'))


def sweep(folder, work):
  """Returns what is wrong with opening a folder with something changed."""
  config = json.loads((folder / 'config.json').read_text())
  tensors, _ = files.parse_safetensors((folder / 'model.safetensors').read_bytes())
  weights.load(folder)
  configs = itertools.islice(mutations(config), 0, None, STEP)
  wrong = {label: open_changed(folder, work, changed) for label, changed in configs}
  for label, changed in itertools.islice(tensor_mutations(tensors), 0, None, STEP):
    wrong[label] = open_changed(folder, work, tensors=changed)
  assert len(wrong) > 300 / STEP
  return {label: problem for label, problem in wrong.items() if problem}


@pytest.mark.parametrize('name', CLASSES)
def test_every_change_of_transformers_models(name, tmp_path):
  pytest.importorskip('torch')
  import torchvision_operators  # noqa: F401  before transformers

  transformers = pytest.importorskip('transformers')
  kind = getattr(transformers, name)
  fields = {n: v for n, v in CLASSES[name].items() if hasattr(kind.config_class(), n)}
  kind(kind.config_class(**fields)).save_pretrained(tmp_path / 'folder')
  assert sweep(tmp_path / 'folder', tmp_path / 'copy') == {}


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_every_change_of_timm_s_models(name, tmp_path):
  pytest.importorskip('torch')
  import torchvision_operators  # noqa: F401  before timm

  pytest.importorskip('timm')
  import timm_models
  from timm.models import _hub

  from vit_jax.weights import architectures

  metadata = architectures.config_of(name)['pretrained_cfg']
  model, given = timm_models.small_model(name, metadata)
  _hub.save_for_hf(model, tmp_path / 'folder', model_args=given, safe_serialization=True)
  assert sweep(tmp_path / 'folder', tmp_path / 'copy') == {}
