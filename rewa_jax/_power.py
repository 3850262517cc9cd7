"""The power x = sign(y)|y|^k and its inverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rewa_jax._checks import Scalar, check_floating, check_hyperparameters


def power(y: jax.typing.ArrayLike, k: "Scalar") -> jax.Array:
  r"""Maps latents to weights, :math:`x = \operatorname{sign}(y)|y|^k`.

  An integer k is repeated multiplication; any other k, or a k that is a JAX
  array, goes through ``pow``. Half precision is computed in float32 and rounded
  once.

  Args:
    y: latents, real floating point, any shape.
    k: the power, one number >= 1. May be traced.

  Returns:
    The weights, of y's shape and dtype. The derivative :math:`k|y|^{k-1}` is
    finite at y = 0, and so is the one with respect to a traced k.

  Raises:
    ValueError: if k < 1 or not finite.
    TypeError: if y is not real floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> y = jnp.array([-2.0, 0.0, 0.5])
    >>> rewa_jax.power(y, 3)
    Array([-8.   ,  0.   ,  0.125], dtype=float32)
    >>> rewa_jax.power(y, 2)
    Array([-4.  ,  0.  ,  0.25], dtype=float32)
    >>> jax.grad(lambda y: rewa_jax.power(y, 3).sum())(y)
    Array([12.  ,  0.  ,  0.75], dtype=float32)

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1
  """
  check_hyperparameters(k)
  check_floating("y", y)
  y, k = jnp.asarray(y), as_python(k)
  if isinstance(k, (int, float)):
    return _power(y, None, k)
  return _power(y, jnp.asarray(k).astype(wide_dtype(y)), None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _power(y, traced_k, static_k):
  k = traced_k if static_k is None else static_k
  slope = magnitude(y, k - 1)
  return (y.astype(slope.dtype) * slope).astype(y.dtype)


@_power.defjvp
def _power_jvp(static_k, primals, tangents):
  y, traced_k = primals
  y_dot, k_dot = tangents
  k = traced_k if static_k is None else static_k
  x = _power(y, traced_k, static_k)
  slope = magnitude(y, k - 1)
  x_dot = (slope * (k * y_dot.astype(slope.dtype))).astype(y.dtype)
  if k_dot is not None:
    log_y = jnp.log(jnp.where(y == 0, 1, jnp.abs(y)))
    x_dot = x_dot + x * log_y * k_dot.astype(y.dtype)
  return x, x_dot


@jax.custom_jvp
def with_gradient_of(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns x, which differentiation takes for x + y - stop_gradient(y).

  With an x that hides y from differentiation, the gradient of x becomes that of
  y as it is: no factor :math:`k|y|^{k-1}` that might underflow.
  """
  del y
  return x


@with_gradient_of.defjvp
def _with_gradient_of_jvp(primals, tangents):
  x_dot, y_dot = tangents
  # Not x itself, which second derivatives would take for a constant.
  return with_gradient_of(*primals), x_dot + y_dot.astype(x_dot.dtype)


def root(x: jax.typing.ArrayLike, k: "Scalar") -> jax.Array:
  r"""Maps weights to latents, :math:`y = \operatorname{sign}(x)|x|^{1/k}`.

  Args:
    x: weights, real floating point, any shape.
    k: the power, one number >= 1. May be traced.

  Returns:
    The latents, of x's shape and dtype. The derivative at x = 0, infinite for
    k > 1, is taken as 0.

  Raises:
    ValueError: if k < 1 or not finite.
    TypeError: if x is not real floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> rewa_jax.root(jnp.array([-16.0, 0.0, 0.25]), 2)
    Array([-4. ,  0. ,  0.5], dtype=float32)

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1
  """
  check_hyperparameters(k)
  check_floating("x", x)
  x, k = jnp.asarray(x), as_python(k)
  if isinstance(k, (int, float)) and k == 1:
    return x
  if not isinstance(k, (int, float)):
    k = jnp.asarray(k).astype(wide_dtype(x))
  size = magnitude(x, 1 / k)
  return (jnp.sign(x).astype(size.dtype) * size).astype(x.dtype)


def magnitude(y: jax.Array, exponent: jax.typing.ArrayLike) -> jax.Array:
  """Returns |y|^exponent for exponent >= 0 in at least float32.

  0^0 is 1, and an overflow is the largest finite number: its product with a
  zero gradient is then a zero and no NaN.
  """
  dtype, exponent = wide_dtype(y), as_python(exponent)
  size = jnp.abs(y).astype(dtype)
  if isinstance(exponent, (int, float)) and float(exponent).is_integer():
    result = lax.integer_pow(size, int(exponent))
  else:
    exponent = jnp.asarray(exponent).astype(dtype)
    # The inner where keeps the unused branch of the derivative finite.
    base = jnp.where(size == 0, 1, size)
    at_zero = (exponent == 0).astype(dtype)
    result = jnp.where(size == 0, at_zero, base**exponent)
  return jnp.minimum(result, jnp.finfo(dtype).max)


def wide_dtype(y: jax.Array) -> jnp.dtype:
  """Returns the dtype that powers are computed in: float32, or y's if wider."""
  return jnp.dtype("float32") if jnp.finfo(y.dtype).bits < 32 else y.dtype


def as_wide(x: jax.typing.ArrayLike) -> jax.Array:
  """Returns real numbers in the dtype that sums of them are computed in."""
  x = jnp.asarray(x)
  is_floating = jnp.issubdtype(x.dtype, jnp.floating)
  return x.astype(wide_dtype(x) if is_floating else float)


def as_python(k: "Scalar") -> jax.typing.ArrayLike:
  """Returns the Python number that a NumPy scalar is, anything else as is."""
  return k.item() if isinstance(k, np.generic) else k
