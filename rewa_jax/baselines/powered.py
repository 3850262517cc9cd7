"""Weights as powers: PowerPropagation, ReWA, and ReWA in groups."""

import dataclasses

import jax
import jax.numpy as jnp

from rewa_jax.baselines.groups import (
  Groups,
  check_groups,
  group_axes,
  group_norms,
)
from rewa_jax.baselines.reparameterization import (
  Reparameterization,
  is_factors,
)
from rewa_jax.checks import check_hyperparameters, check_number
from rewa_jax.penalty import Penalty
from rewa_jax.power import power, root, wide_dtype
from rewa_jax.transform import scale_by_rewa


@dataclasses.dataclass(frozen=True)
class PowerPropagation(Reparameterization):
  r"""PowerPropagation: :math:`x = y|y|^{\alpha-1}` without a penalty.

  The gradient of y is :math:`\alpha|y|^{\alpha-1}` times that of x: large
  weights move fast, small ones hardly. That alone drives many weights towards
  zero, where magnitude pruning finds them. The strength of a penalty has no
  effect.

  Attributes:
    alpha: the power, one number >= 1. May be traced.

  Raises:
    ValueError: if alpha is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.PowerPropagation(2)
    >>> print(method.to_latents({"w": jnp.array([4.0, -9.0])})["w"].values[0])
    [ 2. -3.]

  References:
    Schwarz et al., `Powerpropagation: A sparsity inducing weight
    reparameterisation <https://arxiv.org/abs/2110.00296>`_, 2021
  """

  alpha: jax.typing.ArrayLike

  def __post_init__(self):
    check_number("alpha", self.alpha, at_least=1)

  @property
  def parts(self):
    return 1

  def split(self, path, x):
    del path
    return (root(x, self.alpha),)

  def join(self, *values):
    return power(values[0], self.alpha)

  def smooth_penalty(self, *values):
    return jnp.zeros((), values[0].dtype)

  def implicit_penalty(self, x, path="kernel"):
    del path
    return jnp.zeros((), jnp.result_type(float, jnp.asarray(x)))


@dataclasses.dataclass(frozen=True)
class Rewa(Reparameterization):
  r"""ReWA, in the shape of the other methods.

  :func:`sgd` and :func:`adamw` of this method make the updates of
  :func:`rewa_sgd` and :func:`rewa_adamw` with strength as weight decay.

  .. math::
    x = \operatorname{sign}(y)|y|^k, \qquad S(y) = \frac12\|y\|^2

  R is :class:`Penalty`'s: through the adaptive step it is not the least S.

  Attributes:
    k: the power, one number >= 1. May be traced, as m and eps may.
    m: 0 <= m <= k - 1; see :func:`scale_by_rewa`.
    eps: >= 0; see :func:`scale_by_rewa`.

  Raises:
    ValueError: if a hyperparameter is out of range.

  Examples:
    >>> from rewa_jax import baselines
    >>> method = baselines.Rewa(k=3, m=2)
    >>> print(f"{method.implicit_penalty([8.0, 0.0, -1.0]):.2f}")
    7.50

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithms 1
    and 2, Theorem 3.3
  """

  k: jax.typing.ArrayLike
  m: jax.typing.ArrayLike = 0.0
  eps: jax.typing.ArrayLike = 0.0

  def __post_init__(self):
    check_hyperparameters(self.k, self.m, self.eps)

  @property
  def parts(self):
    return 1

  def split(self, path, x):
    del path
    return (root(x, self.k),)

  def join(self, *values):
    return power(values[0], self.k, gradient="weight")

  def smooth_penalty(self, *values):
    return jnp.sum(values[0] ** 2) / 2

  def implicit_penalty(self, x, path="kernel"):
    del path
    return Penalty(self.k, self.m, self.eps).value(x)

  def precondition(self):
    return scale_by_rewa(self.k, self.m, self.eps, mask=_first_values)


