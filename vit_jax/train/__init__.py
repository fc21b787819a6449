"""Training: from a configuration to a run, step by step."""

from vit_jax import requirements

requirements.need('matplotlib')  # for the curves at the end of a run
