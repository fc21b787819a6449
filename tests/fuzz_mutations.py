"""Damage of files, drawn from a random.Random: each function returns what it did, in words."""

import csv
import functools
import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
import zlib

import numpy as np
from hostile import VALUES

ESCAPES = 'a\x1b[31mred\x1b]0;title\x07\nsecond line\r\x9b2J'
LONG = 'x' * 100_000
_NUMBERS = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 10**12, 2**63 - 1, 2**64 - 1)
_BOMB = 3 * 2**30  # bytes


class _Marker:
  """What writes a file, where whoever unpickles it lets it."""

  def __init__(self, path):
    self._path = str(path)

  def __reduce__(self):
    return os.mkdir, (self._path,)


def damage(path, rng, marker):
  """Damages a file, or a random one of a folder, in one of many ways.

  Args:
    path: of the file or folder.
    rng: a random.Random.
    marker: what is made where something in the file is executed.

  Returns:
    What was done, in words, and the file.
  """
  file = path
  if path.is_dir():
    file = rng.choice(sorted(p for p in path.rglob('*') if p.is_file()))
  if rng.random() < 0.08:
    return replace(file if rng.random() < 0.8 else file.parent, rng), file
  makers = [bits, cut, insert, repeat, zeros, number, number, text]
  suffix = file.suffix.lower()
  if suffix == '.json' or file.name == '_METADATA':
    makers = [*makers[:3], *[json_value] * 8]
  elif suffix == '.jsonl':
    makers = [*makers[:3], *[lines] * 4]
  elif suffix == '.yaml':
    makers = [*makers[:3], *[yaml_text] * 6]
  elif suffix == '.csv':
    makers = [*makers[:3], *[table] * 6]
  elif suffix in ('.txt', '.xyz'):
    makers = [*makers[:3], *[lines] * 6]
  elif suffix == '.safetensors':
    makers += [safetensors] * 8
  elif suffix in ('.npz', '.pth') and zipfile.is_zipfile(file):
    makers += [functools.partial(zip_member, marker=marker)] * 10
  elif suffix == '.pth':
    makers += [functools.partial(pickled, marker=marker)] * 2
  elif suffix == '.png':
    makers += [png_size] * 4
  elif suffix in ('.jpg', '.gif', '.bmp', '.webp'):
    makers += [image_size] * 4
  maker = rng.choice(makers)
  try:
    words = maker(file, rng)
  except (ValueError, LookupError, zipfile.BadZipFile):  # of a file that is damaged already
    maker, words = bits, bits(file, rng)
  return f'{getattr(maker, "func", maker).__name__}: {words}', file


def _changed(change):
  """A maker from a function of (bytes, rng) that returns (bytes, words)."""

  @functools.wraps(change)
  def make(file, rng):
    data, words = change(file.read_bytes(), rng)
    file.write_bytes(data)
    return words

  return make


@_changed
def bits(data, rng):
  """Flips some bits."""
  data, places = bytearray(data), []
  for _ in range(rng.choice((1, 1, 2, 8, 40))):
    if data:
      near = len(data) if rng.random() < 0.6 else min(200, len(data))
      places.append(rng.randrange(near))
      data[places[-1]] ^= 1 << rng.randrange(8)
  return bytes(data), f'at {places[:4]}'


@_changed
def cut(data, rng):
  """Leaves an end or a piece out."""
  first = rng.randrange(len(data) + 1)
  last = len(data) if rng.random() < 0.6 else rng.randint(first, len(data))
  return data[:first] + data[last:], f'[{first}:{last}]'


@_changed
def insert(data, rng):
  """Puts random bytes in."""
  at, count = rng.randrange(len(data) + 1), rng.choice((1, 7, 300))
  return data[:at] + rng.randbytes(count) + data[at:], f'{count} at {at}'


