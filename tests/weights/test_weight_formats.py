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
from small_vits import SQUARE, WIDE, assert_same, logits, random_images, random_params

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.weights import files, table

FILES = {'augreg': 'm.npz', 'huggingface': 'folder', 'timm': 'm.safetensors', 'scenic': 'm.msgpack'}
MODELS = {
  'square': SQUARE,
  'wide': WIDE,
  'without a head': SQUARE | {'num_classes': 0},
}


@pytest.mark.parametrize('model', MODELS)
def test_formats_and_pairs_of_formats_keep_the_bits(tmp_path, model):
  config = MODELS[model]
  params = random_params(config)
  for first, name in FILES.items():
    source = tmp_path / first / name
    weights.save(params, config, source, format=first)
    assert weights.detect(source) == first
    loaded, its_config = weights.load(source)
    assert its_config == config
    assert_same(loaded, params)
    for second in FILES:
      target = tmp_path / f'{first}-{second}' / FILES[second]
      weights.save(loaded, its_config, target, format=second)
      again, again_config = weights.load(target)
      assert again_config == config
      assert_same(again, params)


@pytest.mark.parametrize('classifier', ['gap', 'map'])
@pytest.mark.parametrize('pair', [('augreg', 'timm'), ('timm', 'scenic'), ('scenic', 'augreg')])
def test_poolings_other_than_the_token_pass_through(tmp_path, classifier, pair):
  config = SQUARE | {'classifier': classifier, 'num_layers': 1}
  params = random_params(config)
  for format in pair:
    path = tmp_path / FILES[format]
    weights.save(params, config, path, format=format)
    params, config = weights.load(path)
  assert config == SQUARE | {'classifier': classifier, 'num_layers': 1}
  assert_same(params, random_params(config))


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
  config = SQUARE | {'num_layers': 1} | changes
  params = random_params(config)
  for format in ('timm', 'scenic'):
    weights.save(params, config, tmp_path / FILES[format], format=format)
    loaded, its_config = weights.load(tmp_path / FILES[format])
    assert its_config == config
    assert_same(loaded, params)
  for format in ('augreg', 'huggingface'):
    with pytest.raises(UsageError) as error:
      weights.save(params, config, tmp_path / f'other-{FILES[format]}', format=format)
    assert '\n' not in str(error.value)
    assert re.search(r'=True has no place there|classifier.*is not one of token', str(error.value))


def test_a_class_token_is_what_the_head_reads_where_a_file_does_not_say(tmp_path):
  params = random_params(SQUARE)
  flax_bytes = flax.serialization.msgpack_serialize(params)
  (tmp_path / 'm.msgpack').write_bytes(flax_bytes)
  assert weights.load(tmp_path / 'm.msgpack')[1]['classifier'] == 'token'
  loaded, config = weights.load(tmp_path / 'm.msgpack', classifier='gap')
  assert (config['classifier'], config['class_token']) == ('gap', True)
  assert_same(loaded, params)


def test_pre_logits_have_a_place_in_flax_files_alone(tmp_path):
  config = SQUARE | {'representation_size': 5, 'num_layers': 1}
  params = random_params(config)
  for format in ('augreg', 'scenic'):
    weights.save(params, config, tmp_path / FILES[format], format=format)
    loaded, its_config = weights.load(tmp_path / FILES[format])
    assert its_config == config
    assert_same(loaded, params)
  for format in ('timm', 'huggingface'):
    with pytest.raises(
      UsageError, match=r'do not fit: 2;(.|\n)*pre_logits/bias(.|\n)*pre_logits/kernel'
    ):
      weights.save(params, config, tmp_path / f'other-{FILES[format]}', format=format)


def test_models_without_learned_positions_keep_to_scenic(tmp_path):
  config = SQUARE | {'positional_embedding': 'sinusoidal_2d', 'num_layers': 1}
  params = random_params(config)
  weights.save(params, config, tmp_path / 'm.msgpack', format='scenic')
  loaded, its_config = weights.load(tmp_path / 'm.msgpack')
  assert its_config == config
  assert_same(loaded, params)
  for format in ('timm', 'huggingface'):
    with pytest.raises(UsageError, match="'sinusoidal_2d' is not one of learned_1d"):
      weights.save(params, config, tmp_path / FILES[format], format=format)


