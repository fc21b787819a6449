"""What an experiment needs is known before memory is taken for it."""

import re

import pytest
from conftest import tiny_config

from vit_jax import host_memory
from vit_jax.errors import UsageError
from vit_jax.train import shard
from vit_jax.train.experiment import Experiment


def test_a_state_or_a_batch_that_memory_cannot_hold_is_refused(monkeypatch):
  experiment = Experiment(tiny_config())
  state = shard.device_bytes(experiment.state_shapes)
  for present, rows in ((state, 64), (state + 2**20, 2**20)):
    monkeypatch.setattr(host_memory, 'total', lambda present=present: present)
    experiment.config.eval_batch_size = rows
    with pytest.raises(UsageError) as error:
      experiment._check_memory()
    needed, found = (int(n.replace(',', '')) for n in re.findall(r'[\d,]{4,}', str(error.value)))
    assert found == present
    assert 0 <= needed - state - rows * 8 * 8 <= 64 * 12  # labels, weights, slots


def test_the_memory_of_this_machine_holds_this_process():
  assert host_memory.total() > host_memory.peak_mib() * 2**20
