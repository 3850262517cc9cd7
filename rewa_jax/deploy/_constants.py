"""Which entries of which arrays are the same whatever the input is.

A rule takes an equation, the values of its operands, and for each a bool array
that says which entries vary with the input. It returns the same for the results
where every array and every zero in it is known but what varies. Places, which
inputs of another size have more of, count as input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives

from rewa_jax.deploy._follow import (
  CUMULATIONS,
  ELEMENTWISE,
  REDUCTIONS,
  WINDOWS,
  passed_axes,
)
from rewa_jax.deploy._graph import Equation, Graph


class Known(NamedTuple):
  """An array, and which of its entries vary with the input."""

  value: Any
  varies: Any

  @property
  def nonzero(self) -> Any:
    """Which entries may be other than zero."""
    return self.varies | (self.value != 0)


def constants(
  graph: Graph, leaves: list[Any], inputs: list[Any], any_size: bool = False
) -> tuple[list[Any], list[list[Known]]]:
  """Returns the outputs, and what is known of the operands of products.

  Args:
    graph: the function.
    leaves: of params.
    inputs: an example.
    any_size: whether only what is the same for inputs of other sizes is
      constant.

  Returns:
    The outputs, and a list of the operands of each ``dot_general`` and each
    ``conv_general_dilated`` in the order of equations.
  """

  @jax.jit
  def run(leaves, inputs):
    arrays = {}
    for varies, numbers, values in (
      (False, graph.leaves, leaves),
      (False, graph.constants, graph.constants.values()),
      (True, graph.inputs, inputs),
    ):
      for number, value in zip(numbers, values):
        arrays[number] = Known(value, jnp.full(jnp.shape(value), varies))
    products = []
    for equation in graph.equations:
      operands = [arrays[number] for number in equation.operands]
      if equation.primitive.name in PRODUCTS:
        products.append(operands)
      values = equation.bind(*(each.value for each in operands))
      varies = _RULES.get(equation.primitive.name, _any)(equation, *operands)
      if not isinstance(varies, list):
        varies = [varies] * len(values)
      if any_size and equation.primitive.name in _OF_A_SIZE:
        varies = [x | (value != 0) for x, value in zip(varies, values)]
      arrays.update(zip(equation.results, map(Known, values, varies)))
    return [arrays[number].value for number in graph.outputs], products

  return run(leaves, inputs)


def _any(equation: Equation, *operands: Known) -> list[jax.Array]:
  """Says that all varies if anything does."""
  varies = jnp.zeros((), bool)
  for each in operands:
    varies |= jnp.any(each.varies)
  return [jnp.broadcast_to(varies, shape) for shape in equation.shapes[1]]


def _elementwise(equation: Equation, *operands: Known) -> jax.Array:
  (shape,) = equation.shapes[1]
  varies = jnp.zeros(shape, bool)
  for each in operands:
    varies |= each.varies
  return varies


def _mul(equation: Equation, left: Known, right: Known) -> jax.Array:
  return (left.varies & right.nonzero) | (left.nonzero & right.varies)


def _moved(equation: Equation, *operands: Known) -> list[jax.Array]:
  """Moves bools as the equation moves numbers."""
  moved = equation.bind(*(each.varies.astype(jnp.float32) for each in operands))
  return [each > 0 for each in moved]


def _all(equation: Equation) -> list[jax.Array]:
  return [jnp.ones(shape, bool) for shape in equation.shapes[1]]


def _product(equation: Equation, left: Known, right: Known) -> jax.Array:
  def count(left, right):
    (found,) = equation.bind(
      left.astype(jnp.float32),
      right.astype(jnp.float32),
      preferred_element_type=np.dtype(np.float32),
    )
    return found > 0

  return count(left.varies, right.nonzero) | count(left.nonzero, right.varies)


def _reduce(equation: Equation, operand: Known) -> jax.Array:
  return jnp.any(operand.varies, axis=tuple(equation.params["axes"]))


def _cumulate(equation: Equation, operand: Known) -> jax.Array:
  varies = jnp.any(operand.varies, equation.params["axis"], keepdims=True)
  return jnp.broadcast_to(varies, operand.varies.shape)


def _reduce_window(equation: Equation, operand: Known) -> jax.Array:
  varies = operand.varies.astype(jnp.float32)
  params = equation.params
  return primitives.reduce_window_max_p.bind(varies, **params) > 0


def _gather(equation: Equation, operand: Known, indices: Known) -> jax.Array:
  passed = passed_axes(equation)
  others = tuple(a for a in range(operand.value.ndim) if a not in passed)
  differs = operand.varies
  for axis in others:
    first = lax.slice_in_dim(operand.value, 0, 1, axis=axis)
    differs |= operand.value != first
  # Where all that it may take is alike, it does not matter which.
  differs = jnp.any(differs, axis=others)
  places = tuple(passed[axis] for axis in sorted(passed))
  differs = lax.broadcast_in_dim(differs, equation.shapes[1][0], places)
  return differs & (jnp.any(operand.varies) | jnp.any(indices.varies))


PRODUCTS = ("conv_general_dilated", "dot_general")
# What has other values, or others at the borders, where there are more places.
_OF_A_SIZE = (
  *("concatenate", "conv_general_dilated", "pad", "reduce_prod", "reduce_sum"),
  *(*CUMULATIONS, *WINDOWS),
)
_Rule = Callable[..., jax.Array | list[jax.Array]]
_RULES: dict[str, _Rule] = {
  **dict.fromkeys(ELEMENTWISE, _elementwise),
  **dict.fromkeys(REDUCTIONS, _reduce),
  **dict.fromkeys(CUMULATIONS, _cumulate),
  **dict.fromkeys(WINDOWS, _reduce_window),
  **dict.fromkeys(PRODUCTS, _product),
  **dict.fromkeys(
    (
      *("broadcast_in_dim", "concatenate", "pad", "reshape", "rev", "slice"),
      *("split", "squeeze", "transpose"),
    ),
    _moved,
  ),
  "gather": _gather,
  "iota": _all,
  "mul": _mul,
}