# What the published files of vision_transformer have in a block, and what linen writes.
PUBLISHED = {
  'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_1',
  'LayerNorm_1': 'LayerNorm_2',
  'MlpBlock_0': 'MlpBlock_3',
  'output_projection': 'head',
}


def named(params, names):
  """Flat parameters, module names replaced."""
  flat = table.flatten(params)
  return {'/'.join(names.get(part, part) for part in n.split('/')): a for n, a in flat.items()}


def test_augreg_writes_the_published_names(tmp_path):
  params = random_params(SQUARE)
  weights.save(params, SQUARE, tmp_path / 'm.npz', format='augreg')
  written, expected = dict(np.load(tmp_path / 'm.npz')), named(params, PUBLISHED)
  assert written.keys() == expected.keys()
  assert 'Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel' in written
  assert all(np.array_equal(written[name], expected[name]) for name in written)


@pytest.mark.parametrize('prefix', ['', 'params/', 'opt/target/', 'params/img/'])
@pytest.mark.parametrize('names', [PUBLISHED, {'output_projection': 'head'}], ids=['old', 'linen'])
def test_augreg_reads_both_ways_to_number_and_what_is_around(tmp_path, prefix, names):
  params = random_params(SQUARE)
  tensors = {prefix + name: array for name, array in named(params, names).items()}
  around = {'opt/state/step': np.array(3)} if prefix else {}
  np.savez(tmp_path / 'm.npz', **tensors, **around)
  loaded, config = weights.load(tmp_path / 'm.npz')
  assert config == SQUARE
  assert_same(loaded, params)


@pytest.mark.parametrize('classifier', ['token', 'gap', 'map'])
@pytest.mark.parametrize('name', ['pos_embedding', 'Transformer/pos_embedding'])
def test_big_vision_positions_leave_the_class_token_out(tmp_path, classifier, name):
  config = SQUARE | {'classifier': classifier}
  params = random_params(config)
  tensors = named(params, {'output_projection': 'head'})
  positions = tensors.pop('Transformer/posembed_input/pos_embedding')
  own = 1 if classifier == 'token' else 0
  np.savez(tmp_path / 'm.npz', **{f'params/{n}': a for n, a in tensors.items()},
           **{f'params/{name}': positions[:, own:]})  # fmt: skip
  loaded, its_config = weights.load(tmp_path / 'm.npz')
  assert its_config == config
  there = loaded['Transformer']['posembed_input']['pos_embedding']
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
  config = SQUARE | {'classifier': 'gap', 'num_layers': depth}
  params = random_params(config)
  tensors = stacked(named(params, {'output_projection': 'head'}), depth)
  tensors['pos_embedding'] = tensors.pop('Transformer/posembed_input/pos_embedding')
  assert sum('encoderblock' in name for name in tensors) == 16
  np.savez(tmp_path / 'm.npz', **{prefix + name: array for name, array in tensors.items()})
  loaded, its_config = weights.load(tmp_path / 'm.npz')
  assert its_config == config
  assert_same(loaded, params)


def test_scanned_blocks_of_unlike_depths_are_refused(tmp_path):
  tensors = stacked(named(random_params(SQUARE), {'output_projection': 'head'}), 2)
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
  tensors = named(random_params(WIDE), {'output_projection': 'head'})
  positions = tensors.pop('Transformer/posembed_input/pos_embedding')
  np.savez(tmp_path / 'm.npz', pos_embedding=positions[:, 1:], **tensors)
  with pytest.raises(UsageError, match=r'5 patches are no square grid.*--image_size'):
    weights.load(tmp_path / 'm.npz')
  loaded, config = weights.load(tmp_path / 'm.npz', image_size=(8, 6))
  assert config['image_size'] == (8, 6)
  assert loaded['Transformer']['posembed_input']['pos_embedding'].shape == (1, 7, 8)


