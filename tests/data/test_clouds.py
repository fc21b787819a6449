"""Files of points: every format against the same numbers, surfaces by area, and damaged files."""

import io
import os
import struct

import numpy as np
import pytest

from vit_jax.data import clouds
from vit_jax.errors import UsageError

POINTS = np.float32([[0, 0, 0], [1, 0.5, 0], [0, 2, -3], [4e-3, 1e5, 7]])
# Three triangles and a square, of areas 2, 1/2, 0 and 4 in the planes z = 0 and z = 5.
VERTICES = np.float32(
  [[0, 0, 0], [2, 0, 0], [0, 2, 0], [1, 0, 5], [0, 1, 5], [0, 0, 5],
   [10, 10, 5], [12, 10, 5], [12, 12, 5], [10, 12, 5]]
)  # fmt: skip
FACES = [(0, 1, 2), (3, 4, 5), (0, 0, 1), (6, 7, 8, 9)]
PLY_TYPES = {'<': 'binary_little_endian', '>': 'binary_big_endian'}


def off(vertices, faces=(), header='OFF\n', colors=''):
  lines = [' '.join(map(repr, map(float, v))) for v in vertices]
  lines += [' '.join(map(str, (len(f), *f))) + colors for f in faces]
  text = f'{header}{len(vertices)} {len(faces)} 0\n# a comment\n\n' + '\n'.join(lines)
  return text.encode()


def ply(vertices, faces=(), order='', end='\n'):
  name = PLY_TYPES.get(order, 'ascii')
  header = f'ply\nformat {name} 1.0\ncomment of a test\nelement vertex {len(vertices)}\n'
  header += 'property uchar red\nproperty float x\nproperty double y\nproperty float32 z\n'
  header += f'element face {len(faces)}\nproperty list uchar int vertex_indices\n'
  header = (header + 'property short flag\nend_header\n').replace('\n', end).encode()
  if not order:
    lines = ['7 ' + ' '.join(map(repr, map(float, v))) for v in vertices]
    lines += [' '.join(map(str, (len(f), *f, 1))) for f in faces]
    return header + end.join([*lines, '']).encode()
  body = b''.join(struct.pack(f'{order}Bfdf', 7, *map(float, v)) for v in vertices)
  for f in faces:
    body += struct.pack(f'{order}B{len(f)}ih', len(f), *f, 1)
  return header + body


def decode(content):
  return clouds.decode_points(io.BytesIO(content))


CLOUDS = {
  'off': off(POINTS),
  'off of ModelNet40': off(POINTS, header='OFF'),
  'ascii ply': ply(POINTS),
  'ascii ply of Windows': ply(POINTS, end='\r\n'),
  'little-endian ply': ply(POINTS, order='<'),
  'big-endian ply': ply(POINTS, order='>'),
  'xyz': '\n'.join(' '.join(map(repr, map(float, p))) for p in POINTS).encode(),
  'txt with normals': b'# x,y,z,nx,ny,nz\n'
  + '\r\n'.join(','.join(map(repr, [*map(float, p), 0.0, 0.0, 1.0])) for p in POINTS).encode(),
}


@pytest.mark.parametrize('name', CLOUDS)
def test_the_points_of_a_cloud_are_those_of_the_file(name):
  points = decode(CLOUDS[name])
  assert points.dtype == np.float32
  np.testing.assert_array_equal(points, POINTS)


MESHES = {
  'off': off(VERTICES, FACES),
  'off with colours': off(VERTICES, FACES, colors=' 255 0 0'),
  'ascii ply': ply(VERTICES, FACES),
  'ply of another name': ply(VERTICES, FACES).replace(b'vertex_indices', b'vertex_index'),
  'little-endian ply': ply(VERTICES, FACES, '<'),
  'big-endian ply': ply(VERTICES, FACES, '>'),
}


@pytest.mark.parametrize('name', MESHES)
def test_points_of_a_mesh_are_drawn_by_area(name):
  points = decode(MESHES[name])
  assert points.shape == (clouds.MESH_POINTS, 3)
  np.testing.assert_array_equal(points, decode(MESHES[name]))
  x, y, z = points.T
  large = (x >= 0) & (y >= 0) & (x + y <= 2) & (z == 0)
  small = (x >= 0) & (y >= 0) & (x + y <= 1) & (z == 5)
  square = (x >= 10) & (x <= 12) & (y >= 10) & (y <= 12) & (z == 5)
  assert (large | small | square).all()
  shares = [part.mean() for part in (large, small, square)]
  np.testing.assert_allclose(shares, np.array([2, 0.5, 4]) / 6.5, atol=0.02)
  # Uniformly: as many in each quarter of the square, and a fourth in the corner of the triangle.
  quarters = np.histogram2d(x[square], y[square], bins=2)[0] / square.sum()
  np.testing.assert_allclose(quarters, 0.25, atol=0.03)
  assert abs((x + y < 1)[large].mean() - 0.25) < 0.03


def test_triangles_alone_are_read_at_once_and_alike():
  triangles = [f for f in FACES if len(f) == 3]
  expected = decode(off(VERTICES, triangles))
  for order in ('', '<', '>'):
    np.testing.assert_array_equal(decode(ply(VERTICES, triangles, order)), expected)


