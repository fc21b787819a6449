"""What threads may decode into at once, and errors that name files."""

import contextlib
import os
import threading
import time
import weakref

import numpy as np
import pytest
from image_files import pixels, save

from vit_jax.data import decoding
from vit_jax.data.images import EncodedImage


def run_in_threads(function, count):
  """Calls function(0), function(1), ...; fails where they wait for one another without end."""
  threads = [threading.Thread(target=function, args=(i,), daemon=True) for i in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_threads_take_no_more_than_there_is_and_all_get_it():
  at_once, most, lock = 0, 0, threading.Lock()

  def decode(i):
    nonlocal at_once, most
    size = decoding.MEMORY if i == 3 else decoding.MEMORY // 3
    with decoding.turn():
      decoding.take(size)
      with lock:
        at_once += size
        most = max(most, at_once)
      time.sleep(0.01)
      with lock:
        at_once -= size

  run_in_threads(decode, 8)
  assert decoding.MEMORY // 3 < most <= decoding.MEMORY


def test_threads_that_take_twice_do_not_wait_for_one_another():
  both = threading.Barrier(2)

  def decode(i):
    with decoding.turn():
      decoding.take(decoding.MEMORY // 2)
      both.wait(timeout=20)
      decoding.take(decoding.MEMORY // 2)

  run_in_threads(decode, 2)
  with decoding.turn():
    decoding.take(decoding.MEMORY)  # all has been given back


def test_who_has_read_a_file_waits_for_its_pixels(monkeypatch, tmp_path):
  """Those of files that take all are decoded one by one, whatever the files take."""
  monkeypatch.setattr(decoding, '_UNCOUNTED', 0)
  monkeypatch.setattr(decoding, '_UNCOUNTED_FILE', 4)
  monkeypatch.setattr(decoding, 'MEMORY', 20)
  path = tmp_path / 'file'
  path.write_bytes(b'12345')
  read, decoding_now, most = threading.Barrier(4), set(), []

  def decode(i):
    with decoding.turn():
      assert decoding.read_file(path) == b'12345'
      read.wait(timeout=20)
      decoding.take(16 + 10 * (i % 2))  # some, more than there is
      decoding_now.add(i)
      time.sleep(0.01)
      most.append(len(decoding_now))
      decoding_now.remove(i)

  run_in_threads(decode, 4)
  assert most == [1] * 4


def test_a_turn_in_a_turn_is_a_part_of_it():
  def decode():
    with decoding.turn():
      decoding.take(decoding.MEMORY)

  other = threading.Thread(target=decode, daemon=True)
  with decoding.turn():
    decode()
    other.start()
    other.join(timeout=0.05)
    assert other.is_alive()
  other.join(timeout=20)
  assert not other.is_alive()


def test_a_turn_that_fails_gives_back_what_it_took():
  def fail(_):
    with contextlib.suppress(KeyError), decoding.turn():
      decoding.take(decoding.MEMORY)
      raise KeyError

  run_in_threads(fail, 2)


def test_records_are_prepared_in_turns_of_their_own():
  def read(_):
    assert list(decoding.in_turn([1, 2], decode)) == ['1', '2']

  def decode(record):
    decoding.take(decoding.MEMORY)
    return str(record)

  run_in_threads(read, 2)


def test_pixels_do_not_outlive_their_turn(tmp_path):
  image = pixels(1300, 1100)
  paths = [save(tmp_path / name, image) for name in ('a.bmp', 'a.png')]
  files = []

  def decode(path):
    files.append(EncodedImage(path))  # kept, as by whoever reads the records
    return weakref.ref(files[-1].decoded)

  assert [reference() for reference in decoding.in_turn(paths, decode)] == [None, None]
  for file in files:
    np.testing.assert_array_equal(file, image)  # decoded once more


def test_what_is_too_large_is_told_by_its_size():
  decoding.check_size(decoding.MOST, 'a picture')
  with pytest.raises(ValueError, match=f'a picture: takes {decoding.MOST + 1:,} bytes to decode'):
    decoding.check_size(decoding.MOST + 1, 'a picture')


def test_damage_is_told_by_file_but_lack_of_memory_is_no_damage(tmp_path):
  path = tmp_path / 'a.png'

  def fail(error):
    with decoding.reading('frames'), decoding.reading(path):
      raise error

  with pytest.raises(decoding.UnreadableFile) as error:
    fail(SyntaxError('two\nlines'))
  assert str(error.value) == f'{path}: two'
  with pytest.raises(decoding.TooLittleMemory) as error:
    fail(MemoryError())
  assert str(error.value) == f'{path}: {error.value.reason}'
  assert error.value.reason == 'not enough memory to decode it'
  assert decoding.reason(OSError('\n two\n')) == 'two'
  assert decoding.reason(OSError('\n')) == 'OSError'


def test_files_beyond_the_bound_are_not_read(tmp_path):
  path = tmp_path / 'sparse.png'
  path.touch()
  os.truncate(path, 2**30 + 1)
  with pytest.raises(OSError, match='1,073,741,825 bytes, more than'):
    decoding.read_file(path)