@_changed
def repeat(data, rng):
  """Repeats a piece."""
  first = rng.randrange(len(data) + 1)
  last, times = min(first + rng.choice((4, 64, 1000)), len(data)), rng.choice((2, 50, 1000))
  return data[:first] + data[first:last] * times + data[last:], f'[{first}:{last}] x {times}'


@_changed
def zeros(data, rng):
  """Overwrites a piece with zeros."""
  first = rng.randrange(len(data) + 1)
  last = min(first + rng.choice((4, 64, 1000)), len(data))
  return data[:first] + bytes(last - first) + data[last:], f'[{first}:{last}]'


@_changed
def number(data, rng):
  """Overwrites what may be a number of a header with another."""
  width, value = rng.choice((2, 4, 8)), rng.choice(_NUMBERS)
  at = rng.randrange(max(1, min(len(data), rng.choice((16, 64, 1000, 10**6))) - width))
  order = rng.choice(('little', 'big'))
  piece = (value % 256**width).to_bytes(width, order)
  return data[:at] + piece + data[at + width :], f'{piece.hex()} at {at}'


@_changed
def text(data, rng):
  """Replaces all by something else."""
  del data
  known = (
    b'',
    b'\0' * 100,
    b'hello\n',
    b'[' * 50_000,
    b'{}',
    b'null',
    b'\x89PNG\r\n\x1a\n',
    b'PK\3\4',
  )
  chosen = rng.choice(known)
  return chosen, repr(chosen[:10])


def value(rng):
  """A value of JSON that is wrong in most places."""
  nested = functools.reduce(lambda inner, _: [inner], range(400), 1)
  return rng.choice((*VALUES, nested, ESCAPES, LONG[:5000], {ESCAPES: 1}, ['\x00'], 10**10, 1e300))


def _change_value(content, rng):
  """Changes a random entry of what JSON holds; returns where."""
  path = []
  while True:
    keys = list(content if isinstance(content, dict) else range(len(content)))
    if not keys:
      return 'nowhere'
    key = rng.choice(keys)
    path.append(str(key)[:30])
    inner = content[key]
    if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
      content = inner
      continue
    what = rng.random()
    if what < 0.15:
      del content[key]
      return f'without {".".join(path)}'
    if what < 0.25 and isinstance(content, dict):
      content[ESCAPES if rng.random() < 0.5 else 'surprise'] = content.pop(key)
      return f'renamed {".".join(path)}'
    content[key] = value(rng)
    return f'{".".join(path)}={content[key]!r:.50}'


@_changed
def json_value(data, rng):
  """Changes a value of a JSON file."""
  content = json.loads(data)
  if not isinstance(content, (dict, list)) or rng.random() < 0.08:
    content, words = value(rng), 'all'
  else:
    words = _change_value(content, rng)
  return json.dumps(content).encode(), words


@_changed
def safetensors(data, rng):
  """Changes a value of a header."""
  size = int.from_bytes(data[:8], 'little')
  content = json.loads(data[8 : 8 + size])
  words = _change_value(content, rng)
  if '__metadata__' in content and rng.random() < 0.3 and isinstance(content['__metadata__'], dict):
    for key, inner in content['__metadata__'].items():
      if isinstance(inner, str) and inner.startswith('{'):
        own = json.loads(inner)
        words = f'__metadata__.{key}: {_change_value(own, rng)}'
        content['__metadata__'][key] = json.dumps(own)
  header = json.dumps(content).encode()
  return len(header).to_bytes(8, 'little') + header + data[8 + size :], words


@_changed
def yaml_text(data, rng):
  """Changes a line of YAML."""
  rows = data.decode().splitlines()
  i = rng.randrange(len(rows))
  key = rows[i].partition(':')[0]
  deep = '[' * 3000 + ']' * 3000
  values = (
    deep,
    '&a [*a]',
    '999999999',
    '-1',
    '.nan',
    'null',
    '[]',
    '{a: 1}',
    '!!python/name:os.x',
  )
  values += (
    '"' + '\\e[31m\\n' + '"',
    "''",
    '[1, 2]',
    '[[1]]',
    '../../..',
    '/',
    '1e400',
    '2024-01-01',
  )
  chosen = rng.choice(values)
  rows[i] = f'{key}: {chosen}'
  if rng.random() < 0.15:
    rows.append('a: &a [x,x]\n' + '\n'.join(f'{c}: &{c} [*a,*a,*a,*a]' for c in 'bcd'))
  return '\n'.join(rows).encode(), rows[i][:60]


