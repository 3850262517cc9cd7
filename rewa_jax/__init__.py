"""Sparse neural networks in JAX: ReWA and its relatives.

Weights are x = sign(y)|y|^k of latents y, which are trained with weight decay
and an adaptive step. Three ways in, for the same training:

  transformations of latents: to_latents, to_weights, rewa_sgd, rewa_adamw
  a drop-in around any optimizer: reparameterize
  modules that compute the power: linen.Reparameterized, nnx.reparameterize

The other methods of the field, in the same shape, are in `baselines`.

Reference: Xu, Yang, Xu and Teng, ReWA, ICML 2026, arXiv 2605.25134.
"""

from rewa_jax import baselines, linen, nnx
from rewa_jax.dropin import ReparameterizeState, adopt_weights, reparameterize
from rewa_jax.latents import to_latents, to_weights
from rewa_jax.masks import kernels
from rewa_jax.penalty import Penalty, decay_budget, weight_decay_for
from rewa_jax.power import power, root
from rewa_jax.rounding import RoundStochasticallyState, round_stochastically
from rewa_jax.sparsity import Sparsity, prune, sparsity
from rewa_jax.transform import rewa_adamw, rewa_sgd, scale_by_rewa

__version__ = "0.1.0"

__all__ = [
  # The map between latents and weights, of arrays and of trees.
  "power",
  "root",
  "kernels",
  "to_latents",
  "to_weights",
  # Optimizers of latents.
  "scale_by_rewa",
  "rewa_sgd",
  "rewa_adamw",
  # The drop-in: latents in the optimizer state, params stay weights.
  "reparameterize",
  "ReparameterizeState",
  "adopt_weights",
  # Latents of 16 bits.
  "round_stochastically",
  "RoundStochasticallyState",
  # Flax modules that store latents.
  "linen",
  "nnx",
  # What the weight decay means, and whether there is enough of it.
  "Penalty",
  "decay_budget",
  "weight_decay_for",
  # What came of it.
  "sparsity",
  "Sparsity",
  "prune",
  # The other methods of the field.
  "baselines",
]
