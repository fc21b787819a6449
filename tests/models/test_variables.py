"""Flax's variables as one flat dict, and back."""

from vit_jax.models import flatten, unflatten


def test_variables_and_flat_dicts_turn_into_each_other():
  both = {'params': {'a': {'kernel': 1}, 'b': 2}, 'batch_stats': {'a': {'mean': 3}}}
  assert flatten(both) == {'a/kernel': 1, 'b': 2, 'batch_stats/a/mean': 3}
  assert unflatten(flatten(both)) == both
  assert unflatten({'a': 1}) == {'params': {'a': 1}}
  assert flatten({'params': {'a': 1}}) == {'a': 1}
