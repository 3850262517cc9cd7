"""Penalties on weights, and their proximal maps in closed form.

Every penalty has ``value(x, path)``, a scalar for one leaf, and ``prox(x, step,
path)``, the leaf that one proximal step leads to. The path is that of the leaf
in its tree, by which groups and pilots are told; it may be left out where a
penalty treats all leaves alike.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from rewa_jax._checks import check_number
from rewa_jax._groups import (
  Groups,
  check_groups,
  group_axes,
  group_norms,
)
from rewa_jax._power import wide_dtype
from rewa_jax._trees import leaf_names, path_name, with_paths

_ONLY_LEAF = path_name(())


@runtime_checkable
class SparsePenalty(Protocol):
  """What a proximal step needs of a penalty; write one of your own like this.

  Both methods take one leaf of weights of any shape, and its readable path.
  """

  def value(self, x: jax.typing.ArrayLike, path: str = _ONLY_LEAF) -> jax.Array:
    """Returns P(x), a scalar."""
    ...

  def prox(
    self,
    x: jax.typing.ArrayLike,
    step: jax.typing.ArrayLike,
    path: str = _ONLY_LEAF,
  ) -> jax.Array:
    r"""Returns the z that minimizes :math:`\frac12\|z-x\|^2 + step P(z)`."""
    ...


@dataclasses.dataclass(frozen=True)
class L1:
  r"""The lasso's penalty, :math:`\lambda\sum_i|x_i|`.

  Attributes:
    strength: :math:`\lambda` >= 0, one number. May be traced.

  Raises:
    ValueError: if strength is out of range.

  Examples:
    >>> from rewa_jax.baselines import L1
    >>> penalty = L1(0.5)
    >>> print(penalty.value([2.0, -1.0]), penalty.prox([2.0, -0.25], 1.0))
    1.5 [ 1.5 -0. ]

  References:
    Tibshirani, Regression shrinkage and selection via the lasso, 1996
  """

  strength: jax.typing.ArrayLike

  def __post_init__(self):
    check_number("strength", self.strength, at_least=0)

  def value(self, x: jax.typing.ArrayLike, path: str = _ONLY_LEAF) -> jax.Array:
    """Returns the penalty of one leaf, a scalar."""
    del path
    return jnp.sum(self.strength * jnp.abs(_wide(x)))

  def prox(
    self,
    x: jax.typing.ArrayLike,
    step: jax.typing.ArrayLike,
    path: str = _ONLY_LEAF,
  ) -> jax.Array:
    """Returns x moved towards zero by step times strength, in x's dtype."""
    del path
    x = jnp.asarray(x)
    return _soft_threshold(_wide(x), self.strength * step).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class MCP:
  r"""The minimax concave penalty: L1 at zero, flat from a point on.

  .. math::
    \sum_i \lambda s_i - \frac{s_i^2}{2\gamma}, \qquad
    s_i = \min(|x_i|, \gamma\lambda)

  Attributes:
    strength: :math:`\lambda` >= 0, the slope at zero. May be traced, as gamma
      may.
    gamma: >= 0. Weights beyond gamma times strength are not shrunk; the larger
      gamma, the closer to L1. 0 is no penalty.

  Raises:
    ValueError: if strength or gamma are out of range.

  Examples:
    >>> from rewa_jax.baselines import MCP
    >>> penalty = MCP(0.5, gamma=3.0)
    >>> print(penalty.value([2.0]), penalty.prox([2.0, 1.0, 0.25], 1.0))
    0.375 [2.   0.75 0.  ]

  References:
    Zhang, Nearly unbiased variable selection under minimax concave penalty,
    2010
  """

  strength: jax.typing.ArrayLike
  gamma: jax.typing.ArrayLike = 3.0

  def __post_init__(self):
    check_number("strength", self.strength, at_least=0)
    check_number("gamma", self.gamma, at_least=0)

  def value(self, x: jax.typing.ArrayLike, path: str = _ONLY_LEAF) -> jax.Array:
    """Returns the penalty of one leaf, a scalar."""
    del path
    size = jnp.minimum(jnp.abs(_wide(x)), self.gamma * self.strength)
    gamma = jnp.where(jnp.asarray(self.gamma) > 0, self.gamma, 1)
    return jnp.sum(self.strength * size - size**2 / (2 * gamma))

  def prox(
    self,
    x: jax.typing.ArrayLike,
    step: jax.typing.ArrayLike,
    path: str = _ONLY_LEAF,
  ) -> jax.Array:
    r"""Returns the minimizer for one leaf, in x's dtype.

    For step < gamma the problem is convex and the map continuous. For larger
    steps it is a hard threshold at :math:`\lambda\sqrt{\gamma\,step}`.
    """
    del path
    x = jnp.asarray(x)
    z = _wide(x)
    strength, gamma, step = map(jnp.asarray, (self.strength, self.gamma, step))
    convex = step < gamma
    stretch = jnp.where(convex, gamma / jnp.where(convex, gamma - step, 1), 0)
    flat = strength * jnp.where(convex, gamma, jnp.sqrt(gamma * step))
    near = stretch * _soft_threshold(z, strength * step)
    return jnp.where(jnp.abs(z) <= flat, near, z).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class SCAD:
  r"""The smoothly clipped absolute deviation: L1, then bent until it is flat.

  .. math::
    \sum_i \begin{cases}
      \lambda|x_i| & |x_i| \le \lambda \\
      \dfrac{2\gamma\lambda|x_i| - x_i^2 - \lambda^2}{2(\gamma - 1)}
        & \lambda < |x_i| \le \gamma\lambda \\
      \lambda^2(\gamma + 1)/2 & \gamma\lambda < |x_i|
    \end{cases}

  Attributes:
    strength: :math:`\lambda` >= 0, the slope at zero. May be traced, as gamma
      may.
    gamma: >= 1. Weights beyond gamma times strength are not shrunk; the larger
      gamma, the closer to L1. The authors advise 3.7. 1 is L1, capped.

  Raises:
    ValueError: if strength or gamma are out of range.

  Examples:
    >>> from rewa_jax.baselines import SCAD
    >>> penalty = SCAD(0.5, gamma=3.0)
    >>> print(penalty.value([2.0]), penalty.prox([2.0, 1.25, 0.75], 1.0))
    0.5 [2.   1.   0.25]

  References:
    Fan and Li, Variable selection via nonconcave penalized likelihood and its
    oracle properties, 2001
  """

  strength: jax.typing.ArrayLike
  gamma: jax.typing.ArrayLike = 3.7

  def __post_init__(self):
    check_number("strength", self.strength, at_least=0)
    check_number("gamma", self.gamma, at_least=1)

  def value(self, x: jax.typing.ArrayLike, path: str = _ONLY_LEAF) -> jax.Array:
    """Returns the penalty of one leaf, a scalar."""
    del path
    strength, gamma = self.strength, jnp.asarray(self.gamma)
    size = jnp.minimum(jnp.abs(_wide(x)), gamma * strength)
    # What the slope falls short of strength, integrated from strength on.
    bend = jnp.maximum(size - strength, 0) ** 2
    width = 2 * jnp.where(gamma > 1, gamma - 1, 1)
    return jnp.sum(strength * size - bend / width)

  def prox(
    self,
    x: jax.typing.ArrayLike,
    step: jax.typing.ArrayLike,
    path: str = _ONLY_LEAF,
  ) -> jax.Array:
    r"""Returns the minimizer for one leaf, in x's dtype.

    For step < gamma - 1 the problem is convex and the map continuous. For
    larger steps it jumps, from the soft threshold to x, where both are equally
    good: at :math:`\lambda(\gamma + 1 + step)/2`, and from step = gamma + 1 on
    at :math:`\lambda\sqrt{(\gamma + 1)step}`.
    """
    del path
    x = jnp.asarray(x)
    z = _wide(x)
    strength, gamma, step = map(jnp.asarray, (self.strength, self.gamma, step))
    convex = step < gamma - 1
    jump = strength * jnp.where(
      step < gamma + 1, (gamma + 1 + step) / 2, jnp.sqrt((gamma + 1) * step)
    )
    soft_until = jnp.where(convex, strength * (1 + step), jump)
    flat_from = jnp.where(convex, strength * gamma, jump)
    slack = jnp.where(convex, gamma - 1 - step, 1)
    bent = z - step * (gamma * strength * jnp.sign(z) - z) / slack
    size = jnp.abs(z)
    near = jnp.where(
      size <= soft_until, _soft_threshold(z, strength * step), bent
    )
    return jnp.where(size <= flat_from, near, z).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class AdaptiveL1:
  r"""The adaptive lasso: L1 that spares weights which a pilot found large.

  .. math::
    \lambda\sum_i w_i|x_i|, \qquad w_i = (|\hat x_i| + \delta)^{-\gamma}

  with the weights :math:`\hat x` of a network trained before.

  Attributes:
    strength: :math:`\lambda` >= 0, one number. May be traced, as gamma and
      delta may.
    pilot: a tree of weights, of which a leaf is found by its path. It needs the
      leaves that are penalized, and may have others.
    gamma: >= 0; 0 is L1.
    delta: >= 0. It bounds the penalty of a weight whose pilot is 0; with
      delta = 0 such a weight becomes 0.

  Raises:
    ValueError: if strength, gamma or delta are out of range; from the methods,
      if pilot has no leaf of that path or one of another shape.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax.baselines import AdaptiveL1
    >>> pilot = {"dense": {"kernel": jnp.array([4.0, 0.25])}}
    >>> penalty = AdaptiveL1(1.0, pilot)
    >>> print(penalty.prox([4.0, 0.25], 0.5, "dense/kernel"))
    [3.875 0.   ]

  References:
    Zou, The adaptive lasso and its oracle properties, 2006
  """

  strength: jax.typing.ArrayLike
  pilot: Any
  gamma: jax.typing.ArrayLike = 1.0
  delta: jax.typing.ArrayLike = 0.0

  def __post_init__(self):
    check_number("strength", self.strength, at_least=0)
    check_number("gamma", self.gamma, at_least=0)
    check_number("delta", self.delta, at_least=0)

  def value(self, x: jax.typing.ArrayLike, path: str = _ONLY_LEAF) -> jax.Array:
    """Returns the penalty of one leaf, a scalar."""
    x = _wide(x)
    return jnp.sum(self.strength * self._factors(x, path) * jnp.abs(x))

  def prox(
    self,
    x: jax.typing.ArrayLike,
    step: jax.typing.ArrayLike,
    path: str = _ONLY_LEAF,
  ) -> jax.Array:
    """Returns x, each weight moved towards zero at its own rate."""
    x = jnp.asarray(x)
    threshold = self.strength * step * self._factors(x, path)
    return _soft_threshold(_wide(x), threshold).astype(x.dtype)

  def _factors(self, x, path):
    leaves = dict(with_paths(self.pilot))
    if path not in leaves:
      raise ValueError(
        f"pilot has no leaf {path}, only {leaf_names(self.pilot)}. Pass a mask"
        " that is False there, or a pilot that has it."
      )
    pilot = _wide(leaves[path])
    if pilot.shape != x.shape:
      raise ValueError(
        f"pilot and params differ at {path}: pilot has shape {pilot.shape},"
        f" params have shape {x.shape}."
      )
    size = (jnp.abs(pilot) + self.delta) ** self.gamma
    # Never infinite, since 0 times infinity is no 0.
    return 1 / jnp.maximum(size, jnp.finfo(size.dtype).tiny)


