"""`Preprocessing`: what is written of it, and what isn't accepted."""

import pytest

from vit_jax.errors import FieldError
from vit_jax.models import ModelConfig, Preprocessing


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
    ({'mean': (1e300,)}, r'^mean: 1e\+300 is larger than arrays hold'),
    ({'mean': (10**400,)}, r'^mean: 1000+ is larger than arrays hold'),
    ({'mean': (float('nan'),)}, r'^mean: nan is not a finite number'),
    ({'std': (1e-300,)}, r'^std: \(1e-300,\) has a value that is not positive'),
    ({'crop': 'cut', 'crop_fraction': 0.9}, "^crop_fraction: crop 'cut' has none"),
    ({'crop': 'border', 'spatial_crops': 3}, "^spatial_crops: crop 'border' has one"),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(FieldError, match=message):
    Preprocessing(**fields)


@pytest.mark.parametrize('value', [3, 'abc', {'a': 1}, ['a', None], [[['a']]], 0.5, True])
def test_names_of_classes_and_sizes_of_other_types(value):
  entries = {**SMALL, 'num_classes': 3}
  with pytest.raises(FieldError, match=r'^class_names: .* is not a list of texts$'):
    ModelConfig.from_dict({**entries, 'class_names': value})
  with pytest.raises(FieldError, match=r'^image_size: .* is not \(height, width\)$'):
    ModelConfig.from_dict({**entries, 'image_size': value})


SMALL = {
  'name': 'vit',
  'patches': {'size': (4, 4)},
  'hidden_size': 8,
  'num_layers': 1,
  'num_heads': 2,
  'mlp_dim': 8,
}
