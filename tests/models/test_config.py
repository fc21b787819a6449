"""`Preprocessing`: what is written of it, and what isn't accepted."""

import pytest

from vit_jax.errors import FieldError
from vit_jax.models import Preprocessing


def test_a_field_that_has_its_default_is_not_written():
  assert Preprocessing().to_dict() == {'mean': (0.5,), 'std': (0.5,), 'crop': 'resize'}
  given = {
    'mean': (0.4,),
    'std': (0.5,),
    'crop': 'squash',
    'crop_fraction': 0.875,
    'interpolation': 'bilinear',
    'rounding': 'nearest',
    'spatial_crops': 1,
  }
  assert Preprocessing(**given).to_dict() == given
  assert Preprocessing.from_dict(given) == Preprocessing(**given)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'crop': 'centre'}, "^crop: 'centre' is not one of resize, central, .* mean 'central'"),
    ({'interpolation': 'random'}, "^interpolation: 'random' is not one of bicubic, "),
    ({'rounding': ['down']}, r"^rounding: \['down'\] is not one of down, nearest"),
    ({'crop': 'cut', 'crop_fraction': 0.9}, "^crop_fraction: crop 'cut' has none"),
    ({'crop': 'border', 'spatial_crops': 3}, "^spatial_crops: crop 'border' has one"),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(FieldError, match=message):
    Preprocessing(**fields)
