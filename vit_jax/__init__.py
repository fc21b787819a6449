"""Vision transformers in JAX/Flax: models, data, training, all free of TensorFlow at run time."""
