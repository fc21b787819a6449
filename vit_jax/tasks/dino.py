"""DINO: features learned without labels, by a student that follows its own moving average."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from vit_jax.data.augment import ViewGroup
from vit_jax.data.kinds import Size
from vit_jax.errors import FieldError
from vit_jax.ranges import Fraction, Number, Positive, PositiveFraction, Range, Side
from vit_jax.tasks.task import Apply, Batch, Metric, Outputs, Sums, Task

_GLOBAL, _LOCAL = 'global', 'local'


@dataclasses.dataclass(frozen=True)
class DINO(Task):
  """Self-distillation without labels (arXiv 2104.14294).

  Of each image the teacher, the moving average of the parameters, sees two large parts, and the
  student these and several small ones. The student learns to give each part the distribution over
  prototypes that the teacher gives another large part. The teacher's is centred, so that no one
  prototype wins, and sharpened by a low temperature, so that not all do alike.

  Metrics are `loss`, the mean cross-entropy of the pairs of different parts; `teacher_entropy`, in
  nats, of the teacher's distributions; and `kl`, loss - teacher_entropy, their mean divergence. A
  `kl` near 0 tells that the features have collapsed: with an entropy near log K to all prototypes
  alike, with one near 0 to one of them.

  Attributes:
    student_temperature: above 0.
    teacher_temperature: above 0.
    teacher_temperature_start: that of step 0.
    teacher_temperature_steps: in which it goes to `teacher_temperature` along a line; 0: at once.
    global_area: (smallest, largest) fraction of the image that a large part is.
    local_views: number of small parts.
    local_area: (smallest, largest) fraction of the image that a small part is.
    local_size: side of a small part, once it is resized, in pixels.
    blur: probabilities of a Gaussian blur of the first large part, the second, and the small ones.
    solarize: probabilities of solarisation, likewise.
  """

  student_temperature: Positive = 0.1
  teacher_temperature: Positive = 0.04
  teacher_temperature_start: Positive = 0.04
  teacher_temperature_steps: Number = 0
  global_area: tuple[PositiveFraction, PositiveFraction] = (0.4, 1.0)
  local_views: Annotated[int, Range(0, 100)] = 8
  local_area: tuple[PositiveFraction, PositiveFraction] = (0.05, 0.4)
  local_size: Side = 96
  blur: tuple[Fraction, Fraction, Fraction] = (1.0, 0.1, 0.5)
  solarize: tuple[Fraction, Fraction, Fraction] = (0.0, 0.2, 0.0)

  HEADS: ClassVar[tuple[str, ...]] = ('dino',)
  LEARNS_CLASSES: ClassVar[bool] = False
  TEACHER: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    for field in ('global_area', 'local_area'):
      low, high = getattr(self, field)
      if low > high:
        raise FieldError(field, f'{(low, high)} is not (low, high), low <= high')

  @property
  def metrics(self) -> dict[str, Metric]:
    return {
      'loss': Metric(label='loss'),
      'kl': Metric(label='divergence from the teacher'),
      'teacher_entropy': Metric(label="entropy of the teacher's"),
    }

  def views(self, size: Size) -> Mapping[str, ViewGroup]:
    changes = [
      {'gaussian_blur.probability': blur, 'solarize.probability': solarize}
      for blur, solarize in zip(self.blur, self.solarize, strict=True)
    ]
    groups = {_GLOBAL: ViewGroup(size, self.global_area, changes[:2])}
    if self.local_views:
      small = (self.local_size, self.local_size)
      groups[_LOCAL] = ViewGroup(small, self.local_area, changes[2:] * self.local_views)
    return groups

  def scheduled(self, step: jax.Array | None) -> dict[str, jax.Array]:
    start, end = self.teacher_temperature_start, self.teacher_temperature
    if step is None or not self.teacher_temperature_steps:
      return {'teacher_temperature': jnp.float32(end)}
    done = jnp.minimum(step / self.teacher_temperature_steps, 1)
    return {'teacher_temperature': start + (end - start) * done}

  def outputs(
    self, apply: Apply, batch: Batch, rng: jax.Array, train: bool, teacher: Apply | None = None
  ) -> Outputs:
    """Returns `student` [B, V, K], the large parts first, `teacher` [B, 2, K], `center` [K].

    Of whole images, in place of views, what the model gives.
    """
    del rng
    if self.input != 'image':
      raise FieldError(
        'name', f'the model takes {self.input}, and DINO learns from parts of images'
      )
    if self.input in batch:
      return apply(batch[self.input])
    large = batch[f'image/{_GLOBAL}']  # [B, 2, H, W, C]
    size = len(large)
    target = jax.lax.stop_gradient(teacher(_flat(large))['logits'])  # [B * 2, K]
    # The last call's state stays, so that it is the one that moves the centre, if any.
    found = [apply(_flat(batch[f'image/{_LOCAL}']))] if self.local_views else []
    found.insert(0, apply(_flat(large), **({'teacher_logits': target} if train else {})))
    logits = [x['logits'].reshape(size, -1, target.shape[-1]) for x in found]
    return {
      'student': jnp.concatenate(logits, axis=1),
      'teacher': target.reshape(size, 2, -1),
      'center': found[0]['center'],
    }

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    del rng, train
    student = jax.nn.log_softmax(outputs['student'] / self.student_temperature)  # [B, V, K]
    logits = (outputs['teacher'] - outputs['center']) / batch['teacher_temperature']
    log_target = jax.nn.log_softmax(logits)  # [B, 2, K]
    target = jnp.exp(log_target)
    highest = jax.lax.Precision.HIGHEST
    pairs = -jnp.einsum('bqk,bvk->bqv', target, student, precision=highest)  # [B, 2, V]
    others = 1 - jnp.eye(*pairs.shape[1:])  # a part isn't compared with itself
    loss = (pairs * others).sum(axis=(1, 2)) / others.sum()
    entropy = -(target * log_target).sum(axis=-1).mean(axis=-1)
    values = {'loss': loss, 'kl': loss - entropy, 'teacher_entropy': entropy}
    weight = batch['weight']
    return {name: ((value * weight).sum(), weight.sum()) for name, value in values.items()}


def _flat(views: jax.Array) -> jax.Array:
  """Returns views [B, V, ...] as [B * V, ...]."""
  return views.reshape(-1, *views.shape[2:])
