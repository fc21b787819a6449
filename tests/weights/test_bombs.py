"""Small files that stand for much memory, or for none that ends: one line, before it is taken."""

import contextlib
import io
import json
import mmap
import os
import pickle
import sys
import zipfile
import zlib

import flax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from small_vits import SQUARE, random_variables

from vit_jax import host_memory, weights
from vit_jax.errors import UsageError
from vit_jax.weights import files

GIB = 2**30
MARK = 'Transformer/encoderblock_0/LayerNorm_0/scale.npy'
CHUNK = 2**24

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='memory is bounded on Linux alone')


def refused(path, match):
  """Opening it is refused in one line, and takes no more than 1 GiB."""
  with host_memory.bounded(GIB), pytest.raises(UsageError, match=match) as error:
    weights.load(path)
  assert len(error.value.lines) == 1
  assert str(error.value).startswith(str(path))


def deflated(head, num_zeros):
  """Returns a deflate stream of some bytes and many zeros, in a moment."""
  start = zlib.compressobj(wbits=-15)
  data = start.compress(head) + start.flush(zlib.Z_FULL_FLUSH)
  block = zlib.compressobj(wbits=-15)
  chunk = block.compress(bytes(CHUNK)) + block.flush(zlib.Z_FULL_FLUSH)
  return data + chunk * (num_zeros // CHUNK) + zlib.compressobj(wbits=-15).flush()


def write_archive(path, members, method=zipfile.ZIP_DEFLATED):
  """Writes a zip archive whose directory states what it is told.

  Args:
    path: of the file.
    members: name -> (bytes as they are in the file, bytes that they are said to inflate to).
    method: how they are said to be compressed.
  """
  with zipfile.ZipFile(path, 'w') as archive:
    for name, (data, size) in members.items():
      archive.writestr(name, data)
      info = archive.getinfo(name)
      info.compress_type, info.file_size = method, size


def header(shape, descr='<f4'):
  file = io.BytesIO()
  entries = {'descr': descr, 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, entries)
  return file.getvalue()


@pytest.mark.parametrize('name', [MARK, 'what nothing needs.npy', 'text'])
def test_an_archive_that_inflates_is_refused_by_what_it_states(tmp_path, name):
  head = header((8 * GIB // 4,))
  data = deflated(head, 8 * GIB)
  assert len(data) < 16 * 2**20
  write_archive(tmp_path / 'm.npz', {name: (data, len(head) + 8 * GIB)})
  match = rf'm\.npz: what is in it takes {len(head) + 8 * GIB:,} bytes; of a file of .* at most'
  refused(tmp_path / 'm.npz', match)


def test_many_members_are_counted_together(tmp_path):
  head = header((GIB // 16,))
  members = {f'{i}.npy': (b'', len(head) + GIB // 4) for i in range(8)}
  write_archive(tmp_path / 'm.npz', members)
  refused(tmp_path / 'm.npz', r'm\.npz: what is in it takes 2,147,4')


def test_a_directory_that_lies_inflates_to_what_it_states(tmp_path):
  head = header((16,))
  data = deflated(head, 8 * GIB)
  write_archive(tmp_path / 'm.npz', {MARK: (data, len(head) + 64)})
  refused(tmp_path / 'm.npz', 'cannot be read as an .npz file of arrays .*Bad CRC-32')


@pytest.mark.parametrize(
  ('shape', 'descr', 'message'),
  [
    ((10**12,), '<f4', r'float32 of the shape \(1000000000000,\) in 64 bytes'),
    ((10**12, 0), '<f4', r'float32 of the shape \(1000000000000, 0\) in 64 bytes'),
    ((-4, -4), '<f4', 'ValueError'),
    ((10**12,), '|V0', r'\|V0 of the shape \(1000000000000,\) in 64 bytes'),
    ((1,), f'|V{10**9}', r'\|V1000000000 of the shape \(1,\) in 64 bytes'),
  ],
)
def test_an_array_that_is_larger_than_its_member(tmp_path, shape, descr, message):
  data = header(shape, descr) + bytes(64)
  write_archive(tmp_path / 'm.npz', {MARK: (data, len(data))}, zipfile.ZIP_STORED)
  refused(tmp_path / 'm.npz', message)


def test_ways_to_compress_that_cannot_be_bounded(tmp_path):
  with zipfile.ZipFile(tmp_path / 'm.npz', 'w', zipfile.ZIP_BZIP2) as archive:
    archive.writestr(MARK, header((2,)) + bytes(8))
  refused(tmp_path / 'm.npz', 'a member compressed in the way 12')


def test_a_directory_that_is_too_long(tmp_path):
  entry = b'PK\x01\x02' + bytes(42)
  (tmp_path / 'm.npz').write_bytes(b'PK\x03\x04' + entry * 100_001)
  refused(tmp_path / 'm.npz', r'm\.npz: 100,001 members; archives of up to 100,000 are read')


def test_an_archive_that_is_compressed_opens(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'm.npz', format='augreg')
  with np.load(tmp_path / 'm.npz') as archive:
    arrays = dict(archive)
  np.savez_compressed(tmp_path / 'small.npz', **arrays, zeros=np.zeros((2**20, 8), np.float32))
  size = (tmp_path / 'small.npz').stat().st_size
  with pytest.raises(UsageError, match='tensors that do not fit: 1'):  # the zeros have no place
    weights.load(tmp_path / 'small.npz')
  assert size < 2**18  # and inflates to 32 MiB, which is within the bound


def torch_archive(path, content, change=lambda name, data: data, sizes=()):
  """Writes what torch.save does, with changed records; `sizes` of some as they are stated."""
  torch = pytest.importorskip('torch')
  buffer = io.BytesIO()
  torch.save(content(torch), buffer)
  with zipfile.ZipFile(buffer) as archive:
    records = {name: change(name, archive.read(name)) for name in archive.namelist()}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in records.items():
      archive.writestr(name, data)
      if name in sizes:
        info = archive.getinfo(name)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, sizes[name]


def test_a_record_of_pytorch_that_inflates(tmp_path):
  def change(name, data):
    return deflated(b'', 8 * GIB) if name == 'archive/data/0' else data

  sizes = {'archive/data/0': 8 * GIB}
  torch_archive(tmp_path / 'm.pth', lambda torch: {'w': torch.ones(4)}, change, sizes)
  refused(tmp_path / 'm.pth', r'm\.pth: what is in it takes 8,589,')


PICKLES = {
  # bytearray(2**31 - 1), which PyTorch calls
  'a call': b'\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.',
  # to a place in the memo that a list of them would need 32 GiB for
  'a place': b'\x80\x02}r\xff\xff\xff\xff.',
  'a long text': b'\x80\x02X\xff\xff\xff\xff.',
}


@pytest.mark.parametrize('name', PICKLES)
@pytest.mark.parametrize('is_archive', [True, False])
def test_pickles_that_ask_for_memory(tmp_path, name, is_archive):
  pytest.importorskip('torch')
  data = PICKLES[name]
  if is_archive:
    torch_archive(
      tmp_path / 'm.pth',
      lambda torch: {},
      lambda record, before: data if record.endswith('data.pkl') else before,
    )
  else:
    start = [0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}]
    parts = [pickle.dumps(part, protocol=2) for part in start]
    (tmp_path / 'm.pth').write_bytes(b''.join([*parts, data, pickle.dumps([], protocol=2)]))
  refused(tmp_path / 'm.pth', r'm\.pth: ')


def test_a_tensor_that_repeats_one_number(tmp_path):
  def content(torch):
    return {'w': torch.ones(1).expand(2**16, 2**16)}

  torch_archive(tmp_path / 'm.pth', content)
  refused(tmp_path / 'm.pth', r'm\.pth: what is in it takes 17,179,869,184 bytes')


def test_dicts_that_have_each_other_many_times(tmp_path):
  def content(torch):
    tree = {'w': torch.ones(1)}
    for _ in range(100):
      tree = {'a': tree, 'b': tree}
    return tree

  torch_archive(tmp_path / 'm.pth', content)
  refused(tmp_path / 'm.pth', 'none at all')


def test_half_precision_of_pytorch_opens(tmp_path):
  torch = pytest.importorskip('torch')
  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'm.pth', format='timm')
  content = torch.load(tmp_path / 'm.pth')['state_dict']
  half = {name: t.half() if t.is_floating_point() else t for name, t in content.items()}
  torch.save({'state_dict': half, 'args': {'deep': {'deeper': {}}}}, tmp_path / 'half.pth')
  tensors, _ = files.read_state_dict(tmp_path / 'half.pth')
  assert tensors.keys() == half.keys()
  for name, tensor in half.items():
    assert tensors[name].dtype == np.float32
    np.testing.assert_array_equal(tensors[name], tensor.float())


def array_ext(shape, dtype, data):
  return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


def nested(kind, depth):
  return {'map': b'\x81\xa1a', 'list': b'\x91', 'huge list': b'\xdd\xff\xff\xff\xff'}[kind] * depth


MSGPACKS = {
  'shape': msgpack.packb({'params': {'w': array_ext([10**12], b'float32', bytes(8))}}),
  'dtype': msgpack.packb({'params': {'w': array_ext([1], b'object', bytes(8))}}),
  'zero size': msgpack.packb({'params': {'w': array_ext([10**12], b'V0', b'')}}),
  'long list': b'\xdd\xff\xff\xff\xff',
  'long map': b'\xdf\xff\xff\xff\xff',
  'long text': b'\xdb\xff\xff\xff\xff',
  'lists of long lists': b'\xdd\x00\x0f\x42\x40' * 200_000,
  'deep maps': b'\x81\xa1a' * 900 + b'\x01',
  'deeper maps': b'\x81\xa1a' * 100_000 + b'\x01',
  'chunks': flax.serialization.msgpack_serialize(
    {'params': {'w': {'__msgpack_chunked_array__': True, 'shape': {'0': 2**40}, 'chunks': {}}}}
  ),
}


@pytest.mark.parametrize('name', MSGPACKS)
def test_msgpack_that_claims_more_than_it_has(tmp_path, name):
  (tmp_path / 'm.msgpack').write_bytes(MSGPACKS[name])
  refused(tmp_path / 'm.msgpack', r'm\.msgpack: ')


def safetensors(entries, data=b''):
  text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
  return len(text).to_bytes(8, 'little') + text + data


def entry(shape, start, end, dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


SAFETENSORS = {
  'no end': (2**63).to_bytes(8, 'little'),
  'long header': (2**26).to_bytes(8, 'little') + bytes(2**10),
  'overlap': safetensors({'a': entry([2], 0, 8), 'b': entry([2], 4, 12)}, bytes(12)),
  'a hole': safetensors({'a': entry([1], 0, 4), 'b': entry([1], 8, 12)}, bytes(12)),
  'beyond': safetensors({'a': entry([2**20], 0, 2**22)}, bytes(8)),
  'overflow': safetensors({'a': entry([2**33, 2**33], 0, 8)}, bytes(8)),
  'negative': safetensors({'a': entry([-2], 0, 8)}, bytes(8)),
  'type': safetensors({'a': entry([2], 0, 8, 'X')}, bytes(8)),
  'metadata': safetensors({'__metadata__': None, 'a': entry([2], 0, 8)}, bytes(8)),
  'deep': safetensors(b'[' * 100_000),
}


@pytest.mark.parametrize('name', SAFETENSORS)
def test_headers_of_safetensors(tmp_path, name):
  (tmp_path / 'm.safetensors').write_bytes(SAFETENSORS[name])
  refused(tmp_path / 'm.safetensors', r'm\.safetensors: ')


@pytest.mark.parametrize('name', ['m.npz', 'm.safetensors', 'm.pth', 'm.msgpack', 'folder'])
def test_pipes_are_not_waited_for(tmp_path, name):
  path = tmp_path / name
  if name == 'folder':
    weights.save(random_variables(SQUARE), SQUARE, path, format='huggingface')
    (path / 'config.json').unlink()
  os.mkfifo(path / 'config.json' if name == 'folder' else path)
  with pytest.raises(UsageError, match='not a regular file'):
    weights.load(path)


def test_a_config_without_end(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'f', format='huggingface')
  with (tmp_path / 'f' / 'config.json').open('wb') as file:
    file.truncate(8 * GIB)
  with host_memory.bounded(GIB), pytest.raises(UsageError, match='more than the 33,554,432 bytes'):
    weights.load(tmp_path / 'f')


def test_weights_that_deflate_well_are_no_bomb(tmp_path, monkeypatch):
  monkeypatch.setattr(files, '_MAX_INFLATED', 0)  # as if they were large
  values = np.random.default_rng(0).standard_normal(10_000, np.float32)
  values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
  np.savez_compressed(tmp_path / 'w.npz', a=values)
  data = (tmp_path / 'w.npz').read_bytes()
  assert values.nbytes > 2 * len(data)
  np.testing.assert_array_equal(files.parse_npz(data, 'w')[0]['a'], values)


def test_memory_is_bounded_and_then_no_more():
  for sizes in ((2**28, 2**32), (2**32, 2**28)):
    with contextlib.ExitStack() as stack:
      for size in sizes:
        stack.enter_context(host_memory.bounded(size))
      with pytest.raises(OSError, match='Cannot allocate memory'):
        mmap.mmap(-1, 2**29)  # not malloc, which may have so much that was freed
  mmap.mmap(-1, 2**29).close()
  first, second = host_memory.bounded(2**28), host_memory.bounded(2**28)
  first.__enter__()
  second.__enter__()
  first.__exit__(None, None, None)  # as where two threads read
  with pytest.raises(OSError, match='Cannot allocate memory'):
    mmap.mmap(-1, 2**29)
  second.__exit__(None, None, None)
  mmap.mmap(-1, 2**29).close()
  message = '^a: takes more memory than is given to a file of 8 bytes$'
  with pytest.raises(UsageError, match=message), files.bounded_reading('a', 'x', 8):
    np.zeros(2**33, np.uint8)
