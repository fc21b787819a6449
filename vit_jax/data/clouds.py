"""Files of points: clouds, and meshes, of whose surfaces points are drawn; OFF, PLY, XYZ and TXT.

OFF and PLY (ASCII, or binary of either byte order) with faces are meshes: `MESH_POINTS` points are
drawn from the surface, uniformly by area, always the same. Without faces, and in XYZ and TXT, whose
lines begin with x, y and z, the points are those of the file. Colours and normals are left out.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vit_jax.data import decoding, images
from vit_jax.errors import UsageError
from vit_jax.regular_files import open_regular

SUFFIXES = ('.off', '.ply', '.txt', '.xyz')
MESH_POINTS = 10_000  # as modelnet40_normal_resampled has them

_MOST_BYTES = 2**28  # of a file
_MEMORY_PER_BYTE = 16  # that parsing takes
_MOST_ROWS = 2**23  # lines, vertices, faces or corners of it, which take up more than their bytes
_TYPES = {
  **dict.fromkeys(('char', 'int8'), 'i1'),
  **dict.fromkeys(('uchar', 'uint8'), 'u1'),
  **dict.fromkeys(('short', 'int16'), 'i2'),
  **dict.fromkeys(('ushort', 'uint16'), 'u2'),
  **dict.fromkeys(('int', 'int32'), 'i4'),
  **dict.fromkeys(('uint', 'uint32'), 'u4'),
  **dict.fromkeys(('float', 'float32'), 'f4'),
  **dict.fromkeys(('double', 'float64'), 'f8'),
}
_ORDERS = {'ascii': '', 'binary_little_endian': '<', 'binary_big_endian': '>'}

Faces = list[np.ndarray]  # each int [F, corners]


def decode_points(file: str | Path | BinaryIO) -> np.ndarray:
  """Returns the points in a file, float32 [N, 3].

  Raises:
    UsageError: it is damaged, too large, or of another format; UnreadableFile of a path.
  """
  if isinstance(file, str | Path):
    with decoding.reading(file), open_regular(file) as opened:
      size = os.fstat(opened.fileno()).st_size
      decoding.take(_MEMORY_PER_BYTE * size)
      return decode_points(opened)
  content = file.read(_MOST_BYTES + 1)
  if len(content) > _MOST_BYTES:
    raise UsageError(f'it has more than {_MOST_BYTES >> 20} MiB')
  with np.errstate(over='ignore'):
    try:
      if content.startswith(b'ply'):
        vertices, faces = _read_ply(content)
      elif content.startswith(b'OFF'):
        vertices, faces = _read_off(content)
      else:
        vertices, faces = _read_rows(content), []
    except UsageError:
      raise
    except (ValueError, OverflowError) as e:
      raise UsageError('it is damaged: not rows of numbers') from e
    points = np.float32(_sample(vertices, faces) if any(map(len, faces)) else vertices)
  if not len(points):
    raise UsageError('it has no points')
  if not np.isfinite(points).all():
    raise UsageError('it has coordinates that are not finite')
  return points


def probe_points(path: Path) -> tuple[int, int]:
  """Returns (points, 3) of a file; raises as `decode_points`."""
  return decode_points(path).shape


def find_clouds(path: str | Path) -> list[Path]:
  """Returns the files of points in a folder and those below it, sorted; a file itself, as a list.

  Files count by their `SUFFIXES`; hidden files and folders are left out.

  Raises:
    UsageError: there is no such path, or no such file in it, or a folder can't be read.
  """
  path = Path(path)
  if not path.is_dir():
    if not path.exists():
      raise UsageError(f'{path}: no such file or folder')
    return [path]
  if not (found := images.files_below(path, SUFFIXES)):
    raise UsageError(f'{path}: no points in this folder ({", ".join(SUFFIXES)})')
  return sorted(found)


def turn(points: np.ndarray) -> np.ndarray:
  """Returns points [N, 3] as `draw` shows them: to the right, up, and towards the viewer."""
  x, y, z = points.T
  angle, tilt = np.deg2rad((30, 20))
  x, z = np.cos(angle) * x + np.sin(angle) * z, np.cos(angle) * z - np.sin(angle) * x
  y, z = np.cos(tilt) * y - np.sin(tilt) * z, np.cos(tilt) * z + np.sin(tilt) * y
  return np.stack([x, y, z], axis=1)


def draw(points: np.ndarray, size: int = 224) -> np.ndarray:
  """Returns a picture of points [N, 3], uint8 [size, size, 3]: seen askew, near ones darker.

  x is to the right, y up, and z towards the viewer before the cloud is turned to show its depth.
  """
  centred = points - points.mean(axis=0)
  x, y, z = turn(centred / max(np.linalg.norm(centred, axis=1).max(), 1e-12)).T
  picture = np.full((size, size), 255, np.uint8)
  radius = size // 112
  middle = (size - 1) / 2
  rows, columns = (np.round(middle + s * middle * 0.95).astype(int) for s in (-y, x))
  grey = np.uint8(np.round(110 - 110 * z))
  order = np.argsort(z)  # near points over far ones
  for row in range(-radius, radius + 1):
    for column in range(-radius, radius + 1):
      place = (a[order].clip(0, size - 1) for a in (rows + row, columns + column))
      picture[tuple(place)] = grey[order]
  return np.repeat(picture[..., None], 3, axis=2)


def _sample(vertices: np.ndarray, faces: Faces) -> np.ndarray:
  """Draws points from the surface, uniformly by area; a face is a fan of triangles."""
  _check_count(sum(len(face) * face.shape[1] for face in faces))
  fans = [
    face[:, [0, i, i + 1]] for face in faces for i in range(1, face.shape[1] - 1) if len(face)
  ]
  triangles = np.concatenate([np.empty((0, 3), np.int64), *fans])
  if len(triangles) and not 0 <= triangles.min() <= triangles.max() < len(vertices):
    raise UsageError('a face has a vertex that is not there')
  first, second, third = (vertices[triangles[:, i]] for i in range(3))
  areas = np.linalg.norm(np.cross(second - first, third - first), axis=1)
  total = areas.cumsum()
  if not len(total) or not 0 < total[-1] < np.inf:
    raise UsageError('its faces have no area')
  rng = np.random.default_rng(0)
  chosen = np.searchsorted(total, rng.uniform(0, total[-1], MESH_POINTS), side='right')
  chosen = chosen.clip(0, len(total) - 1)
  u, v = rng.uniform(size=(2, MESH_POINTS, 1))
  u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
  first, second, third = first[chosen], second[chosen], third[chosen]
  return first + u * (second - first) + v * (third - first)


def _lines(content: bytes) -> list[str]:
  """Returns the lines of a text that have something, without comments."""
  _check_count(content.count(b'\n'))
  lines = (line.partition('#')[0].strip() for line in content.decode('latin-1').split('\n'))
  return [line for line in lines if line]


def _check_count(count: int) -> None:
  if count > _MOST_ROWS:
    raise UsageError(f'it has more than {_MOST_ROWS:,} lines, vertices or faces')


def _rows(lines: Sequence[str], least: int) -> np.ndarray:
  """Returns lines of equally many numbers as float64 [len(lines), numbers], `least` or more."""
  if not lines:
    return np.empty((0, least))
  rows = np.loadtxt(lines, ndmin=2)
  if rows.shape[1] < least:
    raise UsageError('it is damaged: a line is too short')
  return rows


def _read_rows(content: bytes) -> np.ndarray:
  """Reads XYZ or TXT: lines of x, y, z and others, between spaces or commas."""
  return _rows(_lines(content.replace(b',', b' ')), 3)[:, :3]


def _read_off(content: bytes) -> tuple[np.ndarray, Faces]:
  """Reads OFF; in some files of ModelNet40 the counts follow the word OFF on its line."""
  lines = _lines(content[3:])
  counts = [int(n) for n in lines[0].split()] if lines else []
  if len(counts) not in (2, 3) or min(counts) < 0 or sum(counts[:2]) > len(lines) - 1:
    raise UsageError('it is damaged: fewer vertices or faces than it says')
  num_vertices, num_faces = counts[:2]
  vertices = _rows(lines[1 : 1 + num_vertices], 3)[:, :3]
  return vertices, _read_faces(lines[1 + num_vertices : 1 + num_vertices + num_faces])


def _read_faces(lines: Sequence[str]) -> Faces:
  """Reads lines of a number of corners, these, and perhaps a colour."""
  by_length = {}
  for line in lines:
    by_length.setdefault((int(line.split(None, 1)[0]), len(line.split())), []).append(line)
  faces = []
  for (corners, _), alike in by_length.items():
    if corners >= 0:
      faces.append(_rows(alike, 1 + corners)[:, 1 : 1 + corners].astype(np.int64))
  return faces


def _read_ply(content: bytes) -> tuple[np.ndarray, Faces]:
  """Reads PLY: vertices with x, y and z, and faces by their lists of vertices."""
  header = re.match(rb'ply\s*?\n(.*?)\nend_header[^\S\n]*\r?\n', content[:65536], re.DOTALL)
  if not header:
    raise UsageError('it is damaged: no header of a PLY')
  order, elements = None, []

  def free(name):
    """Returns the types that a property may have: none if the element has it already."""
    return _TYPES.keys() if elements and name not in elements[-1][2] else set()

  for words in (line.split() for line in header[1].decode('latin-1').splitlines()):
    match words:
      case ['format', name, _] if name in _ORDERS:
        order = _ORDERS[name]
      case ['element', name, count] if int(count) >= 0:
        _check_count(int(count))
        elements.append((name, int(count), {}))
      case ['property', 'list', length, kind, name] if {length, kind} <= free(name):
        elements[-1][2][name] = _TYPES[length], _TYPES[kind]
      case ['property', kind, name] if kind in free(name):
        elements[-1][2][name] = None, _TYPES[kind]
      case [] | ['comment' | 'obj_info', *_]:
        pass
      case _:
        raise UsageError(f'it is damaged: {" ".join(words)!r} in the header of a PLY')
  if order is None:
    raise UsageError('it is damaged: no format in the header of a PLY')
  body = content[header.end() :]
  read = _Ascii(body) if not order else _Binary(body, order)
  vertices, faces = np.empty((0, 3)), []
  for name, count, properties in elements:
    values = read.element(count, properties)
    if name == 'vertex':
      if not {'x', 'y', 'z'} <= values.keys():
        raise UsageError('its vertices have no x, y and z')
      vertices = np.stack([np.float64(values[axis]) for axis in 'xyz'], axis=1)
    if name == 'face':
      lists = next((values[n] for n in ('vertex_indices', 'vertex_index') if n in values), [])
      faces = _group(lists)
  return vertices, faces


def _group(lists: Sequence[np.ndarray]) -> Faces:
  """Returns faces, each int [corners], as arrays of those with equally many corners."""
  if isinstance(lists, np.ndarray):
    return [lists.astype(np.int64)]
  by_length = {}
  for corners in lists:
    by_length.setdefault(len(corners), []).append(corners)
  return [np.stack(alike).astype(np.int64) for alike in by_length.values()]


class _Ascii:
  """The elements of an ASCII PLY, from its first line on."""

  def __init__(self, body: bytes):
    self._lines, self._next = _lines(body), 0

  def element(self, count: int, properties: dict) -> dict:
    """Returns values by property: [count], and of a list a list of arrays."""
    lines = self._lines[self._next : self._next + count]
    self._next += count
    if len(lines) < count:
      raise UsageError('it is damaged: it ends too early')
    if not any(length for length, _ in properties.values()):
      rows = _rows(lines, len(properties))
      return {name: rows[:, i] for i, name in enumerate(properties)}
    values = {name: [] for name in properties}
    for line in lines:
      numbers, place = np.array(line.split(), np.float64), 0
      for name, (length, _) in properties.items():
        if place + 1 > len(numbers):
          raise UsageError('it is damaged: a line is too short')
        size = int(numbers[place]) if length else 1
        place += bool(length)
        if not 0 <= size <= len(numbers) - place:
          raise UsageError('it is damaged: a line is too short')
        taken = numbers[place : place + size]
        values[name].append(taken if length else taken[0])
        place += size
    return values


class _Binary:
  """The elements of a binary PLY, from its first byte on."""

  def __init__(self, body: bytes, order: str):
    self._body, self._order, self._next = body, order, 0

  def element(self, count: int, properties: dict) -> dict:
    """Returns values by property: [count], and of a list a list of arrays, or one array."""
    sizes = {name: 1 for name, (length, _) in properties.items() if not length}
    if count and len(sizes) < len(properties):
      sizes = self._sizes(properties)
    if len(sizes) == len(properties) and (rows := self._rows(count, properties, sizes)) is not None:
      return rows
    values = {name: [] for name in properties}
    for _ in range(count):
      for name, (length, kind) in properties.items():
        size = int(self._take(length, 1)[0]) if length else 1
        taken = self._take(kind, size)
        values[name].append(taken if length else taken[0])
    return values

  def _take(self, kind: str, count: int) -> np.ndarray:
    dtype = np.dtype(self._order + kind)
    if not 0 <= count * dtype.itemsize <= len(self._body) - self._next:
      raise UsageError('it is damaged: it ends too early')
    taken = np.frombuffer(self._body, dtype, count, self._next)
    self._next += taken.nbytes
    return taken

  def _sizes(self, properties: dict) -> dict[str, int]:
    """Returns how many values each property has in the first of the elements."""
    start, sizes = self._next, {}
    for name, (length, kind) in properties.items():
      sizes[name] = int(self._take(length, 1)[0]) if length else 1
      self._take(kind, sizes[name])
    self._next = start
    return sizes

  def _rows(self, count: int, properties: dict, sizes: dict[str, int]) -> dict | None:
    """Returns the elements at once, if lists are all as long as in the first; else None."""
    fields = []
    for name, (length, kind) in properties.items():
      fields += [(f'{name} length', self._order + length)] if length else []
      fields.append((name, self._order + kind, (sizes[name],) if length else ()))
    dtype = np.dtype(fields)
    lists = [name for name, (length, _) in properties.items() if length]
    if count * dtype.itemsize > len(self._body) - self._next:
      if not lists:
        raise UsageError('it is damaged: it ends too early')
      return None
    rows = np.frombuffer(self._body, dtype, count, self._next)
    if any((rows[f'{name} length'] != sizes[name]).any() for name in lists):
      return None
    self._next += rows.nbytes
    return {name: rows[name] for name in properties}
