"""timm's models, made from the configs here, compute and learn the same."""

import numpy as np
import pytest
from small_vits import SQUARE

torch = pytest.importorskip('torch')
import torchvision_operators  # noqa: E402, F401  before timm

pytest.importorskip('timm', exc_type=ImportError)

from vit_jax import models, weights  # noqa: E402
from vit_jax.comparison.images import RandomImages  # noqa: E402
from vit_jax.comparison.sides import JaxSide, TorchSide  # noqa: E402
from vit_jax.comparison.torch_models import Timm  # noqa: E402
from vit_jax.models import ModelConfig  # noqa: E402

SWIN = ModelConfig.from_dict(
  {'name': 'swin', 'embed_dim': 8, 'depths': (2, 1), 'num_heads': (2, 4), 'num_classes': 3}
  | {'patches': {'size': (2, 2)}, 'window_size': 4, 'image_size': (16, 16), 'channels': 3}
  | {'activation': 'gelu_exact'}
)
CONFIGS = {
  'vit': SQUARE.replace(activation='relu'),
  'vit of averages': SQUARE.replace(classifier='gap', image_size=(8, 12), channels=1),
  'swin': SWIN,
  'swin 2': SWIN.replace(version=2),
  'resnet': ModelConfig.from_dict(
    {'name': 'resnet18', 'num_filters': 64, 'num_classes': 3, 'image_size': (32, 32)}
    | {'channels': 1}
  ),
}


def variables_of(config):
  """Normally distributed ones; scales and variances about 1."""
  rng, flat = np.random.default_rng(0), {}
  for name, shape in sorted(config.variable_shapes().items()):
    centre = 1 if name.endswith(('scale', 'var')) else 0
    flat[name] = np.float32(centre + 0.05 * rng.standard_normal(shape))
  return models.unflatten(flat)


@pytest.mark.parametrize('name', CONFIGS)
def test_logits_and_training_agree(tmp_path, name):
  config, path = CONFIGS[name], tmp_path / 'm.safetensors'
  variables = variables_of(config)
  weights.save(variables, config, path, format='timm')
  images = next(RandomImages(config, 6).batches(6))[0]
  theirs = TorchSide(Timm(str(path), *weights.timm_creation(config, 'm')), images, 'float32', 'cpu')
  ours = JaxSide(variables, config.to_dict(), images, 'float32')
  logits = theirs.logits(images)
  assert logits.std() > 1e-3
  np.testing.assert_allclose(ours.logits(images), logits, atol=1e-3 * logits.std())
  losses = [[side._task('training')().item() for _ in range(3)] for side in (ours, theirs)]
  np.testing.assert_allclose(*losses, rtol=1e-3)
  assert losses[1][0] - losses[1][2] > 1e-4
  assert set(theirs.describe()['versions']) == {'python', 'torch', 'timm'}
