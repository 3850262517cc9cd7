"""The other methods of the field, in the shape of ReWA.

Methods that train something else than weights are :class:`rewa_jax.Method` s
like ReWA and swap with it by a word, in every way in:

  method = baselines.spred()  # or any other
  latents = method.to_latents(params)
  solver = rewa_jax.sgd(0.1, method, weight_decay=1e-4)

Methods that train the weights themselves are optax transformations: a penalty
with its proximal map in `proximal_sgd`, a subgradient before any optimizer, or
pruning after it.
"""

from rewa_jax._groups import (
  Groups,
  group_axes,
  group_norms,
  stacked,
)
from rewa_jax.baselines._factorized import (
  FactorProduct,
  HadamardDifference,
  deep_weight_factorization,
  spred,
)
from rewa_jax.baselines._gated import Gated
from rewa_jax.baselines._initialization import draw_factors
from rewa_jax.baselines._penalties import (
  L1,
  MCP,
  SCAD,
  AdaptiveL1,
  GroupL1,
  SparsePenalty,
)
from rewa_jax.baselines._powered import GroupedRewa, PowerPropagation
from rewa_jax.baselines._proximal import (
  proximal_adam,
  proximal_sgd,
  proximal_step,
)
from rewa_jax.baselines._pruning import GradualPruningState, gradual_pruning
from rewa_jax.baselines._soft_threshold import SoftThreshold
from rewa_jax.baselines._subgradient import add_clipped_lp, add_l1_subgradient

__all__ = [
  # Products and differences of factors: L1 and l_p penalties.
  "FactorProduct",
  "spred",
  "deep_weight_factorization",
  "draw_factors",
  "HadamardDifference",
  # Powers: by the chain rule alone, and ReWA's on norms of groups.
  "PowerPropagation",
  "GroupedRewa",
  # Whole channels, rows or heads.
  "Groups",
  "group_axes",
  "group_norms",
  "stacked",
  "Gated",
  # A threshold that is learned.
  "SoftThreshold",
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
