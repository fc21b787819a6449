"""Messages for users' mistakes: one line, with the nearest allowed name."""

import pytest

from vit_jax.errors import UsageError, check_choice, nearest

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