@dataclasses.dataclass(frozen=True)
class GroupedRewa(Reparameterization):
  r"""ReWA on the norms of groups, so that whole groups vanish.

  .. math::
    x_g = \operatorname{sign}(z_g)|z_g|^k \frac{u_g}{\|u_g\|}, \qquad
    S(z, u) = \frac12\sum_g z_g^2

  with one gate :math:`z_g` a group, which gets ReWA's decay and adaptive step:
  :math:`z \leftarrow (1 - \eta\lambda)z - \eta\,s(z)\,\langle\nabla_{x_g} f,
  u_g/\|u_g\|\rangle`, s as in :func:`scale_by_rewa`. The direction u is
  trained plainly.

  The inner product is the derivative of f along the norm
  :math:`r_g = |z_g|^k`, so a stationary gate fulfils Theorem 3.3 in the place
  of one weight, and a stationary direction leaves the gradient no other part:

  .. math::
    \nabla_{x_g} f = -\lambda\left(r_g^{p-1} + \epsilon\,r_g^{q-1}\right)
    \frac{x_g}{r_g}, \qquad R(x) = \mathrm{Penalty}(k, m, \epsilon)
    (\|x_1\|, \|x_2\|, \dots)

  with the exponents p and q of :class:`Penalty`. In groups of one weight this
  is ReWA itself.

  Attributes:
    k: the power, one number >= 1. May be traced, as m and eps may.
    groups: what a group is: ``"output"`` or ``"input"`` channels, ``"rows"``,
      attention ``"heads"``, or a function; see :func:`group_axes`.
    m: 0 <= m <= k - 1.
    eps: >= 0.

  Raises:
    ValueError: if groups is unknown or a hyperparameter out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.GroupedRewa(3, "output", m=2)
    >>> latents = method.to_latents({"w": jnp.array([[3.0, 0.0], [4.0, 8.0]])})
    >>> gates, directions = latents["w"].values
    >>> print("{:.2f} {:.2f}".format(*gates[0]))
    1.71 2.00

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Theorem 3.3,
    which it carries over to norms
  """

  k: jax.typing.ArrayLike
  groups: Groups
  m: jax.typing.ArrayLike = 0.0
  eps: jax.typing.ArrayLike = 0.0

  def __post_init__(self):
    check_hyperparameters(self.k, self.m, self.eps)
    check_groups(self.groups)

  @property
  def parts(self):
    return 2

  def split(self, path, x):
    wide = x.astype(wide_dtype(x))
    norms = group_norms(wide, group_axes(self.groups, path, x))
    # A group at zero has no direction; any will do.
    directions = jnp.where(norms == 0, 1, wide)
    return (
      root(norms, self.k).astype(x.dtype),
      _unit(directions, norms.shape).astype(x.dtype),
    )

  def join(self, *values):
    gates, directions = values
    norms = power(gates, self.k, gradient="weight")
    weights = norms * _unit(directions, gates.shape)
    return weights.astype(directions.dtype)

  def smooth_penalty(self, *values):
    return jnp.sum(values[0] ** 2) / 2

  def implicit_penalty(self, x, path="kernel"):
    x = jnp.asarray(x)
    norms = group_norms(x, group_axes(self.groups, path, x))
    return Penalty(self.k, self.m, self.eps).value(norms)

  def precondition(self):
    return scale_by_rewa(self.k, self.m, self.eps, mask=_first_values)


def _first_values(latents):
  """Selects what has the power: the first value of all Factors."""

  def first(node):
    if not is_factors(node):
      return False
    values, treedef = jax.tree.flatten(node)
    return treedef.unflatten(i == 0 for i in range(len(values)))

  return jax.tree.map(first, latents, is_leaf=is_factors)


def _unit(directions, gate_shape):
  """Divides by the norms of the groups that have one gate each."""
  sizes = enumerate(zip(gate_shape, directions.shape))
  axes = tuple(i for i, (gates, size) in sizes if gates == size)
  return directions / group_norms(directions, axes)
