"""Vision transformers in JAX/Flax: models, data, training, all free of TensorFlow at run time."""

from vit_jax import interrupts

interrupts.end_with_a_line()

# The line above comes first since what follows takes a while.
from vit_jax import requirements  # noqa: E402

requirements.check_versions()
