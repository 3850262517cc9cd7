"""Sparse neural networks in JAX: ReWA and its relatives.

A method says how weights are computed from latents; for ReWA they are
x = sign(y)|y|^k of latents y, which are trained with weight decay and an
adaptive step. Every way in takes a method:

  rewa = rewa_jax.Rewa(k=9, m=2)

  trees of latents: rewa.to_latents, rewa.to_weights, sgd, adamw
  a drop-in around any optimizer: reparameterize
  modules that store latents: linen.Reparameterized, nnx.reparameterize

The other methods of the field are in `baselines`.

Reference: Xu, Yang, Xu and Teng, ReWA, ICML 2026, arXiv 2605.25134.
"""

from rewa_jax import baselines, linen, nnx
from rewa_jax._decay_budget import (
  decay_budget,
  measure_decay_budget,
  weight_decay_for,
)
from rewa_jax._decay_by_rank import DecayByRankState, decay_by_rank
from rewa_jax._dropin import ReparameterizeState, adopt_weights, reparameterize
from rewa_jax._finalize import Cut, finalize
from rewa_jax._keep_zeros import KeepZerosState, keep_zeros
from rewa_jax._masks import kernels
from rewa_jax._method import Method
from rewa_jax._penalty import Penalty
from rewa_jax._power import power, root
from rewa_jax._pruning import prune
from rewa_jax._ranking import erdos_renyi_kernel
from rewa_jax._rewa import Rewa
from rewa_jax._rounding import RoundStochasticallyState, round_stochastically
from rewa_jax._separation import Separation, separation
from rewa_jax._sparsity import Sparsity, sparsity
from rewa_jax._transformations import (
  adamw,
  rewa_adamw,
  rewa_sgd,
  scale_by_method,
  scale_by_rewa,
  sgd,
)

__version__ = "0.2.0"

__all__ = [
  # What defines a reparameterization, said once.
  "Rewa",
  "Method",
  "kernels",
  # Optimizers of latents, of any method.
  "sgd",
  "adamw",
  "scale_by_method",
  # The same for ReWA by its numbers, to chain, inject and schedule.
  "rewa_sgd",
  "rewa_adamw",
  "scale_by_rewa",
  # Ask for a sparsity: sgd and adamw take it, and this is the decay they have.
  "decay_by_rank",
  "DecayByRankState",
  "erdos_renyi_kernel",
  "finalize",
  "Cut",
  # The drop-in: latents in the optimizer state, params stay weights.
  "reparameterize",
  "ReparameterizeState",
  "adopt_weights",
  # Fine-tuning what was pruned.
  "keep_zeros",
  "KeepZerosState",
  # Flax modules that store latents.
  "linen",
  "nnx",
  # Latents of 16 bits.
  "round_stochastically",
  "RoundStochasticallyState",
  # What the weight decay means, and whether there is enough of it.
  "Penalty",
  "decay_budget",
  "weight_decay_for",
  "measure_decay_budget",
  # What came of it.
  "separation",
  "Separation",
  "sparsity",
  "Sparsity",
  "prune",
  # The map from latents to weights, as plain mathematics.
  "power",
  "root",
  # The other methods of the field.
  "baselines",
]
