"""Records on disk to batches on devices. `augment` is imported by name: only it needs JAX."""

from vit_jax.data.images import decode_image
from vit_jax.data.loader import (
  ResidentLoader,
  StreamedLoader,
  eval_loader,
  resolve_resident,
  train_loader,
)
from vit_jax.data.preprocess import Preprocess, make_preprocess
from vit_jax.data.records import Record, Source
from vit_jax.data.sources import FOLDERS, load_source

__all__ = [
  'FOLDERS',
  'Preprocess',
  'Record',
  'ResidentLoader',
  'Source',
  'StreamedLoader',
  'decode_image',
  'eval_loader',
  'load_source',
  'make_preprocess',
  'resolve_resident',
  'train_loader',
]
