"""What weights are worth: the loss on parts of the text."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rewa_jax

from ..parallel import Jit
from .config import Config
from .data import Source, windows
from .model import GROUPS, kernels
from .state import Setup, losses_of

Judge = Callable[[Any, str], dict[str, float]]


def make_judge(
  config: Config, setup: Setup, source: Source, parallel: Jit
) -> Judge:
  """Returns a function of weights and the name of a part.

  It gives the nats that a byte takes, and the perplexity of tokens.
  """
  # Weights, whatever was trained.
  bare = setup._replace(graph=setup.bare, method=None)
  lengths = jnp.array([len(b) for b in source.vocabulary.bytes_of])

  def count(weights, batch, arrays):
    del arrays
    counted = batch[:, 1:] >= 0
    losses, targets = losses_of(bare, weights, jnp.maximum(batch, 0))
    return {
      "nats": jnp.sum(losses * counted),
      "tokens": jnp.sum(counted),
      "bytes": jnp.sum(lengths[targets] * counted),
    }

  counts = parallel.test(count)
  size = config.batch_size // config.accumulate

  def judge(weights, part):
    rows = windows(source.parts[part], config.context, config.evaluate)
    missing = -len(rows) % size
    rows = np.pad(rows, ((0, missing), (0, 0)), constant_values=-1)
    sums = [
      counts(weights, parallel.batch(rows[i : i + size]), None)
      for i in range(0, len(rows), size)
    ]
    total = jax.tree.map(lambda *x: float(np.sum(x)), *jax.device_get(sums))
    return {
      "nats_per_byte": total["nats"] / total["bytes"],
      "perplexity": math.exp(total["nats"] / total["tokens"]),
    }

  return judge


def cut(weights: Any, sparsity: float, groups: str) -> tuple[Any, rewa_jax.Cut]:
  """Returns weights with exactly so many zeros, and what that took."""
  return rewa_jax.finalize(
    weights, sparsity, mask=kernels, groups=GROUPS[groups]
  )
