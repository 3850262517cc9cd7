"""What weight decay on latents means for the weights: the implicit penalty."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rewa_jax._checks import Scalar, check_hyperparameters
from rewa_jax._power import as_wide


@dataclasses.dataclass(frozen=True)
class Penalty:
  r"""The penalty on weights that ReWA's weight decay on latents amounts to.

  Stationary points of the update fulfil
  :math:`\nabla f(x) = -\lambda \nabla R(x)` where x is nonzero (with momentum,
  whose sum of gradients is 1 / (1 - momentum) times one, for
  :math:`(1 - \text{momentum})\lambda` in place of :math:`\lambda`), with

  .. math::
    R(x) = \frac{k}{k+1-m}\sum_i |x_i|^p + \epsilon\frac{k}{2-m}\sum_i |x_i|^q,
    \qquad p = 1 + \frac{1-m}{k}, \quad q = \frac{2-m}{k}.

  At m = 2 the second sum is :math:`\epsilon\sum_i\log|x_i|`, its limit up to a
  constant. For m >= 2 and eps > 0 the penalty falls to minus infinity as a
  weight goes to zero.

  Attributes:
    k: the power, one number >= 1. May be traced, as m and eps may.
    m: 0 <= m <= k - 1. The theorem is proved for even m.
    eps: >= 0, as in :class:`Rewa`.

  Raises:
    ValueError: if a hyperparameter is out of range.

  Examples:
    >>> import rewa_jax
    >>> penalty = rewa_jax.Penalty(k=9, m=2)
    >>> print(f"{penalty.p:.3f} {penalty.config}")
    0.889 A
    >>> print(f"{penalty.value([1.0, 0.0, -1.0]):.2f}")
    2.25

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Theorem 3.3 and
    Proposition 3.4
  """

  k: "Scalar"
  m: "Scalar" = 0.0
  eps: "Scalar" = 0.0

  def __post_init__(self):
    check_hyperparameters(self.k, self.m, self.eps)

  @property
  def p(self) -> jax.typing.ArrayLike:
    """The exponent of the penalty's first term."""
    return 1 + (1 - self.m) / self.k

  @property
  def q(self) -> jax.typing.ArrayLike:
    """The exponent of the penalty's second term, which eps switches on."""
    return (2 - self.m) / self.k

  @property
  def config(self) -> Literal["A", "B"] | None:
    """The paper's configuration, None outside both; hyperparameters concrete.

    ``"A"``: eps = 0 and m > 1, then 0 < p < 1; for simple data. ``"B"``:
    eps > 0 and m < 2, then q > 0, and q < 1 if m > 2 - k: sparsity comes from
    the second term; for complex data.
    """
    m, eps = np.asarray(self.m), np.asarray(self.eps)
    if eps == 0 and m > 1:
      return "A"
    if eps > 0 and m < 2:
      return "B"
    return None

  def value(self, x: jax.typing.ArrayLike) -> jax.Array:
    """Returns R(x), a scalar whose derivative is :meth:`gradient`.

    Args:
      x: weights, any shape.
    """
    x, eps = as_wide(x), jnp.asarray(self.eps)
    # Zeros apart: powers and logarithms have no derivative there.
    size = jnp.where(x == 0, 1, jnp.abs(x))
    is_log = jnp.asarray(self.m) == 2
    q = jnp.where(is_log, 1, self.q)
    first = self.k / (self.k + 1 - self.m) * size**self.p
    second = jnp.where(is_log, jnp.log(size), size**q / q)
    # 0 times an infinite term is no 0.
    second = jnp.where((eps == 0) & ~jnp.isfinite(second), 0, second)
    at_zero = jnp.where((eps > 0) & (jnp.asarray(self.q) <= 0), -jnp.inf, 0.0)
    return jnp.sum(jnp.where(x == 0, at_zero, first + eps * second))

  def gradient(self, x: jax.typing.ArrayLike) -> jax.Array:
    r"""Returns the gradient of R, :math:`|x|^{p-1} + \epsilon|x|^{q-1}` signed.

    Args:
      x: weights, any shape.

    Returns:
      An array of x's shape. It is 0 where x = 0: for p < 1 or q < 1 the penalty
      has a cusp there, and any slope is compatible with staying at zero.
    """
    x = jnp.asarray(x)
    size = jnp.where(x == 0, 1, jnp.abs(x))
    slope = size ** (self.p - 1) + self.eps * size ** (self.q - 1)
    return jnp.asarray(jnp.sign(x) * slope)
