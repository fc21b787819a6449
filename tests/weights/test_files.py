"""Damaged, foreign and hostile files: one clear line each, and nothing in them runs."""

import pickle
import sys

import flax
import numpy as np
import pytest
from small_vits import SQUARE, assert_same, random_variables

from vit_jax import weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.weights import files

FILES = {'augreg': 'm.npz', 'timm': 'm.safetensors', 'scenic': 'm.msgpack'}


def refused(path, match, **options):
  """Loading is refused in one line that begins with the path and matches."""
  with pytest.raises(UsageError, match=match) as error:
    weights.load(path, **options)
  assert str(error.value).startswith(str(path))
  assert '\n' not in str(error.value)


def saved(folder, format):
  path = folder / FILES[format]
  weights.save(random_variables(SQUARE), SQUARE, path, format=format)
  return path


@pytest.mark.parametrize('format', FILES)
@pytest.mark.parametrize('share', [0, 0.001, 0.5, 0.99])
def test_truncated_files(tmp_path, format, share):
  path = saved(tmp_path, format)
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  refused(path, 'cannot be read as')


def test_truncated_hugging_face_folders(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path, format='huggingface')
  for name in ('model.safetensors', 'config.json'):
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=f'{name}: cannot be read as'):
      weights.load(tmp_path)
    (tmp_path / name).write_bytes(data)
  (tmp_path / 'model.safetensors').unlink()
  refused(tmp_path, r'no model\.safetensors or pytorch_model\.bin')


