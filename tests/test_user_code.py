import sys

import pytest

from vit_jax import user_code
from vit_jax.errors import FieldError


@pytest.mark.parametrize('name', ['parts:Model', 'my.parts:load', '_a._b:_c'])
def test_module_and_name_are_a_reference(name):
  assert user_code.is_reference(name)


@pytest.mark.parametrize(
  'name', ['vit', 'mnist:3.0.1', 'folder/file.py:load', 'a:', ':b', 'a:b:c', 'a:b.c', None, 3]
)
def test_other_names_are_none(name):
  assert not user_code.is_reference(name)


def test_a_module_is_found_in_the_current_folder(tmp_path, monkeypatch):
  (tmp_path / 'parts_of_mine.py').write_text('VALUE = 7\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.path', [p for p in sys.path if p])
  assert user_code.find('parts_of_mine:VALUE') == 7


def test_a_module_that_is_not_there_is_named():
  with pytest.raises(FieldError, match=r"model.name: 'no_such:Model': there is no module"):
    user_code.find('no_such:Model', 'model.name')


def test_the_nearest_name_of_a_module_is_offered():
  with pytest.raises(FieldError, match=r"json has no 'dmps'; did you mean 'dumps'"):
    user_code.find('json:dmps')


def test_errors_of_the_module_itself_come_through(tmp_path, monkeypatch):
  (tmp_path / 'broken_parts.py').write_text('import no_such_dependency\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match='no_such_dependency'):
    user_code.find('broken_parts:anything')


class Base:
  def kept(self):
    return 1


class Full(Base):
  def made(self):
    return 2


class Inherits(Full):
  pass


class Bare(Base):
  pass


Alias = type('Alias', (Full,), {'__module__': 'elsewhere', '__qualname__': 'Made'})
CONSTANT = 3


@pytest.mark.parametrize('cls', [Full, Inherits])
def test_a_class_is_found_by_the_module_that_defines_it(cls):
  reference = user_code.reference_of(cls)
  assert reference == f'{__name__}:{cls.__name__}'
  assert user_code.find_class(reference, Base, needs=('made',)) is cls


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('Bare', r'^model\.name: .* lacks made, kept$'),
    ('CONSTANT', r'^model\.name: .* is not a subclass of .*\.Base$'),
    ('pytest', r'is not a subclass'),
    ('Alias', r"is defined elsewhere: write 'elsewhere:Made'"),
  ],
)
def test_what_a_class_lacks_is_named(name, message):
  with pytest.raises(FieldError, match=message):
    user_code.find_class(f'{__name__}:{name}', Base, 'model.name', ('made', 'kept'))


def test_functions_are_found():
  assert user_code.find_function('json:dumps')([1]) == '[1]'
  with pytest.raises(FieldError, match=r"^own: '.*:CONSTANT' is not a function"):
    user_code.find_function(f'{__name__}:CONSTANT', 'own')
