"""How small images are laid out: rows as even as they can be."""

import pytest

from vit_jax.explain import panels


@pytest.mark.parametrize(
  ('count', 'columns', 'group', 'rows'),
  [
    (1, 4, 1, [1]),
    (4, 4, 1, [4]),
    (5, 4, 1, [3, 2]),
    (8, 6, 1, [4, 4]),
    (8, 6, 2, [4, 4]),
    (10, 6, 2, [6, 4]),
    (14, 6, 2, [6, 6, 2]),
    (9, 6, 3, [6, 3]),
    (64, 4, 1, [4] * 16),
  ],
)
def test_rows_are_even_and_hold_whole_groups(count, columns, group, rows):
  figure, axes = panels.panels(count, columns, 'a title', group=group)
  tops = [round(axis.get_position().y1, 6) for axis in axes]
  assert [tops.count(top) for top in sorted(set(tops), reverse=True)] == rows
  width = figure.get_figwidth()
  assert 0 < axes[0].get_position().x0 * width < 0.1
  assert max(axis.get_position().x1 for axis in axes) <= 1


def test_empty_captions_take_no_line():
  assert panels.count_lines(['', '']) == 0
  assert panels.count_lines(['a', 'b\nc', '']) == 2


def test_long_names_are_broken_between_words():
  assert (
    panels.wrap('predicted black_footed_albatross 12') == 'predicted black\nfooted albatross 12'
  )
