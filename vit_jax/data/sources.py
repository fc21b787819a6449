"""The data sets by name: digits, folders of images and in YOLO format, TFDS."""

from vit_jax.data import digits, folders, tfds, yolo
from vit_jax.data.records import Source

FOLDERS = {'folder': folders, 'yolo': yolo}  # names that stand for what is in `dir`


def load_source(
  name: str, split: str, dir: str = '', *, field: str = 'config.data.train_split'
) -> Source:
  """Opens a split of a data set; imports no TensorFlow.

  Args:
    name: 'digits' (the 1,797 images of scikit-learn, split 80/20 and stratified), 'folder' (see
      `folders.load`), 'yolo' (see `yolo.load`), or a data set that TFDS has prepared as
      array_record, as 'name[/config][:version]'.
    split: splits and slices in TFDS syntax: 'train', 'train[:90%]', 'train[90%:]+test', 'all'.
    dir: the folder of images, or TFDS's data_dir, where '' stands for $TFDS_DATA_DIR or else
      ~/tensorflow_datasets. Unused by digits.
    field: the configuration field to name when `split` is wrong.

  Raises:
    UsageError: unknown name or split, no images, or a TFDS data set that isn't prepared, isn't
      array_record or isn't of image classification.
  """
  if name == 'digits':
    return digits.load(split, field)
  if name in FOLDERS:
    return FOLDERS[name].load(split, dir, field)
  return tfds.load(name, split, dir, field, other_names=('digits', *FOLDERS))
