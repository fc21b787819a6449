"""Pictures of what a model learnt and looks at: numbers from arrays, figures from numbers."""

from vit_jax import requirements

requirements.need('matplotlib', 'sklearn')
