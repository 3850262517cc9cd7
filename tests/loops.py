"""How the loops of a function lie in one another, before it is compiled."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def depths(function, *args):
  """Returns of every loop in how many others it lies."""
  return list(_depths(jax.make_jaxpr(function)(*args).jaxpr, 0))


def _depths(jaxpr, depth):
  for equation in jaxpr.eqns:
    is_loop = equation.primitive.name in ("while", "scan")
    if is_loop:
      yield depth
    for part in jax.tree.leaves(list(equation.params.values())):
      if isinstance(part, ClosedJaxpr):
        part = part.jaxpr
      if isinstance(part, Jaxpr):
        yield from _depths(part, depth + is_loop)
