"""Checkpoints: what is kept, and what a damaged one does."""

import os
import shutil

import flax
import jax
import numpy as np
import pytest
from conftest import ROOT

from vit_jax.errors import UsageError
from vit_jax.run import checkpoints
from vit_jax.run.checkpoints import Checkpointer, read_variables
from vit_jax.train.state import TrainState


def make_state(step):
  rng = np.random.default_rng(step)
  params = {'a': {'kernel': rng.normal(size=(64, 64)).astype(np.float32)}, 'b': np.float32(step)}
  return TrainState(step=np.int32(step), params=params, opt_state=(np.ones(3), None))


def assert_same(state, expected):
  jax.tree.map(np.testing.assert_array_equal, state, expected)


def save(directory, best_steps):
  """Saves step 1, 2, ..., of which the best is known each time to be the one of `best_steps`."""
  checkpointer = Checkpointer(directory)
  for step, best in enumerate(best_steps, 1):
    checkpointer.save(make_state(step), {'note': step, 'best': best and {'step': best}})
  checkpointer.close()


def steps(directory):
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp('run') / 'checkpoints'
  save(directory, [1, 2])
  return directory


def test_restores_the_newest_bit_for_bit(saved):
  checkpointer = Checkpointer(saved)
  state, meta = checkpointer.restore(make_state(0))
  checkpointer.close()
  assert_same(state, make_state(2))
  assert meta == {'note': 2, 'best': {'step': 2}}


@pytest.mark.parametrize(
  ('best_steps', 'kept'),
  [
    ([1, 2, 2, 2, 2, 2], [2, 5, 6]),
    ([1, 2, 3, 4, 5], [4, 5]),
    ([None, None, None, None], [3, 4]),
  ],
)
def test_keeps_the_last_two_and_the_best(tmp_path, best_steps, kept):
  save(tmp_path / 'c', best_steps)
  assert steps(tmp_path / 'c') == kept


def test_the_best_is_kept_over_a_restart(tmp_path):
  save(tmp_path / 'c', [1, 1, 1])
  checkpointer = Checkpointer(tmp_path / 'c')
  _, meta = checkpointer.restore(make_state(0))
  for step in (4, 5):
    checkpointer.save(make_state(step), meta)
  checkpointer.close()
  assert steps(tmp_path / 'c') == [1, 4, 5]


def test_an_empty_directory_holds_nothing(tmp_path):
  checkpointer = Checkpointer(tmp_path / 'c')
  assert checkpointer.restore(make_state(0)) is None
  assert checkpointer.latest_step() is None
  checkpointer.close()


def data_files(directory, step):
  files = [p for p in (directory / str(step)).rglob('*') if p.is_file()]
  return sorted(p.relative_to(directory) for p in files)


def damage(path, how):
  if how == 'delete':
    path.unlink()
  elif how == 'truncate':
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  elif how == 'empty':
    path.write_bytes(b'')
  else:
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 4, len(content), 97):
      content[i] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize('how', ['truncate', 'empty', 'delete', 'flip'])
def test_a_damaged_file_never_gives_a_wrong_state(saved, tmp_path, capsys, how):
  """Whichever file of the newest is damaged: it is read right, or the one before it is."""
  fallbacks = 0
  for name in data_files(saved, 2):
    copy = tmp_path / how / str(name).replace('/', '_')
    shutil.copytree(saved, copy)
    damage(copy / name, how)
    checkpointer = Checkpointer(copy)
    state, meta = checkpointer.restore(make_state(0))
    checkpointer.close()
    out = capsys.readouterr()
    assert out.err == ''
    assert_same(state, make_state(meta['note']))
    if meta['note'] == 1:
      fallbacks += 1
      assert 'damaged checkpoint' in out.out
      assert out.out.count('\n') == 1
      assert 'falling back to that of step 1' in out.out
      assert (copy / 'damaged_2').is_dir(), 'nothing is lost'
  assert fallbacks >= 2


def test_parameters_alone_are_those_of_the_best(saved):
  assert_same(read_variables(saved), {'params': make_state(2).params})


