"""Which weights live and die together: channels, rows, attention heads."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rewa_jax._power import wide_dtype

Groups = (
  Literal["output", "input", "rows", "heads"]
  | Callable[[str, Any], Sequence[int]]
)

_NAMES = ("output", "input", "rows", "heads")
# The libraries that use these names put outputs first, the others last.
_OUTPUT_FIRST = ("weight", "weight_ih", "weight_hh")
_TO_HEADS = ("query", "key", "value")
_FROM_HEADS = "out"


def group_axes(groups: Groups, path: str, leaf: Any) -> tuple[int, ...]:
  """Returns the axes of a leaf along which its groups lie.

  There is one group for each index along these axes; its members run over all
  the other axes, so groups neither overlap nor leave a weight out.

  Args:
    groups: what is a group.

      - ``"output"``: an output channel. The last axis of kernels, which are
        (inputs, outputs) or (..., inputs, outputs) in Flax and Haiku; the axis
        before it of Haiku's transposed convolutions, told by their name; the
        first axis of leaves called ``weight``, ``weight_ih`` and ``weight_hh``,
        which are (outputs, inputs, ...) in Equinox.
      - ``"input"``: an input channel, the other of these two axes.
      - ``"rows"``: axis 0 of any leaf.
      - ``"heads"``: a head of Flax's attention. Query, key and value kernels
        are (features, heads, size), and the out kernel is (heads, size,
        features): a dead head is a dead group in each of the four.
      - a function of path and leaf that returns the axes. No axis at all makes
        the leaf one group.

      Of attention's kernels the channels are those a matrix would have: outputs
      of query, key and value are (heads, size), inputs of out too. They are
      told by their names, ``query/kernel``, ``key/kernel``, ``value/kernel``
      and ``out/kernel``, and their three axes.

      A name and a shape do not tell everything: for kernels that ``nn.scan`` or
      ``vmap`` stacks take :func:`stacked`, and for Flax's ``ConvTranspose``
      with ``transpose_kernel=True``, whose kernels are (..., outputs, inputs),
      a function.
    path: the leaf's readable path, as ``"dense/kernel"``.
    leaf: an array, or anything with a shape.

  Returns:
    Distinct axes in rising order, none negative.

  Raises:
    ValueError: if groups is unknown, the leaf has no such groups or groups
      without members, or the function's axes are out of range or repeated. The
      message names the path.
    TypeError: if the function does not return a sequence of integers.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax.baselines import group_axes
    >>> kernel = jnp.ones((3, 3, 16, 32))
    >>> group_axes("output", "conv/kernel", kernel)
    (3,)
    >>> group_axes("input", "attention/out/kernel", jnp.ones((4, 8, 32)))
    (0, 1)
    >>> group_axes(lambda path, leaf: (0, 1), "conv/kernel", kernel)
    (0, 1)
  """
  check_groups(groups)
  shape = jnp.shape(leaf)
  if math.prod(shape) == 0:
    raise ValueError(
      f"{path} has shape {shape}, so that its groups have no members. Pass a"
      " mask that is False there."
    )
  if not isinstance(groups, str):
    return _given_axes(groups, path, leaf)
  if groups == "rows":
    _check_rank(groups, path, shape, 1)
    return (0,)
  owner, _, name = path.rpartition("/")
  owner = owner.rpartition("/")[2]
  if name == "kernel" and owner in (*_TO_HEADS, _FROM_HEADS) and len(shape) > 3:
    raise ValueError(
      f"{path} of shape {shape} is no kernel of attention, which has three"
      " axes. If it is several stacked, pass stacked(groups); if it is a"
      " convolution, a function as groups."
    )
  is_attention = name == "kernel" and len(shape) == 3
  to_heads = is_attention and owner in _TO_HEADS
  from_heads = is_attention and owner == _FROM_HEADS
  if groups == "heads":
    if not (to_heads or from_heads):
      raise ValueError(
        f"{path} of shape {shape} has no heads: only Flax's attention kernels"
        " query/kernel, key/kernel and value/kernel (features, heads, size) and"
        " out/kernel (heads, size, features) have. Pass a mask that is False"
        " there, or a function as groups."
      )
    return (1,) if to_heads else (0,)
  _check_rank(groups, path, shape, 2)
  if to_heads:
    return (1, 2) if groups == "output" else (0,)
  if from_heads:
    return (2,) if groups == "output" else (0, 1)
  outputs, inputs = len(shape) - 1, len(shape) - 2
  if name in _OUTPUT_FIRST:
    outputs, inputs = 0, 1
  elif name == "w" and "transpose" in owner:
    outputs, inputs = inputs, outputs
  return (outputs,) if groups == "output" else (inputs,)


def stacked(groups: Groups, *, within: str = "", axes: int = 1) -> Groups:
  """Groups of kernels that ``nn.scan`` or ``vmap`` stacks, each layer's own.

  Args:
    groups: what is a group of one layer, see :func:`group_axes`.
    within: the name of the module that holds stacked kernels, such as
      ``"layers"``; leaves elsewhere have groups as if not stacked. Empty for
      all leaves.
    axes: how many leading axes are stacked, >= 1.

  Returns:
    Groups, for every method that has them.

  Raises:
    ValueError: if groups is unknown or axes is no integer >= 1.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> groups = baselines.stacked("output", within="layers")
    >>> baselines.group_axes(groups, "layers/kernel", jnp.ones((6, 3, 2)))
    (0, 2)
    >>> baselines.group_axes(groups, "last/kernel", jnp.ones((3, 2)))
    (1,)
  """
  check_groups(groups)
  if isinstance(axes, bool) or not isinstance(axes, int) or axes < 1:
    raise ValueError(f"axes must be an integer >= 1, got {axes!r}.")

  def of_layers(path, leaf):
    if within and within not in path.split("/"):
      return group_axes(groups, path, leaf)
    shape = jnp.shape(leaf)
    layer = jax.ShapeDtypeStruct(shape[axes:], jnp.result_type(leaf))
    each = group_axes(groups, path, layer)
    return (*range(min(axes, len(shape))), *(axes + axis for axis in each))

  return of_layers


def group_norms(x: jax.typing.ArrayLike, axes: tuple[int, ...]) -> jax.Array:
  r"""Returns the Euclidean norm :math:`\|x_g\|` of every group.

  Args:
    x: an array.
    axes: the axes along which the groups lie, see :func:`group_axes`.

  Returns:
    An array with the sizes of x along axes and 1 elsewhere, so that it
    multiplies x. It is float32 where x has fewer bits, and its derivative is 0
    at a group of zeros. Weights whose squares underflow or overflow do no harm.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax.baselines import group_norms
    >>> group_norms(jnp.array([[3.0, 0.0], [4.0, 0.0]]), (1,))
    Array([[5., 0.]], dtype=float32)
  """
  x = jnp.asarray(x)
  x = x.astype(wide_dtype(x))
  members = tuple(axis for axis in range(x.ndim) if axis not in axes)
  largest = jnp.max(jnp.abs(x), axis=members, keepdims=True)
  # The norm is the same whatever the scale, so the scale has no derivative.
  scale = jax.lax.stop_gradient(jnp.where(largest == 0, 1, largest))
  squares = jnp.sum((x / scale) ** 2, axis=members, keepdims=True)
  # The derivative of the root at 0 is infinite, and 0 times that is no 0.
  return jnp.where(
    squares == 0, 0, scale * jnp.sqrt(jnp.where(squares == 0, 1, squares))
  )


def check_groups(groups: Groups) -> None:
  """Raises unless groups is one of the names or a function."""
  if groups not in _NAMES and not callable(groups):
    raise ValueError(
      f"groups must be one of {', '.join(map(repr, _NAMES))} or a function of"
      f" path and leaf that returns axes, got {groups!r}."
    )


def _given_axes(groups, path, leaf):
  given = groups(path, leaf)
  try:
    if any(isinstance(axis, bool) for axis in given):
      raise TypeError
    axes = tuple(map(operator.index, given))
  except TypeError as error:
    raise TypeError(
      f"groups must return a sequence of integers, the axes of {path}, got"
      f" {given!r}."
    ) from error
  rank = jnp.ndim(leaf)
  if any(not -rank <= axis < rank for axis in axes):
    raise ValueError(
      f"groups returned the axes {axes} for {path}, which has {rank} axes."
    )
  distinct = {axis % rank for axis in axes}
  if len(distinct) < len(axes):
    raise ValueError(f"groups returned an axis of {path} twice, got {axes}.")
  return tuple(sorted(distinct))


def _check_rank(groups, path, shape, at_least):
  if len(shape) < at_least:
    raise ValueError(
      f"{path} of shape {shape} has no {groups!r} groups, which need at least"
      f" {at_least} axes. Pass a mask that is False there, or a function as"
      " groups."
    )
