"""Masks over images, where they are wrong, and how well each class is found."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from tqdm import tqdm

from vit_jax.data.kinds import VOID
from vit_jax.explain import panels
from vit_jax.predictor import Predictor
from vit_jax.tasks.segmentation import class_iou, mean_iou

_COVERAGE = 0.6  # of the image, by a class's colour
_LEGEND_COLUMNS = 4  # at most
_LEGEND_WIDTH = 7.5  # inches, that the narrowest figure has
_CHARACTER, _HANDLE, _ROW = 0.07, 0.62, 0.21  # inches: of a name; before it; between rows
_MOST_SPACED = 30  # classes, whose bars are well apart
_WIDTH = 8.0  # inches, of one image
_IMAGES_IN_A_ROW = {1: 4, 2: 2}  # by the number of masks of each
_NO_MASKS = 'the images have no masks'
_ALL_VOID = 'the masks are void everywhere'


def colors(num_classes: int) -> np.ndarray:
  """Returns a colour for each id in masks, uint8 [256, 3]: black for `VOID` and ids of no class."""
  table = np.zeros((256, 3), np.uint8)
  if num_classes <= 20:
    chosen = np.array(matplotlib.colormaps['tab20'].colors)
    chosen = np.concatenate([chosen[::2], chosen[1::2]])[:num_classes]  # the bright ones first
  else:
    hues = np.arange(num_classes) * 0.618034 % 1  # the golden ratio keeps neighbours apart
    values = 1 - 0.4 * (np.arange(num_classes) % 3) / 2
    chosen = hsv_to_rgb(np.stack([hues, np.full(num_classes, 0.75), values], axis=-1))
  table[:num_classes] = np.round(255 * chosen)
  return table


def indexed_image(mask: np.ndarray, num_classes: int) -> Image.Image:
  """Returns a mask [H, W] as an image whose pixels are the ids, with a colour for each."""
  image = Image.fromarray(mask.astype(np.uint8), mode='P')
  image.putpalette(colors(num_classes).tobytes())
  return image


def masks_figure(
  images: np.ndarray,
  true_masks: np.ndarray | None,
  predicted_masks: np.ndarray,
  class_names: Sequence[str],
  captions: Sequence[str],
  title: str | None = None,
) -> Figure:
  """Draws masks over images, the true one beside the predicted one, with the classes' colours.

  Args:
    images: uint8 [N, H, W, C], N >= 1.
    true_masks: [N, H, W], ids of classes or `VOID`; None where there are none.
    predicted_masks: likewise; never None.
    class_names: of all classes; the legend has those that are drawn.
    captions: N texts, put under the images.
    title: of the figure; None for one that names the masks.
  """
  drawn = [predicted_masks] if true_masks is None else [true_masks, predicted_masks]
  height, width = images.shape[1:3]
  ids = [i for i in np.unique(np.concatenate(drawn)).tolist() if i < len(class_names)]
  figure, axes = panels.panels(
    len(images) * len(drawn),
    _IMAGES_IN_A_ROW[len(drawn)] * len(drawn),
    title or ('Predicted masks' if true_masks is None else 'Masks, true and predicted'),
    aspect=height / width,
    header_lines=len(drawn) - 1,
    caption_lines=panels.count_lines(captions),
    footer_lines=legend_lines(ids, class_names),
    group=len(drawn),
  )
  for i, axis in enumerate(axes):
    row, column = divmod(i, len(drawn))
    show_mask(axis, images[row], drawn[column][row], len(class_names))
    if len(drawn) > 1 and i < _IMAGES_IN_A_ROW[2] * 2:
      axis.set_title(('true', 'predicted')[column], fontsize=panels.SMALL, pad=3)
    panels.caption(axis, captions[row] if column == 0 else '', loc='left')
  add_legend(figure, ids, class_names)
  return figure


def mask_figure(image: np.ndarray, mask: np.ndarray, class_names: Sequence[str]) -> Figure:
  """Draws a mask [H, W] over its image, uint8 [H, W, C], with a legend of the classes in it."""
  ids = [i for i in np.unique(mask).tolist() if i < len(class_names)]
  legend = panels.LINE * legend_lines(ids, class_names)
  height = _WIDTH * image.shape[0] / image.shape[1]
  figure = Figure(figsize=(_WIDTH, height + legend))
  share = legend / (height + legend)
  axis = figure.add_axes((0, share, 1, 1 - share), xticks=[], yticks=[])
  show_mask(axis, image, mask, len(class_names))
  add_legend(figure, ids, class_names)
  return figure


def show_mask(axis: Axes, image: np.ndarray, mask: np.ndarray, num_classes: int) -> None:
  """Draws a mask over an image in grey, which shows alone where the mask is void."""
  panels.show(axis, image.mean(axis=-1, keepdims=True).astype(np.uint8))
  visible = np.where(mask == VOID, 0, _COVERAGE)[..., None]
  axis.imshow(np.concatenate([colors(num_classes)[mask] / 255, visible], axis=-1))


def legend_lines(ids: Sequence[int], class_names: Sequence[str]) -> int:
  """Returns the lines of small text that a legend of classes takes; 0 of none."""
  if not ids:
    return 0
  rows = -(-len(ids) // _legend_columns([panels.shorten(class_names[i]) for i in ids]))
  return math.ceil(_ROW * (rows + 0.5) / panels.LINE)


def _legend_columns(names: Sequence[str]) -> int:
  """Returns how many columns of these names fit side by side."""
  for count in range(_LEGEND_COLUMNS, 1, -1):
    longest = [max(map(len, column), default=0) for column in np.array_split(names, count)]
    if _CHARACTER * sum(longest) + _HANDLE * count <= _LEGEND_WIDTH:
      return count
  return 1


def add_legend(figure: Figure, ids: Sequence[int], class_names: Sequence[str]) -> None:
  """Puts the names and colours of some classes at the foot of a figure."""
  table = colors(len(class_names)) / 255
  names = [panels.shorten(class_names[i]) for i in ids]
  handles = [Patch(color=table[i], label=name) for i, name in zip(ids, names, strict=True)]
  options = {'ncols': _legend_columns(names), 'fontsize': panels.SMALL, 'frameon': False}
  for text in figure.legend(handles=handles, loc='lower center', **options).get_texts():
    text.set(**panels.PLAIN)


class MaskEvaluation(NamedTuple):
  """A model's masks for N images, against the true ones, at the images' own sizes.

  Attributes:
    name: of the images, as 'camvid, test'.
    hits: float64 [N, K], pixels of each class that are found.
    either: float64 [N, K], pixels of each class that are found or there.
    drawn: index to image uint8 [H, W, C], true and predicted mask [H, W], as the model takes them.
  """

  name: str
  hits: np.ndarray
  either: np.ndarray
  drawn: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def evaluate(
  predictor: Predictor, records: Sequence[Mapping[str, Any]], name: str, batch_size: int = 8
) -> MaskEvaluation | str:
  """Predicts the masks of records batch by batch, with a progress bar where it takes a while.

  Args:
    predictor: of a model that predicts masks.
    records: such as a data source, one or more; where they have no masks, it says so in words.
    name: of the images, as 'camvid, test'.
    batch_size: images computed at once.
  """
  if 'mask' not in records[0]:
    return _NO_MASKS
  num_classes, hits, either, masks = len(predictor.class_names), [], [], {}

  def read(index):
    record = records[index]
    masks[index] = record['mask']
    return record[predictor.input]

  rows = predictor.map(read, range(len(records)), batch_size)
  bar = {'total': len(records), 'desc': 'Predicting masks', 'unit': predictor.input}
  for index, row in tqdm(rows, **bar, delay=2, disable=None, leave=False):
    if isinstance(row, Exception):
      raise row
    true, guess = masks.pop(index), row['mask']
    counted = true != VOID
    sizes = [
      np.bincount(ids[(ids < num_classes) & counted], minlength=num_classes)
      for ids in (true, guess, np.where(true == guess, true, VOID))
    ]
    hits.append(sizes[2])
    either.append(sizes[0] + sizes[1] - sizes[2])
  if not np.any(either):
    return _ALL_VOID

  def drawn(index):
    record = records[index]
    (_, row), *_ = predictor.map(read, [index], 1)
    found = [predictor.prepare_record({**record, 'mask': m}) for m in (record['mask'], row['mask'])]
    return found[0][predictor.input], found[0]['mask'], found[1]['mask']

  return MaskEvaluation(name, np.array(hits, np.float64), np.array(either, np.float64), drawn)


def worst(evaluation: MaskEvaluation, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (indices of the images with the lowest mean IoU, the lowest first; these IoUs).

  Images in which nothing but void is marked are left out.
  """
  pairs = zip(evaluation.hits, evaluation.either, strict=True)
  ious = np.array([mean_iou(hits, either) for hits, either in pairs])
  marked = np.flatnonzero(evaluation.either.any(axis=1))
  chosen = marked[np.argsort(ious[marked], kind='stable')][:count]
  return chosen, ious[chosen]


