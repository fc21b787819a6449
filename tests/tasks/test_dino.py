"""DINO's head, loss and centre against a statement of them in PyTorch; its views and mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from torch.nn import functional

from vit_jax import models, tasks
from vit_jax.errors import FieldError

BATCH, OUT_DIM = 3, 11
FIELDS = {
  'name': 'vit',
  'hidden_size': 8,
  'mlp_dim': 12,
  'num_layers': 1,
  'num_heads': 2,
  'patches': {'size': (2, 2)},
  'classifier': 'token',
  'dropout_rate': 0.0,
  'attention_dropout_rate': 0.0,
}


def dino(dtype=jnp.float32, **changes):
  """Returns (model, task), small, without a mapped axis."""
  head = {'name': 'dino', 'out_dim': OUT_DIM, 'hidden_size': 10, 'bottleneck_size': 5}
  own = {name: changes.pop(name) for name in ('num_layers', 'norm_last_layer') if name in changes}
  model = models.build(FIELDS | {'head': head | own}, num_classes=0, dtype=dtype)
  options = {'local_views': 2, 'local_size': 4, **changes}
  return model, tasks.build('dino', options, num_classes=0)


def random_variables(model, seed, size=(8, 8)):
  """Normally distributed parameters, and a centre."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: 0.5 * rng.normal(size=s.shape).astype(np.float32), shapes)


def crops(local_views=2, size=(8, 8)):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  batch = {'image/global': draw(BATCH, 2, *size, 3), 'weight': np.float32([1, 1, 1])}
  return batch | ({'image/local': draw(BATCH, local_views, 4, 4, 3)} if local_views else {})


def run(model, task, variables, teacher, batch, step):
  """Returns (sums, model state afterwards, gradients), as a training step computes them."""

  def loss(params):
    state = {'batch_stats': variables['batch_stats']}

    def apply(inputs, **options):
      outputs, new = model.apply(
        {'params': params, **state}, inputs, train=True, mutable=['batch_stats'], **options
      )
      state.update(new)
      return outputs

    def see(inputs):
      fixed = {'params': teacher['params'], 'batch_stats': variables['batch_stats']}
      return model.apply(fixed, inputs, train=False)

    given = batch | task.scheduled(step)
    sums = task.loss(task.outputs(apply, given, None, True, see), given, None, True)
    return sums['loss'][0] / sums['loss'][1], (sums, state)

  found = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
  (_, (sums, state)), gradients = jax.device_get(found)
  return {n: a / b for n, (a, b) in sums.items()}, state, gradients


class Head(torch.nn.Module):
  """The projection, from the paper's appendix C, with this project's parameters as a flat dict."""

  def __init__(self, flat, num_layers, norm_last_layer):
    super().__init__()
    self.num_layers, self.norm_last_layer = num_layers, norm_last_layer
    names = {name for name in flat if not name.startswith('backbone/')}
    self.p = {name: torch.tensor(flat[name], requires_grad=True) for name in names}

  def forward(self, x):
    for layer in range(self.num_layers):
      x = x @ self.p[f'mlp_{layer}/kernel'] + self.p[f'mlp_{layer}/bias']
      x = functional.gelu(x) if layer < self.num_layers - 1 else x
    x = functional.normalize(x, dim=-1, p=2)
    weight = functional.normalize(self.p['last_layer/kernel'], dim=0, p=2)
    if not self.norm_last_layer:
      weight = weight * self.p['last_layer/magnitude']
    return x @ weight


def stated_loss(student, teacher, center, temperature, student_temperature):
  """The loss of algorithm 1 over pairs of different views, and the teacher's mean entropy.

  `student` and `teacher` are lists of [B, K], the views that both see first.
  """
  total, pairs, entropy = 0.0, 0, 0.0
  for i, t in enumerate(teacher):
    p = functional.softmax((t - center) / temperature, dim=-1).detach()
    entropy += -(p * p.log()).sum(-1).mean() / len(teacher)
    for j, s in enumerate(student):
      if i != j:
        log_p = functional.log_softmax(s / student_temperature, dim=-1)
        total, pairs = total - (p * log_p).sum(-1).mean(), pairs + 1
  return total / pairs, entropy


def pooled(model, variables, images):
  features = jax.jit(functools.partial(model.backbone.apply, method='features'))
  params = {'params': variables['params']['backbone']}
  return torch.tensor(np.asarray(features(params, images).pooled))