def test_big_vision_bfloat16_comes_as_float32(tmp_path):
  flat = {
    n: a.astype(ml_dtypes.bfloat16) for n, a in named(random_params(SQUARE), PUBLISHED).items()
  }
  np.savez(tmp_path / 'm.npz', **flat)
  loaded, _ = weights.load(tmp_path / 'm.npz')
  assert loaded['embedding']['kernel'].dtype == np.float32
  np.testing.assert_array_equal(loaded['embedding']['kernel'], flat['embedding/kernel'])


def test_safetensors_of_half_the_width_come_as_float32(tmp_path):
  weights.save(random_params(SQUARE), SQUARE, tmp_path / 'm.safetensors', format='timm')
  tensors, _ = files.parse_safetensors((tmp_path / 'm.safetensors').read_bytes())
  half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
  (tmp_path / 'h.safetensors').write_bytes(files.format_safetensors(half))
  loaded, _ = weights.load(tmp_path / 'h.safetensors', num_heads=2)
  np.testing.assert_array_equal(loaded['cls'], half['cls_token'])


def test_a_file_that_says_nothing_gets_its_format_s_conventions(tmp_path):
  params = random_params(WIDE)
  np.savez(tmp_path / 'm.npz', **named(params, PUBLISHED))
  _, config = weights.load(tmp_path / 'm.npz', image_size=(8, 6))
  assert (config['activation'], config['norm_epsilon']) == ('gelu', 1e-6)
  _, config = weights.load(
    tmp_path / 'm.npz', image_size=(8, 6), activation='relu', norm_epsilon=1e-5
  )
  assert (config['activation'], config['norm_epsilon']) == ('relu', 1e-5)
  tree = flax.serialization.msgpack_serialize(params)
  (tmp_path / 'checkpoint_3').write_bytes(tree)
  _, config = weights.load(tmp_path / 'checkpoint_3', image_size=(8, 6))
  assert (config['activation'], config['norm_epsilon']) == ('gelu', 1e-6)


@pytest.mark.parametrize('format', FILES)
def test_what_a_file_says_cannot_be_otherwise(tmp_path, format):
  path, config = tmp_path / FILES[format], SQUARE | {'activation': 'gelu_exact'}
  weights.save(random_params(config), config, path, format=format)
  equal = {
    'activation': 'gelu_exact',
    'image_size': [8, 8],
    'norm_epsilon': float(np.float32(1e-6)),
  }
  _, same = weights.load(path, classifier='token', **equal)
  same['norm_epsilon'] = pytest.approx(same['norm_epsilon'])
  assert same == config
  for name, value in (('activation', 'relu'), ('norm_epsilon', 1e-5), ('classifier', 'gap')):
    with pytest.raises(UsageError, match=f'^--{name}: {value!r}, but .* says {config[name]!r}$'):
      weights.load(path, **{name: value})


def test_a_hugging_face_backbone_leaves_open_what_a_head_will_read(tmp_path):
  config = SQUARE | {'num_classes': 0}
  weights.save(random_params(config), config, tmp_path / 'm', format='huggingface')
  _, config = weights.load(tmp_path / 'm', classifier='gap')
  assert (config['classifier'], config['class_token']) == ('gap', True)


def test_a_format_is_one_module(tmp_path, monkeypatch):
  class Raw:
    """Bytes without a name."""

    SUFFIXES = ('.raw',)
    looks_like = staticmethod(lambda path: path.endswith('.raw'))
    load = staticmethod(lambda path, allow: files.read(path))

  monkeypatch.setitem(weights.FORMATS, 'raw', Raw)
  (tmp_path / 'm.raw').write_bytes(b'1')
  assert weights.detect(tmp_path / 'm.raw') == 'raw'
  assert weights.load(tmp_path / 'm.raw') == b'1'


