"""How units pass through each operation, and how it runs on what stays.

A rule takes a graph, an equation and the units along the axes of its operands.
It ties what belongs together, and returns the units of each result and a
function that computes the results on what stays, None where that takes nothing
but smaller operands.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rewa_jax.deploy._graph import Equation, Graph, cut, flatten
from rewa_jax.deploy._units import Axes, Ids, Units

Run = Callable[..., list[Any]]
_Followed = tuple[list[Axes], Run | None]

ELEMENTWISE = frozenset(
  """
  abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
  convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2
  expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max
  min mul name ne neg nextafter not or pow reduce_precision rem round rsqrt
  select_n sharding_constraint sign sin sinh sqrt square stop_gradient sub tan
  tanh xor
  """.split()
)
REDUCTIONS = frozenset(
  """
  argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod
  reduce_sum
  """.split()
)
CUMULATIONS = frozenset("cumlogsumexp cummax cummin cumprod cumsum".split())
WINDOWS = frozenset(
  "reduce_window_max reduce_window_min reduce_window_sum".split()
)


def trace(
  fn: Callable[..., Any], params: Any, *inputs: Any
) -> tuple[Graph, Any]:
  """Traces a function of params, and follows the units of their axes.

  Args:
    fn: the function.
    params: its first argument; nothing but shapes and types count.
    *inputs: the others.

  Returns:
    The graph, and the structure of what the function returns.

  Raises:
    ValueError: at an operation that no rule follows.
  """
  leaves = jax.tree.leaves(params)
  closed, result = jax.make_jaxpr(fn, return_shape=True)(params, *inputs)
  graph = flatten(closed, len(leaves))
  units, axes = graph.units, graph.axes
  for number, leaf in zip(graph.leaves, leaves):
    axes[number] = tuple(map(units.new, leaf.shape))
  of_params = np.arange(units.count)
  for number, array in zip(graph.inputs, jax.tree.leaves(inputs)):
    axes[number] = _whole(array.shape)
  for number, array in graph.constants.items():
    axes[number] = tuple(map(units.new, np.shape(array)))
  depends = set(graph.leaves)
  for equation in graph.equations:
    operands = [axes[number] for number in equation.operands]
    if rule := _RULES.get(equation.primitive.name):
      results, run = rule(graph, equation, operands)
    elif depends.intersection(equation.operands):
      raise ValueError(
        f"What depends on params cannot be followed through {equation}."
      )
    else:
      units.fix(*(ids for operand in operands for ids in operand))
      results, run = [_whole(shape) for shape in equation.shapes[1]], None
    if depends.intersection(equation.operands):
      depends.update(equation.results)
    axes.update(zip(equation.results, results))
    graph.runs.append(run or _as_it_is(equation))
  for number in graph.outputs:
    units.fix(*axes[number])
  # What no param decides stays.
  decided = np.zeros(units.count, bool)
  decided[of_params] = True
  units.fix(np.flatnonzero(~units.close(decided)))
  return graph, jax.tree.structure(result)


def _as_it_is(equation: Equation) -> Run:
  return lambda alive, *operands: equation.bind(*operands)


def _whole(shape: Sequence[int]) -> Axes:
  return tuple(np.zeros(size, int) for size in shape)


def _size(ids: Ids, alive: np.ndarray) -> int:
  return int(np.count_nonzero(alive[ids]))


def _shape(axes: Sequence[Ids], alive: np.ndarray) -> tuple[int, ...]:
  return tuple(_size(ids, alive) for ids in axes)


def _part(units: Units, ids: Ids) -> Ids:
  """Returns the units of a part of an axis; one index alone is never cut."""
  if len(ids) == 1:
    units.fix(ids)
    return np.zeros(1, int)
  return ids


def _elementwise(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  (shape,) = equation.shapes[1]
  operands = [axes for axes in operands if len(axes) == len(shape)]
  result = []
  for axis, size in enumerate(shape):
    first, *rest = (o[axis] for o in operands if len(o[axis]) == size)
    for ids in rest:
      graph.units.tie(first, ids)
    result.append(first)
  return [tuple(result)], None


def _dot_general(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  contracting, batch = equation.params["dimension_numbers"]
  left, right = operands
  for a, b in zip((*contracting[0], *batch[0]), (*contracting[1], *batch[1])):
    graph.units.tie(left[a], right[b])
  free = [
    tuple(ids for axis, ids in enumerate(axes) if axis not in (*c, *b))
    for axes, c, b in zip(operands, contracting, batch)
  ]
  return [(*(left[axis] for axis in batch[0]), *free[0], *free[1])], None


def _conv(graph: Graph, equation: Equation, operands: list[Axes]) -> _Followed:
  params, units = equation.params, graph.units
  if params["batch_group_count"] != 1:
    raise ValueError(f"{equation} has a batch_group_count, which is unknown.")
  lhs, rhs, out = params["dimension_numbers"]
  left, right = operands
  units.fix(*(left[axis] for axis in (lhs[0], *lhs[2:])))
  units.fix(*(right[axis] for axis in rhs[2:]))
  inputs, outputs = left[lhs[1]], right[rhs[0]]
  groups = params["feature_group_count"]
  group = units.new(groups)
  units.tie(inputs, group, right[rhs[1]])
  # Of every group the same outputs, or groups would differ in size.
  units.tie(outputs, group, units.new(len(outputs) // groups))
  result = list(_whole(equation.shapes[1][0]))
  result[out[1]] = outputs

  def run(alive, *operands):
    count = _size(group, alive)
    return equation.bind(*operands, feature_group_count=count)

  return [tuple(result)], run if groups > 1 else None


def _broadcast_in_dim(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  (shape,) = equation.shapes[1]
  result = [graph.units.new(size) for size in shape]
  dimensions = equation.params["broadcast_dimensions"]
  for axis, ids in zip(dimensions, operands[0]):
    if len(ids) == shape[axis]:
      result[axis] = ids

  def run(alive, *operands):
    return equation.bind(*operands, shape=_shape(result, alive))

  return [tuple(result)], run


def _reshape(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  (shape,) = equation.shapes[1]
  units, result = graph.units, list(_whole(shape))
  for before, after in _groups(equation.shapes[0][0], shape):
    parts = [operands[0][axis] for axis in before]
    if len(parts) == 1:
      (whole,) = parts
    elif any(map(np.any, parts)):
      whole = units.new(math.prod(map(len, parts)))
      units.tie(whole, *parts)
    else:
      continue
    if len(after) == 1:
      result[after[0]] = whole
    elif whole.any():
      for axis in after:
        result[axis] = units.new(shape[axis])
      units.tie(whole, *(result[axis] for axis in after))

  def run(alive, *operands):
    return equation.bind(*operands, new_sizes=_shape(result, alive))

  return [tuple(result)], run


def _groups(
  before: Sequence[int], after: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
  """Yields the smallest groups of axes that a reshape makes of each other."""
  if 0 in before:
    return
  sides = [
    [(axis, size) for axis, size in enumerate(shape) if size > 1]
    for shape in (before, after)
  ]
  while sides[0]:
    groups, products = ([], []), [1, 1]
    while not groups[0] or products[0] != products[1]:
      side = int(products[1] < products[0])
      axis, size = sides[side].pop(0)
      groups[side].append(axis)
      products[side] *= size
    yield groups


def _squeeze(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  gone = equation.params["dimensions"]
  axes = enumerate(operands[0])
  return [tuple(ids for axis, ids in axes if axis not in gone)], None


def _transpose(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  return [tuple(operands[0][a] for a in equation.params["permutation"])], None


def _rev(graph: Graph, equation: Equation, operands: list[Axes]) -> _Followed:
  reversed_axes = equation.params["dimensions"]
  axes = enumerate(operands[0])
  return [tuple(i[::-1] if a in reversed_axes else i for a, i in axes)], None


def _concatenate(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  dimension, result = equation.params["dimension"], []
  for axis, (first, *rest) in enumerate(zip(*operands)):
    if axis == dimension:
      parts = (_part(graph.units, ids) for ids in (first, *rest))
      first = np.concatenate(list(parts))
    else:
      for ids in rest:
        graph.units.tie(first, ids)
    result.append(first)
  return [tuple(result)], None


def _split(graph: Graph, equation: Equation, operands: list[Axes]) -> _Followed:
  axis, sizes = equation.params["axis"], equation.params["sizes"]
  starts = np.cumsum(sizes)[:-1]
  parts = [
    _part(graph.units, ids) for ids in np.split(operands[0][axis], starts)
  ]

  def run(alive, *operands):
    smaller = tuple(_size(ids, alive) for ids in parts)
    return equation.bind(*operands, sizes=smaller)

  before, after = operands[0][:axis], operands[0][axis + 1 :]
  return [(*before, ids, *after) for ids in parts], run


def _slice(graph: Graph, equation: Equation, operands: list[Axes]) -> _Followed:
  starts = equation.params["start_indices"]
  limits = equation.params["limit_indices"]
  strides = equation.params["strides"] or (1,) * len(starts)
  ranges = tuple(map(slice, starts, limits, strides))
  parts = [ids[chosen] for ids, chosen in zip(operands[0], ranges)]
  result = tuple(
    part if len(part) == len(ids) else _part(graph.units, part)
    for part, ids in zip(parts, operands[0])
  )

  def run(alive, operand):
    for axis, (ids, chosen) in enumerate(zip(operands[0], ranges)):
      if alive[ids].all():
        operand = jax.lax.slice_in_dim(
          operand, chosen.start, chosen.stop, chosen.step, axis
        )
      else:
        place = np.cumsum(alive[ids]) - 1
        operand = operand.take(place[chosen][alive[ids[chosen]]], axis)
    return [operand]

  return [result], run


def _pad(graph: Graph, equation: Equation, operands: list[Axes]) -> _Followed:
  result, config = [], equation.params["padding_config"]
  for ids, size, (low, high, inner) in zip(
    operands[0], equation.shapes[1][0], config
  ):
    if min(low, high) < 0 or inner:
      graph.units.fix(ids)
      ids = np.zeros(size, int)
    elif ids.any():
      first, last = np.split(graph.units.new(low + high), [low])
      ids = np.concatenate([first, ids, last])
    else:
      ids = np.zeros(size, int)
    result.append(ids)

  def run(alive, *operands):
    smaller = []
    for ids, (low, high, inner) in zip(result, config):
      gone = ~alive[ids]
      first, last = gone[: max(low, 0)], gone[len(ids) - max(high, 0) :]
      smaller.append((low - first.sum(), high - last.sum(), inner))
    return equation.bind(*operands, padding_config=tuple(smaller))

  return [tuple(result)], run


def _iota(graph: Graph, equation: Equation, operands: list[Axes]) -> _Followed:
  result = tuple(map(graph.units.new, equation.shapes[1][0]))
  return [result], lambda alive: [cut(equation.bind()[0], result, alive)]


def _reduce(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  # Sums too: who divides by a size, as means do, wrote it down as a number.
  gone = equation.params["axes"]
  graph.units.fix(*(operands[0][axis] for axis in gone))
  axes = enumerate(operands[0])
  return [tuple(ids for axis, ids in axes if axis not in gone)], None


def _cumulate(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  graph.units.fix(operands[0][equation.params["axis"]])
  return [operands[0]], None


def _reduce_window(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  result = list(_whole(equation.shapes[1][0]))
  params = equation.params
  for axis, ids in enumerate(operands[0]):
    numbers = [
      params[name][axis]
      for name in (
        *("window_dimensions", "window_strides"),
        *("base_dilation", "window_dilation"),
      )
    ]
    if numbers == [1] * 4 and tuple(params["padding"][axis]) == (0, 0):
      result[axis] = ids
    else:
      graph.units.fix(ids)
  return [tuple(result)], None


def passed_axes(equation: Equation) -> dict[int, int]:
  """Returns which axes of what a gather takes are whole in the result."""
  numbers = equation.params["dimension_numbers"]
  shape, sizes = equation.shapes[0][0], equation.params["slice_sizes"]
  gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  kept = [axis for axis in range(len(shape)) if axis not in gone]
  return {
    axis: place
    for axis, place in zip(kept, numbers.offset_dims)
    if sizes[axis] == shape[axis]
  }


def _gather(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  passed = passed_axes(equation)
  result = list(_whole(equation.shapes[1][0]))
  for axis, ids in enumerate(operands[0]):
    if axis in passed:
      result[passed[axis]] = ids
    else:
      graph.units.fix(ids)
  graph.units.fix(*operands[1])

  def run(alive, *operands):
    sizes = list(equation.params["slice_sizes"])
    for axis in passed:
      sizes[axis] = operands[0].shape[axis]
    return equation.bind(*operands, slice_sizes=tuple(sizes))

  return [tuple(result)], run


def _dynamic_slice(
  graph: Graph, equation: Equation, operands: list[Axes]
) -> _Followed:
  result = list(_whole(equation.shapes[1][0]))
  for axis, ids in enumerate(operands[0]):
    if len(ids) == len(result[axis]):
      result[axis] = ids
    else:
      graph.units.fix(ids)

  def run(alive, *operands):
    return equation.bind(*operands, slice_sizes=_shape(result, alive))

  return [tuple(result)], run


_RULES = {
  **dict.fromkeys(ELEMENTWISE, _elementwise),
  **dict.fromkeys(REDUCTIONS, _reduce),
  **dict.fromkeys(CUMULATIONS, _cumulate),
  **dict.fromkeys(WINDOWS, _reduce_window),
  "broadcast_in_dim": _broadcast_in_dim,
  "concatenate": _concatenate,
  "conv_general_dilated": _conv,
  "dot_general": _dot_general,
  "dynamic_slice": _dynamic_slice,
  "gather": _gather,
  "iota": _iota,
  "pad": _pad,
  "reshape": _reshape,
  "rev": _rev,
  "slice": _slice,
  "split": _split,
  "squeeze": _squeeze,
  "transpose": _transpose,
}
