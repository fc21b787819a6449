"""timm's vision transformers: against timm, and against what it has computed, there and back."""

import itertools
import json

import hostile
import numpy as np
import pytest
import timm_outputs
from small_vits import assert_same, logits, random_tensor, random_variables

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import architectures, files
from vit_jax.weights.architectures import vit
from vit_jax.weights.architectures.creation import creation_of
from vit_jax.weights.table import Source
from vit_jax.weights.tables.timm_vit import TABLES, Naming

OUTPUTS = timm_outputs.read()


def write_folder(folder, kind, **changes):
  """Writes what timm saved of a kind of model; returns its tensors."""
  saved = OUTPUTS[kind]
  tensors = {n: random_tensor(n, shape) for n, shape in saved['shapes'].items()}
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(saved['config'] | changes))
  (folder / 'model.safetensors').write_bytes(files.format_safetensors(tensors))
  return tensors


def read_tensors(path):
  tensors, _ = files.parse_safetensors(path.read_bytes())
  return {name: array.tobytes() for name, array in tensors.items()}


@pytest.mark.parametrize('kind', timm_outputs.MODELS)
def test_models_compute_what_timm_computed_and_go_back(tmp_path, kind):
  tensors = write_folder(tmp_path / 'theirs', kind)
  variables, config = weights.load(tmp_path / 'theirs')
  found = logits(variables, config, timm_outputs.images_of(config))
  expected = np.array(OUTPUTS[kind]['logits'])
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

  weights.save(variables, config, tmp_path / 'ours.safetensors', format='timm')
  assert read_tensors(tmp_path / 'ours.safetensors') == {n: a.tobytes() for n, a in tensors.items()}
  again, same = weights.load(tmp_path / 'ours.safetensors')  # by what the file says itself
  assert same == config
  assert_same(again, variables)

  weights.save(variables, config, tmp_path / 'folder', format='timm')
  again, same = weights.load(tmp_path / 'folder')
  assert same.backbone == config.backbone
  assert_same(again, variables)


def test_generated_outputs_and_facts_are_those_of_timm():
  pytest.importorskip('torchvision_operators')
  timm = pytest.importorskip('timm', exc_type=ImportError)
  from vit_jax.weights.architectures import generate_timm

  facts = json.loads(generate_timm.FILE.read_text())
  if facts['timm'] != timm.__version__:
    pytest.skip(f'timm {timm.__version__} is not {facts["timm"]}')
  assert generate_timm.generate() == facts
  for kind, saved in OUTPUTS.items():
    made = timm_outputs.generate(kind)
    assert made['config'] == saved['config']
    assert made['shapes'] == saved['shapes']
    np.testing.assert_allclose(made['logits'], saved['logits'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'name',
  [
    'vit_base_patch16_clip_224',
    'vit_so400m_patch14_siglip_384',
    'eva02_large_patch14_clip_336',
    'vit_tiny_r_s16_p8_224',
    'vit_large_patch16_dinov3',
    'vit_relpos_base_patch32_plus_rpn_256',
  ],
)
def test_timm_computes_the_same_and_takes_it_back(tmp_path, name):
  pytest.importorskip('torchvision_operators')
  pytest.importorskip('timm', exc_type=ImportError)
  import timm_models

  metadata = architectures.config_of(name)['pretrained_cfg']
  assert timm_models.compare(name, metadata, tmp_path) <= timm_models.TOLERANCE


NO_NECK = 'norm_layer: epsilon 1e-05, but without neck_chans the last has 1e-06'


def test_every_architecture_is_read_and_found_again_or_refused_by_the_name_of_its_part():
  refused, sizes = {}, {'num_classes': 2, 'channels': 3, 'image_size': (224, 224)}
  for name in {name.partition('.')[0] for name in architectures.names()}:
    found = architectures.find(name)
    try:
      fields = vit.fields_of(found.cls, found.arguments)
    except UsageError as e:
      refused[name] = str(e)
    else:
      numerics = {'numerics': 'timm'} if fields['name'] == 'hybrid' else {}
      made = creation_of(ModelConfig.from_dict({**sizes, **numerics, **fields}))
      assert (made.cls, made.needs_code) == (found.cls, [])
      assert made.changes.keys() <= {'num_classes', 'img_size'}
      assert Naming.of_creation(made) == Naming.of_creation(
        made._replace(arguments=found.arguments)
      )
  assert refused == {
    'vit_base_mci_224': "embed_layer: 'ConvStem' is not read",
    'vit_base_resnet26d_224': "embed_layer: 'ResNet' is not read",
    'vit_base_resnet50d_224': "embed_layer: 'ResNet' is not read",
    'vit_small_resnet26d_224': "embed_layer: 'ResNet' is not read",
    'vit_small_resnet50d_s16_224': "embed_layer: 'ResNet' is not read",
    'samvit_base_patch16_224': NO_NECK,
  }


@pytest.mark.parametrize('cls', vit.CLASSES)
def test_any_value_of_any_argument_is_read_or_refused(cls):
  """Without files: nothing makes an error of this project's own the file's."""
  values = [value for value in hostile.VALUES if not isinstance(value, dict)]
  refused = set()
  for made in architectures.of_class(cls)[::20]:
    for name, value in itertools.product(architectures.defaults(cls), values):
      try:
        vit.fields_of(cls, {**made.arguments, name: value})
      except FieldError:
        refused.add(name)
  assert {'embed_dim', 'depth', 'patch_size', 'mlp_ratio'} <= refused


def test_what_state_dicts_alone_are_taken_to_have_is_so_in_every_architecture_with_their_tensors():
  named = ('norm', 'mlp', 'mlp_norm', 'use_bias', 'qk_norm', 'attention_norm', 'differential')
  named += ('patch_norm', 'pre_norm', 'num_registers', 'layer_scale', 'norm_epsilon', 'block')
  named += ('pool_prefix', 'final_norm', 'rotary', 'relative_positions')
  others = set()
  for made in architectures.of_class('VisionTransformer'):
    if made.arguments['embed_layer']['name'] != 'PatchEmbed':
      continue
    fields = vit.fields_of(made.cls, made.arguments)
    differing = {n for n in named if fields.get(n, CONFIG[n]) != CONFIG[n]}
    if differing <= {'norm_epsilon', 'block', 'pool_prefix'} and differing:  # no tensor shows these
      others.add((made.name, *differing))
  assert others == {('vit_base_patch16_rpn_224', 'block')}


def heads_of_base(*more):
  """Returns the heads that a state dict of width 768, depth 12 is taken to have."""
  shapes = {'pos_embed': (1, 196, 768), 'patch_embed.proj.weight': (768, 3, 16, 16)}
  shapes |= {f'blocks.{i}.attn.qkv.bias': (2304,) for i in range(12)}
  shapes |= {'blocks.0.mlp.fc1.bias': (3072,), **dict.fromkeys(more, (1, 1, 768))}
  tensors = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items()}
  known = {'activation': 'gelu_exact', 'classifier': 'token' if 'cls_token' in more else 'gap'}
  known |= {'classifier': 'map'} if 'attn_pool.latent' in more else {}
  return TABLES[1].describe(tensors, known, Source('m', tensors))['num_heads']


