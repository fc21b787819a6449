"""Vision transformers in JAX/Flax: models, data, training, all free of TensorFlow at run time."""

from vit_jax import requirements

requirements.check_versions()
