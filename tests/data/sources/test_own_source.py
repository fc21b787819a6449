"""Data sets of the user's own, as 'module:load'."""

import numpy as np
import pytest

from vit_jax.data import ArraySource, load_source, sources
from vit_jax.errors import FieldError, UsageError


def load(split, dir, count=3, note='a'):
  images = np.full((count, 4, 4, 1), len(dir) + len(split), np.uint8)
  return ArraySource({'image': images, 'label': np.arange(count) % 2}, [str(note), 'b'])


def load_without_names(split, dir):
  return ArraySource({'image': np.zeros((2, 4, 4, 1), np.uint8), 'label': np.arange(2)})


def load_nothing(split, dir):
  return ArraySource({'image': np.zeros((0, 4, 4, 1), np.uint8)})


def load_an_array(split, dir):
  return np.zeros((2, 4, 4, 1), np.uint8)


def load_by_size(split, dir, size):
  return load(split, dir)


def test_options_are_the_parameters_that_have_a_default():
  assert sources.default_options(f'{__name__}:load') == {'count': 3, 'note': 'a'}


def test_a_function_gets_split_dir_and_options():
  source = load_source(f'{__name__}:load', 'test', 'abc', {'count': 5})
  assert (len(source), source.class_names, source[4]['label']) == (5, ('a', 'b'), 0)
  assert (source[0]['image'] == 7).all()


def test_options_of_another_type_than_their_default_are_the_functions_to_judge():
  source = load_source(f'{__name__}:load', 'test', '', {'count': np.int64(2), 'note': None})
  assert (len(source), source.class_names) == (2, ('None', 'b'))


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('load', {'counts': 5}, r"^options\.counts: no such option of .*; did you mean 'count'\?"),
    ('lode', {}, r"^name: .* has no 'lode'; did you mean 'load'"),
    ('np', {}, r'^name: .* is not a function'),
    ('load_by_size', {}, r'^name: .* does not take \(split, dir, option=default, \.\.\.\)'),
    ('load_an_array', {}, r'^name: .* returned ndarray, not a data\.Source'),
    ('load_without_names', {}, r'^name: .* gives labels, and no class_names for them'),
    ('load_nothing', {}, r"^split: 'train' of .* holds no examples"),
  ],
)
def test_mistakes_name_the_field(name, options, message):
  with pytest.raises(FieldError, match=message):
    load_source(f'{__name__}:{name}', 'train', '', options)


@pytest.mark.parametrize('labels', [np.arange(3), np.eye(3, dtype=np.float32)])
def test_labels_of_more_classes_than_have_a_name_are_refused(labels):
  with pytest.raises(UsageError, match='labels are of 3 classes, and 2 have a name'):
    ArraySource({'image': np.zeros((3, 4, 4, 1), np.uint8), 'label': labels}, ['a', 'b'])


@pytest.mark.parametrize('name', ['os:popen', 'shutil:rmtree', 'vit_jax.data:load_source'])
def test_functions_that_no_one_wrote_to_load_data_are_never_called(name, tmp_path):
  """A run directory from elsewhere may name them."""
  with pytest.raises(FieldError, match=f"^name: '{name}' (is of a module|does not take)"):
    load_source(name, 'touch made', str(tmp_path))
  assert not list(tmp_path.iterdir())
