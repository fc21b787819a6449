"""SimMIM's one-layer prediction of hidden pixels (arXiv 2111.09886).

github.com/microsoft/SimMIM, models/simmim.py; parameters have its names, but `decoder.0` is
`decoder`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, UsageError
from vit_jax.models.heads.head import Head

_normal = nn.initializers.truncated_normal(0.02)


class SimMIM(Head, kw_only=True):
  """Predicts the pixels of images, some of whose patches a learned token stands for.

  Maps images [B, H, W, C], float, to {'reconstruction': float32 [B, H, W, C]}, normalised as they
  are. Each token of a ViT predicts its patch; each position of the last, normed map of a Swin the
  pixels that it stands for. Parameters are in `backbone`, `mask_token` [1, 1, D] and `decoder`.

  Raises:
    FieldError: on construction, for a backbone whose patches can't be hidden; when called, for
      patches that overlap, or end before the image.
    UsageError: when called, for a backbone that gives no tokens on a grid, and no normed map.
  """

  def __post_init__(self) -> None:
    if 'map_patches' not in self.backbone.PATCH_HOOKS:
      kind = type(self.backbone).__name__
      raise FieldError('name', f"'simmim' hides patches, and {kind} has none that can be hidden")
    super().__post_init__()

  @property
  def NO_DECAY(self) -> str:
    """As of `Backbone`; the mask token isn't decayed either."""
    return f'{self.backbone.NO_DECAY}|^mask_token$'

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """Predicts images.

    Args:
      x: float [B, H, W, C].
      train: turns on what only training does.
      mask: bool [B, H, W], the same for all pixels of a patch: those to hide. None hides none.
    """
    batch, height, width, channels = x.shape
    rows, columns = self.backbone.patch_size

    def hide(patches: jax.Array) -> jax.Array:  # [B, h, w, D]
      token = self.param('mask_token', _normal, (1, 1, patches.shape[-1])).astype(patches.dtype)
      if mask is None:
        return patches
      return jnp.where(mask[:, ::rows, ::columns, None], token, patches)

    layout = self.backbone.layout((height, width))
    if layout.stride != layout.patch:
      raise FieldError('stride', f'{layout.stride}, but patches that overlap show what is hidden')
    layout.check_covers((height, width))
    found = self.backbone.features(x, train=train, map_patches=hide)
    if found.normed is not None:
      y, (down, right) = found.normed, found.strides[-1]  # [B, h, w, D]
    elif found.grid is not None:
      y, (down, right) = found.tokens[:, found.num_prefix :], layout.stride
      y = y.reshape(batch, *found.grid, -1)  # [B, h, w, D]
    else:
      raise UsageError('pixels are predicted from tokens on a grid, or a map; there are none')
    dense = nn.Dense(
      channels * down * right, dtype=jnp.float32, kernel_init=_normal, name='decoder'
    )
    y = dense(y).reshape(*y.shape[:3], channels, down, right)  # as PyTorch's PixelShuffle
    y = y.transpose(0, 1, 4, 2, 5, 3).reshape(batch, y.shape[1] * down, -1, channels)
    return {'reconstruction': y[:, :height, :width]}  # without what a backbone has padded