def test_heads_are_asked_for_where_models_of_a_size_have_several():
  assert heads_of_base('cls_token') == heads_of_base('attn_pool.latent') == 12
  with pytest.raises(UsageError, match=r'^num_heads: .*MLP 3072 models have with 12 or 16 heads;'):
    heads_of_base()  # of vit_base_patch16_gap_224, or of vit_base_patch16_siglip_gap_224


def test_norms_after_the_branches_are_asked_for(tmp_path):
  write_folder(tmp_path, 'norms after the branches')
  path, known = tmp_path / 'model.safetensors', {'num_heads': 2, 'image_size': (12, 16)}
  with pytest.raises(UsageError, match=r'^architecture: .* as in vit_base_patch16_rpn_224; give'):
    weights.load(path, **known, activation='gelu_exact', classifier='gap')
  _, config = weights.load(path, **known, architecture='vit_base_patch16_rpn_224')
  assert config.backbone.block == 'post'


def test_naflex_vit_alone_asks_for_its_architecture(tmp_path):
  write_folder(tmp_path, 'NaFlex')
  with pytest.raises(UsageError, match=r'^architecture: .* does not tell it'):
    weights.load(tmp_path / 'model.safetensors', num_heads=2)


# A model that an architecture makes, but for its size.
CLIP = OUTPUTS['CLIP']['config']


def test_an_architecture_settles_what_a_state_dict_alone_does_not_tell(tmp_path):
  write_folder(tmp_path, 'CLIP')
  known = {'num_heads': 2, 'image_size': (12, 16)}
  name = 'vit_base_patch32_clip_quickgelu_224.openai'
  variables, config = weights.load(tmp_path / 'model.safetensors', architecture=name, **known)
  expected, its_config = weights.load(tmp_path)
  assert config.backbone == its_config.backbone
  assert (config.backbone.activation, config.backbone.norm_epsilon) == ('quick_gelu', 1e-5)
  assert config.preprocess.mean[0] == 0.48145466
  assert_same(variables, expected)


@pytest.mark.parametrize(
  ('architecture', 'known', 'message'),
  [
    ('vit_base', {}, "^architecture: 'vit_base' is not one of timm's vision transformers"),
    ('resnet50', {}, "^architecture: 'resnet50' is not one of timm's vision transformers"),
    ('vit_base_patch16_224.mine', {}, "^architecture: 'mine' is not a tag of vit_base_patch16_224"),
    ('vit_base_patch16_224', {}, '^num_heads: .* give the number$'),
    ('vit_base_patch16_224', {'activation': 'relu'}, "^activation: 'relu', but .*'gelu_exact'"),
    ('samvit_base_patch16_224', {}, NO_NECK),
  ],
)
def test_architectures_that_do_not_fit_are_one_line(tmp_path, architecture, known, message):
  write_folder(tmp_path, 'CLIP')
  with pytest.raises(UsageError, match=message) as error:
    weights.load(tmp_path / 'model.safetensors', architecture=architecture, **known)
  assert '\n' not in str(error.value)


