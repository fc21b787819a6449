"""Every format and pair of formats keeps the bits, and what files say themselves."""

import http.server
import importlib.util
import io
import re
import threading
import zipfile

import flax
import ml_dtypes
import numpy as np
import pytest
from small_vits import SQUARE, WIDE, assert_same, logits, random_images, random_variables

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.weights import files, rules

FILES = {'augreg': 'm.npz', 'huggingface': 'folder', 'timm': 'm.safetensors', 'scenic': 'm.msgpack'}
MODELS = {
  'square': SQUARE,
  'wide': WIDE,
  'without a head': SQUARE.replace(num_classes=0),
}


@pytest.mark.parametrize('model', MODELS)
def test_formats_and_pairs_of_formats_keep_the_bits(tmp_path, model):
  config = MODELS[model]
  variables = random_variables(config)
  for first, name in FILES.items():
    source = tmp_path / first / name
    weights.save(variables, config, source, format=first)
    assert weights.detect(source) == first
    loaded, its_config = weights.load(source)
    assert its_config == config
    assert_same(loaded, variables)
    for second in FILES:
      target = tmp_path / f'{first}-{second}' / FILES[second]
      weights.save(loaded, its_config, target, format=second)
      again, again_config = weights.load(target)
      assert again_config == config
      assert_same(again, variables)


@pytest.mark.parametrize('classifier', ['gap', 'map'])
@pytest.mark.parametrize('pair', [('augreg', 'timm'), ('timm', 'scenic'), ('scenic', 'augreg')])
def test_poolings_other_than_the_token_pass_through(tmp_path, classifier, pair):
  config = SQUARE.replace(classifier=classifier, num_layers=1)
  variables = random_variables(config)
  for format in pair:
    path = tmp_path / FILES[format]
    weights.save(variables, config, path, format=format)
    variables, config = weights.load(path)
  assert config == SQUARE.replace(classifier=classifier, num_layers=1)
  assert_same(variables, random_variables(config))


@pytest.mark.parametrize(
  'changes',
  [
    {'classifier': 'gap', 'fc_norm': True},
    {'classifier': 'gap', 'fc_norm': True, 'class_token': True},
    {'classifier': 'map', 'class_token': True},
    {'classifier': 'gmp', 'class_token': True},
  ],
  ids=lambda changes: '+'.join(map(str, changes.values())),
)
def test_norms_after_pooling_and_tokens_that_are_not_pooled_keep_to_timm_and_scenic(
  tmp_path, changes
):
  config = SQUARE.replace(num_layers=1, **changes)
  variables = random_variables(config)
  for format in ('timm', 'scenic'):
    weights.save(variables, config, tmp_path / FILES[format], format=format)
    loaded, its_config = weights.load(tmp_path / FILES[format])
    assert its_config == config
    assert_same(loaded, variables)
  for format in ('augreg', 'huggingface'):
    with pytest.raises(UsageError) as error:
      weights.save(variables, config, tmp_path / f'other-{FILES[format]}', format=format)
    assert '\n' not in str(error.value)
    assert re.search(r'=True has no place there|classifier.*is not one of token', str(error.value))


def test_a_class_token_is_what_the_head_reads_where_a_file_does_not_say(tmp_path):
  variables = random_variables(SQUARE)
  flax_bytes = flax.serialization.msgpack_serialize(variables['params'])
  (tmp_path / 'm.msgpack').write_bytes(flax_bytes)
  assert weights.load(tmp_path / 'm.msgpack')[1]['classifier'] == 'token'
  loaded, config = weights.load(tmp_path / 'm.msgpack', classifier='gap')
  assert (config.backbone.classifier, config.backbone.class_token) == ('gap', True)
  assert_same(loaded, variables)


def test_pre_logits_have_a_place_in_flax_files_alone(tmp_path):
  config = SQUARE.replace(representation_size=5, num_layers=1)
  variables = random_variables(config)
  for format in ('augreg', 'scenic'):
    weights.save(variables, config, tmp_path / FILES[format], format=format)
    loaded, its_config = weights.load(tmp_path / FILES[format])
    assert its_config == config
    assert_same(loaded, variables)
  for format in ('timm', 'huggingface'):
    with pytest.raises(
      UsageError, match=r'do not fit: 2(.|\n)*pre_logits/bias(.|\n)*pre_logits/kernel'
    ):
      weights.save(variables, config, tmp_path / f'other-{FILES[format]}', format=format)