@pytest.mark.parametrize(
  ('changes', 'size'),
  [
    ({}, (8, 8)),
    (
      {
        'norm_last_layer': False,
        'num_layers': 2,
        'local_views': 0,
        'teacher_temperature': 0.5,
        'teacher_temperature_start': 0.1,
        'teacher_temperature_steps': 4,
        'student_temperature': 0.3,
      },
      (8, 6),
    ),
  ],
)
def test_logits_loss_gradients_and_centre_are_those_of_pytorch(changes, size):
  model, task = dino(**changes)
  batch = crops(task.local_views, size)
  variables, teacher = (random_variables(model, seed, size) for seed in (0, 1))
  values, state, gradients = run(model, task, variables, teacher, batch, jnp.int32(3))

  flat, flat_teacher = (
    traverse_util.flatten_dict(v['params'], sep='/') for v in (variables, teacher)
  )
  options = model.num_layers, model.norm_last_layer
  heads = Head(flat, *options), Head(flat_teacher, *options)
  views = [batch['image/global'][:, i] for i in range(2)]
  views += [batch['image/local'][:, i] for i in range(task.local_views)]
  student = [heads[0](pooled(model, variables, view)) for view in views]
  seen = [heads[1](pooled(model, teacher, view)).detach() for view in views[:2]]
  center = torch.tensor(variables['batch_stats']['center'])
  temperature = 0.1 + (0.5 - 0.1) * 3 / 4 if changes else 0.04
  loss, entropy = stated_loss(student, seen, center, temperature, task.student_temperature)
  loss.backward()
  assert values['loss'] == pytest.approx(loss.item(), rel=1e-4)
  assert values['teacher_entropy'] == pytest.approx(entropy.item(), rel=1e-4, abs=1e-6)
  assert values['kl'] == pytest.approx((loss - entropy).item(), rel=1e-4)
  ours = traverse_util.flatten_dict(gradients, sep='/')
  for name, p in heads[0].p.items():
    scale = p.grad.abs().max().item()
    np.testing.assert_allclose(ours[name], p.grad.numpy(), atol=1e-4 * scale, err_msg=name)
  after = 0.9 * center + 0.1 * torch.cat(seen).mean(dim=0)
  np.testing.assert_allclose(state['batch_stats']['center'], after.numpy(), rtol=1e-4, atol=1e-6)


def test_the_loss_leaves_padding_out_and_the_temperature_follows_the_step():
  _, task = dino(teacher_temperature=0.3, teacher_temperature_steps=100)
  rng = np.random.default_rng(0)
  outputs = {
    'student': rng.normal(size=(4, 5, OUT_DIM)),
    'teacher': rng.normal(size=(4, 2, OUT_DIM)),
    'center': rng.normal(size=OUT_DIM),
  }

  def values(step, rows=slice(None), weight=(1, 1, 1, 1)):
    given = {name: x if name == 'center' else x[rows] for name, x in outputs.items()}
    batch = {'weight': np.float32(weight)} | task.scheduled(step)
    sums = task.loss(given, batch, None, step is not None)
    return {name: float(a / b) for name, (a, b) in sums.items()}

  padded, few = values(None, weight=(1, 0, 1, 0)), values(None, slice(0, 4, 2), (1, 1))
  for name in task.metrics:
    assert padded[name] == pytest.approx(few[name], rel=1e-5)
  assert values(jnp.int32(500)) == pytest.approx(values(None), rel=1e-6)
  entropies = [values(jnp.int32(step))['teacher_entropy'] for step in (0, 50, 100)]
  assert entropies == sorted(entropies)
  assert float(task.scheduled(jnp.int32(50))['teacher_temperature']) == pytest.approx(0.17)


def test_the_views_are_those_of_the_paper():
  views = tasks.build('dino', {}, 0).views((224, 224))
  large, small = views['global'], views['local']
  assert (large.size, large.area, small.size, small.area) == (
    (224, 224),
    (0.4, 1.0),
    (96, 96),
    (0.05, 0.4),
  )
  probabilities = [tuple(change.values()) for change in [*large.changes, *small.changes]]
  assert probabilities == [(1.0, 0.0), (0.1, 0.2), *[(0.5, 0.0)] * 8]
  assert tasks.build('dino', {'local_views': 0}, 0).views((8, 8)).keys() == {'global'}


def test_prototypes_have_a_length_of_one():
  model, _ = dino()
  variables = random_variables(model, 0)
  longer = jax.tree.map(np.copy, variables)
  longer['params']['last_layer']['kernel'] *= 3
  x = crops()['image/global'][:, 0]
  apply = jax.jit(lambda v, x: model.apply(v, x)['logits'])
  logits = apply(variables, x)
  np.testing.assert_allclose(apply(longer, x), logits, rtol=1e-4, atol=1e-6)
  assert np.abs(logits).max() <= 1


def test_bfloat16_logits_are_float32_and_near():
  (model, _), (half, _) = dino(), dino(jnp.bfloat16)
  x, variables = crops()['image/global'][:, 0], random_variables(model, 0)
  found, expected = (jax.jit(m.apply)(variables, x)['logits'] for m in (half, model))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'student_temperature': 0.0}, r'student_temperature: 0\.0 is not a number above 0'),
    (
      {'teacher_temperature_steps': -1},
      'teacher_temperature_steps: -1 is not a whole number',
    ),
    ({'local_size': 0}, 'local_size: 0 is not a whole number from 1 to'),
    ({'local_area': (0.5, 0.1)}, r'local_area: \(0\.5, 0\.1\) is not \(low, high\)'),
    (
      {'blur': (1.0, 0.5)},
      r'blur: \(1\.0, 0\.5\) is not 3 numbers from 0 to 1',
    ),
    (
      {'solarize': (0.0, 2.0, 0.0)},
      'solarize: .* is not 3 numbers from 0 to 1',
    ),
  ],
)
def test_mistakes_of_options(options, message):
  with pytest.raises(FieldError, match=f'^{message}'):
    tasks.build('dino', options, 0)


@pytest.mark.parametrize(
  ('head', 'message'),
  [
    ({'out_dim': 0}, 'head.out_dim: 0 is not a whole number from 1 to'),
    ({'center_momentum': 1.0}, r'head.center_momentum: 1\.0 is not a number from 0 to below 1'),
  ],
)
def test_mistakes_of_the_head(head, message):
  with pytest.raises(FieldError, match=f'^{message}'):
    models.build(FIELDS | {'head': {'name': 'dino', **head}})
