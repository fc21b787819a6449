"""Layouts against NumPy's own words, and the table of what doesn't fit."""

import numpy as np
import pytest
from small_vits import SQUARE

from vit_jax.errors import UsageError, UsageWarning
from vit_jax.weights import rules

CONFIG = SQUARE.replace(patches={'size': (4, 2)}).replace(image_size=(8, 6))


@pytest.fixture(scope='module')
def shapes():
  return CONFIG.variable_shapes()


@pytest.fixture(scope='module')
def arrays(shapes):
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def same_names(shapes):
  return [rules.Rule((name,), name) for name in shapes]


def test_a_linear_layer_with_heads_computes_the_same():
  rng = np.random.default_rng(0)
  x, weight, bias = rng.normal(size=(5, 8)), rng.normal(size=(8, 8)), rng.normal(size=8)
  (_, _, to_kernel), (_, _, to_bias) = rules.TO_HEADS
  kernel, split_bias = to_kernel.to_ours(weight, (8, 2, 4)), to_bias.to_ours(bias, (2, 4))
  ours = np.einsum('nd,dhk->nhk', x, kernel) + split_bias
  np.testing.assert_allclose(ours.reshape(5, 8), x @ weight.T + bias, rtol=1e-12)
  out = rules.FROM_HEADS[0][2].to_ours(weight, (2, 4, 8))
  np.testing.assert_allclose(np.einsum('nhk,hkd->nd', x.reshape(5, 2, 4), out), x @ weight.T)


def test_a_patch_kernel_computes_the_same():
  rng = np.random.default_rng(0)
  patch, weight = rng.normal(size=(4, 2, 3)), rng.normal(size=(8, 3, 4, 2))
  kernel = rules.CONV[0][2].to_ours(weight, (4, 2, 3, 8))
  expected = np.einsum('hwc,ochw->o', patch, weight)
  np.testing.assert_allclose(np.einsum('hwc,hwco->o', patch, kernel), expected)


@pytest.mark.parametrize(
  ('layout', 'ours', 'theirs'),
  [
    (rules.CONV[0][2], (4, 2, 3, 8), (8, 3, 4, 2)),
    (rules.TO_HEADS[0][2], (8, 2, 4), (8, 8)),
    (rules.TO_HEADS[1][2], (2, 4), (8,)),
    (rules.FROM_HEADS[0][2], (2, 4, 6), (6, 8)),
    (rules.DENSE[0][2], (8, 12), (12, 8)),
  ],
)
def test_layouts_know_the_shape_there_and_come_back(layout, ours, theirs):
  array = np.random.default_rng(0).normal(size=ours)
  there = layout.to_theirs(array)
  assert there.shape == layout.their_shape(ours) == theirs
  np.testing.assert_array_equal(layout.to_ours(there, ours), array)


def test_fused_tensors_are_equal_parts():
  rule = rules.Rule(('q', 'k', 'v'), 'qkv', rules.TO_HEADS[0][2])
  shapes = dict.fromkeys('qkv', (8, 2, 4))
  tensor = np.random.default_rng(0).normal(size=rule.their_shape(shapes))
  assert tensor.shape == (24, 8)
  parts = dict(rule.to_ours(tensor, shapes))
  np.testing.assert_array_equal(parts['k'].reshape(8, 8), tensor[8:16].T)
  np.testing.assert_array_equal(rule.to_theirs(parts), tensor)


def spoil(arrays):
  spoilt = dict(arrays)
  del spoilt['cls']
  spoilt['extra'] = np.zeros((2, 3), np.float32)
  spoilt['output_projection/kernel'] = np.zeros((8, 4), np.float32)
  spoilt['output_projection/bias'] = np.zeros(3, np.int32)
  return spoilt


