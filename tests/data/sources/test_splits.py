"""Which splits the names of evaluation splits stand for, and what slices of classes hold."""

import numpy as np
import pytest

from vit_jax.data.sources.splits import resolve_aliases, split_ranges, stratified


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


def sliced(split, labels):
  [(_, indices)] = split_ranges(split, {'train': len(labels)}, lambda name: labels)
  return list(indices)


def test_a_slice_of_classes_of_one_size_has_as_many_of_each():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(26), 30))
  parts = [sliced(s, labels) for s in ('train[:80%]', 'train[80%:]')]
  assert sorted(parts[0] + parts[1]) == list(range(780))
  assert [np.bincount(labels[part]).tolist() for part in parts] == [[24] * 26, [6] * 26]
  assert all(part == sorted(part) for part in parts)
  assert sliced('train', labels) == list(range(780))
  assert np.bincount(labels[sliced('train[:52]', labels)]).tolist() == [2] * 26


@pytest.mark.parametrize('sizes', [[4] * 200, [1] * 200 + [1000], [3, 17, 100, 1, 1, 53], [7]])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.73])
def test_each_class_is_cut_in_proportion(sizes, share):
  labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
  count = round(share * len(labels))
  taken = stratified(labels, np.arange(len(labels)))[:count]
  found = np.bincount(labels[taken], minlength=len(sizes))
  assert found.sum() == count
  assert np.abs(found - share * np.array(sizes)).max() < 2
  assert np.abs(found - share * np.array(sizes)).mean() < 0.51