def test_an_architecture_is_not_given_to_what_says_its_own(tmp_path):
  write_folder(tmp_path, 'CLIP')
  with pytest.raises(
    UsageError, match=r"^architecture: 'vit_base_patch16_224', but .*config\.json"
  ):
    weights.load(tmp_path, architecture='vit_base_patch16_224')


def test_an_architecture_is_of_no_other_format(tmp_path):
  write_folder(tmp_path, 'CLIP')
  path, known = tmp_path / 'model.safetensors', {'architecture': 'vit_base_patch16_224'}
  with pytest.raises(UsageError, match=r"^format: 'torchvision', but an architecture is one of"):
    weights.load(path, format='torchvision', **known)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_args': {'attn_layer': 'gated'}}, "attn_layer: 'gated' is not one of"),
    ({'model_args': {'mlp_layer': 'GluMlp'}}, 'mlp_layer'),
    (
      {'model_args': {'embed_norm_layer': 'rmsnorm'}},
      "embed_norm_layer: 'rmsnorm' differs from norm_layer",
    ),
    (
      {'model_args': {'norm_layer': 'batchnorm'}},
      "norm_layer: 'batchnorm' is not one of LayerNorm",
    ),
    ({'model_args': {'dynamic_img_pad': True}}, 'dynamic_img_pad: True is not read'),
    ({'model_args': {'something_new': 3}}, 'something_new: 3 is not read'),
    ({'architecture': 'vit_huge_patch99'}, "architecture 'vit_huge_patch99' is not one of timm"),
    ({'architecture': 'beit_base_patch16_224'}, 'tensors that do not fit'),
    ({'architecture': 'vit_base_r50_s16_224'}, "not timm's hybrid VisionTransformer: no "),
    ({'architecture': 'naflexvit_base_patch16_gap'}, "not timm's NaFlexVit: no 'embeds"),
    ({'architecture': 'vit_base_mci_224'}, "embed_layer: 'ConvStem' is not read"),
  ],
)
def test_what_config_json_says_otherwise_is_refused_by_name(tmp_path, changes, message):
  model_args = CLIP['model_args'] | changes.pop('model_args', {})
  write_folder(tmp_path, 'CLIP', **changes, model_args=model_args, global_pool='token')
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path)


_CROP = {'crop': 'central', 'crop_fraction': 0.875}
CONFIG = ModelConfig.from_dict(
  {'name': 'vit', 'hidden_size': 8, 'mlp_dim': 13, 'num_layers': 1, 'num_heads': 2}
  | {'patches': {'size': (4, 4)}, 'num_classes': 3, 'channels': 3, 'image_size': (8, 12)}
  | {'classifier': 'token', 'activation': 'gelu_exact', 'class_names': ['a', 'b', 'c']}
  | {'preprocess': {'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.5, 0.5), **_CROP}}
)


def test_a_folder_for_timm_says_how_the_model_is_made(tmp_path):
  variables = random_variables(CONFIG)
  weights.save(variables, CONFIG, tmp_path / 'm', format='timm')
  content = json.loads((tmp_path / 'm' / 'config.json').read_text())
  assert architectures.find(content['architecture']).cls == 'VisionTransformer'
  assert content['model_args']['embed_dim'] == 8
  assert int(content['model_args']['mlp_ratio'] * 8) == 13
  assert content['label_names'] == ['a', 'b', 'c']
  loaded, config = weights.load(tmp_path / 'm')
  assert config == CONFIG
  assert_same(loaded, variables)


def test_a_folder_for_timm_of_a_model_without_preprocessing_has_none(tmp_path):
  config = CONFIG.replace(preprocess=None)
  weights.save(random_variables(config), config, tmp_path / 'm', format='timm')
  assert weights.load(tmp_path / 'm')[1].preprocess is None


@pytest.mark.parametrize(
  ('changes', 'suffix', 'message'),
  [
    ({'positional_embedding': 'sinusoidal_2d'}, '.safetensors', 'positional_embedding'),
    ({'position_tokens': 'class', 'num_registers': 1}, '.safetensors', "position_tokens: 'class'"),
    ({'qk_norm': True, 'block': 'parallel', 'qkv_bias': 'qv'}, '.safetensors', 'has no place'),
    (
      {'norm_epsilon': 1e-3},
      '',
      "none of timm's architectures is made with norm_layer='LayerNorm'",
    ),
    ({'mlp': 'glu', 'norm': 'rmsnorm'}, '', "none of timm's architectures is made with"),
  ],
)
def test_what_timm_has_no_place_for_is_refused_in_a_line(tmp_path, changes, suffix, message):
  config = CONFIG.replace(**changes)
  with pytest.raises(UsageError, match=message) as error:
    weights.save(random_variables(config), config, tmp_path / f'm{suffix}', format='timm')
  assert '\n' not in str(error.value)


def test_names_of_architectures():
  assert len(architectures.names()) > 466
  assert architectures.names('vit_base_patch16_rpn_*') == ['vit_base_patch16_rpn_224.sw_in1k']
  assert 'vit_base_patch16_224.augreg_in1k' in architectures.names('*.augreg_in1k')