def test_parameters_alone_are_those_of_an_older_best(tmp_path):
  save(tmp_path / 'c', [1, 1, 1])
  assert_same(read_variables(tmp_path / 'c'), {'params': make_state(1).params})


def test_parameters_alone_are_the_moving_average_where_there_is_one(tmp_path):
  checkpointer = Checkpointer(tmp_path / 'c')
  state = make_state(1)
  checkpointer.save(state.replace(ema_params=make_state(7).params), {'best': None})
  checkpointer.close()
  assert_same(read_variables(tmp_path / 'c'), {'params': make_state(7).params})


def test_a_model_without_a_state_is_saved_as_before_there_was_one(saved, tmp_path):
  """So that runs of either time go on."""
  (tmp_path / 'c').mkdir()
  checkpointer = Checkpointer(tmp_path / 'c')
  checkpointer.save(make_state(1).replace(model_state={'s': {'m': np.ones(2)}}), {'best': None})
  checkpointer.close()
  names = [(d / 'state' / '_METADATA').read_text() for d in (saved / '1', tmp_path / 'c' / '1')]
  assert ['model_state' in text for text in names] == [False, True]


@pytest.mark.parametrize('how', ['delete', 'flip'])
def test_a_damaged_file_never_gives_wrong_parameters(saved, tmp_path, capsys, how):
  fallbacks = 0
  for name in data_files(saved, 2):
    copy = tmp_path / how / str(name).replace('/', '_')
    shutil.copytree(saved, copy)
    damage(copy / name, how)
    variables = read_variables(copy)
    out = capsys.readouterr()
    assert out.err == ''
    fell_back = 'falling back to that of step 1' in out.out
    assert_same(variables, {'params': make_state(1 if fell_back else 2).params})
    fallbacks += fell_back
  assert fallbacks >= 2


def read_both(copy):
  """Returns the state and meta that a run goes on from, and the variables that others read."""
  checkpointer = Checkpointer(copy, read_only=True)
  state, meta = checkpointer.restore(make_state(0))
  checkpointer.close()
  return state, meta, read_variables(copy)


@pytest.mark.parametrize('mask', [1, 4, 32])
def test_any_flipped_bit_of_the_meta_is_seen(saved, mask):
  """Or it changes nothing, as another kind of white space."""
  path = saved / '2' / 'meta' / 'metadata'
  content, expected = path.read_bytes(), checkpoints._read_meta(saved / '2')
  seen = 0
  try:
    for i in range(len(content)):
      path.write_bytes(content[:i] + bytes([content[i] ^ mask]) + content[i + 1 :])
      try:
        assert checkpoints._read_meta(saved / '2') == expected, (i, mask)
      except (ValueError, LookupError, TypeError):
        seen += 1
  finally:
    path.write_bytes(content)
  assert seen > 0.9 * len(content)


@pytest.mark.skipif(not checkpoints._LIGHT, reason='this release of Orbax reads all files first')
def test_a_damaged_file_of_orbax_s_own_costs_no_other_checkpoint(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'c')
  path = tmp_path / 'c' / '2' / '_CHECKPOINT_METADATA'
  path.write_text(
    path.read_text().replace('"init_timestamp_nsecs": 1', '"init_timestamp_nsecs": .')
  )
  state, _, variables = read_both(tmp_path / 'c')
  assert_same(variables, {'params': make_state(int(state.step)).params})


def test_a_pipe_is_not_waited_for(saved, tmp_path, capsys):
  mkfifo = getattr(os, 'mkfifo', None) or pytest.skip('needs pipes')
  shutil.copytree(saved, tmp_path / 'c')
  for name in ('meta/metadata', 'state/manifest.ocdbt'):
    path = tmp_path / 'c' / '2' / name
    content = path.read_bytes()
    path.unlink()
    mkfifo(path)
    _, meta, variables = read_both(tmp_path / 'c')
    assert meta['note'] == 1
    assert_same(variables, {'params': make_state(1).params})
    assert f'{path.name} is not a regular file' in capsys.readouterr().out
    path.unlink()
    path.write_bytes(content)


