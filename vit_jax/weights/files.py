"""Bytes and tensors in and out of files, local or remote; whatever is in them stays data."""

import argparse
import collections
import contextlib
import io
import json
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vit_jax import host_memory
from vit_jax.errors import UsageError
from vit_jax.regular_files import MAX_JSON, open_regular, reading

Tensors = dict[str, np.ndarray]

# Where this project's model config stands in formats that let a file say more than its tensors.
CONFIG_KEY = 'vit_jax'

# Where pickled checkpoints have the tensors, if not at the top; a teacher stands beside a student.
_ENTRIES = ('state_dict', 'model', 'teacher')

# Opening a file takes at most 2 GiB of memory over the size of the model in it. Half precision is
# widened, so what is in an archive may take a quarter of that before. Weights that are stored wider
# than they are deflate to less than half, and so a large archive may inflate to several times more.
_MAX_MEMORY, _MAX_INFLATED, _MAX_RATIO = 2**31, 2**29, 5
_MAX_MEMBERS = 100_000  # of an archive, whose directory takes far more memory than the file
_ZIP_ENTRY = b'PK\x01\x02'  # which each of a zip directory's begins with

_SAFETENSORS_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'U8': np.uint8,
  'BOOL': np.bool_,
}


def read(path: str | os.PathLike, size: int = -1, max_size: int | None = None) -> bytes:
  """Returns a file's bytes, or the first `size` of them.

  `path` may be of a regular local file, gs://, https:// or what else fsspec knows.

  Raises:
    UsageError: there is no such file, it has more than `max_size` bytes, or a package for its kind
      of path is missing.
  """
  path = os.fspath(path)
  try:
    with reading(path, 'a file'), fsspec.open(path) if '://' in path else open_regular(path) as f:
      data = f.read(size if max_size is None else max_size + 1)
    if max_size is not None and len(data) > max_size:
      raise UsageError(f'{path}: more than the {max_size:,} bytes that are read of such a file')
    return data
  except UsageError as e:
    if isinstance(e.__cause__, FileNotFoundError):
      # fsspec raises the same where a server doesn't answer.
      where = ', or no connection to it' if '://' in path else ''
      raise UsageError(f'{path}: no such file{where}') from e
    if isinstance(e.__cause__, ImportError):
      package = {'gs': 'gcsfs', 's3': 's3fs'}.get(path.partition('://')[0], 'fsspec[full]')
      raise UsageError(f'{path}: reading it needs a package; pip install {package}') from e
    raise


def write(path: str | os.PathLike, data: bytes) -> None:
  """Writes a local file whole or not at all, with the folders above it.

  Raises:
    UsageError: the path is remote or can't be written.
  """
  if '://' in os.fspath(path):
    raise UsageError(f'{path}: only local files can be written')
  path = Path(path)
  part = path.with_name(f'{path.name}.part')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data)
    part.replace(path)
  except OSError as e:
    raise UsageError(f'{path}: cannot be written ({e.strerror})') from e


@contextlib.contextmanager
def bounded_reading(path: object, what: str, size: int) -> Iterator[None]:
  """`reading`, and a UsageError for what takes too much memory; `size` is the file's, in bytes."""
  try:
    with host_memory.bounded(3 * size + _MAX_MEMORY), reading(path, what):
      yield
  except MemoryError as e:
    raise UsageError(f'{path}: takes more memory than is given to a file of {size:,} bytes') from e


def check_size(path: object, needed: int, size: int) -> None:
  """Raises UsageError where what is in a file of `size` bytes takes too many, `needed`."""
  if needed > (allowed := max(_MAX_RATIO * size, size + _MAX_INFLATED)):
    raise UsageError(
      f'{path}: what is in it takes {needed:,} bytes; of a file of {size:,} bytes, at most '
      f'{allowed:,} are read'
    )


def check_archive(data: bytes, path: object) -> None:
  """Raises UsageError for a zip archive that inflates to too much, or has too many members."""
  if (count := data.count(_ZIP_ENTRY)) > _MAX_MEMBERS:
    raise UsageError(f'{path}: {count:,} members; archives of up to {_MAX_MEMBERS:,} are read')
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = archive.infolist()
  for member in members:  # the size that an archive states of a member bounds these alone
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise ValueError(f'a member compressed in the way {member.compress_type}')
  check_size(path, sum(member.file_size for member in members), len(data))


def parse_npz(data: bytes, path: object) -> tuple[Tensors, bytes]:
  """Returns the arrays of an .npz file, and its comment."""
  check_archive(data, path)
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    arrays = {m.filename.removesuffix('.npy'): _read_array(archive, m) for m in archive.infolist()}
    return arrays, archive.comment


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
  """Returns an array that takes as much memory as the archive states of its member."""
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read_header(file)
    size, given = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if not dtype.hasobject and (size != given or not dtype.itemsize):  # objects are refused below
      raise ValueError(f'{dtype} of the shape {shape} in {given:,} bytes')
  with archive.open(member) as file:
    return np.lib.format.read_array(file, allow_pickle=False)


def parse_safetensors(data: bytes) -> tuple[Tensors, dict[str, str]]:
  """Returns the tensors and the metadata of a .safetensors file."""
  _header_length(data)
  tensors = {}
  for name, view in safetensors.deserialize(data):
    dtype = _SAFETENSORS_DTYPES[view['dtype']]
    tensors[name] = np.frombuffer(view['data'], dtype).reshape(view['shape'])
  metadata = json.loads(data[8 : 8 + _header_length(data)]).get('__metadata__')
  return tensors, metadata or {}


