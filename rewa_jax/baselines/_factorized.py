"""Weights as products or differences of factors under weight decay."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp

from rewa_jax._checks import check_number
from rewa_jax._masks import Mask, kernels
from rewa_jax._method import NOT_THE_MAP, STATIC, Method
from rewa_jax._power import as_wide, wide_dtype


@dataclasses.dataclass(frozen=True)
class FactorProduct(Method):
  r"""Weights as a product of factors, under weight decay on each.

  .. math::
    x = \prod_{i=1}^{D} w_i, \qquad
    R(x) = \min_w \frac12\sum_i \|w_i\|^2 = \frac D2\sum_j |x_j|^{2/D}

  At the minimum all factors have the same absolute value. :func:`spred` and
  :func:`deep_weight_factorization` make it.

  Attributes:
    depth: D, the number of factors, an integer >= 2.
    offset: how far from equal ``to_latents`` makes the factors, >= 0, in the
      units of weights. The first D - 1 are :math:`(x^2 + \text{offset}^2)
      ^{1/2D}`, the last is x over their product and may cross zero. With
      offset 0 all have the same absolute value: then they keep it, a weight
      keeps its sign, and a weight at zero stays there.
    mask: which leaves have latents; see :class:`rewa_jax.Method`.

  Raises:
    ValueError: if depth or offset is out of range.
    TypeError: if depth is no integer.
  """

  depth: int = dataclasses.field(metadata=STATIC)
  offset: jax.typing.ArrayLike = dataclasses.field(
    default=0.1, metadata=NOT_THE_MAP
  )

  def __post_init__(self):
    check_depth(self.depth)
    check_number("offset", self.offset, at_least=0)

  @property
  def decays(self):
    return (True,) * self.depth

  def split(self, path, x):
    del path
    wide = x.astype(wide_dtype(x))
    first = jnp.hypot(wide, self.offset) ** (1 / self.depth)
    last = divide(wide, first ** (self.depth - 1))
    # Copies, so that an optimizer's buffers can be donated one by one.
    factors = [jnp.copy(first) for _ in range(self.depth - 1)] + [last]
    return tuple(factor.astype(x.dtype) for factor in factors)

  def join(self, *values):
    return functools.reduce(operator.mul, values)

  def implicit_penalty(self, x, path="kernel"):
    del path
    size = jnp.abs(as_wide(x))
    return jnp.sum(size ** (2 / self.depth)) * self.depth / 2


def spred(
  *, offset: jax.typing.ArrayLike = 0.1, mask: Mask | None = kernels
) -> FactorProduct:
  r"""spred: weights x = u v solve the L1 penalty by plain SGD.

  .. math::
    R(x) = \min_{uv = x} \frac12\left(\|u\|^2 + \|v\|^2\right) = \|x\|_1

  Args:
    offset: how unequal the factors start, >= 0; see :class:`FactorProduct`.
    mask: which leaves have latents; see :class:`rewa_jax.Method`.

  Returns:
    A :class:`FactorProduct` of depth 2.

  Raises:
    ValueError: if offset is out of range.

  Examples:
    >>> from rewa_jax import baselines
    >>> float(baselines.spred().implicit_penalty([3.0, -1.0]))
    4.0

  References:
    Ziyin and Wang, `spred: Solving L1 Penalty with SGD
    <https://arxiv.org/abs/2210.01212>`_, 2023
  """
  return FactorProduct(2, offset, mask=mask)


def deep_weight_factorization(
  depth: int,
  *,
  offset: jax.typing.ArrayLike = 0.1,
  mask: Mask | None = kernels,
) -> FactorProduct:
  r"""DWF: weights are products of D factors.

  .. math::
    R(x) = \min_w \frac12\sum_{i=1}^D \|w_i\|^2 = \frac D2\sum_j |x_j|^{2/D}

  It wants a large learning rate and no momentum, and factors drawn by
  :func:`draw_factors` rather than split from drawn weights. Split, it is ReWA's
  power with untied factors and no adaptive step. The paper's penalty has 1/D in
  place of 1/2: its strength is D/2 times the weight decay here.

  Args:
    depth: D, the number of factors, an integer >= 2; 2 is :func:`spred`.
    offset: how unequal the factors start, >= 0; see :class:`FactorProduct`.
    mask: which leaves have latents; see :class:`rewa_jax.Method`.

  Returns:
    A :class:`FactorProduct`.

  Raises:
    ValueError: if an argument is out of range.
    TypeError: if depth is no integer.

  Examples:
    >>> from rewa_jax import baselines
    >>> method = baselines.deep_weight_factorization(4)
    >>> float(method.implicit_penalty([9.0, -1.0]))
    8.0

  References:
    Kolb et al., Deep Weight Factorization: Sparse Learning Through the Lens of
    Artificial Symmetries, ICLR 2025
  """
  return FactorProduct(depth, offset, mask=mask)


@dataclasses.dataclass(frozen=True)
class HadamardDifference(Method):
  r"""Weights as a difference of two powers, under weight decay on both.

  .. math::
    x = u^k - v^k, \qquad R(x) = \min_{u, v} \frac12\left(\|u\|^2 + \|v\|^2
    \right) = \frac12\sum_j |x_j|^{2/k}

  At the minimum one of the two is zero. The paper's penalty has no 1/2: its
  strength is half the weight decay here.

  Attributes:
    k: the power, an integer >= 2; 2 solves the L1 penalty.
    offset: how far ``to_latents`` keeps both from zero, >= 0, in the units of
      weights: :math:`u^k, v^k = (\sqrt{x^2 + \text{offset}^2} \pm x) / 2`. With
      offset 0 the smaller one starts and stays at zero, and a weight cannot
      change its sign.
    mask: which leaves have latents; see :class:`rewa_jax.Method`.

  Raises:
    ValueError: if k or offset is out of range.
    TypeError: if k is no integer.

  Examples:
    >>> from rewa_jax import baselines
    >>> float(baselines.HadamardDifference(2).implicit_penalty([3.0, -1.0]))
    2.0

  References:
    Kolb et al., `Smoothing the Edges: Smooth Optimization for Sparse
    Regularization using Hadamard Overparametrization
    <https://arxiv.org/abs/2307.03571>`_, 2023
  """

  k: int = dataclasses.field(default=2, metadata=STATIC)
  offset: jax.typing.ArrayLike = dataclasses.field(
    default=0.1, metadata=NOT_THE_MAP
  )

  def __post_init__(self):
    check_depth(self.k, "k")
    check_number("offset", self.offset, at_least=0)

  @property
  def decays(self):
    return (True, True)

  @property
  def degree(self):
    return self.k

  def split(self, path, x):
    del path
    wide = x.astype(wide_dtype(x))
    larger = jnp.hypot(wide, self.offset) / 2 + jnp.abs(wide) / 2
    # Not as a difference, which loses the digits of the smaller one.
    half = jnp.asarray(self.offset) / 2
    smaller = half * divide(half, larger)
    u, v = (
      jnp.where(wide >= 0, larger, smaller),
      jnp.where(wide >= 0, smaller, larger),
    )
    return tuple((w ** (1 / self.k)).astype(x.dtype) for w in (u, v))

  def join(self, *values):
    u, v = values
    return u**self.k - v**self.k

  def implicit_penalty(self, x, path="kernel"):
    del path
    return jnp.sum(jnp.abs(as_wide(x)) ** (2 / self.k)) / 2


def check_depth(depth: int, name: str = "depth") -> None:
  """Raises unless a number of factors is an integer >= 2."""
  if isinstance(depth, bool) or not isinstance(depth, int):
    raise TypeError(f"{name} must be a Python integer >= 2, got {depth!r}.")
  if depth < 2:
    raise ValueError(f"{name} must be a Python integer >= 2, got {depth}.")


def divide(x, divisor):
  """Returns x / divisor, and 0 where the divisor is 0."""
  return jnp.where(divisor == 0, 0, x / jnp.where(divisor == 0, 1, divisor))