def test_metas_of_earlier_versions_have_no_checksum_and_all_their_fields(tmp_path):
  former = ROOT / 'tests' / 'kept_runs' / 'run' / 'checkpoints' / '10'
  assert checkpoints._read_meta(former)['best']['step'] == 10
  path = tmp_path / 'meta' / 'metadata'
  path.parent.mkdir()
  text = (former / 'meta' / 'metadata').read_text()
  for name in ('window', 'value', 'crc32'):
    path.write_text(text.replace(f'"{name}"', '"another"', 1))
    with pytest.raises(ValueError, match=f'^meta has no {name}$'):
      checkpoints._read_meta(tmp_path)


def test_a_full_disk_is_one_error_and_nothing_printed(saved, tmp_path, capfd):
  resource = pytest.importorskip('resource')
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  checkpointer = Checkpointer(tmp_path / 'c')
  checkpointer.save(make_state(1), {'best': None})
  checkpointer.wait()
  params = {f'{i}': np.random.default_rng(i).normal(size=3000) for i in range(40)}
  resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
  try:
    with pytest.raises(ValueError, match='File too large'):
      save_and_wait(checkpointer, make_state(2).replace(params=params))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  checkpointer.close()
  assert capfd.readouterr().err == ''
  checkpointer = Checkpointer(tmp_path / 'c')
  state, _ = checkpointer.restore(make_state(0))
  checkpointer.close()
  assert_same(state, make_state(1))


def save_and_wait(checkpointer, state):
  checkpointer.save(state, {'best': None})
  checkpointer.wait()


@pytest.mark.parametrize('part', range(8))
def test_any_flipped_byte_gives_what_was_saved_or_the_checkpoint_before(saved, tmp_path, part):
  """Of every file; of large ones a sample."""
  rng = np.random.default_rng(part)
  for name in data_files(saved, 2)[part::8]:
    content = (saved / name).read_bytes()
    for i in rng.permutation(len(content))[:50]:
      flipped = content[:i] + bytes([content[i] ^ rng.integers(1, 256)]) + content[i + 1 :]
      copy = tmp_path / 'copy'
      shutil.copytree(saved, copy)
      (copy / name).write_bytes(flipped)
      state, meta, variables = read_both(copy)
      case = name, i, flipped[i]
      assert meta['note'] == state.step, case
      assert meta['best'] == {'step': meta['note']}, case
      assert_same(state, make_state(meta['note']))
      found = variables['params']
      assert found.keys() == {'a', 'b'}, case
      expected = make_state(int(found['b'])).params
      assert int(found['b']) in (1, 2), case
      assert_same(found, expected)
      assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, expected)
      shutil.rmtree(copy)


def test_no_parameters_without_a_checkpoint(tmp_path):
  with pytest.raises(UsageError, match=r'c: no checkpoint yet'):
    read_variables(tmp_path / 'c')


def test_a_step_whose_checkpoint_was_damaged_can_be_saved_again(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'c')
  damage(tmp_path / 'c' / '2' / 'state' / 'manifest.ocdbt', 'truncate')
  checkpointer = Checkpointer(tmp_path / 'c')
  checkpointer.restore(make_state(0))
  checkpointer.save(make_state(2), {'note': 2, 'best': None})
  checkpointer.wait()
  state, _ = checkpointer.restore(make_state(0))
  checkpointer.close()
  assert_same(state, make_state(2))


def test_all_damaged_is_an_error_and_loses_nothing(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'c')
  for step in (1, 2):
    damage(tmp_path / 'c' / str(step) / 'state' / 'manifest.ocdbt', 'empty')
  checkpointer = Checkpointer(tmp_path / 'c')
  for _ in range(2):
    with pytest.raises(UsageError, match='every checkpoint is damaged'):
      checkpointer.restore(make_state(0))
  checkpointer.close()
  assert steps(tmp_path / 'c') == [1, 2]


def test_saving_copies_the_buffers(tmp_path):
  """The next step may overwrite what is being saved."""
  checkpointer = Checkpointer(tmp_path / 'c')
  state = make_state(1)
  checkpointer.save(state, {'best': None})
  flax.traverse_util.flatten_dict(state.params)[('a', 'kernel')][:] = 0
  checkpointer.wait()
  restored, _ = checkpointer.restore(make_state(0))
  checkpointer.close()
  assert_same(restored, make_state(1))
