"""The compiled step: gradients against autodiff of the whole batch, whatever way it is split."""

import ast
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, virtual_devices

from vit_jax import tasks
from vit_jax.train import step as steps
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import put_on_devices
from vit_jax.train.optimizers import make_optimizer
from vit_jax.train.partition import split
from vit_jax.train.state import create_state

BATCH = 8


@functools.cache
def experiment():
  from configs import digits

  config = digits.get_config()
  config.model.update(hidden_size=16, mlp_dim=16, num_layers=1, num_heads=2)
  config.model.patches.size = (4, 4)
  config.model.dropout_rate = 0.0
  config.optimizer.update(name='sgd', weight_decay=0.0)
  config.augment.shift = 0
  config.update(batch_size=BATCH, num_steps=3)
  config.schedule.warmup_steps = 0
  return Experiment(config)


def make_batch(weight=None):
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (1, BATCH, 8, 8, 1), dtype=np.uint8),
    'label': rng.integers(0, 10, (1, BATCH), dtype=np.int32),
    'weight': np.ones((1, BATCH), np.float32) if weight is None else weight,
    'slot': np.arange(BATCH, dtype=np.int32)[None],
  }


@functools.cache
def noisy_params():
  """Initial ones, and noise: a head of zeros, or the same for all classes, hides the gradients."""
  rng = np.random.default_rng(0)
  params = experiment().initial_state().params
  return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(x.dtype), params)


def sgd_step(batch, first_step=0, **changes):
  """Returns (parameters before, after, metrics) of one step of plain SGD with rate 1."""
  config = experiment().config.copy_and_resolve_references()
  config.update(changes)
  model, task = experiment().model, tasks.build(config.task, config.loss, 10)
  params = noisy_params()
  schedule = optax.constant_schedule(1.0)
  tx = make_optimizer(config, model, params, schedule)
  state = create_state(config, params, tx).replace(step=jnp.int32(first_step))
  train_step = steps.make_train_step(config, model, task, tx, schedule, 10)
  mapped = steps.map_over_devices(lambda s, b, _: train_step(s, b))
  new, metrics = mapped(put_on_devices(state), batch, ())
  return params, new, jax.device_get(metrics)


def reference_gradient(params, batch):
  """Autodiff of the weighted mean cross-entropy, written out."""
  images = jnp.asarray((batch['image'][0] / 255.0 - 0.5) / 0.5, jnp.float32)
  labels, weight = batch['label'][0], batch['weight'][0]

  def loss(params):
    logits = experiment().model.apply({'params': params}, images, train=False)
    losses = -jax.nn.log_softmax(logits)[np.arange(BATCH), labels]
    return (losses * weight).sum() / weight.sum()

  return jax.value_and_grad(loss)(params)


def assert_follows_the_gradient(params, new, metrics, batch):
  """Of the reference's loss of `batch`, which the metrics have, too; returns its gradient."""
  loss, grads = reference_gradient(params, batch)
  jax.tree.map(
    lambda p, q, g: np.testing.assert_allclose(p - q, g, rtol=2e-4, atol=2e-6),
    params,
    jax.device_get(new.params),
    grads,
  )
  assert metrics['loss'][0] / metrics['loss'][1] == pytest.approx(float(loss), rel=1e-5)
  return grads


@pytest.mark.parametrize('parts', [1, 2, 4])
@pytest.mark.parametrize('weight', [None, [[1, 1, 0, 1, 0, 0, 1, 1]]])
def test_gradient_is_that_of_the_weighted_mean_loss(parts, weight):
  """Also where micro-batches hold different numbers of real examples."""
  batch = make_batch(weight and np.float32(weight))
  params, new, metrics = sgd_step(batch, grad_accum_steps=parts)
  grads = assert_follows_the_gradient(params, new, metrics, batch)
  assert metrics['loss'][1] == batch['weight'].sum()
  norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
  assert metrics['grad_norm'][0] == pytest.approx(norm, rel=1e-4)


def test_weights_of_classes_are_divided_by_those_of_the_whole_batch():
  batch, of_classes = make_batch(), np.linspace(0.1, 4, 10)
  options = {'class_weights': tuple(of_classes.tolist())}
  params, new, metrics = sgd_step(batch, grad_accum_steps=4, loss=options)
  weighted = batch | {'weight': np.float32(of_classes)[batch['label']]}
  assert_follows_the_gradient(params, new, metrics, weighted)