def test_a_damaged_array_in_an_archive(tmp_path):
  path = saved(tmp_path, 'augreg')
  data = bytearray(path.read_bytes())
  array = np.load(path)['embedding/kernel'].tobytes()
  data[data.index(array) + len(array) // 2] ^= 0xFF
  path.write_bytes(data)
  refused(path, 'cannot be read as an .npz file')


@pytest.mark.parametrize('name', ['m.npz', 'm.safetensors', 'm.msgpack', 'checkpoint_1'])
def test_text_under_a_name_for_weights(tmp_path, name):
  (tmp_path / name).write_text('<html>Not found, and long enough to be taken for a header</html>')
  refused(tmp_path / name, 'cannot be read as')


class Bomb:
  """Unpickling it writes a file."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return open, (str(self.mark), 'w')


def test_a_state_dict_by_any_name_where_the_format_is_given(tmp_path):
  pytest.importorskip('torch')
  variables = random_variables(SQUARE)
  weights.save(variables, SQUARE, tmp_path / 'm.pth', format='timm')
  path = (tmp_path / 'm.pth').rename(tmp_path / 'model_best.pth.tar')
  assert_same(weights.load(path, format='timm')[0], variables)
  (tmp_path / 'text.tar').write_text('no weights')
  refused(tmp_path / 'text.tar', 'cannot be read as tensors saved by PyTorch', format='timm')


@pytest.fixture
def bomb(tmp_path):
  mark = tmp_path / 'mark'
  data = pickle.dumps({'blocks': Bomb(mark)})
  pickle.loads(data)['blocks'].close()
  assert mark.exists(), 'the bomb works'
  mark.unlink()
  return mark, data


@pytest.mark.parametrize('name', ['m.pth', 'm.pt', 'm.bin'])
@pytest.mark.parametrize('saved_by', ['pickle', 'torch'])
def test_a_pickle_bomb_does_not_go_off(tmp_path, bomb, name, saved_by):
  torch = pytest.importorskip('torch')
  mark, data = bomb
  path = tmp_path / name
  if saved_by == 'torch':
    torch.save({'blocks.0.norm1.weight': Bomb(mark)}, path)
  else:
    path.write_bytes(data)
  refused(path, r'as tensors saved by PyTorch \(ValueError: damaged.*nothing in it ran\)$')
  assert not mark.exists()


def test_a_pickle_bomb_in_a_hugging_face_folder_does_not_go_off(tmp_path, bomb):
  pytest.importorskip('torch')
  mark, data = bomb
  weights.save(random_variables(SQUARE), SQUARE, tmp_path, format='huggingface')
  (tmp_path / 'model.safetensors').unlink()
  (tmp_path / 'pytorch_model.bin').write_bytes(data)
  with pytest.raises(UsageError, match=r'pytorch_model\.bin: cannot be read as tensors'):
    weights.load(tmp_path)
  assert not mark.exists()


@pytest.mark.parametrize('name', ['m.npz', 'm.msgpack', 'm.safetensors'])
def test_a_pickle_bomb_under_another_name_does_not_go_off(tmp_path, bomb, name):
  mark, data = bomb
  (tmp_path / name).write_bytes(data)
  refused(tmp_path / name, 'cannot be read as')
  assert not mark.exists()


def test_object_arrays_are_not_unpickled(tmp_path, bomb):
  mark, _ = bomb
  array = np.array([Bomb(mark)], dtype=object)
  np.savez(tmp_path / 'm.npz', **{'embedding/kernel': array})
  refused(tmp_path / 'm.npz', 'Object arrays cannot be loaded')
  assert not mark.exists()


RESNET = {
  'conv1.weight': np.zeros((64, 3, 7, 7), np.float32),
  'layer1.0.conv1.weight': np.zeros((64, 64, 1, 1), np.float32),
  'fc.bias': np.zeros(10, np.float32),
}


def test_another_architecture(tmp_path):
  nested = {name.replace('.', '/'): array for name, array in RESNET.items()}
  np.savez(tmp_path / 'm.npz', **nested)
  refused(tmp_path / 'm.npz', "not a ViT: no 'embedding/kernel'; .*its tensors are")
  tree = flax.traverse_util.unflatten_dict(nested, sep='/')
  (tmp_path / 'm.msgpack').write_bytes(flax.serialization.msgpack_serialize({'params': tree}))
  refused(tmp_path / 'm.msgpack', "not a ViT: no 'embedding/kernel'; .*its tensors are conv1/weig")
  (tmp_path / 'm.safetensors').write_bytes(files.format_safetensors(RESNET))
  refused(tmp_path / 'm.safetensors', "not torchvision's ResNet: no 'layer1.0.conv2.weight'")
  folder = tmp_path / 'folder'
  files.write(folder / 'config.json', b'{"model_type": "vit"}')
  files.write(folder / 'model.safetensors', files.format_safetensors(RESNET))
  with pytest.raises(UsageError, match='not a Hugging Face ViT: no') as error:
    weights.load(folder)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['m.npz', 'm.msgpack', 'm.safetensors'])
def test_names_of_a_vit_with_tensors_of_none(tmp_path, name):
  """The names that a config is read from, with ranks that no ViT has."""
  flat = {n: np.zeros((), np.float32) for n in (
    'embedding/kernel', 'cls', 'Transformer/posembed_input/pos_embedding',
    'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel',
    'Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel',
    'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel',
    'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel',
    'patch_embed.proj.weight', 'pos_embed', 'blocks.0.norm1.weight', 'blocks.0.mlp.fc1.bias',
  )}  # fmt: skip
  path = tmp_path / name
  if name.endswith('npz'):
    np.savez(path, **flat)
  elif name.endswith('msgpack'):
    tree = flax.traverse_util.unflatten_dict(flat, sep='/')
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
  else:
    path.write_bytes(files.format_safetensors(flat))
  refused(path, 'not a ViT|not timm')


@pytest.mark.parametrize('seed', range(12))
def test_a_tensor_of_another_shape_never_ends_in_a_traceback(tmp_path, seed):
  rng = np.random.default_rng(seed)
  path = saved(tmp_path, 'timm' if seed % 2 else 'augreg')
  if seed % 2:
    tensors, metadata = files.parse_safetensors(path.read_bytes())
  else:
    tensors = dict(np.load(path))
  name = rng.choice(sorted(tensors))
  shape = rng.integers(0, 9, size=rng.integers(6))
  tensors[name] = np.zeros(shape, np.float32)
  if seed % 2:
    path.write_bytes(files.format_safetensors(tensors, **metadata))
  else:
    np.savez(path, **tensors)
  with pytest.raises(UsageError):
    weights.load(path)


def test_paths_that_are_not_there(tmp_path):
  refused(tmp_path / 'm.npz', 'no such file$')
  refused(tmp_path / 'm.onnx', 'm.onnx: no such file or folder; models on the hub')
  refused(
    tmp_path, r'a folder without weights: no model\.json .*, config\.json .* or checkpoint_STEP'
  )
  refused('https://nowhere/m.onnx', 'not a file of a kind')
  (tmp_path / 'm.onnx').touch()
  refused(tmp_path / 'm.onnx', 'not a file of a kind')
  with pytest.raises(UsageError, match=r"format: 'agreg' is not one of .* did you mean 'augreg'"):
    weights.load(tmp_path / 'm.npz', format='agreg')


def test_nothing_is_written_under_the_name_of_another_format(tmp_path):
  for format, name in (('timm', 'm.npz'), ('augreg', 'm.pth'), ('huggingface', 'm.safetensors')):
    with pytest.raises(UsageError, match=rf'{name}: .* not {format}$'):
      weights.save(random_variables(SQUARE), SQUARE, tmp_path / name, format=format)
    assert not (tmp_path / name).exists()


def test_files_of_hugging_face_folders_say_what_to_give(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'hf', format='huggingface')
  refused(tmp_path / 'hf' / 'model.safetensors', 'a Hugging Face file; give its folder')
  (tmp_path / 'hf' / 'config.json').write_text('{"architecture": "vit_tiny_patch16_224"}')
  with pytest.raises(FieldError, match=r"^format: 'huggingface', but .*, which 'timm' reads$"):
    weights.load(tmp_path / 'hf', format='huggingface')


def test_without_pytorch_one_line_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)  # what makes an import fail
  (tmp_path / 'm.pth').write_bytes(b'')
  refused(tmp_path / 'm.pth', r'this kind of file needs PyTorch; pip install torch$')
  with pytest.raises(UsageError, match=r'pip install torch$'):
    weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'n.pth', format='timm')


def test_what_stands_there_stays_until_the_new_file_is_whole(tmp_path, monkeypatch):
  path = saved(tmp_path, 'augreg')
  before = path.read_bytes()
  monkeypatch.setattr('pathlib.Path.replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'full')))
  with pytest.raises(UsageError, match=r'cannot be written \(full\)'):
    weights.save(random_variables(SQUARE, 1), SQUARE, path, format='augreg')
  assert path.read_bytes() == before
  with pytest.raises(UsageError, match='only local files'):
    weights.save(random_variables(SQUARE), SQUARE, 'gs://bucket/m.npz', format='augreg')
