"""ReWA: weights are powers of latents that take an adaptive step."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from rewa_jax._checks import (
  Gradient,
  Scalar,
  check_gradient,
  check_hyperparameters,
)
from rewa_jax._method import NOT_THE_MAP, STATIC, Method
from rewa_jax._penalty import Penalty
from rewa_jax._power import magnitude, power, root, with_gradient_of


@dataclasses.dataclass(frozen=True)
class Rewa(Method):
  r"""ReWA: :math:`x = \operatorname{sign}(y)|y|^k` and an adaptive step.

  .. math::
    y \leftarrow (1 - \eta_t\lambda)\,y - \eta_t\,s(y)\,\nabla f(x), \qquad
    s(y) = |y|^m \, \frac{|y|^{k-1}}{|y|^{k-1} + \epsilon}

  Attributes:
    k: the power, one number >= 1. May be traced, as m and eps may.
    m: makes the step vanish with the latent, 0 <= m <= k - 1. With eps = 0,
      m > 1 is the paper's Config A.
    eps: slows latents with :math:`|y|^{k-1}` below it, >= 0. With m < 2,
      eps > 0 is the paper's Config B.
    gradient: what differentiation of :meth:`to_weights` gives, and what
      optimizers of this method expect. ``"weight"``: the gradient of the
      weights, handed through, so that nothing is lost where
      :math:`|y|^{k-1}` underflows and clipping means what it means in a dense
      network. ``"latent"``: that of the latents by the chain rule. Both give
      the same step wherever nothing underflows.
    mask: which leaves have latents; see :class:`Method`.

  Raises:
    ValueError: if a hyperparameter is out of range or gradient is unknown.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> rewa = rewa_jax.Rewa(k=3, m=2)
    >>> params = {"kernel": jnp.array([8.0, -1.0]), "bias": jnp.array([8.0])}
    >>> latents = rewa.to_latents(params)
    >>> print(latents["kernel"], latents["bias"])
    [ 2. -1.] [8.]
    >>> def loss(latents):
    ...   weights = rewa.to_weights(latents)
    ...   return 0.5 * jnp.sum(weights["kernel"] ** 2)
    >>> jax.grad(loss)(latents)["kernel"]
    Array([ 8., -1.], dtype=float32)

    A grid of k, and what weight decay 1 on latents is on weights:

    >>> grid = jax.tree.map(lambda *k: jnp.stack(k), rewa, rewa_jax.Rewa(k=9))
    >>> jax.vmap(lambda rewa: rewa.to_weights(latents)["kernel"])(grid)
    Array([[  8.,  -1.],
           [512.,  -1.]], dtype=float32)
    >>> print(f"{rewa.implicit_penalty([8.0, 0.0, -1.0]):.2f}")
    7.50

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithms 1
    and 2, Theorem 3.3. The authors' public code has :math:`k|y|^{k-1}` in place
    of :math:`|y|^{k-1}`: its eps is k times the one here.
  """

  k: "Scalar"
  m: "Scalar" = dataclasses.field(default=0.0, metadata=NOT_THE_MAP)
  eps: "Scalar" = dataclasses.field(default=0.0, metadata=NOT_THE_MAP)
  gradient: "Gradient" = dataclasses.field(
    default="weight", kw_only=True, metadata=STATIC
  )

  def __post_init__(self):
    check_hyperparameters(self.k, self.m, self.eps)
    check_gradient(self.gradient)

  @property
  def degree(self):
    return self.k

  def split(self, path, x):
    del path
    return (root(x, self.k),)

  def join(self, *values):
    (y,) = values
    if self.gradient == "weight":
      return with_gradient_of(power(lax.stop_gradient(y), self.k), y)
    return self.exact_join(y)

  def exact_join(self, *values):
    return power(values[0], self.k)

  def size(self, *values):
    # Not |y|^k, which underflows.
    (y,) = values
    return jnp.abs(y)

  def scale(self, gradient, value):
    return adaptive_step(
      gradient, value, self.k, self.m, self.eps, self.gradient
    )

  def implicit_penalty(self, x, path="kernel"):
    del path
    return Penalty(self.k, self.m, self.eps).value(x)


def adaptive_step(g, y, k, m, eps, gradient: Gradient = "weight"):
  """Returns s(y) times the gradient of the weights, in at least float32."""
  scale = magnitude(y, m)
  g = jnp.asarray(g).astype(scale.dtype)
  # Nothing but |y|^m is left, and nothing else is worth compiling.
  if gradient == "weight" and isinstance(eps, (int, float)) and eps == 0:
    return g * scale
  slope = magnitude(y, k - 1)
  eps = jnp.asarray(eps).astype(slope.dtype)
  # Where a division does not count, its denominator is 1.
  if gradient == "weight":
    # slope / (slope + eps) without overflow. The division comes last, so that
    # XLA keeps scaled gradients where it had gradients, and nothing beside.
    part = jnp.minimum(slope, 1)
    whole = part + eps / jnp.maximum(slope, 1)
    g = g * scale
    return jnp.where(eps > 0, g * part / jnp.where(eps > 0, whole, 1), g)
  # Large powers come after the division: before it they may overflow.
  floor = jnp.minimum(slope + eps, jnp.finfo(slope.dtype).max)
  g = g * jnp.minimum(scale, 1) / k
  g = jnp.where(floor > 0, g / jnp.where(floor > 0, floor, 1), 0)
  return g * jnp.maximum(scale, 1)
