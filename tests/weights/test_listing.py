"""What is known by name: patterns, who answers, and the table for people."""

import pytest

from vit_jax.errors import FieldError
from vit_jax.weights import architectures, listing, tables
from vit_jax.weights.table import Known


@pytest.mark.parametrize('pattern', ['Resnet18', 'resnet1?'])
def test_a_pattern_is_a_shell_s_or_a_part_of_the_name(pattern):
  rows = listing.find(pattern)
  assert [(row.name, row.source) for row in rows] == [
    ('resnet18', 'timm'),
    ('resnet18', 'torchvision'),
    ('resnet18', 'vit_jax'),
  ]
  assert {row.refused for row in rows} == {None}


def test_a_name_fits_that_a_table_has_a_star_for():
  assert Known('swin_*', 'timm') in listing.find('swin_tiny_patch4_window7_224')


def test_every_source_answers_for_itself():
  rows = listing.find()
  assert len({row[:2] for row in rows}) == len(rows)
  names = {source: {row.name for row in rows if row.source == source} for _, source, _ in rows}
  types = {table.model_type for table in tables.all_tables() if table.format == 'huggingface'}
  assert names['huggingface'] == types | {'clip', 'siglip2'}
  assert types >= {'vit', 'swin', 'resnet'}
  assert names['timm'] >= set(architectures.names())
  assert names['torchvision'] >= {'resnet18', 'mobilenet_v3_small'}
  assert names['vit_jax'] >= {'vit:B', 'swin:T', 'resnet18', 'vivit'}


def test_what_one_table_reads_opens_whoever_else_refuses_it(monkeypatch):
  rows = [Known('a', 'timm', 'x'), Known('a', 'timm'), Known('b', 'timm', 'y')]
  first, *others = tables.all_tables()
  monkeypatch.setattr(first, 'known', lambda: rows, raising=False)
  monkeypatch.setattr(tables, 'all_tables', lambda: (first, *others[:1]))
  for order in (rows, rows[::-1]):
    monkeypatch.setattr(first, 'known', lambda order=order: order)
    assert [row for row in listing.find('?') if row.source == 'timm'] == rows[1:]


def test_names_that_are_close_are_told():
  with pytest.raises(
    FieldError, match=r"^list: no name fits 'resnt50'; close to it are resnet50, "
  ):
    listing.find('resnt50')
  with pytest.raises(FieldError, match=r"^list: no name fits '%'$"):
    listing.find('%')


def test_the_table_for_people():
  rows = [Known('a_long_name', 'timm'), Known('b', 'torchvision', 'layer scale not read')]
  assert listing.text(rows).splitlines() == [
    'name         source       opens',
    'a_long_name  timm         yes',
    'b            torchvision  no: layer scale not read',
  ]