def test_models_without_learned_positions_keep_to_scenic(tmp_path):
  config = SQUARE.replace(positional_embedding='sinusoidal_2d', num_layers=1)
  variables = random_variables(config)
  weights.save(variables, config, tmp_path / 'm.msgpack', format='scenic')
  loaded, its_config = weights.load(tmp_path / 'm.msgpack')
  assert its_config == config
  assert_same(loaded, variables)
  for format in ('timm', 'huggingface'):
    with pytest.raises(UsageError, match="'sinusoidal_2d' is not one of learned_1d"):
      weights.save(variables, config, tmp_path / FILES[format], format=format)


# What the published files of vision_transformer have in a block, and what linen writes.
PUBLISHED = {
  'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_1',
  'LayerNorm_1': 'LayerNorm_2',
  'MlpBlock_0': 'MlpBlock_3',
  'output_projection': 'head',
}


def named(variables, names):
  """Flat parameters, module names replaced."""
  flat = rules.flatten(variables)
  return {'/'.join(names.get(part, part) for part in n.split('/')): a for n, a in flat.items()}


def test_augreg_writes_the_published_names(tmp_path):
  variables = random_variables(SQUARE)
  weights.save(variables, SQUARE, tmp_path / 'm.npz', format='augreg')
  written, expected = dict(np.load(tmp_path / 'm.npz')), named(variables, PUBLISHED)
  assert written.keys() == expected.keys()
  assert 'Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel' in written
  assert all(np.array_equal(written[name], expected[name]) for name in written)


@pytest.mark.parametrize('prefix', ['', 'params/', 'opt/target/', 'params/img/'])
@pytest.mark.parametrize('names', [PUBLISHED, {'output_projection': 'head'}], ids=['old', 'linen'])
def test_augreg_reads_both_ways_to_number_and_what_is_around(tmp_path, prefix, names):
  variables = random_variables(SQUARE)
  tensors = {prefix + name: array for name, array in named(variables, names).items()}
  around = {'opt/state/step': np.array(3)} if prefix else {}
  np.savez(tmp_path / 'm.npz', **tensors, **around)
  loaded, config = weights.load(tmp_path / 'm.npz')
  assert config == SQUARE
  assert_same(loaded, variables)


@pytest.mark.parametrize('classifier', ['token', 'gap', 'map'])
@pytest.mark.parametrize('name', ['pos_embedding', 'Transformer/pos_embedding'])
def test_big_vision_positions_leave_the_class_token_out(tmp_path, classifier, name):
  config = SQUARE.replace(classifier=classifier)
  variables = random_variables(config)
  tensors = named(variables, {'output_projection': 'head'})
  positions = tensors.pop('Transformer/posembed_input/pos_embedding')
  own = 1 if classifier == 'token' else 0
  np.savez(tmp_path / 'm.npz', **{f'params/{n}': a for n, a in tensors.items()},
           **{f'params/{name}': positions[:, own:]})  # fmt: skip
  loaded, its_config = weights.load(tmp_path / 'm.npz')
  assert its_config == config
  there = loaded['params']['Transformer']['posembed_input']['pos_embedding']
  np.testing.assert_array_equal(there[:, own:], positions[:, own:])
  assert not there[:, :own].any()


def stacked(flat, depth):
  """Flat parameters with the blocks of all layers along a leading axis, as nn.scan has them."""
  first = 'Transformer/encoderblock_0/'
  stacks = {
    n.replace(first, 'Transformer/encoderblock/'): np.stack(
      [flat[n.replace(first, f'Transformer/encoderblock_{layer}/')] for layer in range(depth)]
    )
    for n in flat
    if n.startswith(first)
  }
  return stacks | {n: a for n, a in flat.items() if '/encoderblock_' not in n}


