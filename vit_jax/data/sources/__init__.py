"""The data sets by name: digits, folders of images and in YOLO format, TFDS."""

from vit_jax.data.sources import digits, folders, tfds, yolo
from vit_jax.data.sources.records import Source

# Modules by the name of the data set. A fixed one has load(split); one that reads whatever is in a
# folder has load(split, directory).
_FIXED = {'digits': digits}
FOLDERS = {'folder': folders, 'yolo': yolo}


def load_source(name: str, split: str, dir: str = '') -> Source:
  """Opens a split of a data set; imports no TensorFlow.

  Args:
    name: 'digits' (the 1,797 images of scikit-learn, split 80/20 and stratified), 'folder' (see
      `folders.load`), 'yolo' (see `yolo.load`), or a data set that TFDS has prepared as
      array_record, as 'name[/config][:version]'.
    split: splits and slices in TFDS syntax: 'train', 'train[:90%]', 'train[90%:]+test', 'all'.
    dir: the folder of images, or TFDS's data_dir, where '' stands for $TFDS_DATA_DIR or else
      ~/tensorflow_datasets. Unused by digits.

  Raises:
    FieldError: of `name`, `split` or `dir`: an unknown name or split, no images, or a TFDS data set
      that isn't prepared, isn't array_record or isn't of image classification.
    UsageError: a file there that can't be used.
  """
  if name in _FIXED:
    return _FIXED[name].load(split)
  if name in FOLDERS:
    return FOLDERS[name].load(split, dir)
  return tfds.load(name, split, dir, other_names=(*_FIXED, *FOLDERS))
