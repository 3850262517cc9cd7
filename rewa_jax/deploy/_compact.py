"""A smaller dense model with the same outputs."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rewa_jax import linen
from rewa_jax._sparsity import aligned
from rewa_jax._trees import with_paths
from rewa_jax.deploy._checks import check_weights
from rewa_jax.deploy._constants import PRODUCTS, Known, constants
from rewa_jax.deploy._follow import trace
from rewa_jax.deploy._graph import Graph, cut
from rewa_jax.deploy._products import Product

Shape = tuple[int, ...]
_ANOTHER = "For inputs of these shapes the model is another one"
_REMEDY = "Compact it for an example of them."


@dataclasses.dataclass(frozen=True)
class Compact:
  """A smaller model, made by :func:`compact`; ``print`` shows what went.

  Attributes:
    params: a tree like the model's, of smaller arrays.
    apply: the model's function on smaller params, compiled by ``jax.jit`` for
      as many examples along the first axis as there are, and for other sizes
      where what is gone is the same for them, else a ValueError.
    shapes: the shape of every leaf before and after, by its path.
  """

  params: Any
  apply: Callable[..., Any] = dataclasses.field(repr=False)
  shapes: dict[str, tuple[Shape, Shape]]

  def __str__(self) -> str:
    rows: list[Sequence[str]] = [("leaf", "shape", "now", "entries", "now")]
    totals = np.zeros(2, int)
    for path, shapes in self.shapes.items():
      sizes = [math.prod(shape) for shape in shapes]
      totals += sizes
      names = ["x".join(map(str, shape)) or "-" for shape in shapes]
      rows.append((path, *names, *map("{:,}".format, sizes)))
    rows.append(("all", "", "", *map("{:,}".format, totals)))
    text = aligned(rows)
    if totals[0] == totals[1]:
      text += "\nNothing to remove: every unit has an effect."
    return text


def compact(
  apply: Callable[..., Any],
  params: Any,
  *inputs: Any,
  keep: Callable[[str, Any], Sequence[int]] | None = None,
) -> Compact:
  """Cuts neurons, channels and heads without effect out of a model's arrays.

  What has no effect is found in the model's own operations, which are traced: a
  unit whose weights are zero on the way in or on the way out, in every layer
  that it passes, and what depends on such units alone. Its index goes from all
  arrays along which it lies, through normalization, pooling, reshapes, groups
  and residual sums. A unit that has lost its inputs but not its bias is
  constant; what it adds to the next layer goes into that layer's bias, or the
  mean of its batch normalization, if it is the same everywhere: before a padded
  convolution it is not, and the unit stays. So do units whose number is part of
  the arithmetic: what a mean or a norm goes over, and the size of attention's
  heads.

  Args:
    apply: a function of params and inputs, such as ``model.apply``, with
      everything else that it takes bound. Normalization must use its stored
      statistics.
    params: a tree of weights, all that ``apply`` takes as its first argument;
      small weights are made zeros by :func:`rewa_jax.prune` first. Latents are
      not weights, and those of a tree look like them.
    *inputs: an example: trees of arrays of any values, along whose first axis
      examples lie.
    keep: axes of leaves that keep their size, a function of path and leaf that
      returns them. None keeps no more than it must.

  Returns:
    The smaller params, and a function for them with the same outputs. To build
    the model's own class for them, give it the sizes of ``shapes``; an NNX
    model takes them by ``nnx.update``. A class that derives two sizes from one
    number, as attention does, may need ``keep``.

  Raises:
    ValueError: if params hold latents or NaN; at an operation, named, through
      which nothing is known to follow units, such as a ``scan``; or if the
      smaller model's outputs for the example differ.
    TypeError: if a leaf of params is no array.

  Examples:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rewa_jax import deploy
    >>> def model(hidden):
    ...   return nn.Sequential([nn.Dense(hidden), nn.relu, nn.Dense(3)])
    >>> x = jnp.ones((1, 4))
    >>> params = model(8).init(jax.random.key(0), x)
    >>> # Two neurons that nothing reads.
    >>> dead = params["params"]["layers_2"]["kernel"].at[:2].set(0)
    >>> params["params"]["layers_2"]["kernel"] = dead
    >>> small = deploy.compact(model(8).apply, params, x)
    >>> print(small)
    leaf                    shape  now  entries  now
    params/layers_0/bias        8    6        8    6
    params/layers_0/kernel    4x8  4x6       32   24
    params/layers_2/bias        3    3        3    3
    params/layers_2/kernel    8x3  6x3       24   18
    all                                      67   51
    >>> y = small.apply(small.params, x)
    >>> bool(jnp.allclose(y, model(6).apply(small.params, x)))
    True
  """
  if isinstance(getattr(apply, "__self__", None), linen.Reparameterized):
    raise ValueError(
      "apply is that of a model that stores latents. Pass model.module.apply"
      " and model.to_weights(variables)."
    )
  check_weights(params)
  names = [path for path, _ in with_paths(params)]
  leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
  before = [leaf.shape for leaf in leaves]
  structs = _structs(treedef.unflatten(leaves))
  graph, out_tree = trace(apply, structs, *_structs(inputs))
  for number, name, leaf in zip(graph.leaves, names, leaves):
    for axis in keep(name, leaf) if keep else ():
      graph.units.fix(graph.axes[number][axis])
  outputs, known = constants(graph, leaves, jax.tree.leaves(inputs))
  products = _products(graph, known)
  alive = _alive(graph, products)
  of_any_size = True
  if any(product.has_constants for product in products):
    _, known = constants(graph, leaves, jax.tree.leaves(inputs), any_size=True)
    of_any_size = (_alive(graph, _products(graph, known)) == alive).all()
  for product in products:
    product.fold(alive, leaves)
  leaves = [
    cut(leaf, graph.axes[number], alive)
    for number, leaf in zip(graph.leaves, leaves)
  ]
  stays = [
    [alive[ids] for ids in graph.axes[number]] for number in graph.leaves
  ]
  example = None if of_any_size else _structs(inputs)
  small = jax.jit(_smaller(apply, structs, stays, _brought(graph), example))
  result = Compact(
    treedef.unflatten(leaves),
    small,
    {n: (b, leaf.shape) for n, b, leaf in zip(names, before, leaves)},
  )
  _check_same(out_tree.unflatten(outputs), small(result.params, *inputs))
  return result


def _products(graph: Graph, known: Sequence[Sequence[Known]]) -> list[Product]:
  equations = (e for e in graph.equations if e.primitive.name in PRODUCTS)
  return [Product(graph, *pair) for pair in zip(equations, known)]


def _alive(graph: Graph, products: Sequence[Product]) -> np.ndarray:
  """Returns which units stay, of every axis of params one at least."""
  axes = [ids for number in graph.leaves for ids in graph.axes[number]]
  alive = np.ones(graph.units.count, bool)
  while True:
    # What is the last of its axis stays anyway, and others may serve it alone.
    last = np.zeros_like(alive)
    for ids in axes:
      kept = ids[alive[ids]]
      last[kept] |= len(kept) == 1
    found = alive & _served(graph, products, axes, last, alive)
    if (found == alive).all():
      return alive
    alive = found


def _served(
  graph: Graph,
  products: Sequence[Product],
  axes: Sequence[np.ndarray],
  needed: np.ndarray,
  among: np.ndarray,
) -> np.ndarray:
  """Returns what is needed, all that it needs, and one more of empty axes."""
  needs = [product.need for product in products]
  while True:
    needed = graph.units.close(needed, needs)
    alive = needed.copy()
    for ids in axes:
      if len(ids) and not alive[ids].any():
        alive[ids[among[ids]][0]] = True
        alive = graph.units.close(alive)
    # What stays for the form alone may have any value, but where it was taken
    # for a constant and is read still. The last first: it may need others.
    for product in reversed(products):
      known = needed.copy()
      product.need_known(alive, known)
      if (known != needed).any():
        needed = known
        break
    else:
      return alive


def _smaller(
  apply: Callable[..., Any],
  params: Any,
  stays: list[list[np.ndarray]],
  brought: list[np.ndarray],
  example: Any,
) -> Callable[..., Any]:
  """Returns apply on the units of params that stay.

  Args:
    apply: the function.
    params: shapes of those that it takes.
    stays: bools by leaf and axis.
    brought: arrays that it brings along for inputs as the example.
    example: the shapes of its inputs, None for any.
  """

  def small(small_params, *inputs):
    # Anew for inputs of another shape, with params as they were.
    graph, out_tree = trace(apply, params, *_structs(inputs))
    if example is not None and not _are_alike(inputs, example):
      raise ValueError(
        f"{_ANOTHER}: what is gone was constant, and may have another value for"
        f" them. {_REMEDY}"
      )
    found = _brought(graph)
    if len(found) != len(brought) or not all(map(_same_rows, found, brought)):
      raise ValueError(
        f"{_ANOTHER}: it brings along other arrays, such as a table of"
        f" positions. {_REMEDY}"
      )
    alive = np.zeros(graph.units.count, bool)
    for number, leaf in zip(graph.leaves, stays):
      for ids, kept in zip(graph.axes[number], leaf):
        alive[ids] = kept
    of_params = alive.copy()
    alive = graph.units.close(alive)
    for number in graph.leaves:
      for ids in graph.axes[number]:
        if (alive[ids] > of_params[ids]).any():
          raise ValueError(
            f"{_ANOTHER}: it uses units that are gone. {_REMEDY}"
          )
    leaves = jax.tree.leaves(small_params)
    return out_tree.unflatten(graph.run(alive, leaves, jax.tree.leaves(inputs)))

  return small


def _brought(graph: Graph) -> list[np.ndarray]:
  """Returns the arrays that a function brings along, but for random keys."""
  return [
    np.asarray(x)
    for x in graph.constants.values()
    if np.ndim(x) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
  ]


def _same_rows(one: np.ndarray, other: np.ndarray) -> bool:
  """Whether two arrays are the same, or the same row again and again."""
  if np.array_equal(one, other):
    return True
  if one.shape[1:] != other.shape[1:]:
    return False
  rows = np.concatenate([one, other])
  return bool((rows == rows[:1]).all())


def _are_alike(inputs: Any, example: Any) -> bool:
  """Whether inputs have the sizes of the example but along the first axis."""

  def sizes(tree):
    return [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(tree)]

  return sizes(inputs) == sizes(example)


def _check_same(wanted: Any, found: Any) -> None:
  for (path, x), y in zip(with_paths(wanted), jax.tree.leaves(found)):
    if jnp.issubdtype(x.dtype, jnp.inexact):
      error = jnp.max(jnp.abs(x - y), initial=0)
      allowed = jnp.finfo(x.dtype).eps ** 0.5
      if not error <= allowed * jnp.max(jnp.abs(x), initial=0):
        raise ValueError(
          f"For the example, output {path} of the smaller model differs by"
          f" {error:.3g}. Is it finite, and the same in every call?"
        )


def _structs(tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)),
    tree,
  )