LARGE = b'ply\nformat binary_little_endian 1.0\nelement vertex 8388608\n'
HUGE = LARGE.replace(b'8388608', b'8388609')
DAMAGED = {
  'empty': (b'', 'it has no points'),
  'text': (b'hello\n', 'it is damaged: not rows of numbers'),
  'two numbers': (b'1 2\n3 4\n', 'a line is too short'),
  'ragged': (b'1 2 3\n4 5\n', 'it is damaged: not rows of numbers'),
  'no number': (b'1 2 nan\n', 'coordinates that are not finite'),
  'beyond float32': (b'1 2 1e99\n', 'coordinates that are not finite'),
  'off without counts': (b'OFF\n', 'fewer vertices or faces than it says'),
  'off cut short': (off(POINTS)[:-9].rpartition(b'\n')[0], 'fewer vertices or faces'),
  'off of many': (b'OFF\n999999999999 0 0\n1 2 3\n', 'fewer vertices or faces than it says'),
  'off of less than none': (b'OFF\n-1 0 0\n', 'fewer vertices or faces than it says'),
  'off with a far vertex': (off(VERTICES, [(0, 1, 99)]), 'a face has a vertex that is not there'),
  'off with one before': (off(VERTICES, [(0, 1, -1)]), 'a face has a vertex that is not there'),
  'off without area': (off(VERTICES, [(0, 0, 0)]), 'its faces have no area'),
  'off with short faces': (off(VERTICES, FACES).replace(b'\n3 0 1 2', b'\n9 0 1 2'), 'too short'),
  'ply without end': (b'ply\nformat ascii 1.0\n', 'no header of a PLY'),
  'ply of no format': (b'ply\nelement vertex 0\nend_header\n', 'no format in the header'),
  'ply of version ebcdic': (b'ply\nformat ebcdic 1.0\nend_header\n', "'format ebcdic 1.0' in the"),
  'ply of no type': (
    b'ply\nformat ascii 1.0\nelement vertex 1\nproperty colour x\nend_header\n1\n',
    "'property colour x' in the header",
  ),
  'ply without z': (
    b'ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nend_header\n1 2',
    'no x, y and z',
  ),
  'ply of many': (HUGE + b'property float x\nend_header\n', 'more than 8,388,608 lines, vert'),
  'ply of fewer than it says': (LARGE + b'property float x\nend_header\n', 'it ends too early'),
  'ply of nothings': (LARGE + b'end_header\n', 'no x, y and z'),
  'ply of fewer lists': (
    LARGE + b'property list uchar int x\nend_header\n' + bytes(99),
    'it ends too early',
  ),
  'ply with x twice': (ply(POINTS).replace(b'uchar red', b'float x'), "'property float x' in the"),
  'ascii ply cut short': (ply(POINTS)[:-20], 'a line is too short|ends too early|not rows'),
  'binary ply cut short': (ply(POINTS, order='<')[:-3], 'it ends too early'),
  'ply with faces cut short': (ply(VERTICES, FACES, '>')[:-3], 'it ends too early'),
  'ascii ply with faces cut short': (ply(VERTICES, FACES)[:-9], 'a line is too short'),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_files_are_refused_in_one_line(name):
  content, message = DAMAGED[name]
  with pytest.raises(UsageError, match=message) as error:
    decode(content)
  assert '\n' not in str(error.value)


def test_files_that_are_too_large_are_not_read(monkeypatch):
  monkeypatch.setattr(clouds, '_MOST_BYTES', 2**20)
  decode(b'1 2 3\n' * 1000)
  with pytest.raises(UsageError, match='it has more than 1 MiB'):
    decode(b'1 2 3\n' * 200_000)


@pytest.mark.parametrize(
  'content',
  [b'1 2 3\n' * 40, off([POINTS[0]] * 40), off(VERTICES, [(0, 1, 2) * 20]), ply([POINTS[0]] * 40)],
)
def test_files_of_too_many_rows_are_refused(monkeypatch, content):
  decode(content)
  monkeypatch.setattr(clouds, '_MOST_ROWS', 30)
  with pytest.raises(UsageError, match='it has more than 30 lines, vertices or faces'):
    decode(content)


def test_files_are_found_by_their_suffixes(tmp_path):
  for name in ('b.PLY', 'a.off', 'c/d.xyz', 'c/e.txt', 'c/f.obj', '.hidden/g.off', 'c/.h.off'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('0 0 0')
  names = [p.relative_to(tmp_path).as_posix() for p in clouds.find_clouds(tmp_path)]
  assert names == ['a.off', 'b.PLY', 'c/d.xyz', 'c/e.txt']
  assert clouds.find_clouds(tmp_path / 'c' / 'f.obj') == [tmp_path / 'c' / 'f.obj']
  np.testing.assert_array_equal(clouds.decode_points(tmp_path / 'c' / 'f.obj'), np.zeros((1, 3)))
  with pytest.raises(UsageError, match='no such file or folder'):
    clouds.find_clouds(tmp_path / 'x')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UsageError, match='no points in this folder'):
    clouds.find_clouds(tmp_path / 'empty')


def test_a_picture_shows_points_where_they_are_near_ones_darker():
  square = np.float32([[x, y, 0] for x in (-1, 1) for y in (-1, 1)])
  picture = clouds.draw(square + 7)
  assert (picture.shape, picture.dtype) == ((224, 224, 3), np.uint8)
  np.testing.assert_array_equal(picture, clouds.draw(3 * square))
  rows, columns = np.nonzero(picture[..., 0] < 255)
  assert len(set(zip(rows // 20, columns // 20, strict=True))) >= 4
  assert rows.min() < 60
  assert rows.max() > 160
  both = clouds.draw(np.float32([[0, 0, 1], [0, 0, -1]]))  # the near one is turned to the right
  assert both[:, 112:].min() < both[:, :112].min() < 255
  one = clouds.draw(np.ones((1, 3), np.float32))
  assert (one < 255).any(), 'a single point is in the middle'


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'a.off')
  with pytest.raises(UsageError, match=r'a\.off: not a regular file'):
    clouds.decode_points(tmp_path / 'a.off')
