"""ModelNet40 as HDF5 files: modelnet40_ply_hdf5_2048 of PointNet (arXiv 1612.00593).

2,048 points of each of 9,840 objects to train and 2,468 to test, of 40 classes. In the folder are
ply_data_train0.h5 and so on, ply_data_test0.h5, and shape_names.txt with a class a line.
"""

from vit_jax.data.sources import hdf5


def load(split: str, directory: str) -> hdf5.Hdf5Points:
  """Opens splits of the folder.

  Args:
    split: of 'train' and 'test', in TFDS syntax.
    directory: the folder.

  Raises:
    FieldError: no such folder or split, or a file there that doesn't fit (`dir`).
  """
  root = hdf5.check_folder(directory, 'modelnet40_ply_hdf5_2048')
  names = hdf5.read_text(root / 'shape_names.txt').split()
  return hdf5.Hdf5Points(hdf5.find_files(root), split, names)
