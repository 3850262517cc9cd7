"""A function as a list of equations whose arrays can be made smaller."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from rewa_jax.deploy._units import Axes, Units

# Calls that stand for what they call.
_CALLS = {
  "jit": "jaxpr",
  "closed_call": "call_jaxpr",
  "core_call": "call_jaxpr",
  "checkpoint": "jaxpr",
  "remat2": "jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


class Equation(NamedTuple):
  """One operation on arrays, which are known by their numbers."""

  primitive: core.Primitive
  params: dict[str, Any]
  operands: tuple[int, ...]
  results: tuple[int, ...]
  # Of operands and results.
  shapes: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
  # The modules that it is in.
  scope: str

  def __str__(self) -> str:
    return f"{self.primitive.name}{self.scope and f' in {self.scope}'}"

  def bind(self, *operands: Any, **params: Any) -> list[Any]:
    """Computes the results, with other params where they are given."""
    results = self.primitive.bind(*operands, **self.params | params)
    return results if self.primitive.multiple_results else [results]


@dataclasses.dataclass
class Graph:
  """Equations in order, and the units along the axes of every array.

  Attributes:
    equations: in the order of computation.
    leaves: the arrays of params.
    inputs: the other arrays that are given.
    outputs: the arrays that are returned.
    constants: arrays that are known.
    units: what belongs together.
    axes: the units along the axes of an array, by its number.
    runs: how each equation is computed on what stays: a function of the bools
      of units and of the smaller operands.
  """

  equations: list[Equation] = dataclasses.field(default_factory=list)
  leaves: list[int] = dataclasses.field(default_factory=list)
  inputs: list[int] = dataclasses.field(default_factory=list)
  outputs: list[int] = dataclasses.field(default_factory=list)
  constants: dict[int, Any] = dataclasses.field(default_factory=dict)
  units: Units = dataclasses.field(default_factory=Units)
  axes: dict[int, Axes] = dataclasses.field(default_factory=dict)
  runs: list[Callable[..., list[Any]]] = dataclasses.field(default_factory=list)

  def run(
    self, alive: np.ndarray, leaves: list[Any], inputs: list[Any]
  ) -> list[Any]:
    """Computes the outputs on the units that stay."""
    values = dict(zip((*self.leaves, *self.inputs), (*leaves, *inputs)))
    for number, array in self.constants.items():
      values[number] = cut(array, self.axes[number], alive)
    for equation, run in zip(self.equations, self.runs):
      operands = [values[number] for number in equation.operands]
      values.update(zip(equation.results, run(alive, *operands)))
    return [values[number] for number in self.outputs]


def cut(array: Any, axes: Axes, alive: np.ndarray) -> Any:
  """Returns an array without the indices whose units are gone."""
  for axis, ids in enumerate(axes):
    if not alive[ids].all():
      array = array.take(np.flatnonzero(alive[ids]), axis)
  return array


def _shapes(atoms: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
  return tuple(getattr(atom.aval, "shape", ()) for atom in atoms)


def flatten(closed: core.ClosedJaxpr, leaves: int) -> Graph:
  """Returns the equations of a jaxpr and of all that it calls.

  Args:
    closed: the jaxpr.
    leaves: how many of its arguments are leaves of params, the first ones.
  """
  graph = Graph()
  count = 0

  def new() -> int:
    nonlocal count
    count += 1
    return count

  def constant(value: Any) -> int:
    graph.constants[number := new()] = value
    return number

  def add(closed: core.ClosedJaxpr, inputs: list[int], scope: str) -> list[int]:
    jaxpr = closed.jaxpr
    numbers = dict(zip(jaxpr.invars, inputs))
    numbers |= zip(jaxpr.constvars, map(constant, closed.consts))

    def number(atom: Any) -> int:
      if isinstance(atom, core.Literal):
        return constant(np.asarray(atom.val, getattr(atom.aval, "dtype", None)))
      return numbers[atom]

    for eqn in jaxpr.eqns:
      operands = tuple(map(number, eqn.invars))
      stack = str(eqn.source_info.name_stack)
      where = "/".join(filter(None, (scope, stack)))
      if name := _CALLS.get(eqn.primitive.name):
        inner = eqn.params[name]
        if isinstance(inner, core.Jaxpr):
          inner = core.ClosedJaxpr(inner, ())
        results = add(inner, list(operands), where)
      else:
        results = tuple(new() for _ in eqn.outvars)
        shapes = _shapes(eqn.invars), _shapes(eqn.outvars)
        graph.equations.append(
          Equation(eqn.primitive, eqn.params, operands, results, shapes, where)
        )
      numbers |= zip(eqn.outvars, results)
    return [number(atom) for atom in jaxpr.outvars]

  given = [new() for _ in closed.jaxpr.invars]
  graph.leaves, graph.inputs = given[:leaves], given[leaves:]
  graph.outputs = add(closed, given, "")
  return graph
