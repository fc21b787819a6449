"""The command that compares kernels of attention with the usual products."""

import re

import jax.numpy as jnp

from vit_jax.models.layers import attention, attention_times, fused_attention


def test_a_device_without_kernels_is_told(capsys):
  attention_times.main()
  lines = capsys.readouterr().out.splitlines()[1:]
  assert len(lines) == len(attention_times.SHAPES)
  assert all('the usual products alone' in line for line in lines)


def test_ratios_forward_and_of_gradients(capsys, monkeypatch):
  def kernel(query, key, value):  # three times the work
    return sum(attention.attend(query + i, key, value) for i in range(3)).astype(jnp.bfloat16)

  monkeypatch.setattr(fused_attention, 'implementations', lambda *_: {'cpu': kernel})
  monkeypatch.setattr(attention_times, 'SHAPES', {'a model': (2, 64, 1, 8)})
  attention_times.main(seconds=0.01)
  lines = capsys.readouterr().out.splitlines()[1:]
  assert [line.split(':')[0] for line in lines] == ['a model, forward', 'a model, gradient']
  for line in lines:
    ratio, low, high, usual, ours = map(float, re.findall(r'\d+\.\d+', line))
    assert low <= ratio <= high
    assert ratio < 1
    assert usual < ours
