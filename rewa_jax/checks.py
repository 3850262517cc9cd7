"""What the library accepts, and the sentence a user reads when it does not."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

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
  if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f"{path} is of type {dtype}, but only real floating-point arrays have"
      " latents. If it is a leaf of params, pass a mask that is False there."
    )


def check_shapes(name: str, tree: Any, like_name: str, like: Any) -> list[Any]:
  """Returns the leaves of tree in the order of like's, of the same shapes.

  Where like has a leaf, tree may have None (Equinox's gradients do).
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(like)
  try:
    leaves = treedef.flatten_up_to(tree)
  except ValueError as error:
    raise ValueError(
      f"{name} and {like_name} are different trees: {name} has the leaves"
      f" {leaf_paths(tree)}, {like_name} has {leaf_paths(like)}."
    ) from error
  for (path, reference), leaf in zip(paths, leaves):
    if leaf is None:
      continue
    shape = jnp.shape(leaf) if jax.tree_util.all_leaves([leaf]) else "a subtree"
    if shape != jnp.shape(reference):
      raise ValueError(
        f"{name} and {like_name} differ at {path_name(path)}: {name} has"
        f" shape {shape}, {like_name} has shape {jnp.shape(reference)}."
      )
  return leaves


def path_name(path: jax.tree_util.KeyPath) -> str:
  """Returns a leaf's path as users write it: dense/kernel."""
  return (
    jax.tree_util.keystr(strip_box(path), simple=True, separator="/")
    or "(the only leaf)"
  )


def strip_box(path: jax.tree_util.KeyPath) -> jax.tree_util.KeyPath:
  """Drops the trailing `.value` of Flax's boxes and NNX's Variables."""
  if path and path[-1] == jax.tree_util.GetAttrKey("value"):
    return path[:-1]
  return path


def leaf_paths(tree: Any) -> str:
  """Returns the paths of all leaves, for an error message."""
  paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
  return ", ".join(paths) if paths else "(none)"


def _is_concrete(value: jax.typing.ArrayLike) -> bool:
  return not isinstance(value, Tracer)