def test_everything_that_does_not_fit_is_in_one_table(shapes, arrays, same_names):
  with pytest.raises(UsageError) as error:
    rules.to_ours(spoil(arrays), same_names, shapes, 'a.npz', None)
  title, header, *rows = str(error.value).splitlines()
  assert title == 'a.npz: tensors that do not fit: 4'
  assert header.split() == ['tensor', 'found', 'expected']
  assert [row.split() for row in rows] == [
    ['missing', 'cls', '1x1x8'],
    ['unexpected', 'extra', '2x3'],
    ['not', 'floats', 'output_projection/bias', 'int32', 'float32'],
    ['misshapen', 'output_projection/kernel', '8x4', '8x3'],
  ]


def test_the_table_is_readable_whatever_tensors_are_called(shapes, arrays, same_names):
  strange = {f'a\n{i}': np.zeros(2, np.float32) for i in range(2000)}
  strange['b' * 100_000] = np.zeros(2, np.float32)
  with pytest.raises(UsageError) as error:
    rules.to_ours({**arrays, **strange}, same_names, shapes, 'a.npz', None)
  title, _, first, *rows, last = error.value.lines
  assert title == 'a.npz: tensors that do not fit: 2001'
  assert first.split() == ['unexpected', r'a\n0', '2']
  assert last == f'and {2001 - len(rows) - 1:,} more'
  assert len(str(error.value)) < 100_000


def test_allow_lets_named_ones_through_and_no_others(shapes, arrays, same_names):
  allow = 'cls|extra|output_projection/.*'
  with pytest.warns(UsageWarning) as warned:
    tree = rules.to_ours(spoil(arrays), same_names, shapes, 'a.npz', allow)
  assert [str(w.message) for w in warned] == [
    'a.npz: tensors left out, as allowed: 4 (cls, extra, output_projection/bias, ...); outputs '
    'differ from those of the original'
  ]
  kept = {n for n in arrays if n != 'cls' and not n.startswith('output_projection')}
  assert rules.flatten(tree).keys() == kept
  with pytest.raises(UsageError, match='tensors that do not fit: 1') as error:
    rules.to_ours(spoil(arrays), same_names, shapes, 'a.npz', 'cls|ext|output_projection/.*')
  assert 'unexpected' in str(error.value)


def test_parameters_without_a_place_are_refused_in_a_table(shapes, arrays, same_names):
  without_head = [rule for rule in same_names if not rule.theirs.startswith('output_projection')]
  variables = {'params': {'more': {'kernel': np.zeros(1)}, **arrays}}
  with pytest.raises(UsageError, match='tensors that do not fit: 3'):
    rules.to_theirs(variables, without_head, shapes, 'b', None)
  allow = 'more/kernel|output_projection/.*'
  with pytest.warns(UsageWarning, match=r'^b: tensors left out, as allowed: 3 \(more/kernel, out'):
    allowed = rules.to_theirs(variables, without_head, shapes, 'b', allow)
  assert len(allowed) == len(arrays) - 2


def test_the_feature_that_is_not_read_comes_first(shapes, arrays, same_names):
  features = {r'\.gamma$': 'layer scale', 'cls': 'a class token', '^re': 'registers'}
  arrays = dict.fromkeys(('0.gamma', '1.gamma', 'reg'), np.zeros(2, np.float32)) | arrays
  message = r'^a: layer scale and registers not expected; tensors that do not fit: 3\n'
  with pytest.raises(UsageError, match=message):
    rules.to_ours(arrays, same_names, shapes, 'a', None, features)
  with pytest.raises(UsageError, match=r'^a: layer scale not expected; tensors that .* fit: 2\n'):
    rules.to_ours(arrays, same_names, shapes, 'a', 'reg', features)


def test_half_precision_is_widened_without_loss(shapes, arrays, same_names):
  half = {name: array.astype(np.float16) for name, array in arrays.items()}
  flat = rules.flatten(rules.to_ours(half, same_names, shapes, 'a', None))
  for name, array in flat.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, half[name])
