"""What is no set of weights, and the sentence a user reads then."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rewa_jax._method import weights_and_mask
from rewa_jax._trees import with_paths


def check_weights(weights: Any) -> None:
  """Raises where weights are latents, as far as can be told, or hold NaN."""
  weights_and_mask(weights, None, None)
  for path, leaf in with_paths(weights):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(
      leaf.dtype, jax.dtypes.prng_key
    ):
      raise TypeError(
        f"{path} is a random key, no weights: of an NNX model give what is"
        " needed, such as nnx.state(model, (nnx.Param, nnx.BatchStat))."
      )
    try:
      is_floating = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    except TypeError as error:
      raise TypeError(
        f"{path} must be an array, got {leaf!r} of type {type(leaf).__name__}."
      ) from error
    if is_floating and np.isnan(np.asarray(leaf)).any():
      raise ValueError(f"{path} holds NaN: no model comes of it.")
