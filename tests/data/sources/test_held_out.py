"""The part of the training split that is held out."""

import pickle

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from vit_jax.data import ArraySource, load_source
from vit_jax.data.sources import held_out
from vit_jax.data.sources.held_out import hold_out, percentage
from vit_jax.errors import FieldError


def source_of(labels):
  labels = np.asarray(labels)
  return ArraySource({'image': np.arange(len(labels))[:, None], 'label': labels}, 'abcdefgh')


def places(source):
  return [int(record['image'][0]) for record in source]


def test_classes_are_divided_as_scikit_learn_divides_them():
  labels = np.random.default_rng(0).choice(5, 997, p=[0.5, 0.25, 0.15, 0.07, 0.03])
  train, held, how = hold_out(source_of(labels), 10, seed=3)
  assert how == 'stratified by class'
  assert sorted(places(train) + places(held)) == list(range(997))
  assert (places(train), places(held)) == (sorted(places(train)), sorted(places(held)))
  [(_, theirs)] = StratifiedShuffleSplit(1, test_size=len(held)).split(labels, labels)
  assert len(held) == 100
  difference = np.bincount(held.labels()) - np.bincount(labels[theirs])
  assert np.abs(difference).max() <= 1
  np.testing.assert_array_equal(train.labels(), labels[places(train)])


def test_the_draw_follows_from_labels_and_seed():
  labels = np.arange(300) % 3
  first, again, other = (places(hold_out(source_of(labels), 20, seed)[1]) for seed in (1, 1, 2))
  assert first == again != other
  assert np.bincount(labels[first]).tolist() == [20] * 3
  # What other processes and later versions must draw as well.
  assert places(hold_out(source_of([0, 1] * 8), 25, 0)[1]) == [5, 6, 8, 15]


def test_a_class_keeps_its_last_record():
  train, held, _ = hold_out(source_of([0] * 30 + [1, 2, 3, 4, 5, 6, 7]), 50, seed=0)
  assert np.bincount(train.labels())[1:].tolist() == [1] * 7
  assert (len(held), set(held.labels())) == (18, {0})


def test_records_of_several_classes_or_many_are_drawn_at_random(monkeypatch):
  several = ArraySource({'image': np.arange(20)[:, None], 'label': np.eye(20, dtype=np.float32)})
  _, held, how = hold_out(several, 25, seed=0)
  assert (len(held), how) == (5, 'at random')
  assert hold_out(ArraySource({'image': np.zeros((9, 1))}), 1, seed=0)[2] == 'at random'
  monkeypatch.setattr(held_out, '_MOST_LABELS', 10)
  many = source_of([0, 1] * 10)
  many.labels = None  # isn't called
  assert 'more than 10 labels' in hold_out(many, 10, seed=0)[2]


def test_parts_are_sources_like_the_whole():
  whole = load_source('digits', 'train')
  train, held, _ = hold_out(whole, 10, seed=0)
  assert (train.class_names, train.image_shape) == (whole.class_names, whole.image_shape)
  assert (train.num_frames, train.num_points, train.files) == (0, 0, ())
  copy = pickle.loads(pickle.dumps(held))
  np.testing.assert_array_equal(copy[3]['image'], held[3]['image'])
  assert (len(train), len(held)) == (1293, 144)
  with pytest.raises(IndexError):
    held[144]


def test_shares():
  splits = '10%', ' 2.5 %', '', 'train[:10%]'
  assert [percentage(split) for split in splits] == [10, 2.5, None, None]
  for split in ('10', '0.1'):
    with pytest.raises(FieldError, match=r'^split: .* is a number; give a share'):
      percentage(split)
  for split in ('0%', '100%', '250%'):
    with pytest.raises(FieldError, match=r'^split: .* is not between 0% and 100%'):
      percentage(split)
  with pytest.raises(FieldError, match=r'^split: 50% of 1 examples leaves none to train on'):
    hold_out(source_of([0]), 50, seed=0)
  with pytest.raises(FieldError, match=r'^seed: -1 is less than 0'):
    hold_out(source_of([0, 1]), 50, seed=-1)
