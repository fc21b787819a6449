"""Figures of attention: nothing is cut off or lies over something else."""

import numpy as np
import pytest

from vit_jax.explain import attention_plots

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('count', [1, 2, 7])
@pytest.mark.parametrize('num_maps', [2, 17])
def test_nothing_lies_outside_the_figure_or_over_something_else(count, num_maps):
  images = RNG.integers(0, 256, (count, 6, 9, 3), dtype=np.uint8)
  maps = RNG.random((count, num_maps, 6, 9))
  long = 'predicted ' + 'm' * 17
  names = [f'{i}' for i in range(num_maps)]
  for figure in (
    attention_plots.highlights(images, maps, names, [long] * count, 'A title ' * 7),
    attention_plots.overlays(images, maps, names, [long] * count, 'A title ' * 7, 'x'),
    attention_plots.heat_maps(images, maps[:, 0], [f'{long}\n{long}'] * count, 'A title ' * 7, 'x'),
  ):
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    boxes = [axis.get_tightbbox() for axis in figure.axes if axis.images]
    boxes += [text.get_window_extent() for text in figure.texts]
    for box in boxes + [axis.get_tightbbox() for axis in figure.axes]:
      assert 0 <= box.x0 < box.x1 <= width
      assert 0 <= box.y0 < box.y1 <= height
    tiles = [axis.get_window_extent() for axis in figure.axes]
    labels = [axis.xaxis.label for axis in figure.axes if axis.get_xlabel()]
    assert len(labels) == count + (figure.axes[-1].get_xlabel() == 'x'), 'and that of the colours'
    captions = [label.get_window_extent() for label in labels]
    for caption in captions:
      assert not any(caption.overlaps(other) for other in tiles if other.y1 < caption.y1)
    for i, tile in enumerate(tiles):
      assert not any(tile.overlaps(other) for other in tiles[:i])


def test_of_many_maps_an_image_has_several_rows():
  images = RNG.integers(0, 256, (2, 6, 9, 3), dtype=np.uint8)
  names = [f'head {i}' for i in range(12)]
  captions = ['first', 'second']
  figure = attention_plots.highlights(images, RNG.random((2, 12, 6, 9)), names, captions, 'title')
  assert [axis.get_title() for axis in figure.axes] == ['image', *names] * 2
  tops = [round(axis.get_position().y1, 6) for axis in figure.axes]
  assert [tops.count(top) for top in sorted(set(tops), reverse=True)] == [7, 6, 7, 6]
  assert [axis.get_xlabel() for axis in figure.axes[::13]] == captions
