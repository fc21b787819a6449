"""Folders whose weights are in several files, and what is asked of the hub and sent to it."""

import base64
import http.server
import json
import threading

import huggingface_hub
import pytest
from small_vits import SQUARE, assert_same, random_variables

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import Preprocessing
from vit_jax.weights import files
from vit_jax.weights import hub as hub_lib

SHARDS = ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors')
INDEX = 'model.safetensors.index.json'


def save_in_shards(folder):
  """Writes a model with every other tensor in either file; returns its parameters."""
  variables = random_variables(SQUARE)
  weights.save(variables, SQUARE, folder, format='huggingface')
  whole = folder / 'model.safetensors'
  tensors, _ = files.parse_safetensors(whole.read_bytes())
  whole.unlink()
  parts = [dict(list(tensors.items())[start::2]) for start in (0, 1)]
  for name, part in zip(SHARDS, parts, strict=True):
    (folder / name).write_bytes(files.format_safetensors(part))
  write_index(folder, {n: shard for shard, part in zip(SHARDS, parts, strict=True) for n in part})
  return variables


def write_index(folder, weight_map):
  (folder / INDEX).write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))


def refused(folder, match):
  with pytest.raises(UsageError, match=match) as error:
    weights.load(folder)
  assert '\n' not in str(error.value)


def test_shards_are_read_as_one(tmp_path):
  variables = save_in_shards(tmp_path)
  loaded, config = weights.load(tmp_path)
  assert config == SQUARE
  assert_same(loaded, variables)


def test_a_whole_file_goes_before_an_index(tmp_path):
  save_in_shards(tmp_path)
  other = random_variables(SQUARE, seed=1)
  weights.save(other, SQUARE, tmp_path, format='huggingface')
  assert_same(weights.load(tmp_path)[0], other)


