"""Which splits the names of evaluation splits stand for."""

import pytest

from vit_jax.data.sources.splits import resolve_aliases


@pytest.mark.parametrize(
  ('split', 'available', 'expected'),
  [
    ('val', ('train', 'test'), 'test'),
    ('test', ('train', 'valid'), 'valid'),
    ('validation', ('train', 'test', 'valid'), 'valid'),
    ('test', ('train', 'val', 'test'), 'test'),
    ('test', ('train',), 'test'),
    ('train[:5]+val[10%:]', ('train', 'validation'), 'train[:5]+validation[10%:]'),
    ('trian', ('train', 'test'), 'trian'),
  ],
)
def test_names_stand_for_the_most_similar_there_is(split, available, expected):
  assert resolve_aliases(split, available) == expected
