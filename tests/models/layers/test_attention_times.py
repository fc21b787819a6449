"""The command that compares kernels of attention with the usual products."""

import re
import time

import jax.numpy as jnp

from vit_jax.models.layers import attention, attention_times, fused_attention


def test_a_device_without_kernels_is_told(capsys):
  attention_times.main()
  lines = capsys.readouterr().out.splitlines()[1:]
  assert len(lines) == len(attention_times.SHAPES)
  assert all('the usual products alone' in line for line in lines)


def _lines(capsys, monkeypatch):
  """Returns what is printed, without the device, of one shape and a kernel."""

  def kernel(query, key, value):
    return attention.attend(query, key, value).astype(jnp.bfloat16)

  monkeypatch.setattr(fused_attention, 'implementations', lambda *_: {'cpu': kernel})
  monkeypatch.setattr(attention_times, 'SHAPES', {'a model': (2, 64, 1, 8)})
  attention_times.main(seconds=0.01)
  return capsys.readouterr().out.splitlines()[1:]


def test_ratios_forward_and_of_gradients(capsys, monkeypatch):
  lines = _lines(capsys, monkeypatch)
  assert [line.split(':')[0] for line in lines] == ['a model, forward', 'a model, gradient']
  for line in lines:
    ratio, low, high, usual, ours = map(float, re.findall(r'\d+\.\d+', line))
    assert low <= ratio <= high
    assert usual > 0
    assert ours > 0


def test_a_ratio_is_the_time_of_the_usual_products_over_the_kernels(capsys, monkeypatch):
  times = {'usual': [1.0, 2.0, 3.0], 'kernel': [2.0, 1.0, 6.0]}
  monkeypatch.setattr(attention_times, '_times', lambda *_: times)
  for line in _lines(capsys, monkeypatch):
    assert line.endswith(': 0.50 (0.50 to 2.00); usual 2.000 ms, kernel 2.000 ms')


def test_times_are_milliseconds_of_a_call(monkeypatch):
  clock = {'now': 0.0, 'short': 0, 'long': 0}

  def step(name, seconds):
    clock.update({'now': clock['now'] + seconds, name: clock[name] + 1})

  monkeypatch.setattr(time, 'perf_counter', lambda: clock['now'])
  steps = {'short': lambda: step('short', 0.25), 'long': lambda: step('long', 2.0)}
  assert attention_times._times(steps, [], seconds=1.0) == {'short': [250] * 5, 'long': [2000] * 5}
  assert (clock['short'], clock['long']) == (2 + 5 * 4, 2 + 5)  # turns of about a second
