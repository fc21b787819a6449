"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels."""

import numpy as np

from vit_jax.data.sources.records import ArraySource
from vit_jax.data.sources.splits import split_names, split_ranges


def load(split: str) -> ArraySource:
  """Digits as uint8: intensities of 0 to 16 times 255 / 16, halves rounded up."""
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  split_names(split, ('train', 'test'))
  digits = load_digits()
  images = ((digits.images.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)[..., None]
  order = train_test_split(
    np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0
  )
  order = dict(zip(('train', 'test'), order, strict=True))
  ranges = split_ranges(split, {name: len(rows) for name, rows in order.items()})
  rows = np.concatenate([order[name][r.start : r.stop] for name, r in ranges])
  arrays = {'image': images[rows], 'label': digits.target[rows]}
  return ArraySource(arrays, [str(i) for i in range(10)])
