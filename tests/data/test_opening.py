"""The splits that an experiment names."""

import pytest

from vit_jax.data import open_splits
from vit_jax.errors import FieldError

DATA = {'name': 'digits', 'dir': '', 'train_split': 'train', 'test_split': 'test', 'val_split': ''}


def sizes(wanted=('train', 'val', 'test'), **changes):
  opened = open_splits(DATA | changes, 0, wanted)
  return {split: len(source) for split, (source, _) in opened.items()}


def test_what_is_held_out_is_not_trained_on():
  assert sizes() == {'train': 1437, 'test': 360}
  assert sizes(val_split='10%') == {'train': 1293, 'val': 144, 'test': 360}
  assert sizes(train_split='train[:1000]', val_split='train[1000:]') == {
    'train': 1000,
    'val': 437,
    'test': 360,
  }


def test_no_others_are_read_than_are_needed():
  assert sizes(('test',), train_split='gone') == {'test': 360}
  assert sizes(('val',), val_split='10%', test_split='gone') == {'val': 144}
  with pytest.raises(FieldError) as error:
    sizes(('val',), val_split='10%', train_split='gone')
  assert str(error.value).startswith('data.train_split: ')


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_validation_split_has_none_of_another_s_examples(split):
  with pytest.raises(FieldError, match=r'^data\.val_split: .* has examples of'):
    sizes(val_split=f'{split}[:10]')
