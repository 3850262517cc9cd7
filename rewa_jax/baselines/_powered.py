"""Weights as powers: PowerPropagation, and ReWA in groups."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from rewa_jax._checks import check_hyperparameters, check_number
from rewa_jax._groups import (
  Groups,
  check_groups,
  group_axes,
  group_norms,
)
from rewa_jax._method import NOT_THE_MAP, STATIC, Method
from rewa_jax._penalty import Penalty
from rewa_jax._power import as_wide, power, root, wide_dtype, with_gradient_of
from rewa_jax._rewa import adaptive_step


@dataclasses.dataclass(frozen=True)
class PowerPropagation(Method):
  r"""PowerPropagation: :math:`x = y|y|^{\alpha-1}`, trained by the chain rule.

  The gradient of y is :math:`\alpha|y|^{\alpha-1}` times that of x: large
  weights move fast, small ones hardly. That alone drives many weights towards
  zero, where magnitude pruning finds them: the published method has no weight
  decay. With it,

  .. math::
    R(x) = \frac12\sum_j |x_j|^{2/\alpha}

  Attributes:
    alpha: the power, one number >= 1. May be traced.
    mask: which leaves have latents; see :class:`rewa_jax.Method`.

  Raises:
    ValueError: if alpha is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.PowerPropagation(2)
    >>> print(method.to_latents({"w": jnp.array([4.0, -9.0])})["w"])
    [ 2. -3.]

  References:
    Schwarz et al., `Powerpropagation: A sparsity inducing weight
    reparameterisation <https://arxiv.org/abs/2110.00296>`_, 2021
  """

  alpha: jax.typing.ArrayLike

  def __post_init__(self):
    check_number("alpha", self.alpha, at_least=1)

  @property
  def degree(self):
    return self.alpha

  def split(self, path, x):
    del path
    return (root(x, self.alpha),)

  def join(self, *values):
    return power(values[0], self.alpha)

  def implicit_penalty(self, x, path="kernel"):
    del path
    return jnp.sum(jnp.abs(as_wide(x)) ** (2 / self.alpha)) / 2


@dataclasses.dataclass(frozen=True)
class GroupedRewa(Method):
  r"""ReWA on the norms of groups, so that whole groups vanish.

  .. math::
    x_g = \operatorname{sign}(z_g)|z_g|^k \frac{u_g}{\|u_g\|}

  with one gate :math:`z_g` a group, which gets ReWA's decay and adaptive step:
  :math:`z \leftarrow (1 - \eta\lambda)z - \eta\,s(z)\,\langle\nabla_{x_g} f,
  u_g/\|u_g\|\rangle`, s as in :class:`rewa_jax.Rewa`. The direction u is
  trained plainly, without decay.

  The inner product is the derivative of f along the norm
  :math:`r_g = |z_g|^k`, so a stationary gate fulfils Theorem 3.3 in the place
  of one weight, and a stationary direction leaves the gradient no other part:

  .. math::
    \nabla_{x_g} f = -\lambda\left(r_g^{p-1} + \epsilon\,r_g^{q-1}\right)
    \frac{x_g}{r_g}, \qquad R(x) = \mathrm{Penalty}(k, m, \epsilon)
    (\|x_1\|, \|x_2\|, \dots)

  with the exponents p and q of :class:`rewa_jax.Penalty`. In groups of one
  weight this is ReWA itself.

  Attributes:
    k: the power, one number >= 1. May be traced, as m and eps may.
    groups: what a group is: ``"output"`` or ``"input"`` channels, ``"rows"``,
      attention ``"heads"``, or a function; see :func:`group_axes`.
    m: 0 <= m <= k - 1.
    eps: >= 0.
    mask: which leaves have latents; see :class:`rewa_jax.Method`.

  Raises:
    ValueError: if groups is unknown or a hyperparameter out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.GroupedRewa(3, "output", m=2)
    >>> latents = method.to_latents({"w": jnp.array([[3.0, 0.0], [4.0, 8.0]])})
    >>> print("{:.2f} {:.2f}".format(*latents["w"]["latent_0"][0]))
    1.71 2.00

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Theorem 3.3,
    which it carries over to norms
  """

  k: jax.typing.ArrayLike
  groups: Groups = dataclasses.field(metadata=STATIC)
  m: jax.typing.ArrayLike = dataclasses.field(default=0.0, metadata=NOT_THE_MAP)
  eps: jax.typing.ArrayLike = dataclasses.field(
    default=0.0, metadata=NOT_THE_MAP
  )

  def __post_init__(self):
    check_hyperparameters(self.k, self.m, self.eps)
    check_groups(self.groups)

  @property
  def decays(self):
    return (True, False)  # Gates, directions.

  @property
  def degree(self):
    return self.k

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
    norms = with_gradient_of(power(lax.stop_gradient(gates), self.k), gates)
    return _along(directions, norms)

  def exact_join(self, *values):
    gates, directions = values
    return _along(directions, power(gates, self.k))

  def implicit_penalty(self, x, path="kernel"):
    x = jnp.asarray(x)
    norms = group_norms(x, group_axes(self.groups, path, x))
    return Penalty(self.k, self.m, self.eps).value(norms)

  def scale(self, gradient, value):
    return adaptive_step(gradient, value, self.k, self.m, self.eps)


def _along(directions, norms):
  """Returns vectors in the directions of groups that have these norms."""
  unit = _unit(directions, norms.shape)
  return (norms.astype(unit.dtype) * unit).astype(directions.dtype)


def _unit(directions, gate_shape):
  """Divides by the norms of the groups that have one gate each."""
  directions = directions.astype(wide_dtype(directions))
  sizes = enumerate(zip(gate_shape, directions.shape))
  axes = tuple(i for i, (gates, size) in sizes if gates == size)
  return directions / group_norms(directions, axes)