@dataclasses.dataclass(frozen=True)
class GroupL1:
  r"""The group lasso's penalty, :math:`\lambda\sum_g\|x_g\|`.

  Attributes:
    strength: :math:`\lambda` >= 0, one number. May be traced.
    groups: ``"output"``, ``"input"``, ``"rows"``, ``"heads"`` or a function of
      path and leaf that returns axes; see
      :func:`group_axes`.

  Raises:
    ValueError: if strength is out of range or groups is unknown; from the
      methods, if a leaf has no such groups.

  Examples:
    >>> from rewa_jax.baselines import GroupL1
    >>> penalty = GroupL1(2.5, groups="output")
    >>> print(penalty.prox([[3.0, 1.0], [4.0, 1.0]], 1.0, "dense/kernel"))
    [[1.5 0. ]
     [2.  0. ]]

  References:
    Yuan and Lin, Model selection and estimation in regression with grouped
    variables, 2006, without their factor for the size of a group
  """

  strength: jax.typing.ArrayLike
  groups: Groups = "output"

  def __post_init__(self):
    check_number("strength", self.strength, at_least=0)
    check_groups(self.groups)

  def value(self, x: jax.typing.ArrayLike, path: str = _ONLY_LEAF) -> jax.Array:
    """Returns the penalty of one leaf, a scalar."""
    x = _wide(x)
    norms = group_norms(x, group_axes(self.groups, path, x))
    return jnp.sum(self.strength * norms)

  def prox(
    self,
    x: jax.typing.ArrayLike,
    step: jax.typing.ArrayLike,
    path: str = _ONLY_LEAF,
  ) -> jax.Array:
    """Returns x, each group shortened by step times strength, in x's dtype."""
    x = jnp.asarray(x)
    z = _wide(x)
    norms = group_norms(z, group_axes(self.groups, path, z))
    kept = _soft_threshold(norms, self.strength * step)
    return (z * (kept / jnp.where(norms == 0, 1, norms))).astype(x.dtype)


def _soft_threshold(x, threshold):
  return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def _wide(x):
  x = jnp.asarray(x)
  return x.astype(wide_dtype(x))
