"""Files that aren't what they seem: refused at once, in a line that names them."""

import os

import pytest

from vit_jax import regular_files
from vit_jax.errors import UsageError


def test_pipes_and_devices_and_links_to_them_are_not_opened(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'link').symlink_to(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', tmp_path / 'link', '/dev/zero'):
    with pytest.raises(OSError, match='not a regular file'):
      regular_files.open_regular(path)
  with pytest.raises(IsADirectoryError):
    regular_files.open_regular(tmp_path)


def test_no_more_than_allowed_is_read(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'12345')
  assert regular_files.read_bytes(path, 5) == b'12345'
  with pytest.raises(OSError, match='5 bytes, more than the 4'):
    regular_files.read_bytes(path, 4)


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='a file without a size')
def test_files_that_do_not_tell_their_size_are_read():
  assert b'VmPeak' in regular_files.read_bytes('/proc/self/status', 2**20)
  with pytest.raises(OSError, match='more than the 10'):
    regular_files.read_bytes('/proc/self/status', 10)


@pytest.mark.parametrize(
  ('content', 'problem'),
  [
    (b'{"a": ', 'damaged: not valid JSON'),
    (b'[' * 100_000, 'damaged: not valid JSON'),
    (b'null', 'damaged: holds a NoneType, not an object'),
    (b'{"a": "\xff"}', 'damaged: not UTF-8 at byte 7'),
  ],
)
def test_damaged_json_is_told_by_name(tmp_path, content, problem):
  path = tmp_path / 'config.json'
  path.write_bytes(content)
  with pytest.raises(UsageError) as caught:
    regular_files.read_json(path)
  assert str(caught.value).startswith(f'{path}: {problem}')


def test_whole_json_is_read_and_a_missing_file_named(tmp_path):
  path = tmp_path / 'list.json'
  with pytest.raises(UsageError, match=r'list\.json: cannot be read \(No such file'):
    regular_files.read_json(path)
  path.write_text('[1, 2]')
  assert regular_files.read_json(path, of=list) == [1, 2]


def test_numbers_are_bounded_and_a_byte_order_mark_is_none(tmp_path):
  path = tmp_path / 'config.json'
  path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
  assert regular_files.read_json(path) == {'a': 1}
  path.write_text('{"a": 1' + '0' * 30 + '}')
  with pytest.raises(UsageError, match=r'damaged: not valid JSON .*is too large a number'):
    regular_files.read_json(path)
