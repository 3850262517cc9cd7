"""What a product of arrays needs of them, and where its constants can go."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rewa_jax.deploy._constants import Known
from rewa_jax.deploy._graph import Equation, Graph

# What a product may pass through on its way to a bias, and a bias to it.
_MOVES = ("broadcast_in_dim", "reshape", "squeeze", "transpose")
_CASTS = ("convert_element_type",)


class _Bias(NamedTuple):
  """A leaf of params that is added to a product, or subtracted from it."""

  leaf: int
  sign: int
  # For every entry of the product the entry of the leaf that meets it.
  places: np.ndarray


class Product:
  """A dot product or a convolution of two operands."""

  def __init__(self, graph: Graph, equation: Equation, known: Sequence[Known]):
    self._equation = equation
    self._axes = [graph.axes[number] for number in equation.operands]
    self._values = [np.asarray(each.value) for each in known]
    self._masks = [np.asarray(each.nonzero) for each in known]
    varies = [np.asarray(each.varies) for each in known]
    # Of two activations, as in attention, the size is in the arithmetic.
    self._needs_all = varies[0].any() and varies[1].any()
    self._data = int(varies[1].any())
    self._varies = varies[self._data]
    self._bias, self._constant = None, np.zeros((), bool)
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
      self._summed, is_simple = numbers[0], not numbers[1][0]
    else:
      self._summed = numbers.lhs_spec[1:2], numbers.rhs_spec[1:2]
      gaps = [size - 1 for size in equation.params["lhs_dilation"]]
      is_simple = not any((*np.ravel(equation.params["padding"]), *gaps))
    if is_simple and not self._needs_all:
      self._find_constants(graph, varies[self._data])

  @property
  def has_constants(self) -> bool:
    """Whether there are constants other than zero that a bias can take."""
    return self._bias is not None

  def need(self, alive: np.ndarray) -> None:
    """Marks the units of summands that count for a result that stays."""
    counts = self._counts(alive, self._masks)
    for place, axis in enumerate(self._summed[0]):
      others = tuple(a for a in range(counts.ndim) if a != place)
      alive[self._axes[0][axis]] |= counts.any(axis=others)

  def need_known(self, alive: np.ndarray, needed: np.ndarray) -> None:
    """Marks summands that stay, do not vary and meet a weight that stays."""
    masks = list(self._masks)
    masks[self._data] = np.ones_like(masks[self._data])
    counts = self._counts(alive, masks)
    for place, axis in enumerate(self._summed[self._data]):
      others = tuple(a for a in range(counts.ndim) if a != place)
      read = counts.any(axis=others)
      others = tuple(a for a in range(self._varies.ndim) if a != axis)
      read = read & ~self._varies.any(axis=others)
      ids = self._axes[self._data][axis][read]
      needed[ids] |= alive[ids]

  def fold(self, alive: np.ndarray, leaves: list[Any]) -> None:
    """Adds constants whose units are gone to the bias among leaves."""
    if self._bias is None:
      return
    values, data = list(self._values), self._data
    gone = np.zeros((), bool)
    for axis in self._summed[data]:
      ids = np.expand_dims(
        self._axes[data][axis],
        [a for a in range(values[data].ndim) if a != axis],
      )
      gone = gone | ~alive[ids]
    values[data] = np.where(self._constant & gone, values[data], 0)
    if not values[data].any():
      return
    leaf = np.asarray(leaves[self._bias.leaf])
    (product,) = self._equation.bind(*values)
    added = np.zeros(leaf.size, product.dtype)
    added[self._bias.places] = product
    added = self._bias.sign * added.reshape(leaf.shape)
    leaves[self._bias.leaf] = (leaf + added).astype(leaf.dtype)

  def _find_constants(self, graph: Graph, varies: np.ndarray) -> None:
    """Finds summands alike at every place, if a bias can take them."""
    value, summed = self._values[self._data], self._summed[self._data]
    others = tuple(a for a in range(value.ndim) if a not in summed)
    first = value[
      tuple(slice(None, 1 if a in others else None) for a in range(value.ndim))
    ]
    constant = (~varies & (value == first)).all(others, keepdims=True)
    if (constant & (first != 0)).any():
      bias = _find_bias(graph, self._equation)
      if bias and _is_one_to_one(self._outputs(), bias.places):
        self._bias, self._constant = bias, constant
        self._masks[self._data] = self._masks[self._data] & ~constant

  def _outputs(self) -> np.ndarray:
    """Returns for every entry of the result which output of weights it is."""
    (shape,) = self._equation.shapes[1]
    if self._equation.primitive.name == "dot_general":
      rank = self._values[1 - self._data].ndim - len(self._summed[0])
      first = 0 if self._data else len(shape) - rank
      axes = [*range(first, first + rank)]
    else:
      axes = [self._equation.params["dimension_numbers"].out_spec[1]]
    sizes = [shape[axis] for axis in axes]
    others = [axis for axis in range(len(shape)) if axis not in axes]
    numbers = np.expand_dims(np.arange(np.prod(sizes)).reshape(sizes), others)
    return np.broadcast_to(numbers, shape)

  def _counts(self, alive: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Returns a bool for every summand, along the summed axes."""
    if self._needs_all:
      return np.ones([len(self._axes[0][axis]) for axis in self._summed[0]])
    if self._equation.primitive.name == "dot_general":
      return self._counts_of_dot(alive, masks)
    return self._counts_of_convolution(alive, masks)

  def _counts_of_dot(
    self, alive: np.ndarray, masks: list[np.ndarray]
  ) -> np.ndarray:
    summed, batch = self._equation.params["dimension_numbers"]
    together = [alive[self._axes[0][axis]] for axis in batch[0]]
    counts = np.ones((), bool)
    for mask, axes, s, b in zip(masks, self._axes, summed, batch):
      free = [a for a in range(mask.ndim) if a not in (*s, *b)]
      mask = mask.transpose(*free, *b, *s)
      kept = [*(alive[axes[axis]] for axis in free), *together]
      for place, stays in enumerate(kept):
        mask = mask.compress(stays, place)
      counts = counts & mask.any(axis=tuple(range(len(free))))
    return np.asarray(counts.any(axis=tuple(range(len(together)))))

  def _counts_of_convolution(
    self, alive: np.ndarray, masks: list[np.ndarray]
  ) -> np.ndarray:
    numbers = self._equation.params["dimension_numbers"]
    groups = self._equation.params["feature_group_count"]
    left, right = (
      mask.transpose(spec).any(axis=tuple(range(2, mask.ndim)))
      for mask, spec in zip(masks, (numbers.lhs_spec, numbers.rhs_spec))
    )
    right = right & alive[self._axes[1][numbers.rhs_spec[0]]][:, None]
    right = right.reshape(groups, -1, right.shape[1])
    return left.any(axis=0) & right.any(axis=1).reshape(-1)


