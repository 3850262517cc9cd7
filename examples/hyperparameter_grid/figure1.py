"""Draws the paper's Figure 1: how k and m of ReWA matter, one model a cell.

  linear  regression with one true coefficient of --dimension, noise 1, 2,000
          samples, batch 25: test loss (1 is the noise).
  lenet   LeNet-300-100 on MNIST's IDX files in --data, or on scikit-learn's
          digits: test accuracy, and compression after pruning at 1e-3.

Trains all cells with m <= k - 1 of k in 3, 5, ..., 13 and m in 0, 2, ..., 10.
Those of one k are one compiled vmap: a k that is known when compiling is
repeated multiplication, twice as fast as a traced one. Writes TASK.png and
TASK.json.

Xu et al., ReWA, 2026, arXiv 2605.25134, Figure 1.
"""

import pathlib
import sys
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import rewa_jax

from .. import idx, kit

Outputs = dict[str, jax.Array]

POWERS = (3, 5, 7, 9, 11, 13)
MS = (0, 2, 4, 6, 8, 10)
THRESHOLD = 1e-3
# The initial weights of all cells.
KEY = jax.random.fold_in(jax.random.key(0), 0)


def train_grid(train: Callable[..., Outputs]) -> dict[str, np.ndarray]:
  """Returns what a function of k and m gives, arrays (m, k), NaN for no cell.

  The function is compiled for every k, and m is traced.
  """
  tables = {}
  for column, k in enumerate(tqdm(POWERS, unit="k")):
    ms = [m for m in MS if m <= k - 1]
    outputs = jax.jit(jax.vmap(lambda m, k=k: train(k, m)))(jnp.float32(ms))
    for name, values in outputs.items():
      table = np.full((len(MS), len(POWERS)), np.nan)
      table = tables.setdefault(name, table)
      table[[MS.index(m) for m in ms], column] = values
  return tables


def print_budgets(rate, decay, steps):
  """Says how far decay alone goes for each k; m does not matter to it."""
  schedule = optax.cosine_decay_schedule(rate, steps)
  budgets = [rewa_jax.decay_budget(k, decay, schedule, steps) for k in POWERS]
  text = kit.describe_budgets(
    budgets, lambda factor: f"--weight-decay {factor * decay:.2g}"
  )
  print(text, flush=True)


def train_linear(
  rate, decay, dimension, samples=2000, batch_size=25, steps=4000
):
  """Returns a function of k and m that gives the test loss."""
  print_budgets(rate, decay, steps)
  keys = jax.random.split(jax.random.key(0), 5)
  truth = jnp.zeros(dimension).at[0].set(1.0)

  def draw(input_key, noise_key):
    inputs = jax.random.normal(input_key, (samples, dimension))
    return inputs, inputs @ truth + jax.random.normal(noise_key, (samples,))

  inputs, targets = draw(keys[0], keys[1])
  test_inputs, test_targets = draw(keys[2], keys[3])

  def train(k, m):
    rewa = rewa_jax.Rewa(k, m, mask=None)
    schedule = optax.cosine_decay_schedule(rate, steps)
    solver = rewa_jax.sgd(schedule, rewa, weight_decay=decay)
    weights = jax.random.normal(KEY, (dimension,)) / dimension

    def loss(latents, batch):
      weights = rewa.to_weights(latents)
      return jnp.mean((inputs[batch] @ weights - targets[batch]) ** 2) / 2

    def step(carry, count):
      latents, state = carry
      # The batches of all cells are the same, so that vmap gathers them once.
      batch_key = jax.random.fold_in(keys[4], count)
      batch = jax.random.randint(batch_key, (batch_size,), 0, samples)
      grads = jax.grad(loss)(latents, batch)
      updates, state = solver.update(grads, state, latents)
      return (optax.apply_updates(latents, updates), state), None

    latents = rewa.to_latents(weights)
    carry = latents, solver.init(latents)
    (latents, _), _ = jax.lax.scan(step, carry, jnp.arange(steps))
    errors = test_inputs @ rewa.to_weights(latents) - test_targets
    test_loss = jnp.mean(errors**2)
    finite = jnp.isfinite(test_loss)
    return {"test loss": jnp.where(finite, test_loss, jnp.nan)}

  return train


class LeNet(nn.Module):
  """LeNet-300-100."""

  @nn.compact
  def __call__(self, x):
    for width in (300, 100):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(10)(x)


def train_lenet(rate, decay, data, epochs, batch_size=128):
  """Returns a function of k and m that gives test accuracy and compression."""
  images, labels, test_images, test_labels = map(jnp.asarray, data)
  per_epoch = len(labels) // batch_size
  steps = epochs * per_epoch
  print_budgets(rate, decay, steps)

  def train(k, m):
    rewa = rewa_jax.Rewa(k, m)
    model = rewa_jax.linen.Reparameterized(LeNet(), rewa)
    schedule = optax.cosine_decay_schedule(rate, steps)
    solver = rewa_jax.sgd(schedule, rewa, weight_decay=decay, momentum=0.9)

    def loss(latents, batch):
      logits = model.apply(latents, images[batch])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, labels[batch]
      ).mean()

    def epoch(carry, count):
      order = jax.random.permutation(jax.random.key(count), len(labels))
      batches = order[: per_epoch * batch_size].reshape(per_epoch, batch_size)

      def step(carry, batch):
        latents, state = carry
        grads = jax.grad(loss)(latents, batch)
        updates, state = solver.update(grads, state, latents)
        return (optax.apply_updates(latents, updates), state), None

      return jax.lax.scan(step, carry, batches)[0], None

    latents = model.init(KEY, images[:1])
    carry = latents, solver.init(latents)
    (latents, _), _ = jax.lax.scan(epoch, carry, jnp.arange(epochs))
    weights, _ = rewa_jax.prune(model.to_weights(latents), threshold=THRESHOLD)
    hits = LeNet().apply(weights, test_images).argmax(-1) == test_labels
    compression = rewa_jax.sparsity(weights).compression
    finite = jnp.isfinite(optax.tree.norm(weights))
    return {
      "test accuracy": jnp.where(finite, hits.mean(), jnp.nan),
      "compression": jnp.where(finite, compression, jnp.nan),
    }

  return train


