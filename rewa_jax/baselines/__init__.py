"""The other methods of the field, in the shape of ReWA.

Methods that train something else than weights are reparameterizations: each has
to_latents and to_weights, `sgd` and `adamw` train what the first returns, and
`linen` and `nnx` put the second inside a Flax module.

  method = baselines.spred()  # or any other of the reparameterizations
  latents = method.to_latents(params)
  solver = baselines.sgd(0.1, method, strength=1e-4)

Methods that train the weights themselves are optax transformations: a penalty
with its proximal map in `proximal_sgd`, a subgradient before any optimizer, or
pruning after it.
"""

from rewa_jax.baselines import linen, nnx
from rewa_jax.baselines.factorized import (
  FactorProduct,
  HadamardDifference,
  deep_weight_factorization,
  spred,
  untied_power,
)
from rewa_jax.baselines.gated import Gated
from rewa_jax.baselines.groups import Groups, group_axes, group_norms
from rewa_jax.baselines.initialization import draw_factors
from rewa_jax.baselines.penalties import (
  L1,
  MCP,
  SCAD,
  AdaptiveL1,
  GroupL1,
  SparsePenalty,
)
from rewa_jax.baselines.powered import GroupedRewa, PowerPropagation, Rewa
from rewa_jax.baselines.proximal import (
  proximal_adam,
  proximal_sgd,
  proximal_step,
)
from rewa_jax.baselines.pruning import GradualPruningState, gradual_pruning
from rewa_jax.baselines.reparameterization import (
  Factors,
  Reparameterization,
  adamw,
  add_penalty,
  sgd,
)
from rewa_jax.baselines.soft_threshold import SoftThreshold
from rewa_jax.baselines.subgradient import add_clipped_lp, add_l1_subgradient

__all__ = [
  # What reparameterizations have in common, and their optimizers.
  "Reparameterization",
  "Factors",
  "add_penalty",
  "sgd",
  "adamw",
  # Products and differences of factors: L1 and l_p penalties.
  "FactorProduct",
  "spred",
  "deep_weight_factorization",
  "draw_factors",
  "untied_power",
  "HadamardDifference",
  # Powers: no penalty, ReWA's, and ReWA's on norms of groups.
  "PowerPropagation",
  "Rewa",
  "GroupedRewa",
  # Whole channels, rows or heads.
  "Groups",
  "group_axes",
  "group_norms",
  "Gated",
  # A threshold that is learned.
  "SoftThreshold",
  # Flax modules that store Factors.
  "linen",
  "nnx",
  # Penalties on weights, and proximal steps.
  "SparsePenalty",
  "L1",
  "MCP",
  "SCAD",
  "AdaptiveL1",
  "GroupL1",
  "proximal_step",
  "proximal_sgd",
  "proximal_adam",
  # Penalties on weights, and their gradients.
  "add_l1_subgradient",
  "add_clipped_lp",
  # Pruning while training.
  "gradual_pruning",
  "GradualPruningState",
]
