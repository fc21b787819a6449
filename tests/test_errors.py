"""Messages for users' mistakes: one line, with the nearest allowed name."""

import copy
import pickle
import unicodedata

import pytest

from vit_jax.errors import FieldError, UsageError, check_choice, nearest, printable

NAMES = ('digits', 'mnist', 'cifar10', 'Ti', 'S')


@pytest.mark.parametrize(
  ('given', 'suggested'),
  [
    ('digit', 'digits'),
    ('cifar', 'cifar10'),
    ('mnits', 'mnist'),
    ('MNIST', 'mnist'),
    ('ti', 'Ti'),
    ('s', 'S'),
  ],
)
def test_nearest_names_the_closest(given, suggested):
  assert nearest(given, NAMES) == f"; did you mean '{suggested}'?"


@pytest.mark.parametrize('given', ['imagenet2012', '', 7, None])
def test_nearest_is_silent_where_none_is_close(given):
  assert nearest(given, NAMES) == ''
  assert nearest(given, ()) == ''


def test_nearest_takes_any_collection():
  for names in ({'adam': 1, 'lion': 2}, {'adam', 'lion'}, ['adam', 'lion'], ('adam', 'lion')):
    assert nearest('adams', names) == "; did you mean 'adam'?"


@pytest.mark.parametrize('given', NAMES)
def test_check_choice_accepts_each_allowed_name(given):
  check_choice('config.data.name', given, NAMES)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('digit', "field: 'digit' is not one of digits, mnist; did you mean 'digits'?"),
    ('coco', "field: 'coco' is not one of digits, mnist"),
    ('digits\n', "field: 'digits\\n' is not one of digits, mnist; did you mean 'digits'?"),
    (None, 'field: None is not one of digits, mnist'),
    (3, 'field: 3 is not one of digits, mnist'),
  ],
)
def test_check_choice_says_field_given_and_allowed_in_one_line(given, message):
  with pytest.raises(UsageError) as error:
    check_choice('field', given, {'digits': 1, 'mnist': 2})
  assert str(error.value) == message


def test_usage_error_is_a_value_error():
  assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ('a tëxt: 漢字, 👩\u200d🔬', 'a tëxt: 漢字, 👩\u200d🔬'),
    ('two\nlines\r\n\t', r'two\nlines\r\n\t'),
    ('\x1b[31mred\x07\x9b1A\x7f', r'\x1b[31mred\x07\x9b1A\x7f'),
    ('\u202egnp.\u2066\u200f', r'\u202egnp.\u2066\u200f'),
    ('\u2028\ufeff\udcff', r'\u2028\ufeff\udcff'),
  ],
)
def test_what_does_more_than_show_is_escaped(text, shown):
  assert printable(text) == shown
  assert printable(shown) == shown


def test_no_character_is_left_that_ends_a_line_or_is_none():
  everything = map(chr, range(0x110000))
  wrong = [c for c in everything if unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp')]
  wrong += [c for c in map(chr, range(0x110000)) if unicodedata.bidirectional(c)[1:] in _TURNS]
  assert len(wrong) > 2000
  assert not set(wrong) & set(printable(''.join(wrong), 10**6))
  assert len(printable(''.join(wrong), 10**6).splitlines()) == 1


_TURNS = ('RE', 'LE', 'RO', 'LO', 'DF', 'RI', 'LI', 'SI', 'DI')  # of a direction, begun or ended


def test_long_texts_lack_their_middle():
  path = f'/data/{"x" * 100_000}.npz: no such file'
  shown = printable(path)
  assert len(shown) <= 2000
  assert shown.startswith('/data/xxx')
  assert shown.endswith('xxx.npz: no such file')
  start, count, end = shown.replace('[... ', '|').replace(' characters ...]', '|').split('|')
  assert len(start) + int(count.replace(',', '')) + len(end) == len(path)
  assert printable(shown) == shown
  assert printable('x' * 2000) == 'x' * 2000
  assert len(printable('\n' * 10**5, 100)) <= 100


def test_a_table_has_lines_of_its_own():
  error = UsageError('first\nstill', 'second')
  assert [*error.lines] == ['first\nstill', 'second']
  assert str(error) == 'first\nstill\nsecond'
  for e in (error, FieldError('field', 'is\nwrong')):
    assert [*pickle.loads(pickle.dumps(e)).lines] == [*copy.copy(e).lines] == [*e.lines]
  assert [*e.lines] == ['field: is\nwrong']