@_changed
def table(data, rng):
  """Changes a cell."""
  rows = list(csv.reader(io.StringIO(data.decode())))
  row = rng.choice(rows)
  cells = (
    '',
    LONG,
    ESCAPES,
    '../../../etc/passwd',
    '/dev/zero',
    '\0',
    '"',
    '-1',
    'nan',
    'a;b',
    'é' * 9,
  )
  column = rng.randrange(len(row))
  row[column] = rng.choice(cells)
  if rng.random() < 0.2:
    row.append('more')
  file = io.StringIO()
  csv.writer(file).writerows(rows)
  return file.getvalue().encode(), f'{row[column]!r:.40}'


@_changed
def lines(data, rng):
  """Changes a line of words or numbers."""
  rows = data.decode(errors='replace').splitlines() or ['']
  i = rng.randrange(len(rows))
  words = rows[i].split() or ['']
  new = (
    '',
    'x',
    '-1',
    'nan',
    'inf',
    '1e300',
    '9' * 5000,
    ESCAPES,
    LONG,
    'null',
    '[]',
    '{',
    '\0',
    '2.5',
  )
  words[rng.randrange(len(words))] = rng.choice(new)
  rows[i] = ' '.join(words)
  return '\n'.join(rows).encode(), f'{i}: {rows[i]!r:.40}'


@functools.cache
def _bomb(head):
  """Returns (deflated, checksum) of `head` and zeros, `_BOMB` bytes."""
  packer = zlib.compressobj(9, zlib.DEFLATED, -15)
  first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
  zeros = bytes(2**24)
  piece = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)  # which stands for itself
  count, rest = divmod(_BOMB - len(head), len(zeros))
  last = packer.compress(bytes(rest)) + packer.flush()
  crc = zlib.crc32(head)
  for _ in range(count):
    crc = zlib.crc32(zeros, crc)
  return first + piece * count + last, zlib.crc32(bytes(rest), crc)


def zip_member(file, rng, marker):
  """Changes a member of an archive: its array, pickle, size, name, or what it inflates to."""
  with zipfile.ZipFile(file) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  name = rng.choice(list(members))
  pickles = [n for n in members if n.endswith('.pkl')]
  what = rng.choice(
    ('bomb', 'new bomb', 'pickle', 'pickle', 'shape', 'drop', 'bits', 'name', 'twice')
  )
  bomb = None
  if what == 'bomb':
    bomb = name
  elif what == 'new bomb':
    bomb = name = f'{name.partition("/")[0]}/data/999' if pickles else 'surprise.npy'
  elif what == 'pickle':
    name = pickles[0] if pickles else name
    members[name] = _pickle(marker, rng) if pickles else object_array(marker)
  elif what == 'shape':
    shape = rng.choice(('(1000000000000,)', '(0,)', '(-1,)', '()', '(2,' * 9, '(9999999,9999999)'))
    members[name] = _npy_header(shape)
  elif what == 'drop':
    del members[name]
  elif what == 'bits':
    members[name] = bits.__wrapped__(members[name], rng)[0]
  elif what == 'name':
    members[rng.choice((ESCAPES, LONG[:60_000], '../../x', '', 'a' * 300))] = members.pop(name)
  with zipfile.ZipFile(
    file, 'w', rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
  ) as archive:
    for member, data in members.items():
      if member != bomb:
        archive.writestr(member, data)
    if what == 'twice':
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # zipfile's of the second
        archive.writestr(name, b'again')
  if bomb:
    _append_bomb(file, bomb, b'' if pickles else _npy_header(f'({_BOMB // 4},)'))
  return f'{what} of {name!r:.40}'