@pytest.mark.parametrize('prefix', ['', 'params/'])
@pytest.mark.parametrize('depth', [1, 2, 11])
def test_big_vision_scanned_blocks_are_taken_apart(tmp_path, prefix, depth):
  config = SQUARE.replace(classifier='gap', num_layers=depth)
  variables = random_variables(config)
  tensors = stacked(named(variables, {'output_projection': 'head'}), depth)
  tensors['pos_embedding'] = tensors.pop('Transformer/posembed_input/pos_embedding')
  assert sum('encoderblock' in name for name in tensors) == 16
  np.savez(tmp_path / 'm.npz', **{prefix + name: array for name, array in tensors.items()})
  loaded, its_config = weights.load(tmp_path / 'm.npz')
  assert its_config == config
  assert_same(loaded, variables)


def test_scanned_blocks_of_unlike_depths_are_refused(tmp_path):
  tensors = stacked(named(random_variables(SQUARE), {'output_projection': 'head'}), 2)
  name = 'Transformer/encoderblock/LayerNorm_0/bias'
  np.savez(tmp_path / 'm.npz', **tensors | {name: tensors[name][:1]})
  with pytest.raises(UsageError, match=r'missing +Transformer/encoderblock_1/LayerNorm_0/bias'):
    weights.load(tmp_path / 'm.npz')
  for bad, message in (
    (np.float32(1), '0-d array'),
    (np.zeros((2**40, 0), np.float32), 'unexpect'),
  ):
    np.savez(tmp_path / 'm.npz', **tensors | {name: bad})
    with pytest.raises(UsageError, match=message):
      weights.load(tmp_path / 'm.npz')


def test_a_class_token_has_no_position_where_the_image_size_says_so(tmp_path):
  tensors = named(random_variables(WIDE), {'output_projection': 'head'})
  positions = tensors.pop('Transformer/posembed_input/pos_embedding')
  np.savez(tmp_path / 'm.npz', pos_embedding=positions[:, 1:], **tensors)
  with pytest.raises(UsageError, match=r'^image_size: .* has 5 patches, no square grid'):
    weights.load(tmp_path / 'm.npz')
  loaded, config = weights.load(tmp_path / 'm.npz', image_size=(8, 6))
  assert config.image_size == (8, 6)
  assert loaded['params']['Transformer']['posembed_input']['pos_embedding'].shape == (1, 7, 8)


def test_big_vision_bfloat16_comes_as_float32(tmp_path):
  flat = {
    n: a.astype(ml_dtypes.bfloat16) for n, a in named(random_variables(SQUARE), PUBLISHED).items()
  }
  np.savez(tmp_path / 'm.npz', **flat)
  loaded, _ = weights.load(tmp_path / 'm.npz')
  assert loaded['params']['embedding']['kernel'].dtype == np.float32
  np.testing.assert_array_equal(loaded['params']['embedding']['kernel'], flat['embedding/kernel'])


def test_safetensors_of_half_the_width_come_as_float32(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'm.safetensors', format='timm')
  tensors, _ = files.parse_safetensors((tmp_path / 'm.safetensors').read_bytes())
  half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
  (tmp_path / 'h.safetensors').write_bytes(files.format_safetensors(half))
  known = {'num_heads': 2, 'activation': 'gelu', 'classifier': 'token'}
  loaded, _ = weights.load(tmp_path / 'h.safetensors', **known)
  np.testing.assert_array_equal(loaded['params']['cls'], half['cls_token'])


def test_a_file_that_says_nothing_gets_its_format_s_conventions(tmp_path):
  variables = random_variables(WIDE)
  np.savez(tmp_path / 'm.npz', **named(variables, PUBLISHED))
  _, config = weights.load(tmp_path / 'm.npz', image_size=(8, 6))
  assert (config.backbone.activation, config.backbone.norm_epsilon) == ('gelu', 1e-6)
  _, config = weights.load(
    tmp_path / 'm.npz', image_size=(8, 6), activation='relu', norm_epsilon=1e-5
  )
  assert (config.backbone.activation, config.backbone.norm_epsilon) == ('relu', 1e-5)
  tree = flax.serialization.msgpack_serialize(variables['params'])
  (tmp_path / 'checkpoint_3').write_bytes(tree)
  _, config = weights.load(tmp_path / 'checkpoint_3', image_size=(8, 6))
  assert (config.backbone.activation, config.backbone.norm_epsilon) == ('gelu', 1e-6)


