"""Every method of the comparison, and the grid it is tuned on."""

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
    strengths: what the strength is tuned over.
    rates: what the peak of the learning rate is tuned over.
    from_pilot: whether training starts at the pilot, not at drawn weights.
    method: whose latents the strength decays; None where it does not.
  """

  setting: Callable[[jax.Array, Run], Setting]
  strengths: Sequence[float]
  rates: Sequence[float] = (0.2, 0.4)
  from_pilot: bool = False
  method: rewa_jax.Method | None = None


def spread(highest: float, factor: float = 2.0) -> tuple[float, ...]:
  """Returns four strengths up to the highest, evenly spread in logarithm."""
  return tuple(float(f"{highest / factor**i:.2g}") for i in (3, 2, 1, 0))


def on_latents(
  method: rewa_jax.Method, run: Run, weight_decay, momentum=MOMENTUM
) -> Setting:
  """Trains latents, at first those of the drawn weights."""
  return Setting(
    rewa_jax.sgd(
      run.schedule, method, weight_decay=weight_decay, momentum=momentum
    ),
    lambda key, weights: method.to_latents(weights),
    lambda latents, state: method.to_weights(latents),
  )


def reparameterized(method, strengths, *, decay=1.0, **others) -> Recipe:
  """A method; strengths are as published, times decay they are weight decay."""

  def setting(strength, run):
    return on_latents(method, run, decay * strength)

  return Recipe(setting, strengths, method=method, **others)


def asked_for(method):
  """A setting whose strength is the sparsity to end with."""

  def setting(sparsity, run):
    optimizer = rewa_jax.sgd(
      run.schedule,
      method,
      sparsity=sparsity,
      steps=run.steps,
      momentum=MOMENTUM,
    )
    return Setting(
      optimizer,
      lambda key, weights: method.to_latents(weights),
      lambda latents, state: method.to_weights(latents),
    )

  return setting


def factorized(depth, strengths, *, decay, corrected, rates) -> Recipe:
  """Deep weight factorization as published: its start, and no momentum."""
  method = baselines.deep_weight_factorization(depth)

  def setting(strength, run):
    setting = on_latents(method, run, decay * strength, momentum=None)
    return setting._replace(
      to_params=lambda key, weights: baselines.draw_factors(
        key, weights, method, corrected=corrected
      )
    )

  return Recipe(setting, strengths, rates, method=method)


def proximal(penalty, strengths, **others) -> Recipe:
  """A penalty with a proximal step; it is made of a strength and a pilot."""

  def setting(strength, run):
    return Setting(
      baselines.proximal_sgd(
        run.schedule, penalty(strength, run.pilot), momentum=MOMENTUM
      )
    )

  return Recipe(setting, strengths, **others)


def added(gradient, strengths, **others) -> Recipe:
  """A penalty whose gradient is added outside the momentum."""

  def setting(strength, run):
    return Setting(
      optax.chain(
        optax.trace(MOMENTUM),
        gradient(strength),
        optax.scale_by_learning_rate(run.schedule),
      )
    )

  return Recipe(setting, strengths, **others)


def decay_kernels(decay):
  return optax.add_decayed_weights(decay, rewa_jax.kernels)


def power_propagation(alpha, run) -> Setting:
  """PowerPropagation as published: without weight decay."""
  return on_latents(baselines.PowerPropagation(alpha), run, weight_decay=0.0)


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


def lenet300_methods() -> dict[str, Recipe]:
  channels = "output"
  return {
    "dense": added(decay_kernels, (0.0, 3e-4, 1e-3, 3e-3)),
    "ReWA": reparameterized(
      rewa_jax.Rewa(9, 2), spread(0.004), rates=(0.3, 0.6)
    ),
    "ReWA by rank": Recipe(
      asked_for(rewa_jax.Rewa(9, 2)), (0.98, 0.99, 0.995, 0.9975)
    ),
    "L1, proximal": proximal(lambda s, _: baselines.L1(s), spread(0.005, 1.7)),
    "spred": reparameterized(
      baselines.spred(), spread(0.005, 1.7), rates=(0.6, 1.5)
    ),
    "DWF, D = 3": factorized(
      3, spread(4e-4), decay=2 / 3, corrected=False, rates=(1.0, 3.0)
    ),
    "DWF, D = 3, corrected start": factorized(
      3, spread(6e-4), decay=2 / 3, corrected=True, rates=(2.0, 5.0)
    ),
    "DWF, D = 4, corrected start": factorized(
      4, spread(4e-4), decay=2 / 4, corrected=True, rates=(2.0, 5.0)
    ),
    "GMP": Recipe(gradual_pruning, (0.97, 0.98, 0.987, 0.992)),
    "lp, clipped gradient": added(
      lambda s: baselines.add_clipped_lp(s, p=0.5, clip=0.02),
      spread(0.002, 1.7),
    ),
    "ReWA in groups": reparameterized(
      baselines.GroupedRewa(9, channels, 2), spread(0.08)
    ),
    "group lasso": proximal(
      lambda s, _: baselines.GroupL1(s, channels), spread(0.04)
    ),
    "grouped Hadamard": reparameterized(
      baselines.Gated(channels), spread(0.04), rates=(0.2, 0.5)
    ),
    "D-Gating, D = 3": reparameterized(
      baselines.Gated(channels, 3),
      spread(0.06),
      decay=2 / 3,
      rates=(0.2, 0.5),
    ),
    "Hadamard difference": reparameterized(
      baselines.HadamardDifference(2),
      spread(0.005, 1.7),
      decay=2.0,
      rates=(0.5, 1.0),
    ),
    "untied power, K = 4": reparameterized(
      baselines.deep_weight_factorization(4), spread(0.002), rates=(0.6, 1.5)
    ),
    "PowerPropagation": Recipe(power_propagation, (1.5, 2.0, 3.0, 4.0)),
    "L1, subgradient": added(baselines.add_l1_subgradient, spread(0.005, 1.7)),
    "MCP": proximal(lambda s, _: baselines.MCP(s), spread(0.03, 1.7)),
    "SCAD": proximal(lambda s, _: baselines.SCAD(s), spread(0.03, 1.7)),
    "adaptive lasso": proximal(
      lambda s, pilot: baselines.AdaptiveL1(s, pilot, delta=1e-3),
      spread(1e-3),
      from_pilot=True,
    ),
    "STR": reparameterized(baselines.SoftThreshold(-5.0), spread(0.03)),
  }


def lenet5_methods() -> dict[str, Recipe]:
  return {
    "dense": added(decay_kernels, (0.0, 3e-4, 1e-3), rates=(0.1, 0.2)),
    "ReWA": reparameterized(
      rewa_jax.Rewa(9, 2), (1e-3, 2e-3, 4e-3), rates=(0.3, 0.6)
    ),
    "L1, proximal": proximal(lambda s, _: baselines.L1(s), (1e-3, 2e-3, 4e-3)),
    "spred": reparameterized(
      baselines.spred(), (1e-3, 2e-3, 4e-3), rates=(0.8, 1.5)
    ),
    "DWF, D = 3, corrected start": factorized(
      3, (2e-4, 4e-4, 8e-4), decay=2 / 3, corrected=True, rates=(3.0, 6.0)
    ),
    "GMP": Recipe(gradual_pruning, (0.985, 0.992, 0.996)),
  }


METHODS = {"lenet300": lenet300_methods, "lenet5": lenet5_methods}