def class_iou_figure(evaluation: MaskEvaluation, class_names: Sequence[str]) -> Figure:
  """Draws the IoU of each class over all images as bars, the highest first, and their mean."""
  hits, either = evaluation.hits.sum(axis=0), evaluation.either.sum(axis=0)
  ious = class_iou(hits, either)
  order = np.argsort(-np.nan_to_num(ious, nan=-1), kind='stable')
  table = colors(len(class_names)) / 255
  is_dense = len(class_names) > _MOST_SPACED
  size = 7 if is_dense else panels.SMALL
  height = 1.2 + len(class_names) * (0.17 if is_dense else 0.28)
  figure = Figure(figsize=(8, height), layout='constrained')
  axis = figure.subplots()
  bars = axis.barh(
    np.arange(len(order)), 100 * np.nan_to_num(ious[order]), color=table[: len(order)][order]
  )
  texts = ['no pixels' if np.isnan(ious[i]) else f'{ious[i]:.1%}' for i in order]
  on_white = {'facecolor': 'white', 'linewidth': 0, 'pad': 0.5}  # over the line of the mean
  axis.bar_label(bars, texts, padding=3, fontsize=size, bbox=on_white)
  names = [panels.shorten(class_names[i]) for i in order]
  axis.set_yticks(np.arange(len(order)), names, fontsize=size, **panels.PLAIN)
  axis.set(xlabel='IoU (%); dashed: the mean', xlim=(0, 108), ylim=(len(order) - 0.4, -0.6))
  axis.axvline(100 * mean_iou(hits, either), color='black', linestyle='--', linewidth=1)
  title = f'IoU of each class: {evaluation.name} (mean {mean_iou(hits, either):.1%})'
  figure.suptitle(title, **panels.PLAIN)
  return figure