def load_mnist(folder: pathlib.Path):
  images, labels, test_images, test_labels = idx.load(folder)
  flat = [x.reshape(len(x), -1) for x in (images, test_images)]
  return flat[0], labels, flat[1], test_labels


def load_digits_split():
  images, labels = load_digits(return_X_y=True)
  train, test, train_labels, test_labels = train_test_split(
    np.float32(images / 16), labels, test_size=400, random_state=0
  )
  return train, train_labels, test, test_labels


def plot(tables: dict[str, np.ndarray], title: str) -> plt.Figure:
  fig, axes = plt.subplots(
    1,
    len(tables),
    figsize=(5.2 * len(tables), 4.4),
    layout="constrained",
    squeeze=False,
  )
  for ax, (name, table) in zip(axes[0], tables.items()):
    best = (np.nanmin if name == "test loss" else np.nanmax)(table)
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    image = ax.imshow(
      np.ma.masked_invalid(table), origin="lower", cmap="viridis", aspect="auto"
    )
    for (row, column), value in np.ndenumerate(table):
      if MS[row] > POWERS[column] - 1:
        continue
      lost = np.isnan(value)
      number = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
      ax.text(
        *(column, row, "diverged" if lost else number),
        ha="center",
        va="center",
        size=7 if lost else 9,
        weight="bold" if value == best else "normal",
        color="white" if value < middle else "black",
      )
    ax.set_xticks(range(len(POWERS)), POWERS)
    ax.set_yticks(range(len(MS)), MS)
    ax.set_xlabel("k")
    ax.set_ylabel("m")
    ax.set_title(name)
    fig.colorbar(image, ax=ax)
  fig.suptitle(title)
  return fig


def parse(argv):
  parser = kit.parser(__doc__, "results/hyperparameter_grid")
  add = parser.add_argument
  add("task", choices=("linear", "lenet"))
  text = "of linear (default: 1000)"
  add("--dimension", type=kit.at_least(1), default=1000, help=text)
  add("--data", type=pathlib.Path, help="folder of MNIST's IDX files")
  text = "of lenet (default: 20)"
  add("--epochs", type=kit.at_least(1), default=20, help=text)
  text = "default: 0.02 linear, 0.1 lenet"
  add("--learning-rate", type=kit.at_least(0.0), help=text)
  text = "default: 0.02 linear, 0.004 lenet"
  add("--weight-decay", type=kit.at_least(0.0), help=text)
  args = parser.parse_args(argv)
  linear = args.task == "linear"
  if args.learning_rate is None:
    args.learning_rate = 0.02 if linear else 0.1
  if args.weight_decay is None:
    args.weight_decay = 0.02 if linear else 0.004
  return args


def main(argv):
  args = parse(argv)
  rate, decay = args.learning_rate, args.weight_decay
  if args.task == "linear":
    task = f"linear, d = {args.dimension:,}"
    train = train_linear(rate, decay, args.dimension)
  else:
    task = f"LeNet-300-100 on {'MNIST' if args.data else 'digits'}"
    with kit.in_a_sentence():
      data = load_mnist(args.data) if args.data else load_digits_split()
    train = train_lenet(rate, decay, data, args.epochs)
  begin = time.perf_counter()
  tables = train_grid(train)
  seconds = time.perf_counter() - begin
  kit.write_figure(args.out / f"{args.task}.png", plot(tables, f"ReWA, {task}"))
  legal = [(k, m) for k in POWERS for m in MS if m <= k - 1]
  results = {
    "task": task,
    **kit.provenance("examples.hyperparameter_grid.figure1", argv),
    "settings": {"learning_rate": rate, "weight_decay": decay},
    "seconds": seconds,
    "cells": dict(zip("km", map(list, zip(*legal)))),
    "outputs": {
      name: [
        # JSON has no NaN, and a cell that diverged has no number.
        None if np.isnan(value) else float(value)
        for value in (table[MS.index(m), POWERS.index(k)] for k, m in legal)
      ]
      for name, table in tables.items()
    },
  }
  kit.write_json(args.out / f"{args.task}.json", results)
  for name, table in tables.items():
    print(name)
    print("    m \\ k" + "".join(f"{k:>10}" for k in POWERS))
    for m, row in zip(MS, table):
      print(f"{m:>9}" + "".join(f"{v:>10.4g}" for v in row))
  print(f"{len(legal)} cells in {seconds:.0f} s, {args.out}/{args.task}.*")


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
