"""Learning-rate schedules against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from vit_jax.errors import UsageError
from vit_jax.train.schedules import SCHEDULES, make_schedule

PEAK, NUM_STEPS, TIMESCALE = 0.3, 50, 10
WARMUPS = (0, 1, 7, 20)  # the last is longer than rsqrt's timescale


def build(name, warmup=0, peak=PEAK, timescale=TIMESCALE, num_steps=NUM_STEPS, end=0.0):
  config = get_config('vit')
  config.schedule.update(name=name, warmup_steps=warmup, timescale=timescale, end=end)
  config.optimizer.learning_rate = peak
  return make_schedule(config, num_steps)


def expected(name, step, warmup):
  if step < warmup:
    return PEAK * step / warmup
  after, length = step - warmup, NUM_STEPS - warmup
  done = min(after / length, 1.0)
  return {
    'constant': PEAK,
    'linear': PEAK * (1 - done),
    'cosine': PEAK * (1 + np.cos(np.pi * done)) / 2,
    'rsqrt': PEAK / np.sqrt(1 + after / TIMESCALE),
  }[name]


@pytest.mark.parametrize('warmup', WARMUPS)
@pytest.mark.parametrize('name', SCHEDULES)
def test_every_step_follows_the_formula(name, warmup):
  schedule = build(name, warmup)
  steps = np.arange(NUM_STEPS + 5)
  values = [expected(name, step, warmup) for step in steps]
  compiled = jax.jit(jax.vmap(schedule))(jnp.asarray(steps))
  np.testing.assert_allclose(compiled, values, rtol=1e-5, atol=1e-7)
  # Python integers take another path through JAX's promotion than arrays do.
  some = [0, max(warmup - TIMESCALE, 0), warmup, NUM_STEPS // 2, NUM_STEPS]
  given_ints = [schedule(int(step)) for step in some]
  np.testing.assert_allclose(given_ints, [values[step] for step in some], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('name', SCHEDULES)
def test_warmup_starts_at_zero_and_ends_at_the_peak(name):
  schedule = build(name, warmup=5)
  assert schedule(0) == 0
  np.testing.assert_allclose(schedule(5), PEAK, rtol=1e-6)


@pytest.mark.parametrize('name', SCHEDULES)
def test_without_warmup_the_first_step_has_the_peak(name):
  np.testing.assert_allclose(build(name)(0), PEAK, rtol=1e-6)


@pytest.mark.parametrize('warmup', WARMUPS)
@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_decay_reaches_zero_at_the_end_and_stays(name, warmup):
  schedule = build(name, warmup)
  for step in (NUM_STEPS, NUM_STEPS + 1, 10 * NUM_STEPS):
    np.testing.assert_allclose(schedule(step), 0, atol=1e-7)
  assert schedule(NUM_STEPS - 1) > 0


@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_decay_reaches_the_end_that_is_set(name):
  schedule = build(name, warmup=7, end=0.1)
  middle = 0.1 + (PEAK - 0.1) / 2 if name == 'linear' else (0.1 + PEAK) / 2
  np.testing.assert_allclose(schedule(7 + (NUM_STEPS - 7) / 2), middle, rtol=1e-6)
  for step in (NUM_STEPS, 10 * NUM_STEPS):
    np.testing.assert_allclose(schedule(step), 0.1, rtol=1e-6)


def test_known_values():
  np.testing.assert_allclose(build('cosine')(NUM_STEPS // 2), PEAK / 2, rtol=1e-6)
  np.testing.assert_allclose(build('linear')(NUM_STEPS // 5), 0.8 * PEAK, rtol=1e-6)
  np.testing.assert_allclose(build('rsqrt')(3 * TIMESCALE), PEAK / 2, rtol=1e-6)


@pytest.mark.parametrize('name', SCHEDULES)
def test_no_intermediate_value_is_nan(name):
  with jax.debug_nans(True):
    schedule = build(name, warmup=2 * TIMESCALE)
    for step in (0, TIMESCALE // 2, TIMESCALE, 2 * TIMESCALE):
      assert np.isfinite(schedule(jnp.int32(step)))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'cosin'}, "config.schedule.name: 'cosin' .* did you mean 'cosine'"),
    ({'warmup': NUM_STEPS}, 'config.schedule.warmup_steps: 50 is not between 0 and .* = 49'),
    ({'end': 0.5}, 'config.schedule.end: 0.5 is not between 0 and the peak, 0.3'),
    ({'name': 'rsqrt', 'end': 0.1}, 'config.schedule.end: 0.1, but the schedule rsqrt has no end'),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(UsageError, match=f'^{message}'):
    build(**{'name': 'cosine', **options})


def test_timescale_matters_to_rsqrt_alone():
  assert build('cosine', timescale=0)(0) == pytest.approx(PEAK)


def test_longest_warmup_ends_at_the_last_step():
  np.testing.assert_allclose(build('cosine', NUM_STEPS - 1)(NUM_STEPS - 1), PEAK, rtol=1e-6)


def hyperbola(peak, num_steps):
  return lambda step: peak / (1 + step / num_steps)


def number(peak, num_steps):
  return peak


@pytest.mark.parametrize('warmup', [0, 7])
def test_one_s_own_schedule_comes_after_the_warmup(warmup):
  schedule = build(f'{__name__}:hyperbola', warmup)
  steps = np.arange(NUM_STEPS)
  after = PEAK / (1 + (steps - warmup) / (NUM_STEPS - warmup))
  values = np.where(steps < warmup, PEAK * steps / max(warmup, 1), after)
  np.testing.assert_allclose([schedule(step) for step in steps], values, rtol=1e-5)


def test_mistakes_in_one_s_own_schedule():
  with pytest.raises(
    UsageError, match=r'^config\.schedule\.name: .* returned 0\.3, not a function'
  ):
    build(f'{__name__}:number')
  with pytest.raises(UsageError, match=r"^config\.schedule\.name: .* has no 'hyperbole'; did you"):
    build(f'{__name__}:hyperbole')
  with pytest.raises(UsageError, match=r'^config\.schedule\.end: .* has no end'):
    build(f'{__name__}:hyperbola', end=0.1)
