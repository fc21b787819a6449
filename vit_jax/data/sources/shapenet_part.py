"""ShapeNet-Part as HDF5 files: shapenet_part_seg_hdf5_data of PointNet (arXiv 1612.00593).

2,048 points of each object of 16 categories, each point of one of the category's 2 to 6 parts, of
50 in all. In the folder are ply_data_train0.h5 and so on, also val and test;
all_object_categories.txt, with a category's name and number a line; and
overallid_to_catid_partid.json, with the number of the category and that of the part in it of each
of the 50.
"""

import json

import numpy as np

from vit_jax.data.sources import hdf5
from vit_jax.errors import FieldError


def load(split: str, directory: str) -> hdf5.Hdf5Points:
  """Opens splits of the folder.

  Args:
    split: of 'train', 'val' and 'test', in TFDS syntax.
    directory: the folder.

  Raises:
    FieldError: no such folder or split, or a file there that doesn't fit (`dir`).
  """
  root = hdf5.check_folder(directory, 'shapenet_part_seg_hdf5_data')
  path = root / 'all_object_categories.txt'
  lines = [line.split() for line in hdf5.read_text(path).splitlines() if line.strip()]
  if not lines or any(len(line) != 2 for line in lines):
    raise FieldError('dir', f"{path} has lines that are not a category's name and number")
  numbers = [number for _, number in lines]
  path = root / 'overallid_to_catid_partid.json'
  try:
    parts = [(number, int(part)) for number, part in json.loads(hdf5.read_text(path))]
    categories = [numbers.index(number) for number, _ in parts]
  except (ValueError, TypeError) as e:
    raise FieldError('dir', f'{path} is not a list of [number of a category, part]') from e
  names = [f'{lines[c][0]} {part}' for c, (_, part) in zip(categories, parts, strict=True)]
  of_category = np.float32(np.arange(len(lines))[:, None] == categories)
  return hdf5.Hdf5Points(hdf5.find_files(root), split, names, of_category)