def test_a_missing_and_a_truncated_shard_are_one_line(tmp_path):
  save_in_shards(tmp_path)
  shard = tmp_path / SHARDS[1]
  data = shard.read_bytes()
  shard.write_bytes(data[: len(data) // 2])
  refused(tmp_path, rf'^{shard}: cannot be read as a \.safetensors file')
  shard.unlink()
  refused(tmp_path, rf'^{shard}: no such file$')


def test_tensors_of_a_shard_that_the_index_leaves_out_are_missed(tmp_path):
  save_in_shards(tmp_path)
  write_index(tmp_path, {'vit.embeddings.cls_token': SHARDS[0]})
  with pytest.raises(UsageError, match=r'missing +|not a Hugging Face ViT'):
    weights.load(tmp_path)


@pytest.mark.parametrize(
  'name',
  ['../secret.safetensors', '/secret.safetensors', 'a/../b.safetensors', '..', '', 'config.json'],
)
def test_an_index_names_files_beside_it_alone(tmp_path, name):
  folder = tmp_path / 'model'
  save_in_shards(folder)
  (folder / SHARDS[0]).rename(tmp_path / 'secret.safetensors')
  write_index(folder, {'a': name, 'b': SHARDS[1]})
  refused(folder, rf"{INDEX}: '{name}' is not the name of a \.safetensors file in this folder$")


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none(tmp_path, text):
  save_in_shards(tmp_path)
  (tmp_path / INDEX).write_text(text)
  refused(tmp_path, f'{INDEX}: cannot be read as an index of shards')


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A folder that stands for the hub's; what is asked for comes into another, as from the hub."""
  remote, cache = tmp_path / 'remote', tmp_path / 'cache'
  cache.mkdir()
  remote.mkdir()

  def download(name, allow_patterns):
    assert name.startswith(('some/', 'timm/'))
    names = [path.name for path in remote.iterdir()]
    for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
      (cache / name).write_bytes((remote / name).read_bytes())
    return str(cache)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  return remote, cache


def test_shards_come_from_the_hub_and_nothing_that_is_not_needed(hub):
  remote, cache = hub
  variables = save_in_shards(remote)
  for name in ('pytorch_model.bin', 'tf_model.h5', 'optimizer.safetensors'):
    (remote / name).write_bytes(b'large')
  (remote / 'preprocessor_config.json').write_text('{"image_mean": [0.4, 0.5, 0.6]}')
  loaded, config = weights.load('some/vit')
  assert_same(loaded, variables)
  assert config.preprocess.mean == (0.4, 0.5, 0.6)
  assert {path.name for path in cache.iterdir()} == {
    *SHARDS, INDEX, 'config.json', 'preprocessor_config.json'}  # fmt: skip


def test_pickled_weights_come_from_the_hub_where_there_are_no_others(hub):
  torch = pytest.importorskip('torch')
  remote, cache = hub
  weights.save(random_variables(SQUARE), SQUARE, remote, format='huggingface')
  whole = remote / 'model.safetensors'
  tensors, _ = files.parse_safetensors(whole.read_bytes())
  torch.save({n: torch.from_numpy(a.copy()) for n, a in tensors.items()},
             remote / 'pytorch_model.bin')  # fmt: skip
  whole.unlink()
  assert_same(weights.load('hf:some/vit')[0], random_variables(SQUARE))
  assert {path.name for path in cache.iterdir()} == {'config.json', 'pytorch_model.bin'}


TIMM = {
  'architecture': 'vit_tiny_patch16_224',
  'global_pool': 'avg',
  'model_args': {'num_heads': 2, 'global_pool': 'avg'},
  'label_names': ['ant', 'bee', 'fly'],
  'pretrained_cfg': {
    'input_size': [3, 8, 8],
    'crop_pct': 0.9,
    'crop_mode': 'center',
    'mean': [0.4, 0.5, 0.6],
    'std': [0.1, 0.2, 0.3],
  },
}


def save_as_timm_does(folder, config, theirs):
  """Writes the two files that timm puts on the hub; the weights say nothing themselves."""
  folder.mkdir(exist_ok=True)
  weights.save(random_variables(config), config, folder / 'model.safetensors', format='timm')
  tensors, _ = files.parse_safetensors((folder / 'model.safetensors').read_bytes())
  (folder / 'model.safetensors').write_bytes(files.format_safetensors(tensors))
  (folder / 'config.json').write_text(json.dumps(theirs))


@pytest.mark.parametrize('path', ['timm/vit', 'hf:timm/vit', 'folder'])
def test_timm_models_come_from_the_hub_with_what_their_config_says(hub, path):
  pooling = {'classifier': 'gap', 'class_token': True, 'fc_norm': True}
  config = SQUARE.replace(**pooling, activation='gelu_exact')
  save_as_timm_does(hub[0], config, TIMM)
  path = hub[0] if path == 'folder' else path
  assert weights.detect(path) == 'timm'
  variables, its_config = weights.load(path)
  preprocess = {'mean': (0.4, 0.5, 0.6), 'std': (0.1, 0.2, 0.3)}
  assert its_config == config.replace(
    class_names=['ant', 'bee', 'fly'],
    preprocess=Preprocessing(**preprocess, crop='central', crop_fraction=0.9, rounding='nearest'),
  )
  assert_same(variables, random_variables(config))
  with pytest.raises(UsageError, match=r"^classifier: 'token', but .* says 'gap'$"):
    weights.load(path, classifier='token')


@pytest.mark.parametrize(
  ('changes', 'crop', 'fraction'),
  [
    ({'crop_pct': 1.0}, 'central', 1.0),
    ({'crop_mode': 'squash'}, 'squash', 0.9),
    ({'crop_mode': 'squash', 'crop_pct': 1.0}, 'resize', None),
    ({}, 'central', 0.9),
  ],
)
def test_old_timm_configs_have_it_all_in_one(tmp_path, changes, crop, fraction):
  config = SQUARE.replace(activation='gelu_exact')
  theirs = (
    {'architecture': 'vit_tiny_patch16_224', 'labels': None} | TIMM['pretrained_cfg'] | changes
  )
  save_as_timm_does(tmp_path / 'm', config, theirs)
  _, its_config = weights.load(tmp_path / 'm', num_heads=2)
  assert its_config.preprocess.crop == crop
  assert its_config.preprocess.crop_fraction == fraction
  assert its_config.backbone.classifier == 'token'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'global_pool': 'attn'}, r"config\.json: global_pool: 'attn', but .* made with 'token'"),
    ({'model_args': {'global_pool': 'avg'}}, r"config\.json: global_pool: 'token', but .* 'avg'"),
    (
      {'model_args': {'global_pool': 'avgmax'}, 'global_pool': 'avgmax'},
      r"config\.json: global_pool: 'avgmax' is not one of token, avg, max, map",
    ),
    ({'model_args': {'attn_gate': True}}, r'config\.json: attn_gate: True is not read'),
    ({'architecture': 'vit_tiny_patch4_8'}, "architecture 'vit_tiny_patch4_8' is not one of timm"),
    ({'architecture': 'resnetblur50'}, "architecture 'resnetblur50' is not one of timm"),
    ({'model_args': {'num_heads': 'two'}}, r"config\.json: num_heads: 'two' is not a whole number"),
    ({'pretrained_cfg': 3}, r"config\.json: cannot be read as timm's config\.json"),
    ({'model_args': {'act_layer': 'mish'}}, r"config\.json: act_layer: 'mish' is not one of gelu"),
    ({'model_args': {'embed_dim': 'wide'}}, r"config\.json: embed_dim: 'wide' is not a whole"),
    ({'model_args': {'depth': 10**9}}, r'config\.json: num_layers: 1000000000 is not a whole '),
    ({'label_names': ['ant']}, 'class_names: 1 names for 3 classes'),
  ],
)
def test_timm_configs_that_say_something_else(tmp_path, changes, message):
  theirs = TIMM | {'global_pool': 'token', 'model_args': {'num_heads': 2}} | changes
  save_as_timm_does(tmp_path / 'm', SQUARE, theirs)
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path / 'm')


