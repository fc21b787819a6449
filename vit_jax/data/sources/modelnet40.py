"""ModelNet40 as HDF5 files: modelnet40_ply_hdf5_2048 of PointNet (arXiv 1612.00593).

2,048 points of each of 9,840 objects to train and 2,468 to test, of 40 classes. In the folder are
ply_data_train0.h5 and so on, ply_data_test0.h5, and shape_names.txt with a class a line.
"""

from vit_jax.data.sources import hdf5
from vit_jax.data.sources.records import MAX_NAMES, check_num_classes
from vit_jax.regular_files import read_text


def load(split: str, directory: str) -> hdf5.Hdf5Points:
  """Opens splits of the folder.

  Args:
    split: of 'train' and 'test', in TFDS syntax.
    directory: the folder.

  Raises:
    FieldError: no such folder (`dir`) or split.
    UsageError: a file there is damaged or doesn't fit.
  """
  root = hdf5.check_folder(directory, 'modelnet40_ply_hdf5_2048')
  names = read_text(root / 'shape_names.txt', MAX_NAMES).split()
  check_num_classes(root / 'shape_names.txt', len(names))
  return hdf5.Hdf5Points(hdf5.find_files(root), split, names)
