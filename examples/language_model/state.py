"""What a run trains: a model, an optimizer by its method, and their state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import rewa_jax
from rewa_jax import baselines

from .config import Config, shape_of
from .model import GROUPS, Transformer, kernels

# When gradual pruning begins and ends, the shares of decay by rank.
BEGIN, END = 0.1, 0.7


class State(flax.struct.PyTreeNode):
  """All that changes while training.

  Attributes:
    step: updates so far.
    params: of the model that is trained: weights, or latents.
    opt_state: of the optimizer.
  """

  step: jax.Array
  params: Any
  opt_state: Any


class Setup(NamedTuple):
  """A model, and how a method trains it.

  Attributes:
    bare: the graph of the model of weights.
    graph: of the model that is trained.
    optimizer: of its params.
    method: what params are latents of, None where they are weights.
  """

  bare: Any
  graph: Any
  optimizer: optax.GradientTransformation
  method: rewa_jax.Method | None

  def apply(self, params: Any, tokens: jax.Array) -> jax.Array:
    return nnx.merge(self.graph, params)(tokens)

  def to_params(self, weights: Any) -> Any:
    if self.method is None:
      return weights
    model = nnx.merge(self.bare, weights)
    return nnx.state(rewa_jax.nnx.reparameterize(model, self.method))

  def to_weights(self, params: Any) -> Any:
    if self.method is None:
      return params
    return nnx.state(nnx.merge(self.graph, params).weights())


def make_setup(config: Config, vocabulary: int) -> Setup:
  """Returns the model and the method of a run, without any arrays."""

  def make():
    shape = shape_of(config, vocabulary)
    return Transformer(shape, jnp.dtype(config.dtype), nnx.Rngs(0))

  bare = nnx.graphdef(nnx.eval_shape(make))
  clip = (
    optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
  )
  method = make_latents(config)
  optimizer = optax.chain(clip, make_optimizer(config, method))
  if config.method != "rewa" or config.way == "drop-in":
    return Setup(bare, bare, optimizer, None)
  graph = nnx.graphdef(
    nnx.eval_shape(lambda: rewa_jax.nnx.reparameterize(make(), method))
  )
  return Setup(bare, graph, optimizer, method)


def make_latents(config: Config) -> rewa_jax.Method:
  """Returns what weights are made of where the method is rewa."""
  if config.latents == "difference":
    return baselines.HadamardDifference(2, mask=kernels)
  return rewa_jax.Rewa(config.k, config.m, config.eps, mask=kernels)


def make_schedule(config: Config) -> optax.Schedule:
  """Returns the learning rate by step: warm-up, then a cosine down to zero."""
  warmup = max(round(config.warmup * config.steps), 1)
  peak = config.learning_rate
  return optax.warmup_cosine_decay_schedule(
    peak / warmup, peak, warmup, max(config.steps, warmup + 1)
  )


def make_optimizer(
  config: Config, latents: rewa_jax.Method
) -> optax.GradientTransformation:
  """Returns the optimizer of a method, without the clipping."""
  schedule = make_schedule(config)
  decay, steps = config.weight_decay, config.steps
  groups = GROUPS[config.groups]
  if config.method == "rewa":
    if config.way == "nnx" and groups is None:
      asked = (
        {"sparsity": config.sparsity, "steps": steps} if config.sparsity else {}
      )
      return rewa_jax.adamw(schedule, latents, weight_decay=decay, **asked)
    decaying = (
      rewa_jax.decay_by_rank(
        latents, config.sparsity, schedule, steps, low=decay, groups=groups
      )
      if config.sparsity
      else optax.add_decayed_weights(decay, mask=latents.decaying)
    )
    inner = optax.chain(
      optax.scale_by_adam(),
      decaying,
      optax.scale_by_learning_rate(schedule),
    )
    if config.way == "nnx":
      return optax.chain(rewa_jax.scale_by_method(latents), inner)
    return rewa_jax.reparameterize(inner, latents)
  adamw = optax.adamw(schedule, weight_decay=decay, mask=kernels)
  if config.method == "l1":
    penalty = baselines.L1(config.l1)
    step = baselines.proximal_step(penalty, schedule, mask=kernels)
    return optax.chain(adamw, step)
  if config.method == "gmp":
    pruning = baselines.gradual_pruning(
      config.sparsity,
      begin=int(BEGIN * steps),
      end=int(END * steps),
      every=max(min(int((END - BEGIN) * steps) // 20, 50), 1),
      groups=groups,
      mask=kernels,
    )
    return optax.chain(adamw, pruning)
  return adamw


def init_state(
  config: Config,
  setup: Setup,
  vocabulary: int,
  key: jax.Array,
  start: Any = None,
) -> State:
  """Returns the state to begin with.

  Args:
    config: the run's settings.
    setup: its model and method.
    vocabulary: how many tokens there are.
    key: a PRNG key, of the initial weights.
    start: weights to start from instead.
  """
  if start is None:
    shape = shape_of(config, vocabulary)
    model = Transformer(shape, jnp.dtype(config.dtype), nnx.Rngs(key))
    start = nnx.state(model)
  params = setup.to_params(start)
  return State(jnp.zeros((), jnp.int32), params, setup.optimizer.init(params))


def losses_of(
  setup: Setup, params: Any, batch: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the nats of every target of windows, and the targets."""
  targets = batch[:, 1:]
  logits = setup.apply(params, batch[:, :-1])
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return losses, targets


def differentiate(config: Config, setup: Setup) -> Callable[..., Any]:
  """Returns the function (key, state, batch, arrays) that a step begins with.

  Returns:
    A function to gradients of params and metrics, means over the batch.
  """

  def of_part(params, part):
    return losses_of(setup, params, part)[0].mean()

  def differentiate(key, state, batch, arrays):
    del key, arrays
    count = config.accumulate
    slope = jax.value_and_grad(of_part)
    if count == 1:
      loss, grads = slope(state.params, batch)
      return grads, {"loss": loss}
    # Every part has sequences of all devices.
    parts = batch.reshape(-1, count, batch.shape[-1]).swapaxes(0, 1)

    def add(sums, part):
      return jax.tree.map(jnp.add, sums, slope(state.params, part)), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), state.params))
    sums, _ = jax.lax.scan(add, zeros, parts)
    loss, grads = jax.tree.map(lambda x: x / count, sums)
    return grads, {"loss": loss}

  return differentiate


def update(setup: Setup) -> Callable[..., State]:
  """Returns the function (state, gradients) to the next state."""

  def update(state, grads):
    updates, opt_state = setup.optimizer.update(
      grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, opt_state)

  return update
