"""What an experiment needs is known before memory is taken for it."""

import contextlib
import re
import types

import jax
import pytest
from conftest import tiny_config

from vit_jax import host_memory
from vit_jax.errors import UsageError
from vit_jax.train import loop, shard
from vit_jax.train.experiment import Experiment


def test_a_state_or_a_batch_that_memory_cannot_hold_is_refused(monkeypatch):
  experiment = Experiment(tiny_config())
  state = shard.device_bytes(experiment.state_shapes)
  for present, rows in ((state, 64), (state + 2**20, 2**20)):
    monkeypatch.setattr(host_memory, 'total', lambda present=present: present)
    experiment.config.eval_batch_size = rows
    with pytest.raises(UsageError) as error:
      experiment.check_memory()
    needed, found = (int(n.replace(',', '')) for n in re.findall(r'[\d,]{4,}', str(error.value)))
    assert found == present
    assert 0 <= needed - state - rows * 8 * 8 <= 64 * 12  # labels, weights, slots


def test_only_what_makes_the_state_refuses_it(monkeypatch, tmp_path):
  """What describes an experiment tells of machines that others have."""
  monkeypatch.setattr(host_memory, 'total', lambda: 99)
  Experiment(tiny_config())
  for start in (loop.train_and_evaluate, loop.evaluate):
    with pytest.raises(UsageError, match=r'bytes of each device, which has 99$'):
      start(tiny_config(), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_host_s_memory_is_none_of_other_devices(monkeypatch):
  experiment = Experiment(tiny_config())
  monkeypatch.setattr(host_memory, 'total', lambda: 99)
  for platform in ('cpu', 'gpu'):
    device = types.SimpleNamespace(platform=platform, memory_stats=lambda: None)
    monkeypatch.setattr(jax, 'local_devices', lambda device=device: [device])
    with pytest.raises(UsageError) if platform == 'cpu' else contextlib.nullcontext():
      experiment.check_memory()


def test_the_memory_of_this_machine_holds_this_process():
  assert host_memory.total() > host_memory.peak_mib() * 2**20
