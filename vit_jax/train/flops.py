"""How many floating-point operations a function takes, counted without compiling it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from vit_jax.models.layers import cpu


def count(fn: Callable, *args: Any, axis: str | None = None) -> int:
  """Returns the floating-point operations of matrix products and convolutions in fn(*args).

  A multiply-add is two operations, as hardware is rated; papers that give "FLOPs" of a ViT often
  count one. Padding counts as if it were there. All else (norms, softmax, activations, the
  optimiser) isn't counted: few per cent of a ViT, and nothing that two compilers would agree on.

  The count is of the jaxpr, the same on every backend where the model is: a scan's body counts as
  often as it runs, recomputation under `jax.checkpoint` counts, of a `cond` the dearest branch
  does. A `while` body, whose runs aren't known, counts once.

  Args:
    fn: a function that can be traced.
    *args: its arguments, or their shapes and dtypes.
    axis: name of the mapped axis that `fn` sums over, if any; it sees one device's part.
  """
  with cpu.left_alone():  # kernels of one device have no products to count
    jaxpr = jax.make_jaxpr(fn, axis_env=[(axis, 1)] if axis else None)(*args)
  return _count(_open(jaxpr))


def _count(jaxpr: Any) -> int:
  return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    lhs, (out,) = equation.invars[0].aval, equation.outvars
    return 2 * out.aval.size * math.prod(lhs.shape[i] for i in contracted)
  if name == 'conv_general_dilated':
    return _count_convolution(equation)
  inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
  if name == 'cond':
    return max(inner)
  return params.get('length', 1) * sum(inner) if name == 'scan' else sum(inner)


def _count_convolution(equation: Any) -> int:
  params, kernel, (out,) = equation.params, equation.invars[1].aval, equation.outvars
  out_features = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
  operations = 2 * out.aval.size * kernel.size // out_features
  # Gradients of strided convolutions run over images with zeros between the pixels.
  return operations // math.prod(params['lhs_dilation'])


def _jaxprs(value: Any) -> Iterator[Any]:
  """Yields the jaxprs in a parameter of an equation: itself, or those in a tuple of branches."""
  if isinstance(value, tuple | list):
    for item in value:
      yield from _jaxprs(item)
  elif hasattr(_open(value), 'eqns'):
    yield _open(value)


def _open(jaxpr: Any) -> Any:
  """Returns a jaxpr without the constants that it may be closed over."""
  return getattr(jaxpr, 'jaxpr', jaxpr)
