"""What numbers the library accepts, and the sentence a user reads otherwise."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# Signatures quote these names: help() would spell out every type behind them.
Scalar = jax.typing.ArrayLike
Gradient = Literal["weight", "latent"]


def check_hyperparameters(
  k: jax.typing.ArrayLike,
  m: jax.typing.ArrayLike = 0.0,
  eps: jax.typing.ArrayLike = 0.0,
) -> None:
  """Raises unless k >= 1, 0 <= m <= k - 1 and eps >= 0. Tracers pass unseen."""
  check_number("k", k, at_least=1)
  check_number("m", m, at_least=0)
  check_number("eps", eps, at_least=0)
  # The slack is for k - 1 in float32: 4.1 - 1 < 3.1.
  if _is_concrete(k) and _is_concrete(m):
    highest = float(np.asarray(k).item()) - 1
    if np.asarray(m).item() > highest * (1 + 1e-6):
      raise ValueError(f"m must be at most k - 1 = {highest}, got {m}.")


def check_number(
  name: str,
  value: jax.typing.ArrayLike,
  *,
  at_least: float,
  at_most: float = math.inf,
) -> None:
  """Raises unless value is one finite real number in the given range."""
  allowed = f"{name} must be a finite real number >= {at_least}"
  if at_most < math.inf:
    allowed += f" and <= {at_most}"
  if isinstance(value, bool) or not isinstance(
    value, (int, float, np.number, np.ndarray, jax.Array)
  ):
    raise TypeError(f"{allowed}, got {value!r} of type {type(value).__name__}.")
  dtype = jnp.result_type(value)
  if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(
    dtype, jnp.integer
  ):
    raise TypeError(f"{allowed}, got an array of dtype {dtype}.")
  if jnp.ndim(value) != 0:
    raise ValueError(f"{allowed}, got an array of shape {jnp.shape(value)}.")
  if _is_concrete(value) and not (
    math.isfinite(value) and at_least <= float(value) <= at_most
  ):
    raise ValueError(f"{allowed}, got {value}.")


def check_gradient(gradient: str) -> None:
  """Raises unless gradient names one of the two conventions."""
  if gradient not in ("weight", "latent"):
    raise ValueError(
      f"gradient must be 'weight' or 'latent', got {gradient!r}."
    )


def check_floating(path: str, leaf: Any) -> None:
  """Raises unless leaf is real floating point, the only kind with a power."""
  try:
    dtype = jnp.result_type(leaf)
  except TypeError:
    dtype = type(leaf).__name__
  if (
    isinstance(dtype, str)
    or not jnp.issubdtype(dtype, jnp.floating)
    or jnp.finfo(dtype).bits < 16
  ):
    raise TypeError(
      f"{path} is of type {dtype}, but only real floating-point arrays of 16"
      " bits or more have latents. If it is a leaf of params, pass a mask that"
      " is False there."
    )


def _is_concrete(value: jax.typing.ArrayLike) -> bool:
  return not isinstance(value, Tracer)