@pytest.mark.parametrize(
  ('changes', 'activation'),
  [
    ({}, 'gelu_exact'),
    ({'architecture': 'vit_base_patch32_siglip_256'}, 'gelu'),
    ({'architecture': 'vit_large_patch16_siglip_gap_512'}, 'gelu'),
    ({'architecture': 'vit_base_patch16_siglip_224'}, 'gelu_exact'),
    ({'model_args': {'num_heads': 2, 'act_layer': 'relu'}}, 'relu'),
  ],
)
def test_the_activation_of_timm_models(tmp_path, changes, activation):
  made_with = {'num_heads': 2, 'class_token': True, 'global_pool': 'token', 'fc_norm': False}
  theirs = TIMM | {'global_pool': 'token', 'model_args': made_with}
  save_as_timm_does(tmp_path / 'm', SQUARE, theirs | changes)
  assert weights.load(tmp_path / 'm')[1].backbone.activation == activation


def test_what_a_timm_model_was_made_with_counts_before_what_it_came_from(tmp_path):
  config = SQUARE.replace(image_size=(12, 8), channels=1)
  made_with = {'num_heads': 2, 'img_size': [12, 8], 'in_chans': 1}
  save_as_timm_does(
    tmp_path / 'm', config, TIMM | {'global_pool': 'token', 'model_args': made_with}
  )
  _, its_config = weights.load(tmp_path / 'm')
  assert (its_config.image_size, its_config.preprocess) == ((12, 8), None)


@pytest.mark.parametrize('name', ['checkpoint_x', 'vit.npz', 'vit.bin', 'vit'])
def test_names_on_the_hub_may_look_like_files(hub, name):
  (hub[0] / 'config.json').write_text('{"model_type": "vit"}')
  assert weights.detect(f'hf:some/{name}') == 'huggingface'


def test_config_json_tells_whose_a_name_on_the_hub_is(hub):
  remote, cache = hub
  (remote / 'model.safetensors').write_bytes(b'large')
  (remote / 'config.json').write_text('{"architecture": "vit_tiny_patch16_224"}')
  assert weights.detect('some/model') == 'timm'
  assert {path.name for path in cache.iterdir()} == {'config.json'}
  (remote / 'config.json').write_text('{"model_type": "levit"}')
  with pytest.raises(UsageError, match=r"config\.json: model_type is 'levit', which is not read; "):
    weights.detect('timm/model')


