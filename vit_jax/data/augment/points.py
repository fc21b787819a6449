"""Rotations, sizes, shifts and noise of points: each is drawn once for an example.

A record here is as in `geometry`; its points, float32 [N, 3], are normalised: their mean is 0 and
the farthest lies at a distance of 1.
"""

from collections.abc import Callable, Collection

import chex
import jax
import jax.numpy as jnp

from vit_jax.data import kinds
from vit_jax.data.augment.geometry import Record
from vit_jax.errors import FieldError, check_choice

# None; by any angle about the z axis; any rotation, all alike likely.
ROTATIONS = ('none', 'z', 'so3')
# Fields of config.augment that move points, in their order.
FIELDS = ('rotation', 'point_scale', 'point_shift', 'point_jitter')
_CUT = 5  # standard deviations, beyond which jitter is cut off, as in PointNet's code


def random_matrix(key: chex.PRNGKey, rotation: str) -> jax.Array:
  """Draws a rotation, float32 [3, 3]: 'z' about the z axis, 'so3' any, uniformly."""
  if rotation == 'z':
    angle = jax.random.uniform(key, maxval=2 * jnp.pi)
    # The quaternion's real part and its axis.
    q = jnp.stack([jnp.cos(angle / 2), 0.0, 0.0, jnp.sin(angle / 2)])
  else:
    q = jax.random.normal(key, (4,))
    q /= jnp.linalg.norm(q)
  w, x, y, z = q
  return jnp.array(
    [
      [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
      [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
      [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
  )


def random_rotation(key: chex.PRNGKey, record: Record, rotation: str) -> Record:
  """Turns points about the origin by a random rotation; see `random_matrix`."""
  matrix = random_matrix(key, rotation)
  return _map_points(lambda x: jnp.matmul(x, matrix.T, precision='highest'), record)


def random_point_scale(key: chex.PRNGKey, record: Record, excess: float) -> Record:
  """Multiplies points by a factor that is uniform from 1 / (1 + excess) to 1 + excess."""
  factor = jax.random.uniform(key, minval=1 / (1 + excess), maxval=1 + excess)
  return _map_points(lambda x: x * factor, record)


def random_point_shift(key: chex.PRNGKey, record: Record, most: float) -> Record:
  """Moves points, all alike, by up to `most` along each axis, either way."""
  offset = jax.random.uniform(key, (3,), minval=-most, maxval=most)
  return _map_points(lambda x: x + offset, record)


def random_point_jitter(key: chex.PRNGKey, record: Record, deviation: float) -> Record:
  """Adds normal noise of a standard deviation to each coordinate, cut off at five of them."""

  def jitter(points):
    return points + deviation * jax.random.normal(key, points.shape).clip(-_CUT, _CUT)

  return _map_points(jitter, record)


def rotate(rotation: str, keys: chex.PRNGKey, batch: Record) -> Record:
  """Turns the points of each example of a normalised batch, as evaluation does.

  Args:
    rotation: one of `ROTATIONS`.
    keys: [B], one key per example.
    batch: entries [B, ...].
  """
  if rotation == 'none':
    return batch
  points = {name: value for name, kind, value in kinds.entries(batch) if kind.has_points}
  turn = jax.vmap(lambda key, record: random_rotation(key, record, rotation))
  return dict(batch) | turn(keys, points)


def check_rotation(rotation: str, used: Collection[str]) -> None:
  """Raises FieldError for a rotation that isn't there, or without points to turn.

  Args:
    rotation: one of `ROTATIONS`.
    used: the entries of records that a model and its task use.
  """
  check_choice('rotation', rotation, ROTATIONS)
  if rotation != 'none':
    check_points('rotation', rotation, used)


def check_points(field: str, value: object, used: Collection[str]) -> None:
  """Raises FieldError, of `field`, where the entries that are used have no points."""
  if not any(kinds.kind_of(name).has_points for name in used):
    raise FieldError(field, f'{value!r}, but the model takes no points')


def _map_points(function: Callable[[jax.Array], jax.Array], record: Record) -> Record:
  return {name: kind.map_points(function, value) for name, kind, value in kinds.entries(record)}
