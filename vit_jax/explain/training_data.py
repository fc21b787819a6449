"""What a model is trained on: examples as it gets them, and how many there are of each class."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from vit_jax.data import Source, clouds, decoding, kinds
from vit_jax.explain import boxes, masks, panels

MOST_EXAMPLES = 24  # of a figure
_COLUMNS = 6
_MOST_ROWS = 6
_MOST_FRAMES = 6  # of a video
_MOST_CLASSES = 3  # in a caption
_SMALLEST = 0.005  # share of a class that is named, the others being 0%
_MOST_READ = 2_000  # records whose masks or parts are counted
_READ_AT_ONCE = 64
_MOST_NAMED = 60  # classes, that their names can be read
_WIDTH = 9.0  # inches


class _Tile(NamedTuple):
  """A picture of each example, with what lies on it.

  Attributes:
    name: which of an example's pictures; '' where there is one.
    values: uint8 [B, H, W, C], or points float [B, N, 3].
    box: float [B, 4] or None.
    mask: int [B, H, W], or of points [B, N]; or None.
  """

  name: str
  values: np.ndarray
  box: np.ndarray | None
  mask: np.ndarray | None


def examples_figure(
  batch: Mapping[str, np.ndarray],
  name: str,
  class_names: Sequence[str],
  mean: Sequence[float],
  std: Sequence[float],
  title: str,
) -> Figure:
  """Draws examples of a batch as they are normalised and augmented, with what is learnt of them.

  Of a video, some frames are drawn; of several views, all. A mask stands beside its image. Under
  an example stand its classes, mixed ones with their shares.

  Args:
    batch: entries of the kinds in `vit_jax.data.kinds` or their views, [B, ...], B >= 1, as a model
      is trained on them.
    name: the entry that it takes, as 'image'.
    class_names: of labels, masks and parts.
    mean: that pixels were normalised by; values out of [0, 1] are cut off to be shown.
    std: likewise.
    title: of the figure.
  """
  tiles = _tiles(batch, name, np.float32(mean), np.float32(std))
  per_row = max(_COLUMNS // len(tiles), 1)
  count = min(len(tiles[0].values), _MOST_ROWS * per_row, MOST_EXAMPLES)
  count -= count % per_row if count > per_row else 0
  captions = [
    _caption(label, class_names, len(tiles) == 1) for label in batch.get('label', ())[:count]
  ]
  ids = _ids_in(tiles, count, len(class_names))
  has_points = tiles[0].values.ndim == 3
  figure, axes = panels.panels(
    count * len(tiles),
    per_row * len(tiles),
    title,
    aspect=1 if has_points else tiles[0].values.shape[1] / tiles[0].values.shape[2],
    header_lines=int(any(tile.name for tile in tiles)),
    caption_lines=panels.count_lines(captions) if captions else 0,
    footer_lines=masks.legend_lines(ids, class_names),
  )
  reach = max(np.abs(tile.values[:count]).max() for tile in tiles)
  for i, axis in enumerate(axes):
    example, column = divmod(i, len(tiles))
    tile = tiles[column]
    value, mask = tile.values[example], None if tile.mask is None else tile.mask[example]
    if has_points:
      _show_points(axis, value, mask, len(class_names), reach)
    elif mask is not None:
      masks.show_mask(axis, value, mask, len(class_names))
    else:
      panels.show(axis, value)
    if tile.box is not None:
      boxes.draw_box(axis, tile.box[example], value.shape)
    if i < per_row * len(tiles):
      axis.set_title(tile.name, fontsize=panels.SMALL, pad=3)
    if captions and not column:
      panels.caption(axis, captions[example], loc='left' if len(tiles) > 1 else 'center')
  if ids:
    masks.add_legend(figure, ids, class_names)
  return figure


def _tiles(
  batch: Mapping[str, np.ndarray], name: str, mean: np.ndarray, std: np.ndarray
) -> list[_Tile]:
  tiles = []
  for entry, kind, values in kinds.entries(batch):
    base, _, group = entry.partition('/')
    if base != name:
      continue
    if kind.has_points:
      tiles.append(_Tile('', values, None, batch.get('parts')))
      continue
    pixels = np.round(255 * (values * std + mean).clip(0, 1)).astype(np.uint8)
    on_it = [batch.get(f'{n}/{group}' if group else n) for n in ('box', 'mask')]
    if not group:
      tiles += _tiles_of_view('', kind, pixels, *on_it)
      continue
    for view in range(pixels.shape[1]):
      box, mask = (x if x is None else x[:, view] for x in on_it)
      tiles += _tiles_of_view(f'{group} {view + 1}', kind, pixels[:, view], box, mask)
  return tiles


def _tiles_of_view(
  name: str, kind: kinds.Kind, pixels: np.ndarray, box: np.ndarray | None, mask: np.ndarray | None
) -> Iterator[_Tile]:
  """Yields the pictures of uint8 images [B, H, W, C] or videos [B, T, H, W, C]."""
  num_frames = kind.num_frames(pixels[0])
  if num_frames is None:
    yield _Tile(name, pixels, box, None)
  else:
    shown = np.linspace(0, num_frames - 1, min(num_frames, _MOST_FRAMES)).round().astype(int)
    for frame in shown:
      yield _Tile(f'{name} frame {frame}'.lstrip(), pixels[:, frame], box, None)
  if mask is not None:
    yield _Tile(f'{name} mask'.lstrip(), pixels, box, mask)


def _caption(label: np.ndarray, class_names: Sequence[str], is_narrow: bool) -> str:
  """Returns the name of a class; of several, float [K], with the shares of those mixed."""
  if np.ndim(label) == 0:
    names = [panels.shorten(class_names[label])]
  else:
    found = [i for i in np.argsort(-label, kind='stable') if label[i] >= _SMALLEST]
    names = [
      panels.shorten(class_names[i]) + ('' if label[i] > 1 - _SMALLEST else f' {label[i]:.0%}')
      for i in found[:_MOST_CLASSES]
    ]
    if len(found) > _MOST_CLASSES:
      names.append(f'{len(found) - _MOST_CLASSES} more')
  if not is_narrow:
    return ', '.join(names)
  return '\n'.join(map(panels.wrap, names))


def _ids_in(tiles: Sequence[_Tile], count: int, num_classes: int) -> list[int]:
  """Returns the ids of classes that occur in the masks of the first examples."""
  found = {int(i) for t in tiles if t.mask is not None for i in np.unique(t.mask[:count])}
  return sorted(i for i in found if i < num_classes)


def _show_points(
  axis: Axes, points: np.ndarray, parts: np.ndarray | None, num_classes: int, reach: float
) -> None:
  """Draws points [N, 3] as they lie in a space that is alike in all panels, near ones on top."""
  turned = clouds.turn(points)
  order = np.argsort(turned[:, 2])
  x, y, z = turned[order].T
  if parts is None:
    colors = {'c': -z, 'cmap': 'gray', 'vmin': -reach, 'vmax': 2 * reach}
  else:
    colors = {'c': masks.colors(num_classes)[parts[order]] / 255}
  axis.scatter(x, y, s=3, linewidths=0, **colors)
  axis.set(xlim=(-1.05 * reach, 1.05 * reach), ylim=(-1.05 * reach, 1.05 * reach))


class ClassCounts(NamedTuple):
  """How much there is of each class in a split.

  Attributes:
    counts: float64 [K]: examples; of masks and of parts of points, percent of all.
    unit: 'examples', '% of pixels' or '% of points'.
    num_read: records that were counted.
    num_records: of the split.
  """

  counts: np.ndarray
  unit: str
  num_read: int
  num_records: int


# What gives classes to the elements of an example -> what these are.
_ELEMENTS = {'mask': '% of pixels', 'parts': '% of points'}


def count_classes(source: Source, num_threads: int = 8) -> ClassCounts | str:
  """Counts the classes of a source's records, or says why it can't.

  Of very many masks, or clouds of parts, it reads an even sample.

  Args:
    source: the records, one or more.
    num_threads: that read.
  """
  entry = next((name for name in _ELEMENTS if name in source[0]), None)
  if entry is not None:
    return _count_elements(source, entry, num_threads)
  labels = source.labels() if source.class_names else None
  if labels is None:
    return 'the records have no classes'
  if labels.ndim > 1:
    counts = (labels > 0).sum(axis=0)
  else:
    counts = np.bincount(labels, minlength=source.num_classes)
  return ClassCounts(counts.astype(np.float64), 'examples', len(source), len(source))


def _count_elements(source: Source, entry: str, num_threads: int) -> ClassCounts:
  total, num_classes = len(source), source.num_classes
  indices = np.unique(np.linspace(0, total - 1, min(total, _MOST_READ)).round().astype(int))

  def count(chunk):
    read = source.read(chunk.tolist())
    ids = decoding.in_turn(read, lambda record: record[entry].reshape(-1))
    return sum(np.bincount(i[i < num_classes], minlength=num_classes) for i in ids), len(chunk)

  chunks = np.array_split(indices, -(-len(indices) // _READ_AT_ONCE))
  counts = np.zeros(num_classes)
  bar = tqdm(total=len(indices), desc='Counting classes', delay=2, disable=None, leave=False)
  with bar, ThreadPoolExecutor(num_threads) as pool:
    for found, done in pool.map(count, chunks):
      counts += found
      bar.update(done)
  shares = 100 * counts / max(counts.sum(), 1)
  return ClassCounts(shares, _ELEMENTS[entry], len(indices), total)


def classes_figure(
  splits: Mapping[str, ClassCounts], class_names: Sequence[str], title: str
) -> Figure:
  """Draws how often each class occurs in each split.

  Up to 60 classes have their names, in their own order. More go from the most frequent in the first
  split to the rarest, and those at both ends are named.

  Args:
    splits: by name, one or more, of the same classes.
    class_names: K names.
    title: of the figure.
  """
  if len(class_names) <= _MOST_NAMED:
    return _named_bars(splits, class_names, title)
  return _sorted_bars(splits, class_names, title)


def _named_bars(splits, class_names, title):
  count = len(class_names)
  size = panels.SMALL if count <= 30 else 7
  height = 1.3 + count * (0.24 if count <= 30 else 0.17)
  figure = Figure(figsize=(_WIDTH, height), layout='constrained')
  axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
  for axis, (name, found) in zip(axes, splits.items(), strict=True):
    bars = axis.barh(np.arange(count), found.counts, color='tab:blue')
    axis.bar_label(bars, [_text(found, n) for n in found.counts], padding=2, fontsize=size)
    axis.set_title(_heading(name, found), fontsize=10)
    axis.set_xlim(0, 1.3 * max(found.counts.max(), 1))
    axis.set_xlabel(found.unit, fontsize=panels.SMALL)
    axis.tick_params(labelsize=size)
    axis.margins(y=0.01)
  names = [panels.shorten(name) for name in class_names]
  axes[0].set_yticks(np.arange(count), names, fontsize=size, **panels.PLAIN)
  axes[0].invert_yaxis()
  figure.suptitle(title, **panels.PLAIN)
  return figure


def _sorted_bars(splits, class_names, title):
  first = next(iter(splits.values()))
  order = np.argsort(-first.counts, kind='stable')
  figure = Figure(figsize=(_WIDTH, 0.8 + 2.2 * len(splits)), layout='constrained')
  axes = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
  for axis, (name, found) in zip(axes, splits.items(), strict=True):
    axis.bar(np.arange(len(order)), found.counts[order], width=1, color='tab:blue')
    low, middle, high = (_text(found, f(found.counts)) for f in (np.min, np.median, np.max))
    axis.set_title(f'{_heading(name, found)}: {low} to {high}, median {middle}', fontsize=10)
    axis.set_ylabel(found.unit, fontsize=panels.SMALL)
    axis.set_xlim(-0.5, len(order) - 0.5)
    axis.set_ylim(bottom=0)
    axis.yaxis.get_major_locator().set_params(integer=True)
  ends = [
    f'{what}: ' + ', '.join(panels.shorten(class_names[i]) for i in some)
    for what, some in (('first', order[:3]), ('last', order[-3:]))
  ]
  text = f'{len(order)} classes, the most frequent first\n' + '\n'.join(ends)
  axes[-1].set_xlabel(text, fontsize=panels.SMALL, **panels.PLAIN)
  figure.suptitle(title, **panels.PLAIN)
  return figure


def _text(found: ClassCounts, value: float) -> str:
  return f'{value:.1f}%' if found.unit in _ELEMENTS.values() else f'{value:,.0f}'


def _heading(name: str, found: ClassCounts) -> str:
  if found.num_read < found.num_records:
    return f'{name}, {found.num_read:,} of {found.num_records:,}'
  return f'{name}, {found.num_records:,}'
