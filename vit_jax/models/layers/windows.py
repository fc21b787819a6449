"""Windows of maps."""

import jax


def window_partition(x: jax.Array, window: tuple[int, int]) -> jax.Array:
  """Cuts maps into windows: [B, H, W, C] to [B, windows, window's positions, C]."""
  batch, height, width, channels = x.shape
  rows, columns = height // window[0], width // window[1]
  x = x.reshape(batch, rows, window[0], columns, window[1], channels).swapaxes(2, 3)
  return x.reshape(batch, rows * columns, window[0] * window[1], channels)


def window_reverse(x: jax.Array, window: tuple[int, int], size: tuple[int, int]) -> jax.Array:
  """Puts windows back: the inverse of `window_partition`, for maps of `size` (H, W)."""
  batch, _, _, channels = x.shape
  rows, columns = size[0] // window[0], size[1] // window[1]
  x = x.reshape(batch, rows, columns, *window, channels).swapaxes(2, 3)
  return x.reshape(batch, *size, channels)