@pytest.mark.parametrize('format', FILES)
def test_what_a_file_says_cannot_be_otherwise(tmp_path, format):
  path, config = tmp_path / FILES[format], SQUARE.replace(activation='gelu_exact')
  weights.save(random_variables(config), config, path, format=format)
  equal = {
    'activation': 'gelu_exact',
    'image_size': [8, 8],
    'norm_epsilon': float(np.float32(1e-6)),
  }
  _, same = weights.load(path, classifier='token', **equal)
  assert same.backbone.norm_epsilon == pytest.approx(1e-6)
  assert same.replace(norm_epsilon=1e-6) == config
  for name, value in (('activation', 'relu'), ('norm_epsilon', 1e-5), ('classifier', 'gap')):
    with pytest.raises(UsageError, match=f'^{name}: {value!r}, but .* says {config[name]!r}$'):
      weights.load(path, **{name: value})


def test_a_hugging_face_backbone_leaves_open_what_a_head_will_read(tmp_path):
  config = SQUARE.replace(num_classes=0)
  weights.save(random_variables(config), config, tmp_path / 'm', format='huggingface')
  _, config = weights.load(tmp_path / 'm', classifier='gap')
  assert (config.backbone.classifier, config.backbone.class_token) == ('gap', True)


@pytest.mark.parametrize('state', ['params', 'optimizer', 'old optimizer'])
def test_scenic_train_states_and_the_newest_of_a_folder(tmp_path, state):
  for step in (9, 10):
    tree = random_variables(SQUARE, seed=step)['params']
    content = {
      'params': {'params': tree, 'opt_state': {}, 'metadata': None},
      'optimizer': {'optimizer': {'target': tree, 'state': {}}},
      'old optimizer': {'optimizer': {'target': {'params': tree}}},
    }[state]
    data = flax.serialization.msgpack_serialize({'global_step': step, 'model_state': {}, **content})
    (tmp_path / f'checkpoint_{step}').write_bytes(data)
  loaded, config = weights.load(tmp_path)
  assert config == SQUARE
  assert_same(loaded, random_variables(SQUARE, seed=10))


def test_what_is_written_for_scenic_is_a_flax_checkpoint(tmp_path):
  from flax.training import checkpoints

  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'checkpoint_0', format='scenic')
  state = checkpoints.restore_checkpoint(tmp_path, None)
  assert_same({'params': state['params']}, random_variables(SQUARE))
  assert state['model_state'] == {}


def test_class_names_that_the_archive_cannot_hold_are_left_out(tmp_path):
  names = [f'class {i:<30}' for i in range(3000)]
  config = SQUARE.replace(num_classes=3000, class_names=names, activation='relu')
  weights.save(random_variables(config), config, tmp_path / 'm.npz', format='augreg')
  _, its_config = weights.load(tmp_path / 'm.npz')
  assert its_config == config.replace(class_names=None)


@pytest.fixture
def served(tmp_path):
  """The URL of a server of tmp_path."""

  class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
      super().__init__(*args, directory=tmp_path)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def test_files_come_over_http(tmp_path, served):
  variables = random_variables(SQUARE)
  weights.save(variables, SQUARE, tmp_path / 'm.npz', format='augreg')
  loaded, config = weights.load(f'{served}/m.npz')
  assert config == SQUARE
  assert_same(loaded, variables)
  with pytest.raises(UsageError, match=r'other\.npz: no such file, or no connection to it$'):
    weights.load(f'{served}/other.npz')


@pytest.mark.skipif(importlib.util.find_spec('gcsfs') is not None, reason='gcsfs is installed')
def test_google_storage_names_the_package_that_it_needs():
  with pytest.raises(UsageError, match=r'^gs://vit_models/a\.npz: .*pip install gcsfs$'):
    weights.load('gs://vit_models/a.npz')


def test_files_that_speak_of_another_model_are_refused(tmp_path):
  tensors = named(random_variables(SQUARE), PUBLISHED)
  for comment, message in (
    ('{"name": "token_learner"}', 'not one of a model vit'),
    ('{"name": "vit", "activation": 3}', 'activation: 3 is not a text'),
    ('{"name": "vit", "image_size": [1, 2, 3]}', 'image_size: '),
    ('{"name": "vit", "class_names": ["cat", "dog"]}', 'class_names: 2 names for 3 classes'),
    ('{}', 'not one of a model vit'),
    ('{"name"', 'JSONDecodeError'),
  ):
    buffer = io.BytesIO()
    np.savez(buffer, **tensors)
    with zipfile.ZipFile(buffer, 'a') as archive:
      archive.comment = comment.encode()
    (tmp_path / 'm.npz').write_bytes(buffer.getvalue())
    with pytest.raises(UsageError, match=message) as error:
      weights.load(tmp_path / 'm.npz')
    assert '\n' not in str(error.value)


