"""Draws the paper's Figure 1: how k and m of ReWA matter, one model a cell.

  linear  regression with one true coefficient of --dimension, noise 1, 2,000
          samples, batch 25: test loss (1 is the noise).
  lenet   LeNet-300-100 on MNIST's IDX files in --data, or on scikit-learn's
          digits: test accuracy, and compression after pruning at 1e-3.

All cells with k - 1 >= m of k in 3, 5, ..., 13 and m in 0, 2, ..., 10 train at
once, by `train_grid`. Writes TASK.png and TASK.json.

Xu et al., ReWA, 2026, arXiv 2605.25134, Figure 1.
"""

import argparse
import datetime
import json
import pathlib
import platform
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import rewa_jax

from .grid import product, train_grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .. import idx

POWERS = (3, 5, 7, 9, 11, 13)
MS = (0, 2, 4, 6, 8, 10)
THRESHOLD = 1e-3


def train_linear(dimension, samples=2000, batch_size=25, steps=4000, seed=0):
  """Returns a train function for `train_grid` that gives the test loss."""
  keys = jax.random.split(jax.random.key(seed), 5)
  truth = jnp.zeros(dimension).at[0].set(1.0)

  def draw(input_key, noise_key):
    inputs = jax.random.normal(input_key, (samples, dimension))
    return inputs, inputs @ truth + jax.random.normal(noise_key, (samples,))

  inputs, targets = draw(keys[0], keys[1])
  test_inputs, test_targets = draw(keys[2], keys[3])

  def train(key, hyper):
    rewa = rewa_jax.Rewa(hyper["k"], hyper["m"], mask=None)
    schedule = optax.cosine_decay_schedule(hyper["learning_rate"], steps)
    solver = rewa_jax.sgd(schedule, rewa, weight_decay=hyper["weight_decay"])
    weights = jax.random.normal(key, (dimension,)) / dimension

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
    weights = rewa.to_weights(latents)
    return {"test loss": jnp.mean((test_inputs @ weights - test_targets) ** 2)}

  return train


class LeNet(nn.Module):
  """LeNet-300-100."""

  @nn.compact
  def __call__(self, x):
    for width in (300, 100):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(10)(x)


def train_lenet(data, epochs, batch_size=128):
  """Returns a train function that gives test accuracy and compression."""
  images, labels, test_images, test_labels = map(jnp.asarray, data)
  per_epoch = len(labels) // batch_size
  steps = epochs * per_epoch

  def train(key, hyper):
    rewa = rewa_jax.Rewa(hyper["k"], hyper["m"])
    model = rewa_jax.linen.Reparameterized(LeNet(), rewa)
    schedule = optax.cosine_decay_schedule(hyper["learning_rate"], steps)
    solver = rewa_jax.sgd(
      schedule, rewa, weight_decay=hyper["weight_decay"], momentum=0.9
    )

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

    latents = model.init(key, images[:1])
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


def table(cells, values):
  """Returns values by k and m, NaN where there is no cell."""
  result = np.full((len(MS), len(POWERS)), np.nan)
  for k, m, value in zip(cells["k"], cells["m"], values):
    result[MS.index(m), POWERS.index(k)] = value
  return result


def plot(path, cells, outputs, diverged, title):
  fig, axes = plt.subplots(
    1,
    len(outputs),
    figsize=(5.2 * len(outputs), 4.4),
    layout="constrained",
    squeeze=False,
  )
  for ax, (name, values) in zip(axes[0], outputs.items()):
    shown = table(cells, values)
    best = np.nanmax if name != "test loss" else np.nanmin
    image = ax.imshow(
      np.ma.masked_invalid(shown), origin="lower", cmap="viridis", aspect="auto"
    )
    for k, m, value, lost in zip(cells["k"], cells["m"], values, diverged):
      at = POWERS.index(k), MS.index(m)
      number = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
      text = "diverged" if lost else number
      weight = "bold" if value == best(shown) else "normal"
      middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
      dark = not lost and value < middle
      ax.text(
        *at,
        text,
        ha="center",
        va="center",
        size=7 if lost else 9,
        weight=weight,
        color="white" if dark else "black",
      )
    ax.set_xticks(range(len(POWERS)), POWERS)
    ax.set_yticks(range(len(MS)), MS)
    ax.set_xlabel("k")
    ax.set_ylabel("m")
    ax.set_title(name)
    fig.colorbar(image, ax=ax)
  fig.suptitle(title)
  fig.savefig(path, dpi=150)
  plt.close(fig)


def parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("task", choices=("linear", "lenet"))
  add("--dimension", type=int, default=1000, help="linear (default: 1000)")
  add("--data", type=pathlib.Path, help="folder of MNIST's IDX files")
  add("--epochs", type=int, default=20, help="lenet (default: 20)")
  add("--learning-rate", type=float, help="default: 0.02 linear, 0.1 lenet")
  add("--weight-decay", type=float, help="default: 0.02 linear, 0.004 lenet")
  add("--checkpoints", type=pathlib.Path, help="folder to resume from")
  add("--out", type=pathlib.Path, default="results/hyperparameter_grid")
  return parser.parse_args(argv)


def main(argv):
  args = parse(argv)
  args.out.mkdir(parents=True, exist_ok=True)
  linear = args.task == "linear"
  rate = args.learning_rate or (0.02 if linear else 0.1)
  decay = args.weight_decay or (0.02 if linear else 0.004)
  cells = product(
    k=POWERS, m=MS, learning_rate=[rate], weight_decay=[decay], seed=[0]
  )
  if linear:
    task = f"linear, d = {args.dimension:,}"
    train = train_linear(args.dimension)
  else:
    task = f"LeNet-300-100 on {'MNIST' if args.data else 'digits'}"
    data = load_mnist(args.data) if args.data else load_digits_split()
    train = train_lenet(data, args.epochs)
  begin = time.perf_counter()
  result = train_grid(
    train, cells, key=jax.random.key(0), checkpoints=args.checkpoints
  )
  seconds = time.perf_counter() - begin
  # Only process 0 writes; all have the same results.
  if jax.process_index() != 0:
    return
  plot(args.out / f"{args.task}.png", cells, *result, f"ReWA, {task}")
  outputs = {name: values.tolist() for name, values in result.outputs.items()}
  size = (
    f"--dimension {args.dimension}" if linear else f"--epochs {args.epochs}"
  )
  data = " --data MNIST" if args.data else ""
  results = {
    "task": task,
    "command": (
      f"python -m examples.hyperparameter_grid.figure1 {args.task} {size}{data}"
      f" --learning-rate {rate} --weight-decay {decay}"
    ),
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
    "versions": {"jax": jax.__version__, "optax": optax.__version__},
    "seconds": seconds,
    "cells": cells,
    # JSON has no NaN.
    "outputs": {
      name: [value if np.isfinite(value) else None for value in values]
      for name, values in outputs.items()
    },
    "diverged": result.diverged.tolist(),
  }
  text = json.dumps(results, indent=2) + "\n"
  (args.out / f"{args.task}.json").write_text(text)
  for name, values in outputs.items():
    print(name)
    print("    m \\ k" + "".join(f"{k:>10}" for k in POWERS))
    for m, row in zip(MS, table(cells, values)):
      print(f"{m:>9}" + "".join(f"{v:>10.4g}" for v in row))
  print(f"{len(cells['k'])} cells in {seconds:.0f} s, {args.out}/{args.task}.*")


if __name__ == "__main__":
  main(sys.argv[1:])