def _header_length(data: bytes) -> int:
  """Returns the length of a .safetensors file's header, from its first bytes."""
  if (length := int.from_bytes(data[:8], 'little')) > MAX_JSON:
    raise ValueError(f'a header of {length:,} bytes')
  return length


def format_safetensors(tensors: Mapping[str, np.ndarray], **metadata: str) -> bytes:
  """Returns the bytes of a .safetensors file that PyTorch's users can load."""
  # Not ascontiguousarray, which gives scalars an axis.
  contiguous = {name: np.asarray(tensor, order='C') for name, tensor in tensors.items()}
  return safetensors.numpy.save(contiguous, {'format': 'pt', **metadata})


def import_torch(path: object) -> Any:
  """Returns the module torch, which only pickled PyTorch files need.

  Raises:
    UsageError: PyTorch isn't installed.
  """
  try:
    import torch
  except ImportError as e:
    raise UsageError(f'{path}: this kind of file needs PyTorch; pip install torch') from e
  return torch


def parse_torch(data: bytes, path: object) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what torch.save wrote, its tensors as arrays, without running any code in it.

  Second is what PyTorch's state dicts carry beside their tensors, their `_metadata`.
  """
  torch = import_torch(path)

  if data[:2] == b'PK':
    check_archive(data, path)

  def to_numpy(tree, depth):  # as deep as tensors are looked for: a dict may be in it many times
    if isinstance(tree, Mapping) and depth:
      return {key: to_numpy(item, depth - 1) for key, item in tree.items()}
    if not isinstance(tree, torch.Tensor):
      return tree
    return (tree.float() if tree.is_floating_point() else tree).detach().numpy()

  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of unusual pickles; those that it can't read it refuses
      # Checkpoints keep the arguments of their script, in a class that does nothing.
      with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as e:  # PyTorch's own message recommends to run what is in the file
    raise ValueError('damaged, or more than tensors and plain values; nothing in it ran') from e
  if not isinstance(content, Mapping):
    raise TypeError(f'a {type(content).__name__}, not a dict of tensors')
  trees = [content, *(tree for tree in content.values() if isinstance(tree, Mapping))]
  tensors = [t for tree in trees for t in tree.values() if isinstance(t, torch.Tensor)]
  check_size(path, sum(t.numel() * t.element_size() for t in tensors), len(data))
  return to_numpy(content, 2), getattr(content, '_metadata', {})


def format_torch(content: Mapping[str, Any], path: object, **metadata: str) -> bytes:
  """Returns the bytes of a file that torch.load reads: arrays, in dicts, as tensors.

  PyTorch ignores the metadata, which it keeps where state dicts have theirs.
  """
  torch = import_torch(path)

  def to_torch(value):
    if isinstance(value, Mapping):
      return {key: to_torch(item) for key, item in value.items()}
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

  state_dict = collections.OrderedDict(to_torch(content))
  state_dict._metadata = metadata
  buffer = io.BytesIO()
  torch.save(state_dict, buffer)
  return buffer.getvalue()


def has_suffix(path: str, suffixes: tuple[str, ...]) -> bool:
  """Whether a path, of a file and not of a folder or on the hub, ends in one of these."""
  return path.endswith(suffixes) and not path.startswith('hf:') and not Path(path).is_dir()


def is_safetensors(path: str | os.PathLike) -> bool:
  """Whether a file of tensors is, by its name, .safetensors, and not what torch.save writes."""
  return os.fspath(path).endswith('.safetensors')


def read_state_dict(path: str | os.PathLike) -> tuple[Tensors, Any]:
  """Returns the tensors of a .safetensors or PyTorch file, and what it has under `CONFIG_KEY`.

  Raises:
    UsageError: it can't be read, or PyTorch, which reads all but .safetensors, isn't installed.
  """
  data = read(path)
  if is_safetensors(path):
    with reading(path, 'a .safetensors file'):
      tensors, metadata = parse_safetensors(data)
    return tensors, metadata.get(CONFIG_KEY)
  import_torch(path)  # which takes memory of its own
  with bounded_reading(path, 'tensors saved by PyTorch', len(data)):
    content, metadata = parse_torch(data, path)
  around = (content.get(name) for name in _ENTRIES)
  inner = next((tree for tree in around if isinstance(tree, Mapping) and tree), content)
  metadata = metadata if isinstance(metadata, Mapping) else {}
  return arrays_in(inner), content.get(CONFIG_KEY) or metadata.get(CONFIG_KEY)


def read_tensor_names(path: str | os.PathLike) -> list[str]:
  """Returns the names of the tensors that `read_state_dict` does; of .safetensors reads no more.

  Raises:
    UsageError: as `read_state_dict`.
  """
  if not is_safetensors(path):
    return list(read_state_dict(path)[0])
  with reading(path, 'a .safetensors file'):
    length = _header_length(read(path, 8))
    header = json.loads(read(path, 8 + length)[8:])
  if not isinstance(header, dict):
    raise UsageError(f'{path}: cannot be read as a .safetensors file (its header is no object)')
  return [name for name in header if name != '__metadata__']


def arrays_in(tree: Mapping[Any, Any]) -> Tensors:
  """Returns the entries of a dict that are arrays under a name."""
  return {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, np.ndarray)}


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
  """Writes an object; errors are those of `write`."""
  write(path, json.dumps(content, indent=2).encode())
