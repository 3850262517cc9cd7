"""The runs of the comparison, in the order of what matters most."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import rewa_jax

from .config import Config
from .state import make_schedule

SPARSITIES = (0.9, 0.95, 0.98)

METHODS = {
  "dense": "dense, pruned once",
  "l1": "L1, proximal",
  "gmp": "gradual magnitude pruning",
  "rewa": "ReWA, fixed decay",
  "rank": "ReWA by rank",
  "difference": "Hadamard difference by rank",
}

# Of gmp, rank and difference the sparsity asked for; of rewa the decay budget;
# of l1 how far a weight without gradient moves, where drawn ones are near 0.1.
ORDER = (
  ("dense", 0),
  ("rank", 0.95),
  ("gmp", 0.95),
  ("rewa", 15),
  ("l1", 0.4),
  ("difference", 0.95),
  ("rank", 0.9),
  ("rank", 0.98),
  ("gmp", 0.9),
  ("gmp", 0.98),
  ("rewa", 9),
  ("rewa", 25),
  ("l1", 0.2),
  ("l1", 0.8),
  ("difference", 0.9),
  ("difference", 0.98),
)
# One of each method but the difference, which needs more steps than that.
FAST = ORDER[:5]

_ON_WEIGHTS = {"learning_rate": 0.1, "weight_decay": 5e-4}
_ON_LATENTS = {"method": "rewa", "learning_rate": 0.5, "weight_decay": 0.0}


class Run(NamedTuple):
  """A run of train.py.

  Attributes:
    name: of its folder.
    method: a key of METHODS.
    strength: see ORDER.
    config: its settings.
  """

  name: str
  method: str
  strength: float
  config: Config


def plan(
  base: Config,
  steps_per_epoch: int,
  seeds: int,
  order: Sequence[tuple[str, float]] = ORDER,
) -> list[Run]:
  """Returns the runs, those of the first seed first.

  Args:
    base: the settings that all have in common.
    steps_per_epoch: updates in one pass over the train images.
    seeds: how often each is run.
    order: pairs of method and strength.
  """
  return [
    Run(
      f"{method}-{strength:g}-seed{seed}",
      method,
      strength,
      dataclasses.replace(
        base, seed=seed, **_settings(base, steps_per_epoch, method, strength)
      ),
    )
    for seed in range(seeds)
    for method, strength in order
  ]


def _settings(base, steps_per_epoch, method, strength) -> dict[str, Any]:
  on_weights = method in ("dense", "l1", "gmp")
  common = _ON_WEIGHTS if on_weights else _ON_LATENTS
  if method == "dense":
    return {"method": "dense", **common}
  if method == "gmp":
    return {"method": "gmp", "sparsity": strength, **common}
  if method == "rank":
    return {"sparsity": strength, **common}
  if method == "difference":
    return {"latents": "difference", "sparsity": strength, **common}
  rate = make_schedule(dataclasses.replace(base, **common), steps_per_epoch)
  steps = base.epochs * steps_per_epoch

  def decay_for(budget, k):
    return float(f"{rewa_jax.weight_decay_for(budget, k, rate, steps):.3g}")

  if method == "l1":
    penalty = decay_for(strength, 1)
    return {**common, "method": "l1", "l1": penalty, "weight_decay": 0.0}
  return {**common, "weight_decay": decay_for(strength, base.k)}