@pytest.mark.parametrize('parts', [1, 2])
def test_frozen_parameters_count_towards_no_norm(parts):
  """Neither in the metric nor in clipping, here to half of the trainable gradient's norm."""
  freeze = ('embedding', 'Transformer/encoderblock_0')
  params = noisy_params()
  grads, still = split(freeze, reference_gradient(params, make_batch())[1])
  norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
  assert optax.tree.norm(still) > norm / 2  # enough to be seen in what follows
  params, new, metrics = sgd_step(
    make_batch(), freeze=freeze, grad_clip_norm=float(norm / 2), grad_accum_steps=parts
  )
  assert metrics['grad_norm'][0] == pytest.approx(norm, rel=1e-4)
  (before, still_before), (after, still_after) = (
    split(freeze, jax.device_get(p)) for p in (params, new.params)
  )
  jax.tree.map(
    lambda p, q, g: np.testing.assert_allclose(p - q, g / 2, rtol=2e-4, atol=2e-6),
    before,
    after,
    grads,
  )
  jax.tree.map(np.testing.assert_array_equal, still_before, still_after)


def test_moving_average():
  params, new, _ = sgd_step(make_batch(), ema_decay=0.75)
  jax.tree.map(
    lambda p, q, ema: np.testing.assert_allclose(ema, 0.75 * p + 0.25 * q, rtol=1e-5, atol=1e-7),
    params,
    jax.device_get(new.params),
    jax.device_get(new.ema_params),
  )


def test_the_decay_of_the_moving_average_follows_a_cosine():
  """A quarter of the run, at step 1 of 4, from 0.5 towards 1; at step 0 it is 0.5."""
  for step, decay in ((0, 0.5), (1, 1 - 0.5 * (1 + np.cos(np.pi / 4)) / 2)):
    changes = {'ema_decay': 0.5, 'ema_decay_end': 1.0, 'num_steps': 4}
    params, new, _ = sgd_step(make_batch(), first_step=step, **changes)
    jax.tree.map(
      lambda p, q, ema, d=decay: np.testing.assert_allclose(ema, d * p + (1 - d) * q, rtol=2e-5),
      params,
      jax.device_get(new.params),
      jax.device_get(new.ema_params),
    )


def test_steps_give_the_same_bits_however_they_are_divided():
  """5 steps in one dispatch, and in dispatches of 2, 1 and 2."""
  e = experiment()
  feed = e.train_feed()
  rows = feed._loader.indices(0, 5)

  def run(divided):
    state, step = put_on_devices(e.initial_state()), 0
    for n in divided:
      feed._num_steps, feed._last = n, None
      state, _, done = feed(state, step, n)
      assert done == n
      step += n
    return jax.device_get(state)

  whole = run([5])
  assert rows['index'].shape == (1, 5, BATCH)
  jax.tree.map(np.testing.assert_array_equal, whole, run([2, 1, 2]))


COUNT = """
import sys
from configs import digits
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import put_on_devices
for case in sys.argv[1:]:
  config = digits.get_config()
  config.model.update(hidden_size=16, mlp_dim=16, num_layers=1, num_heads=2)
  name, test_split, resident = case.split()
  config.data.update(name=name, test_split=test_split, train_split='test[:100]', resident=resident)
  config.augment.shift = 0
  experiment = Experiment(config)
  variables = put_on_devices(experiment.initial_state().eval_variables)
  metrics, _ = experiment.eval_feed('test')(variables)
  print({name: float(count) for name, (_, count) in metrics.items()})
"""


@pytest.mark.parametrize('devices', [1, 8])
def test_an_evaluation_counts_every_example_once(devices, tfds_dir):
  sizes = {'digits all': 1797, 'mnist test[:1003]': 1003}
  cases = {f'{split} {resident}': sizes[split] for split in sizes for resident in ('yes', 'no')}
  env = virtual_devices(devices) | {'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-c', COUNT, *cases]
  out = subprocess.run(
    command, env=env, cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout
  counted = dict(zip(cases, map(ast.literal_eval, out.splitlines()), strict=True))
  metrics = ('accuracy', 'loss', 'top5_accuracy')
  assert counted == {case: dict.fromkeys(metrics, float(size)) for case, size in cases.items()}
