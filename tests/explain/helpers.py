"""Small models with random parameters, what there is to explain of them, and a look at figures."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vit_jax.explain.context import Context
from vit_jax.models import ModelConfig, unflatten

VIT = {
  'name': 'vit',
  'hidden_size': 8,
  'mlp_dim': 12,
  'num_layers': 2,
  'num_heads': 2,
  'patches': {'size': (4, 4)},
  'classifier': 'token',
  'num_classes': 3,
  'channels': 3,
  'image_size': (8, 8),
}
# One channel, and images that are not square.
WIDE = VIT | {
  'patches': {'size': (4, 2)},
  'image_size': (8, 6),
  'channels': 1,
  'num_layers': 1,
  'class_names': ('cat', 'dög', 'cat'),
}


def random_variables(config, seed=0):
  """Normally distributed variables of a model; variances are positive."""
  rng = np.random.default_rng(seed)
  flat = {
    path: 0.3 * rng.normal(size=shape).astype(np.float32)
    for path, shape in config.variable_shapes().items()
  }
  return unflatten({p: np.abs(leaf) if p.endswith('/var') else leaf for p, leaf in flat.items()})


def random_images(*shape):
  """Random uint8 images."""
  return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def make_context(entries, num_images=2, **changes):
  """What there is to explain of a small model.

  Args:
    entries: of its `ModelConfig`.
    num_images: how many images there are.
    **changes: attributes of the context that differ.
  """
  config = ModelConfig.from_dict(entries)
  images = random_images(num_images, *config.image_size, config.channels)
  attributes = {
    'config': config,
    'variables': random_variables(config),
    'images': images,
    'inputs': (images / 127.5 - 1).astype(np.float32),
    'class_names': config.class_names or ('red', 'green', 'blue'),
    'file_names': ('',) * num_images,
    'labels': None,
    'boxes': None,
    'evaluate': lambda: 1 / 0,
    'layer': None,
    'head_fusion': 'mean',
    'discard_ratio': 0.0,
    'target': None,
  }
  return Context(**attributes | changes)


def words(figure):
  """All texts of a figure."""
  return [text.get_text() for text in figure.findobj(Text)]


def assert_fits_into_readme(figure):
  """Nothing is cut off, and the figure is not wider than a README shows it."""
  canvas = FigureCanvasAgg(figure)
  canvas.draw()  # lays it out
  drawn = figure.get_tightbbox(canvas.get_renderer())
  width, height = figure.get_size_inches()
  assert 5 <= width <= 9
  assert drawn.x0 >= 0
  assert drawn.y0 >= 0
  assert drawn.x1 <= width
  assert drawn.y1 <= height