@pytest.mark.parametrize('state', ['params', 'optimizer', 'old optimizer'])
def test_scenic_train_states_and_the_newest_of_a_folder(tmp_path, state):
  for step in (9, 10):
    tree = random_params(SQUARE, seed=step)
    content = {
      'params': {'params': tree, 'opt_state': {}, 'metadata': None},
      'optimizer': {'optimizer': {'target': tree, 'state': {}}},
      'old optimizer': {'optimizer': {'target': {'params': tree}}},
    }[state]
    data = flax.serialization.msgpack_serialize({'global_step': step, 'model_state': {}, **content})
    (tmp_path / f'checkpoint_{step}').write_bytes(data)
  loaded, config = weights.load(tmp_path)
  assert config == SQUARE
  assert_same(loaded, random_params(SQUARE, seed=10))


def test_what_is_written_for_scenic_is_a_flax_checkpoint(tmp_path):
  from flax.training import checkpoints

  weights.save(random_params(SQUARE), SQUARE, tmp_path / 'checkpoint_0', format='scenic')
  state = checkpoints.restore_checkpoint(tmp_path, None)
  assert_same(state['params'], random_params(SQUARE))
  assert state['model_state'] == {}


def test_class_names_that_the_archive_cannot_hold_are_left_out(tmp_path):
  names = [f'class {i:<30}' for i in range(3000)]
  config = SQUARE | {'num_classes': 3000, 'class_names': names, 'activation': 'relu'}
  weights.save(random_params(config), config, tmp_path / 'm.npz', format='augreg')
  _, its_config = weights.load(tmp_path / 'm.npz')
  assert its_config == config | {'class_names': None}


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
  params = random_params(SQUARE)
  weights.save(params, SQUARE, tmp_path / 'm.npz', format='augreg')
  loaded, config = weights.load(f'{served}/m.npz')
  assert config == SQUARE
  assert_same(loaded, params)
  with pytest.raises(UsageError, match=r'other\.npz: no such file, or no connection to it$'):
    weights.load(f'{served}/other.npz')


@pytest.mark.skipif(importlib.util.find_spec('gcsfs') is not None, reason='gcsfs is installed')
def test_google_storage_names_the_package_that_it_needs():
  with pytest.raises(UsageError, match=r'^gs://vit_models/a\.npz: .*pip install gcsfs$'):
    weights.load('gs://vit_models/a.npz')


def test_files_that_speak_of_another_model_are_refused(tmp_path):
  tensors = named(random_params(SQUARE), PUBLISHED)
  for comment, message in (
    ('{"name": "token_learner"}', 'not one of a model vit'),
    ('{"name": "vit", "activation": 3}', 'activation=3'),
    ('{"name": "vit", "image_size": [1, 2, 3]}', 'image_size='),
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


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'name': 'token_learner'}, "'token_learner' has no place there"),
    ({'stride': 2}, r'overlapping patches \(stride 2\)'),
    ({'class_names': ['cat', 'dog']}, '2 class names for 3 classes'),
  ],
)
def test_models_that_cannot_be_said_are_refused(tmp_path, change, message):
  with pytest.raises(UsageError, match=message):
    weights.save(random_params(SQUARE), SQUARE | change, tmp_path / 'm.npz', format='augreg')
  weights.save(random_params(SQUARE), SQUARE | {'stride': 4}, tmp_path / 'm.npz', format='augreg')


def test_an_experiment_s_config_is_enough_to_save(tmp_path):
  """`config.model` has fields that don't matter here, and lacks what the parameters tell."""
  config = {'name': 'vit', 'classifier': 'token', 'dropout_rate': 0.1, 'hidden_size': 8}
  weights.save(random_params(SQUARE), config, tmp_path / 'm.msgpack', format='scenic')
  assert weights.load(tmp_path / 'm.msgpack')[1] == SQUARE


def test_a_loaded_config_builds_a_model_that_runs(tmp_path):
  params = random_params(WIDE)
  weights.save(params, WIDE, tmp_path / 'm.npz', format='augreg')
  images = random_images(WIDE)
  expected = logits(params, WIDE, images)
  np.testing.assert_array_equal(logits(*weights.load(tmp_path / 'm.npz'), images), expected)
  assert np.abs(expected).max() > 0.1
