"""Groups of weights times gates, so that whole groups vanish."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from rewa_jax._checks import check_number
from rewa_jax._groups import (
  Groups,
  check_groups,
  group_axes,
  group_norms,
)
from rewa_jax._method import NOT_THE_MAP, STATIC, Method
from rewa_jax._power import wide_dtype
from rewa_jax.baselines._factorized import check_depth, divide


@dataclasses.dataclass(frozen=True)
class Gated(Method):
  r"""Groups of weights times D - 1 gates, under weight decay on all.

  .. math::
    x_g = u_g \prod_{i=1}^{D-1} \nu_{g,i}, \qquad
    R(x) = \min_{u, \nu} \frac12\Big(\|u\|^2 + \sum_i \|\nu_i\|^2\Big)
    = \frac D2\sum_g \|x_g\|^{2/D}

  with one number :math:`\nu_{g,i}` a group. Depth 2 is the grouped Hadamard
  product, which solves the group lasso; more is D-Gating, whose penalty has 1/D
  in place of 1/2: its strength is D/2 times the weight decay here.

  Attributes:
    groups: what a group is: ``"output"`` or ``"input"`` channels, ``"rows"``,
      attention ``"heads"``, or a function; see :func:`group_axes`.
    depth: D, an integer >= 2.
    offset: keeps gates of small groups from zero at the start, >= 0, in the
      units of weights: gates are :math:`(\|x_g\|^2 + \text{offset}^2)^{1/2D}`.
      With offset 0 a group that is zero stays so.
    mask: which leaves have latents; see :class:`rewa_jax.Method`.

  Raises:
    ValueError: if groups is unknown, or depth or offset is out of range.
    TypeError: if depth is no integer.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.Gated("output")
    >>> latents = method.to_latents({"kernel": jnp.ones((3, 2))})
    >>> jax.tree.map(jnp.shape, latents["kernel"])
    {'latent_0': (3, 2), 'latent_1': (1, 2)}
    >>> print(f"{method.implicit_penalty([[3.0, 0.0], [4.0, 1.0]]):.1f}")
    6.0

  References:
    Kolb et al., `Smoothing the Edges: Smooth Optimization for Sparse
    Regularization using Hadamard Overparametrization
    <https://arxiv.org/abs/2307.03571>`_, 2023; Kolb et al., `Differentiable
    Sparsity via D-Gating <https://arxiv.org/abs/2509.23898>`_, 2025
  """

  groups: Groups = dataclasses.field(metadata=STATIC)
  depth: int = dataclasses.field(default=2, metadata=STATIC)
  offset: jax.typing.ArrayLike = dataclasses.field(
    default=0.1, metadata=NOT_THE_MAP
  )

  def __post_init__(self):
    check_groups(self.groups)
    check_depth(self.depth)
    check_number("offset", self.offset, at_least=0)

  @property
  def decays(self):
    return (True,) * self.depth

  def split(self, path, x):
    wide = x.astype(wide_dtype(x))
    norms = group_norms(wide, group_axes(self.groups, path, x))
    gate = jnp.hypot(norms, self.offset) ** (1 / self.depth)
    directions = divide(wide, gate ** (self.depth - 1))
    gates = [jnp.copy(gate) for _ in range(self.depth - 1)]
    return tuple(value.astype(x.dtype) for value in (directions, *gates))

  def join(self, *values):
    weights, *gates = values
    # The gates first: they are small arrays.
    return weights * math.prod(gates)

  def implicit_penalty(self, x, path="kernel"):
    x = jnp.asarray(x)
    norms = group_norms(x, group_axes(self.groups, path, x))
    return jnp.sum(norms ** (2 / self.depth)) * self.depth / 2
