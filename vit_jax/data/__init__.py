"""Records on disk to batches on devices.

`sources` open records, `preprocess` and `views` crop and resize them on the host, `loader` makes
batches, and `augment` changes these on the device. `kinds` know what a record can hold.
"""

from vit_jax.data.images import decode_image
from vit_jax.data.loader import (
  ResidentLoader,
  StreamedLoader,
  eval_loader,
  resolve_resident,
  train_loader,
)
from vit_jax.data.opening import open_splits
from vit_jax.data.preprocess import Preprocess, make_preprocess
from vit_jax.data.sources import FOLDER_OF, load_source, title
from vit_jax.data.sources.records import ArraySource, Record, Source
from vit_jax.data.views import Views

__all__ = [
  'FOLDER_OF',
  'ArraySource',
  'Preprocess',
  'Record',
  'ResidentLoader',
  'Source',
  'StreamedLoader',
  'Views',
  'decode_image',
  'eval_loader',
  'load_source',
  'make_preprocess',
  'open_splits',
  'resolve_resident',
  'title',
  'train_loader',
]
