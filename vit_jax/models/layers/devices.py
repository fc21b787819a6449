"""The devices of a machine, for what is traced in another way where there is one of a kind."""

import jax


def at_hand(platform: str) -> list[jax.Device]:
  """Returns the devices of a platform in this process, by JAX's name of it: 'cuda', 'tpu'."""
  try:
    return jax.local_devices(backend=platform)
  except RuntimeError:  # no such backend
    return []