def _append_bomb(file, name, head):
  """Adds a member that inflates to far more than it takes; its size and checksum are right."""
  packed, crc = _bomb(head)
  with zipfile.ZipFile(file, 'a', zipfile.ZIP_STORED) as archive:
    archive.writestr(name, packed)
  # zipfile would deflate it once more, so that it is stored, and then told to be deflated.
  data, encoded = bytearray(file.read_bytes()), name.encode()
  for signature, method, checksum, rest in ((b'PK\3\4', 8, 14, 30), (b'PK\1\2', 10, 16, 46)):
    at = -1
    while (at := data.find(signature, at + 1)) >= 0:
      if data[at + rest : at + rest + len(encoded)] == encoded:
        struct.pack_into('<H', data, at + method, zipfile.ZIP_DEFLATED)
        struct.pack_into('<I', data, at + checksum, crc)
        struct.pack_into('<I', data, at + checksum + 8, _BOMB)
  file.write_bytes(data)


def _npy_header(shape):
  text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + '\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text.encode()


def object_array(marker):
  """Returns a .npy file with a pickle that would make a folder."""
  file = io.BytesIO()
  array = np.empty(1, object)
  array[0] = _Marker(marker)
  np.save(file, array, allow_pickle=True)
  return file.getvalue()


def _pickle(marker, rng):
  content = _Marker(marker) if rng.random() < 0.7 else {'weight': [_Marker(marker)]}
  return pickle.dumps(content, protocol=2)


def pickled(file, rng, marker):
  """Replaces the file by a pickle that would make a folder."""
  file.write_bytes(_pickle(marker, rng))
  return 'a call'


@_changed
def png_size(data, rng):
  """Changes an image's size, with the right checksum."""
  if data[12:16] != b'IHDR':
    return data, 'not at all'
  sizes = (1, 0, 13_000, 60_000, 170_000_000, 2**31 - 1)
  size = struct.pack('>II', rng.choice(sizes), rng.choice(sizes))
  head = data[12:16] + size + data[24:29]
  return data[:12] + head + struct.pack('>I', zlib.crc32(head)) + data[33:], size.hex()


@_changed
def image_size(data, rng):
  """Overwrites numbers where some formats have an image's size."""
  at = {b'GI': (6, 8), b'BM': (18, 22), b'\xff\xd8': (), b'RI': (24, 26, 27)}.get(data[:2], ())
  if data[:2] == b'\xff\xd8':
    frames = [i for m in (b'\xff\xc0', b'\xff\xc2') if (i := data.find(m)) >= 0]
    at = tuple(frame + place for frame in frames for place in (5, 7))
  if not at:
    return data, 'not at all'
  at, piece = rng.choice(at), rng.choice((b'\xff\xff', b'\0\0', b'\x7f\xff', b'\x01\0'))
  return data[:at] + piece + data[at + 2 :], f'{piece.hex()} at {at}'


def replace(path, rng):
  """Puts something else in the place of a file or folder."""
  what = rng.choice(
    ('folder', 'pipe', 'device', 'loop', 'nothing', 'dangling', 'pipe link', 'name')
  )
  if what == 'name':
    path.rename(path.with_name(f'{ESCAPES.replace("/", "")}{path.suffix}'))
    return 'renamed'
  aside = path.with_name(f'{path.name}.aside')
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  if what == 'folder':
    path.mkdir()
  elif what == 'pipe':
    os.mkfifo(path)
  elif what == 'pipe link':
    os.mkfifo(aside)
    path.symlink_to(aside)
  elif what == 'device':
    path.symlink_to('/dev/zero')
  elif what == 'loop':
    path.symlink_to(path)
  elif what == 'dangling':
    path.symlink_to(aside)
  return f'replaced by: {what}'
