"""What of a prediction can be drawn over its image: a function for each kind of data that can."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vit_jax.explain import boxes, masks


def _draw_box(image: np.ndarray, box: np.ndarray, class_names: Sequence[str]) -> Figure:
  del class_names
  return boxes.boxes_figure(image[None], None, box[None], [''])


# Entry of a prediction -> function of an image uint8 [H, W, C], the entry, and the class names.
DRAWINGS: dict[str, Callable[[np.ndarray, np.ndarray, Sequence[str]], Figure]] = {
  'mask': masks.mask_figure,
  'box': _draw_box,
}


def write(
  folder: Path,
  name: str,
  image: np.ndarray,
  prediction: Mapping[str, np.ndarray],
  class_names: Sequence[str],
) -> list[Path]:
  """Writes NAME_mask.png or NAME_box.png, a prediction over its image, and returns their paths.

  A mask is written as NAME.png, too: its pixels are the ids of classes, each with a colour.

  Args:
    folder: to write to.
    name: of the image.
    image: uint8 [H, W, C].
    prediction: for the image.
    class_names: of all classes.
  """
  paths = []
  if 'mask' in prediction:
    paths.append(folder / f'{name}.png')
    masks.indexed_image(prediction['mask'], len(class_names)).save(paths[-1])
  for entry in DRAWINGS.keys() & prediction.keys():
    paths.append(folder / f'{name}_{entry}.png')
    DRAWINGS[entry](image, prediction[entry], class_names).savefig(paths[-1])
  return paths
