"""Trains all settings of a method in one compiled vmap."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rewa_jax

from .. import kit
from .methods import Recipe, Run, Setting

BATCH_SIZE = 128
CLIP = 1.0


class Data(NamedTuple):
  """Images and labels to train on, to choose with and to report."""

  train: tuple[jax.Array, jax.Array]
  validation: tuple[jax.Array, jax.Array]
  test: tuple[jax.Array, jax.Array]


def setting_of(
  recipe: Recipe,
  strength: jax.typing.ArrayLike,
  rate: jax.typing.ArrayLike,
  steps: int,
  pilot: Any,
) -> Setting:
  """Returns a method with its strength, schedule and clipping."""
  shape = optax.warmup_cosine_decay_schedule(
    0.0, 1.0, max(steps // 10, 1), max(steps, 2)
  )
  run = Run(lambda count: rate * shape(count), steps, pilot)
  setting = recipe.setting(strength, run)
  # The state of the method's own optimizer is the last of the chain's.
  # For all alike: it seldom acts but where training would diverge.
  clip = optax.clip_by_global_norm(CLIP)
  return setting._replace(optimizer=optax.chain(clip, setting.optimizer))


def describe_budgets(
  network: nn.Module,
  recipe: Recipe,
  cells: Sequence[tuple[float, float]],
  data: Data,
  epochs: int,
) -> str:
  """Says how far decay alone goes in the cells, pairs of strength and rate."""
  steps = epochs * (len(data.train[1]) // BATCH_SIZE)
  strongest = max(strength for strength, _ in cells)
  weights = jax.eval_shape(network.init, jax.random.key(0), data.train[0][:1])
  budgets = []
  for strength, rate in cells:
    setting = setting_of(recipe, strength, rate, steps, pilot=None)
    params = jax.eval_shape(setting.to_params, jax.random.key(0), weights)
    budgets.append(
      rewa_jax.measure_decay_budget(
        setting.optimizer, params, steps, method=recipe.method
      )
    )
  return kit.describe_budgets(
    budgets,
    lambda factor: (
      f"a strength of {factor * strongest:.2g} or"
      f" {math.ceil(factor * epochs)} epochs"
    ),
  )


def train(
  network: nn.Module,
  recipe: Recipe,
  cells: Sequence[tuple[float, float]],
  data: Data,
  *,
  seed: int,
  epochs: int,
  pilot: Any,
  advance,
  batch_size: int = BATCH_SIZE,
) -> Any:
  """Trains one model for each cell, a strength and a rate, on equal batches.

  Args:
    network: the network.
    recipe: of the method.
    cells: pairs of strength and peak of the learning rate.
    data: what to train on.
    seed: of initial weights and batches, the same for all cells.
    epochs: passes over the training data.
    pilot: the weights of the dense network of this seed, or None.
    advance: called after each epoch.
    batch_size: images a step.

  Returns:
    Their weights, a tree with a leading axis of models.
  """
  images, labels = data.train
  per_epoch = len(labels) // batch_size
  steps = epochs * per_epoch
  init_key, params_key = jax.random.split(jax.random.key(seed))

  def start(strength, rate):
    setting = setting_of(recipe, strength, rate, steps, pilot)
    weights = pilot
    if not recipe.from_pilot:
      weights = network.init(init_key, images[:1])
    params = setting.to_params(params_key, weights)
    state = setting.optimizer.init(params)
    return setting.project(params, state[-1]), state

  def train_epoch(carry, strength, rate, images, labels, batches):
    setting = setting_of(recipe, strength, rate, steps, pilot)

    def loss(params, state, batch):
      weights = setting.to_weights(params, state[-1])
      logits = network.apply(weights, images[batch])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, labels[batch]
      ).mean()

    def step(carry, batch):
      params, state = carry
      grads = jax.grad(loss)(params, state, batch)
      updates, state = setting.optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      return (setting.project(params, state[-1]), state), None

    return jax.lax.scan(step, carry, batches)[0]

  # Models are spread over all devices; the last is repeated to fill them.
  count = len(cells)
  mesh = jax.make_mesh(
    (jax.device_count(),), ("models",), axis_types=(AxisType.Auto,)
  )
  cells = [*cells, *[cells[-1]] * (-count % mesh.size)]
  spread = NamedSharding(mesh, PartitionSpec("models"))
  whole = NamedSharding(mesh, PartitionSpec())
  strengths, rates = (
    jax.device_put(jnp.float32(values), spread) for values in zip(*cells)
  )
  images, labels = jax.device_put((images, labels), whole)
  # All models count the same steps, so that what hangs on the count (GMP's
  # sorting) is decided once for all and not computed at every step.
  axes = jax.tree.map(
    lambda leaf: None if _is_count(leaf) else 0,
    jax.eval_shape(start, strengths[0], rates[0]),
  )
  shardings = jax.tree.map(
    lambda axis: whole if axis is None else spread,
    axes,
    is_leaf=lambda axis: axis is None,
  )
  carry = jax.jit(jax.vmap(start, out_axes=axes), out_shardings=shardings)(
    strengths, rates
  )
  advance_epoch = jax.jit(
    jax.vmap(
      train_epoch,
      in_axes=(axes, 0, 0, None, None, None),
      out_axes=axes,
    ),
    donate_argnums=0,
    out_shardings=shardings,
  )
  random = np.random.default_rng(seed)
  for _ in range(epochs):
    order = random.permutation(len(labels))[: per_epoch * batch_size]
    batches = order.reshape(per_epoch, batch_size)
    carry = advance_epoch(carry, strengths, rates, images, labels, batches)
    jax.block_until_ready(carry)
    advance()

  def weights_of(strength, rate, carry):
    params, state = carry
    setting = setting_of(recipe, strength, rate, steps, pilot)
    return setting.to_weights(params, state[-1])

  weights_of = jax.jit(jax.vmap(weights_of, in_axes=(0, 0, axes)))
  weights = weights_of(strengths, rates, carry)
  return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], weights)


def _is_count(leaf):
  return leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)


def logits_of(network: nn.Module, weights: Any, images: jax.Array) -> jax.Array:
  """Applies a network in parts: windows of convolutions fit into memory."""
  logits = [
    network.apply(weights, images[i : i + 1000])
    for i in range(0, len(images), 1000)
  ]
  return jnp.concatenate(logits)


@functools.partial(jax.jit, static_argnums=0)
def measure(
  network: nn.Module,
  weights: Any,
  compressions: jax.Array,
  images: jax.Array,
  labels: jax.Array,
) -> dict[str, jax.Array]:
  """Prunes every model to every compression, and measures what is left.

  Returns:
    Arrays of shape (compressions, models): accuracy, and the compression of the
    network without its empty rows and columns.
  """

  def one(weights, compression):
    pruned, _ = rewa_jax.prune(weights, sparsity=1 - 1 / compression)
    hits = logits_of(network, pruned, images).argmax(-1) == labels
    size = rewa_jax.sparsity(pruned).total_size
    structured = size / jnp.maximum(structured_size(pruned), 1)
    return {"accuracy": hits.mean(), "structured": structured}

  return jax.lax.map(
    lambda compression: jax.vmap(one, (0, None))(weights, compression),
    compressions,
  )


def structured_size(weights: Any) -> jax.Array:
  """Counts the weights left when only whole channels may be dropped.

  A row or column of a kernel (an input or output channel) counts in full as
  long as one of its weights is nonzero.
  """

  def size(kernel):
    alive = kernel != 0
    alive = alive.reshape(-1, *alive.shape[-2:])
    inputs, outputs = alive.any((0, 2)).sum(), alive.any((0, 1)).sum()
    return len(alive) * inputs * outputs

  selected = rewa_jax.kernels(weights)
  sizes = jax.tree.map(
    lambda chosen, leaf: size(leaf) if chosen else 0, selected, weights
  )
  return sum(jax.tree.leaves(sizes))
