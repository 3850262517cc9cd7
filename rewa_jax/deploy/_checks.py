"""What is no set of weights, and the sentence a user reads then."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from rewa_jax._method import weights_and_mask
from rewa_jax._trees import with_paths


def check_weights(weights: Any) -> None:
  """Raises where weights are latents, as far as can be told, or hold NaN."""
  weights_and_mask(weights, None, None)
  for path, leaf in with_paths(weights):
    try:
      is_floating = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    except TypeError as error:
      raise TypeError(
        f"{path} must be an array, got {leaf!r} of type {type(leaf).__name__}."
      ) from error
    if is_floating and np.isnan(np.asarray(leaf)).any():
      raise ValueError(f"{path} holds NaN: no model comes of it.")