def _find_bias(graph: Graph, equation: Equation) -> _Bias | None:
  """Finds the leaf that meets the product next and that nothing else uses."""
  users, makers = {}, {}
  for each in graph.equations:
    makers |= dict.fromkeys(each.results, each)
    for number in each.operands:
      users.setdefault(number, []).append(each)
  for number in graph.outputs:
    users.setdefault(number, []).append(None)

  def only_user(number: int) -> Equation | None:
    found = users.get(number, ())
    return found[0] if len(found) == 1 else None

  (number,), moves, view = equation.results, [], []
  while (user := only_user(number)) and _is_move(user):
    moves.append(user)
    (number,) = user.results
  if not user or user.primitive.name not in ("add", "add_any", "sub"):
    return None
  (other,) = (each for each in user.operands if each != number)
  while only_user(other) and (maker := makers.get(other)):
    if not _is_move(maker):
      return None
    view.insert(0, maker)
    (other,) = maker.operands
  if not only_user(other) or other not in graph.leaves:
    return None
  shapes = equation.shapes[1][0], tuple(map(len, graph.axes[other]))
  entries, places = np.broadcast_arrays(
    *(_moved(_numbered(s), path) for s, path in zip(shapes, (moves, view)))
  )
  found = np.zeros(np.prod(shapes[0]), int)
  found[entries] = places
  if (found[entries] != places).any():
    return None
  sign = -1 if user.primitive.name == "sub" else 1
  return _Bias(graph.leaves.index(other), sign, found.reshape(shapes[0]))


def _is_move(equation: Equation) -> bool:
  return equation.primitive.name in _MOVES + _CASTS


def _numbered(shape: Sequence[int]) -> np.ndarray:
  return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def _moved(array: np.ndarray, path: Sequence[Equation]) -> np.ndarray:
  for equation in path:
    if equation.primitive.name in _MOVES:
      (array,) = equation.bind(array)
  return np.asarray(array)


def _is_one_to_one(outputs: np.ndarray, places: np.ndarray) -> bool:
  """Whether no entry of the bias meets two outputs."""
  owners = np.zeros(places.max(initial=0) + 1, int)
  owners[places] = outputs
  return bool((owners[places] == outputs).all())