TOKEN_LEARNER = ModelConfig.from_dict(
  SQUARE.to_dict()
  | {
    'name': 'token_learner',
    'tokenizer': {'type': 'patch', 'num_tokens': 2, 'tokenlearner_loc': 1},
  }
)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (TOKEN_LEARNER, "'token_learner' has no place there"),
    (SQUARE.replace(stride=2), r'overlapping patches \(stride 2\)'),
    (SQUARE.replace(tokenizer={'type': 'dynamic', 'num_tokens': 2}), r'learned \(tokenizer\)'),
  ],
)
def test_models_without_a_place_are_refused(tmp_path, config, message):
  with pytest.raises(UsageError, match=message):
    weights.save(random_variables(config), config, tmp_path / 'm.npz', format='augreg')
  same = SQUARE.replace(stride=4)
  weights.save(random_variables(SQUARE), same, tmp_path / 'm.npz', format='augreg')


@pytest.mark.parametrize('format', ['augreg', 'scenic'])
@pytest.mark.parametrize(
  'changes',
  [
    {'block': 'post'},
    {'layer_scale': 0.1},
    {'rotary': {'type': 'axial'}},
    {'distillation': True},
    {'classifier': 'gap', 'pool_prefix': True},
    {'position_tokens': 'patches'},
  ],
)
def test_what_a_plain_vit_lacks_is_refused(tmp_path, changes, format):
  config, field = SQUARE.replace(num_layers=1, **changes), list(changes)[-1]
  with pytest.raises(UsageError, match=f'm: {field} .* has no place in a plain ViT$'):
    weights.save({'params': {}}, config, tmp_path / 'm', format=format)


def test_fields_of_training_are_not_kept(tmp_path):
  config = SQUARE.replace(dropout_rate=0.5, remat=True)
  weights.save(random_variables(SQUARE), config, tmp_path / 'm.msgpack', format='scenic')
  assert weights.load(tmp_path / 'm.msgpack')[1] == SQUARE


def test_a_loaded_config_builds_a_model_that_runs(tmp_path):
  variables = random_variables(WIDE)
  weights.save(variables, WIDE, tmp_path / 'm.npz', format='augreg')
  images = random_images(WIDE)
  expected = logits(variables, WIDE, images)
  np.testing.assert_array_equal(logits(*weights.load(tmp_path / 'm.npz'), images), expected)
  assert np.abs(expected).max() > 0.1


def test_what_the_tensors_tell_cannot_be_otherwise_and_other_fields_may(tmp_path):
  path = tmp_path / 'm.npz'
  weights.save(random_variables(SQUARE), SQUARE, path, format='augreg')
  assert weights.load(path, hidden_size=8, dropout_rate=0.2)[1] == SQUARE.replace(dropout_rate=0.2)
  for name, value, message in (
    ('hidden_size', 16, r'16, but .*m\.npz says 8'),
    ('patches', {'size': (2, 2)}, r"but .*m\.npz says \{'size': \(4, 4\)\}"),
    ('num_heads', 'two', r"'two' is not a whole number"),
    ('image_size', (8,), r'\(8,\) is not \(height, width\)'),
    ('num_filters', 8, 'without that'),
  ):
    with pytest.raises(FieldError, match=rf'^{name}: .*{message}'):
      weights.load(path, **{name: value})


def test_class_names_and_preprocessing_are_the_callers_where_given(tmp_path):
  path, names = tmp_path / 'm.npz', ['a', 'b', 'c']
  weights.save(random_variables(WIDE), WIDE, path, format='augreg')
  preprocess = {'mean': (0.1,), 'std': (0.2,), 'crop': 'central'}
  expected = WIDE.replace(class_names=names, preprocess=Preprocessing(**preprocess))
  assert weights.load(path, class_names=names, preprocess=preprocess)[1] == expected
  with pytest.raises(FieldError, match=r'^class_names: 1 names for 3 classes$'):
    weights.load(path, class_names=['a'])
