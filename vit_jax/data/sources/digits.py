"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels.

They are the test set of the UCI's "Optical Recognition of Handwritten Digits" (E. Alpaydin and C.
Kaynak, doi.org/10.24432/C50P49, CC BY 4.0). `digits.npz` has them in the order of scikit-learn's
`train_test_split(..., test_size=0.2, stratify=labels, random_state=0)`, train before test, so that
no run waits for scikit-learn to be imported, nor depends on its version.
"""

from pathlib import Path

import numpy as np

from vit_jax.data.sources.records import ArraySource
from vit_jax.data.sources.splits import split_names, split_ranges

_SPLITS = {'train': range(1437), 'test': range(1437, 1797)}


def load(split: str) -> ArraySource:
  """Digits as uint8: intensities of 0 to 16 times 255 / 16, halves rounded up."""
  split_names(split, _SPLITS)
  ranges = split_ranges(split, {name: len(rows) for name, rows in _SPLITS.items()})
  rows = np.concatenate([np.asarray(_SPLITS[name])[r.start : r.stop] for name, r in ranges])
  with np.load(Path(__file__).with_suffix('.npz')) as digits:
    image, label = digits['image'][rows], digits['label'][rows]
  image = ((image.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)[..., None]
  return ArraySource({'image': image, 'label': label.astype(np.int64)}, [str(i) for i in range(10)])
