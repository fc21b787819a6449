"""ShapeNet-Part as HDF5 files: shapenet_part_seg_hdf5_data of PointNet (arXiv 1612.00593).

2,048 points of each object of 16 categories, each point of one of the category's 2 to 6 parts, of
50 in all. In the folder are ply_data_train0.h5 and so on, also val and test;
all_object_categories.txt, with a category's name and number a line; and
overallid_to_catid_partid.json, with the number of the category and that of the part in it of each
of the 50.
"""

import numpy as np

from vit_jax.data.sources import hdf5
from vit_jax.data.sources.records import MAX_NAMES, check_num_classes
from vit_jax.errors import UsageError
from vit_jax.regular_files import read_json, read_text, reading


def load(split: str, directory: str) -> hdf5.Hdf5Points:
  """Opens splits of the folder.

  Args:
    split: of 'train', 'val' and 'test', in TFDS syntax.
    directory: the folder.

  Raises:
    FieldError: no such folder (`dir`) or split.
    UsageError: a file there is damaged or doesn't fit.
  """
  root = hdf5.check_folder(directory, 'shapenet_part_seg_hdf5_data')
  path = root / 'all_object_categories.txt'
  lines = [line.split() for line in read_text(path, MAX_NAMES).splitlines() if line.strip()]
  if not lines or any(len(line) != 2 for line in lines):
    raise UsageError(f"{path} has lines that are not a category's name and number")
  category = {number: i for i, (_, number) in enumerate(lines)}
  path = root / 'overallid_to_catid_partid.json'
  parts = read_json(path, of=list)
  check_num_classes(path, len(parts))
  with reading(path, 'a list of [number of a category, part]'):
    categories = np.array([category[number] for number, _ in parts])
    names = [f'{lines[category[number]][0]} {int(part)}' for number, part in parts]
  return hdf5.Hdf5Points(hdf5.find_files(root), split, names, categories)
