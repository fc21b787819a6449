"""`Head`, the base class of heads: what the optimiser, weights and explain ask of a head."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import fields
from vit_jax.models.backbone import Backbone, Shape, trace_shapes

_BACKBONE = 'backbone/'


class Head(nn.Module, kw_only=True):
  """Base class of what a task puts on a backbone's features, in place of the backbone's own head.

  The dataclass fields of a subclass are the fields of `config.model.head`. Its call takes what the
  backbone's does, and returns a dict of arrays.

  Attributes:
    backbone: whose features are read; its parameters are in `backbone`.
    num_classes: number of classes.
    dtype: dtype of the computation.
    axis_name: of the mapped axis over which running statistics are synchronised in training.

  Raises:
    FieldError: on construction, for a field out of the range of its type.
  """

  backbone: Backbone
  num_classes: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  NOT_CONFIG: ClassVar[tuple[str, ...]] = (
    'backbone',
    'num_classes',
    'dtype',
    'axis_name',
    'name',
    'parent',
  )

  def __post_init__(self) -> None:
    fields.check_ranges(self)
    super().__post_init__()

  @property
  def INPUT(self) -> str:
    """As of `Backbone`."""
    return self.backbone.INPUT

  @property
  def NO_DECAY(self) -> str:
    """As of `Backbone`."""
    return self.backbone.NO_DECAY

  def layer_of(self, path: str) -> int | None:
    """As of `Backbone`; a head's own parameters are in the last layer."""
    inner = 'output_projection/kernel' if self.is_head(path) else path.removeprefix(_BACKBONE)
    return self.backbone.layer_of(inner)

  def is_head(self, path: str) -> bool:
    """As of `Backbone`."""
    return not path.removeprefix('batch_stats/').startswith(_BACKBONE)

  def works_untrained(self, path: str) -> bool:
    """As of `Backbone`."""
    return self.backbone.works_untrained(path.removeprefix(_BACKBONE))

  @nn.nowrap
  def seen_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) that the backbone sees at once of images of `image_size`."""
    return image_size

  def variable_shapes(self, input_size: Shape | None, channels: int) -> dict[str, Shape]:
    """As of `Backbone`."""
    return trace_shapes(self, input_size, channels)
