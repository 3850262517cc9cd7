"""What a run trains: a network, an optimizer, and the state of both."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

import rewa_jax
from rewa_jax import baselines

from .config import Config
from .models import MODELS, ResNet


class State(flax.struct.PyTreeNode):
  """All that changes while training.

  Attributes:
    step: updates so far.
    params: latents, or weights where the method trains weights.
    statistics: of batch norms.
    opt_state: of the optimizer.
    average: moving averages of params and statistics, or None.
  """

  step: jax.Array
  params: Any
  statistics: Any
  opt_state: Any
  average: tuple[Any, Any] | None

  @property
  def evaluated(self) -> tuple[Any, Any]:
    """Params and statistics that the run is judged by."""
    return self.average or (self.params, self.statistics)


class Setup(NamedTuple):
  """A network, and how a method trains it.

  Attributes:
    bare: the network of weights.
    apply: (params, statistics, images, train) to logits and statistics.
    optimizer: of params.
    method: what params are latents of, None where they are weights.
  """

  bare: nn.Module
  apply: Callable[..., tuple[jax.Array, Any]]
  optimizer: optax.GradientTransformation
  method: rewa_jax.Method | None

  def to_params(self, weights: Any) -> Any:
    return self.method.to_latents(weights) if self.method else weights

  def to_weights(self, params: Any) -> Any:
    return self.method.to_weights(params) if self.method else params


def make_setup(config: Config, bare: nn.Module, steps_per_epoch: int) -> Setup:
  """Returns the network and the method of a run.

  Args:
    config: the run's settings.
    bare: the network of weights.
    steps_per_epoch: updates in one pass over the train images.
  """
  schedule = make_schedule(config, steps_per_epoch)
  steps = config.epochs * steps_per_epoch
  module, enter, method = bare, _same, None
  if config.method in ("rewa", "rewa-adamw"):
    latents = make_latents(config)
    optimizer = _on_latents(config, latents, schedule, steps)
    method = None if config.way == "drop-in" else latents
    if config.way == "linen":
      module = rewa_jax.linen.Reparameterized(bare, latents)
    elif config.way == "trees":
      enter = latents.to_weights
  else:
    optimizer = _on_weights(config, schedule, steps)

  def apply(params, statistics, images, train):
    variables = {"params": enter(params), "batch_stats": statistics}
    if not train:
      return module.apply(variables, images), statistics
    logits, changed = module.apply(
      variables, images, train=True, mutable=["batch_stats"]
    )
    return logits, changed.get("batch_stats", {})

  optimizer = optax.chain(
    optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
    optimizer,
    rewa_jax.keep_zeros(method=method) if config.prune else optax.identity(),
  )
  return Setup(bare, apply, optimizer, method)


def make_latents(config: Config) -> rewa_jax.Method:
  """Returns what weights are made of where the method is rewa."""
  if config.latents == "difference":
    return baselines.HadamardDifference(2)
  return rewa_jax.Rewa(config.k, config.m, config.eps)


def make_network(config: Config, classes: int) -> nn.Module:
  """Returns the network of weights that a run trains."""
  make = MODELS[config.model]
  settings = {"classes": classes, "dtype": jnp.dtype(config.dtype)}
  if getattr(make, "func", make) is ResNet:
    settings["stem"] = config.stem
  return make(**settings)


def _same(tree):
  return tree


def _on_weights(config, schedule, steps):
  decay = optax.add_decayed_weights(config.weight_decay, mask=rewa_jax.kernels)
  if config.method == "l1":
    penalty = baselines.L1(config.l1)
    rule = baselines.proximal_sgd(schedule, penalty, momentum=config.momentum)
    return optax.chain(decay, rule)
  rule = optax.chain(decay, optax.sgd(schedule, config.momentum))
  if config.method == "dense":
    return rule
  pruning = baselines.gradual_pruning(
    config.sparsity,
    begin=steps // 10,
    end=max(3 * steps // 4, steps // 10 + 1),
    every=max(steps // 40, 1),
  )
  return optax.chain(rule, pruning)


def _on_latents(config, latents, schedule, steps):
  decay = config.weight_decay
  if config.way != "drop-in":
    strength = {"weight_decay": decay}
    if config.sparsity:
      asked = {"sparsity": config.sparsity, "steps": steps}
      strength = {"weight_decay": decay or None} | asked
    if config.method == "rewa-adamw":
      return rewa_jax.adamw(schedule, latents, **strength)
    return rewa_jax.sgd(schedule, latents, momentum=config.momentum, **strength)
  inner = optax.chain(
    optax.scale_by_adam()
    if config.method == "rewa-adamw"
    else optax.trace(config.momentum),
    optax.add_decayed_weights(decay, mask=latents.decaying),
    optax.scale_by_learning_rate(schedule),
  )
  return rewa_jax.reparameterize(inner, latents)


def init_state(
  config: Config,
  setup: Setup,
  key: jax.Array,
  images: jax.Array,
  start: Sequence[Any] | None = None,
) -> State:
  """Returns the state to begin with.

  Args:
    config: the run's settings.
    setup: its network and method.
    key: a PRNG key, of the initial weights.
    images: a batch, of which only the shape counts.
    start: weights and statistics to start from, instead of random ones.
  """
  if start is None:
    variables = setup.bare.init(key, images)
    start = variables["params"], variables.get("batch_stats", {})
  weights, statistics = start
  if config.prune:
    weights, _ = rewa_jax.prune(weights, threshold=config.prune)
  params = setup.to_params(weights)
  # Copies, so that all parts of the state can be donated.
  average = jax.tree.map(jnp.copy, (params, statistics))
  return State(
    jnp.zeros((), jnp.int32),
    params,
    statistics,
    setup.optimizer.init(params),
    average if config.ema else None,
  )


def make_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
  """Returns the learning rate by step: warm-up, then down to zero."""
  warmup = round(config.warmup_epochs * steps_per_epoch)
  rest = max(config.epochs * steps_per_epoch - warmup, 1)
  peak = config.learning_rate
  fall = (
    optax.cosine_decay_schedule(peak, rest)
    if config.schedule == "cosine"
    else optax.linear_schedule(peak, 0.0, rest)
  )
  if not warmup:
    return fall
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, fall], [warmup])


def differentiate(
  config: Config,
  setup: Setup,
  to_images: Callable[..., tuple[jax.Array, jax.Array]],
) -> Callable[..., tuple[Any, Any, dict[str, jax.Array]]]:
  """Returns the function (key, state, batch, arrays) that a step begins with.

  Args:
    config: the run's settings.
    setup: its network and method.
    to_images: (key, batch, arrays) to augmented images and labels.

  Returns:
    A function to gradients of params, new statistics, and metrics.
  """

  def differentiate(key, state, batch, arrays):
    images, labels = to_images(key, batch, arrays)

    def loss_of(params):
      logits, statistics = setup.apply(params, state.statistics, images, True)
      targets = optax.smooth_labels(
        jax.nn.one_hot(labels, logits.shape[-1]), config.label_smoothing
      )
      loss = optax.softmax_cross_entropy(logits, targets).mean()
      hits = (logits.argmax(-1) == labels).mean()
      return loss, (statistics, {"loss": loss, "accuracy": hits})

    grads, others = jax.grad(loss_of, has_aux=True)(state.params)
    return grads, *others

  return differentiate


def update(config: Config, setup: Setup) -> Callable[..., State]:
  """Returns the function (state, gradients, statistics) to the next state."""

  def update(state, grads, statistics):
    updates, opt_state = setup.optimizer.update(
      grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
      average = optax.incremental_update(
        (params, statistics), average, 1 - config.ema
      )
    return State(state.step + 1, params, statistics, opt_state, average)

  return update


def count(
  setup: Setup, to_images: Callable[..., tuple[jax.Array, jax.Array]]
) -> Callable[..., dict[str, jax.Array]]:
  """Returns the function (params and statistics, batch, arrays) to counts.

  Labels below 0 do not count.
  """

  def count(evaluated, batch, arrays):
    params, statistics = evaluated
    images, labels = to_images(None, batch, arrays)
    logits, _ = setup.apply(params, statistics, images, False)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(labels, 0)
    )
    counted = labels >= 0
    return {
      "loss": jnp.sum(losses * counted),
      "correct": jnp.sum((logits.argmax(-1) == labels) & counted),
      "count": jnp.sum(counted),
    }

  return count