@pytest.mark.parametrize('name', ['hf.pt', 'm.npz', 'checkpoint_3', 'with_others'])
def test_folders_may_be_named_like_files(tmp_path, name):
  (tmp_path / name / 'checkpoint_5').mkdir(parents=True)
  (tmp_path / name / 'config.json').write_text('{"model_type": "vit"}')
  assert weights.detect(tmp_path / name) == 'huggingface'


class _Hub(http.server.BaseHTTPRequestHandler):
  """The part of the hub's interface that an upload of small files asks."""

  protocol_version = 'HTTP/1.1'

  def log_message(self, *args):
    del args

  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length']))
    self.server.asked[self.path] = body, self.headers['Authorization']
    url = f'http://localhost:{self.server.server_port}/owner/m'
    if self.path == '/api/repos/create':
      answer = {'url': url}
    elif self.path.endswith('/preupload/main'):
      paths = [file['path'] for file in json.loads(body)['files']]
      answer = {
        'files': [{'path': p, 'uploadMode': 'regular', 'shouldIgnore': False} for p in paths]
      }
    else:
      answer = {'commitOid': '0', 'commitUrl': f'{url}/commit/0', 'success': True}
    self._answer(200, json.dumps(answer).encode())

  def do_GET(self):
    self._answer(404, b'{}')

  def _answer(self, code, data):
    self.send_response(code)
    self.send_header('Content-Length', str(len(data)))
    self.send_header('Content-Type', 'application/json')
    self.end_headers()
    self.wfile.write(data)


@pytest.fixture
def hub_server(monkeypatch):
  """A hub on this machine; `asked` is path -> (body, authorization) of what it was sent."""
  server = http.server.ThreadingHTTPServer(('localhost', 0), _Hub)
  server.asked = {}
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f'http://localhost:{server.server_port}'
  monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', url)
  monkeypatch.setenv('HF_TOKEN', 'hf_secret')
  yield server
  server.shutdown()
  server.server_close()


def test_a_folder_is_pushed(hub_server, tmp_path):
  (tmp_path / 'config.json').write_text('{"a": 1}')
  (tmp_path / 'README.md').write_text('# m')
  hub_lib.check_push('owner/m')
  assert hub_lib.push(tmp_path, 'owner/m', private=True).endswith('/owner/m')
  created, authorization = hub_server.asked['/api/repos/create']
  assert authorization == 'Bearer hf_secret'
  created = json.loads(created)
  assert (created['name'], created['organization']) == ('m', 'owner')
  assert created.get('private') is True or created.get('visibility') == 'private'
  (commit,) = (body for path, (body, _) in hub_server.asked.items() if '/commit/' in path)
  lines = [json.loads(line) for line in commit.splitlines()]
  files_sent = {x['value']['path']: x['value'] for x in lines if x['key'] == 'file'}
  assert files_sent.keys() == {'config.json', 'README.md'}
  assert base64.b64decode(files_sent['config.json']['content']) == b'{"a": 1}'


def test_a_hub_that_is_not_there_is_one_line(monkeypatch, tmp_path):
  monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://localhost:9')
  monkeypatch.setenv('HF_TOKEN', 'hf_secret')
  with pytest.raises(FieldError, match=r'^push: owner/m cannot be uploaded \(.*\); .* is whole$'):
    hub_lib.push(tmp_path, 'owner/m', private=False)


@pytest.mark.parametrize('name', ['m', 'a/b/c', 'a/', 'a b/c'])
def test_names_that_the_hub_refuses_are_told_before(monkeypatch, name):
  monkeypatch.setenv('HF_TOKEN', 'hf_secret')
  with pytest.raises(FieldError, match=r'^push: .* is not OWNER/NAME'):
    hub_lib.check_push(name)
