"""Every method of the comparison, and what its strength is tuned over."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

import rewa_jax
from rewa_jax import baselines

MOMENTUM = 0.9


class Run(NamedTuple):
  """What a method is given beside its strength.

  Attributes:
    schedule: the learning rate.
    steps: how many there will be.
    pilot: the weights of the dense network, trained with the same seed.
  """

  schedule: optax.Schedule
  steps: int
  pilot: Any


class Setting(NamedTuple):
  """A method with its strength.

  Attributes:
    optimizer: of what is trained.
    to_params: from a PRNG key and drawn weights to what is trained.
    to_weights: from what is trained, and the optimizer's state, to weights.
    project: what is done to params after each update, and before the first.
  """

  optimizer: optax.GradientTransformation
  to_params: Callable[[Any, Any], Any] = lambda key, weights: weights
  to_weights: Callable[[Any, Any], Any] = lambda params, state: params
  project: Callable[[Any, Any], Any] = lambda params, state: params


class Recipe(NamedTuple):
  """All that differs between the methods compared.

  Attributes:
    setting: makes a setting of a strength, traced, and a run.
    ladder: strengths by their rung, an integer: 0 and above, and below where
      those turn out to be too strong. None where no strength is tuned.
    rates: what the peak of the learning rate is tuned over.
    from_pilot: whether training starts at the pilot, not at drawn weights.
    method: whose latents the strength decays; None where it does not.
  """

  setting: Callable[[jax.Array, Run], Setting]
  ladder: Callable[[int], float] | None = None
  rates: Sequence[float] = (0.1, 0.2, 0.4)
  from_pilot: bool = False
  method: rewa_jax.Method | None = None


def times(first: float, factor: float = 2.0) -> Callable[[int], float]:
  """A ladder whose rungs are a factor apart."""
  return lambda rung: float(f"{first * factor**rung:.3g}")


def kept(first: float) -> Callable[[int], float]:
  """A ladder of sparsities: the share that is kept halves from rung to rung."""
  return lambda rung: 1 - min(first / 2**rung, 1.0)


def on_latents(
  method: rewa_jax.Method, run: Run, momentum=MOMENTUM, **decay
) -> Setting:
  """Trains latents, at first those of the drawn weights."""
  return Setting(
    rewa_jax.sgd(run.schedule, method, momentum=momentum, **decay),
    lambda key, weights: method.to_latents(weights),
    lambda latents, state: method.to_weights(latents),
  )


def reparameterized(method, ladder=None, *, decay=1.0, **others) -> Recipe:
  """A method; strengths are as published, times decay they are weight decay."""

  def setting(strength, run):
    return on_latents(method, run, weight_decay=decay * strength)

  return Recipe(setting, ladder, method=method, **others)


def asked_for(method):
  """A setting whose strength is the sparsity to end with."""
  return lambda sparsity, run: on_latents(
    method, run, sparsity=sparsity, steps=run.steps
  )


def factorized(depth, ladder, *, corrected, rates) -> Recipe:
  """Deep weight factorization as published: its start, and no momentum."""
  method = baselines.deep_weight_factorization(depth)

  def setting(strength, run):
    decay = 2 / depth * strength
    setting = on_latents(method, run, momentum=None, weight_decay=decay)
    return setting._replace(
      to_params=lambda key, weights: baselines.draw_factors(
        key, weights, method, corrected=corrected
      )
    )

  return Recipe(setting, ladder, rates, method=method)


def proximal(penalty, ladder, **others) -> Recipe:
  """A penalty with a proximal step; it is made of a strength and a pilot."""

  def setting(strength, run):
    return Setting(
      baselines.proximal_sgd(
        run.schedule, penalty(strength, run.pilot), momentum=MOMENTUM
      )
    )

  return Recipe(setting, ladder, **others)


def added(gradient, ladder, **others) -> Recipe:
  """A penalty whose gradient is added outside the momentum."""

  def setting(strength, run):
    return Setting(
      optax.chain(
        optax.trace(MOMENTUM),
        gradient(strength),
        optax.scale_by_learning_rate(run.schedule),
      )
    )

  return Recipe(setting, ladder, **others)


def decay_kernels(decay):
  return optax.add_decayed_weights(decay, rewa_jax.kernels)


def power_propagation(alpha, run) -> Setting:
  """PowerPropagation as published: without weight decay."""
  method = baselines.PowerPropagation(alpha)
  return on_latents(method, run, weight_decay=0.0)


def gradual_pruning(sparsity, run) -> Setting:
  return Setting(
    optax.chain(
      optax.sgd(run.schedule, MOMENTUM),
      baselines.gradual_pruning(
        sparsity,
        begin=run.steps // 10,
        end=run.steps * 3 // 4,
        every=max(run.steps // 40, 1),
      ),
    )
  )


def methods() -> dict[str, Recipe]:
  """Returns the recipes by name, those that most ask for first.

  Dense networks are what the others are measured by, tuned unpruned; one-shot
  pruning takes those that are best when they are pruned.
  """
  channels = "output"
  rewa, difference = rewa_jax.Rewa(9, 2), baselines.HadamardDifference(2)
  by_rank, high, higher = kept(0.08), (0.2, 0.4, 0.8), (0.4, 0.8, 1.6)
  dense = added(decay_kernels, times(1e-4))
  return {
    "dense": dense,
    "ReWA by rank": Recipe(asked_for(rewa), by_rank, high),
    "ReWA": reparameterized(rewa, times(2.5e-4, 1.6), rates=(0.15, 0.3, 0.6)),
    "GMP": Recipe(gradual_pruning, by_rank, high),
    "L1, proximal": proximal(lambda s, _: baselines.L1(s), times(4e-4, 1.7)),
    "one-shot": dense,
    "Hadamard difference": reparameterized(
      difference, times(5e-4, 1.7), decay=2.0, rates=(0.25, 0.5, 1.0)
    ),
    "Hadamard difference by rank": Recipe(
      asked_for(difference), by_rank, rates=(0.25, 0.5, 1.0)
    ),
    "spred": reparameterized(baselines.spred(), times(6e-4, 1.7), rates=higher),
    "adaptive lasso": proximal(
      lambda s, pilot: baselines.AdaptiveL1(s, pilot, delta=1e-3),
      times(6e-5),
      from_pilot=True,
    ),
    "lp, clipped gradient": added(
      lambda s: baselines.add_clipped_lp(s, p=0.5, clip=0.02),
      times(2e-4, 1.7),
    ),
    "DWF, D = 3, corrected start": factorized(
      3, times(5e-5), corrected=True, rates=(1.5, 3.0, 6.0)
    ),
    "MCP": proximal(lambda s, _: baselines.MCP(s), times(3e-3, 1.7)),
    "STR": reparameterized(baselines.SoftThreshold(-5.0), times(2e-3)),
    "untied power, K = 4": reparameterized(
      baselines.deep_weight_factorization(4), times(1.2e-4), rates=higher
    ),
    "SCAD": proximal(lambda s, _: baselines.SCAD(s), times(3e-3, 1.7)),
    "PowerPropagation": Recipe(
      power_propagation, lambda rung: 1 + 0.5 * 1.4**rung
    ),
    "L1, subgradient": added(baselines.add_l1_subgradient, times(4e-4, 1.7)),
    "DWF, D = 3": factorized(
      3, times(5e-5), corrected=False, rates=(0.8, 1.5, 3.0)
    ),
    "DWF, D = 4, corrected start": factorized(
      4, times(5e-5), corrected=True, rates=(1.5, 3.0, 6.0)
    ),
    "ReWA in groups": reparameterized(
      baselines.GroupedRewa(9, channels, 2), times(5e-3)
    ),
    "group lasso": proximal(
      lambda s, _: baselines.GroupL1(s, channels), times(2.5e-3)
    ),
    "grouped Hadamard": reparameterized(
      baselines.Gated(channels), times(2.5e-3), rates=(0.15, 0.3, 0.6)
    ),
    "D-Gating, D = 3": reparameterized(
      baselines.Gated(channels, 3),
      times(4e-3),
      decay=2 / 3,
      rates=(0.15, 0.3, 0.6),
    ),
  }


# Those that are compared where training takes long.
MAIN = tuple(methods())[:12]
