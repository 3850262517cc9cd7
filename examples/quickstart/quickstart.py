"""Trains one network dense, with L1 and with ReWA, and compares them.

An MLP learns scikit-learn's digits from 1,100 images; 297 choose a penalty and
400 test the choice, another split for each seed. Every method gets the initial
weights, batches, steps and learning rate of the dense network, and L1, by
proximal steps, and ReWA get the same grid of penalties; the grid of a method,
all seeds, trains as one `jax.vmap`. `recipes` shows what ReWA changes.

Run in the repository, about a minute on two cores and without a download:

  pip install -e '.[examples]'
  python examples/quickstart/quickstart.py

It prints a table and writes accuracy_against_compression.png and results.json.
"""

import argparse
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import rewa_jax

matplotlib.use("Agg")
import matplotlib.pyplot as plt

REWA = rewa_jax.Rewa(k=9, m=2)
PENALTIES = (0.002, 0.004, 0.007, 0.01, 0.014, 0.02, 0.03, 0.04)
LEARNING_RATE = 0.1
MOMENTUM = 0.9
BATCH_SIZE = 128
# Decay leaves ReWA's dead weights tiny, the last small steps leave L1 some too:
# both are pruned alike, and every accuracy is that of the pruned network.
THRESHOLD = 1e-3
# About two standard errors of a difference on 3 x 297 images.
TOLERANCE = 0.015
RULE = (
  "Of each method's grid the sparsest point is chosen whose mean validation"
  f" accuracy is at most {100 * TOLERANCE:g} points below the dense network's;"
  " if there is none, the most accurate on validation. Test images have no say."
)

Data = dict[str, tuple[jax.Array, jax.Array]]
Rows = list[dict[str, Any]]


class MLP(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for width in (256, 256):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(10)(x)


class Recipe(NamedTuple):
  """All that differs between dense, L1 and ReWA."""

  optimizer: Callable[[optax.Schedule, jax.Array], optax.GradientTransformation]
  penalties: Sequence[float]
  # What the trained params are latents of; None: they are the weights.
  method: rewa_jax.Method | None = None

  @property
  def model(self) -> nn.Module:
    if self.method is None:
      return MLP()
    return rewa_jax.linen.Reparameterized(MLP(), self.method)


def recipes() -> dict[str, Recipe]:
  return {
    "dense": Recipe(
      lambda schedule, _: optax.sgd(schedule, MOMENTUM),
      penalties=(0.0,),
    ),
    "L1": Recipe(
      lambda schedule, penalty: optax.chain(
        optax.sgd(schedule, MOMENTUM), soft_threshold(schedule, penalty)
      ),
      penalties=PENALTIES,
    ),
    "ReWA": Recipe(
      lambda schedule, penalty: rewa_jax.sgd(
        schedule, REWA, weight_decay=penalty, momentum=MOMENTUM
      ),
      penalties=PENALTIES,
      method=REWA,
    ),
  }


def soft_threshold(
  schedule: optax.Schedule, penalty: jax.typing.ArrayLike
) -> optax.GradientTransformation:
  """The proximal step of an L1 penalty on kernels, after the gradient step."""

  def update_fn(updates, count, params):
    def shrink(is_kernel, update, weights):
      new = weights + update
      size = jnp.maximum(jnp.abs(new) - schedule(count) * penalty, 0)
      return jnp.sign(new) * size - weights if is_kernel else update

    mask = rewa_jax.kernels(params)
    return jax.tree.map(shrink, mask, updates, params), count + 1

  return optax.GradientTransformation(lambda _: jnp.zeros((), int), update_fn)


def schedule_of(steps: int) -> optax.Schedule:
  return optax.cosine_decay_schedule(LEARNING_RATE, steps)


def load_data(seeds: int) -> Data:
  """Returns the images and labels of each part, stacked over splits."""
  images, labels = load_digits(return_X_y=True)
  images = np.float32(images / 16)

  def split(seed):
    rest, test = train_test_split(
      np.arange(len(labels)), test_size=400, random_state=seed, stratify=labels
    )
    train, validation = train_test_split(
      rest, test_size=297, random_state=seed, stratify=labels[rest]
    )
    return train, validation, test

  parts = map(np.stack, zip(*map(split, range(seeds))))
  return {
    name: (jnp.asarray(images[part]), jnp.asarray(labels[part]))
    for name, part in zip(("train", "validation", "test"), parts)
  }


def train_grid(
  name: str, recipe: Recipe, data: Data, steps: int, seeds: int
) -> Any:
  """Returns params with a leading axis: penalty by penalty, all its seeds."""
  model, schedule = recipe.model, schedule_of(steps)
  images, labels = data["train"]

  def start(penalty, seed):
    init_key, _ = jax.random.split(jax.random.key(seed))
    params = model.init(init_key, images[0])
    return params, recipe.optimizer(schedule, penalty).init(params)

  def loss(params, images, labels):
    logits = model.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  def train(carry, counts, penalty, seed):
    solver = recipe.optimizer(schedule, penalty)
    _, batch_key = jax.random.split(jax.random.key(seed))

    def step(carry, count):
      params, state = carry
      key = jax.random.fold_in(batch_key, count)
      batch = jax.random.randint(key, (BATCH_SIZE,), 0, labels.shape[1])
      grads = jax.grad(loss)(params, images[seed, batch], labels[seed, batch])
      updates, state = solver.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, carry, counts)[0]

  penalties = jnp.repeat(jnp.asarray(recipe.penalties), seeds)
  all_seeds = jnp.tile(jnp.arange(seeds), len(recipe.penalties))
  carry = jax.jit(jax.vmap(start))(penalties, all_seeds)
  train = jax.jit(jax.vmap(train, (0, None, 0, 0)), donate_argnums=0)
  # Equal chunks: the bar moves between them, and one program serves them all.
  chunks = max(n for n in range(1, 31) if steps % n == 0)
  for counts in tqdm(np.arange(steps).reshape(chunks, -1), f"{name:>5}"):
    carry = jax.block_until_ready(train(carry, counts, penalties, all_seeds))
  return carry[0]


def evaluate(recipe: Recipe, params: Any, data: Data) -> Rows:
  """Prunes the networks and returns a row for each penalty."""

  def measure(params, seed):
    unpruned = rewa_jax.sparsity(params, method=recipe.method)
    # Of latents, too, what comes back is the weights of a plain MLP.
    pruned, _ = rewa_jax.prune(
      params, threshold=THRESHOLD, method=recipe.method
    )
    measures = {
      "nonzero_before_pruning": unpruned.total_nonzero,
      "nonzero": rewa_jax.sparsity(pruned).total_nonzero,
    }
    for part in ("validation", "test"):
      images, labels = data[part]
      hits = MLP().apply(pruned, images[seed]).argmax(-1) == labels[seed]
      measures[f"{part}_accuracy"] = hits.mean()
    return measures

  runs = len(jax.tree.leaves(params)[0])
  seeds = jnp.arange(runs) % (runs // len(recipe.penalties))
  measures = jax.jit(jax.vmap(measure))(params, seeds)
  first = jax.tree.map(lambda p: p[0], params)
  size = rewa_jax.sparsity(first, method=recipe.method).total_size
  rows = []
  for i, penalty in enumerate(recipe.penalties):
    row = {
      name: np.reshape(values, (len(recipe.penalties), -1))[i].tolist()
      for name, values in measures.items()
    }
    means = {f"mean_{name}": float(np.mean(row[name])) for name in row}
    # An empty network counts as one weight: JSON has no infinity.
    ratio = size / max(means["mean_nonzero"], 1)
    rows.append({"penalty": penalty, "compression": ratio, **means, **row})
  return rows


def choose(rows: Rows, least_accuracy: float) -> dict[str, Any]:
  """Applies RULE."""
  good = [r for r in rows if r["mean_validation_accuracy"] >= least_accuracy]
  if good:
    return min(good, key=lambda row: row["mean_nonzero"])
  return max(rows, key=lambda row: row["mean_validation_accuracy"])


def plot(grids: dict[str, Rows], chosen: dict[str, Any]) -> bytes:
  """Returns a PNG of accuracy against compression."""
  fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
  for name, rows in grids.items():
    x = [row["compression"] for row in rows]
    y = 100 * np.array([row["test_accuracy"] for row in rows])
    mean = y.mean(axis=1)
    spread = [mean - y.min(axis=1), y.max(axis=1) - mean]
    ax.errorbar(x, mean, spread, label=name, marker="o", capsize=3)
  x = [row["compression"] for row in chosen.values()]
  y = [100 * row["mean_test_accuracy"] for row in chosen.values()]
  ring = {"s": 150, "facecolors": "none", "edgecolors": "black"}
  ax.scatter(x, y, label="chosen on validation", zorder=3, **ring)
  ax.set_xscale("log")
  ax.xaxis.set_major_formatter("{x:g}x")
  ax.set_xlabel("compression: all weights / nonzero weights")
  ax.set_ylabel("test accuracy in %, mean and range of seeds")
  ax.set_title("MLP 64-256-256-10 on digits")
  ax.grid(alpha=0.3)
  ax.legend()
  png = io.BytesIO()
  fig.savefig(png, dpi=150)
  return png.getvalue()


def summary(chosen: dict[str, Any], seconds: dict[str, float]) -> str:
  lines = ["method  penalty  test accuracy  nonzero  compression  seconds"]
  won = {}
  for name, row in chosen.items():
    accuracy, ratio = row["mean_test_accuracy"], row["compression"]
    lines.append(
      f"{name:<6}  {row['penalty']:>7g}  {accuracy:>13.1%}"
      f"  {row['mean_nonzero']:>7,.0f}  {ratio:>10.1f}x  {seconds[name]:>7.1f}"
    )
    won[name] = f"{name}: {ratio:.0f}x fewer weights at {accuracy:.1%}"
  return "\n".join([*lines, "", f"{won['ReWA']}, {won['L1']}."])


def provenance() -> dict[str, Any]:
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  names = [line.split(": ")[1] for line in lines if "model name" in line]
  packages = ("jax", "flax", "optax", "numpy", "scikit-learn")
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": {
      "python": platform.python_version(),
      "rewa_jax": rewa_jax.__version__,
      **{name: importlib.metadata.version(name) for name in packages},
    },
    "machine": {
      "machine": platform.machine(),
      "processor": names[0] if names else platform.processor(),
      "cpu_count": os.cpu_count(),
      "jax_device": jax.devices()[0].device_kind,
    },
  }


def parse(argv: Sequence[str]) -> argparse.Namespace:
  def positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
      return int(text)
    raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")

  parser = argparse.ArgumentParser(
    description=__doc__,
    epilog=textwrap.fill(RULE, 80),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for flag, kind, default, text in (
    ("--out", pathlib.Path, "results/quickstart", "folder for the two files"),
    ("--steps", positive, 3000, "training steps of every run"),
    ("--seeds", positive, 3, "runs of every penalty"),
  ):
    text += " (default: %(default)s)"
    parser.add_argument(flag, type=kind, default=default, help=text)
  args = parser.parse_args(argv)
  try:
    args.out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    parser.error(f"argument --out: {error}")
  return args


def main(argv: Sequence[str]) -> None:
  args = parse(argv)
  data = load_data(args.seeds)
  grids, seconds = {}, {}
  for name, recipe in recipes().items():
    begin = time.perf_counter()
    params = train_grid(name, recipe, data, args.steps, args.seeds)
    grids[name] = evaluate(recipe, params, data)
    seconds[name] = time.perf_counter() - begin
  least = grids["dense"][0]["mean_validation_accuracy"] - TOLERANCE
  chosen = {name: choose(rows, least) for name, rows in grids.items()}
  budget = rewa_jax.decay_budget(
    REWA.k,
    chosen["ReWA"]["penalty"],
    schedule_of(args.steps),
    args.steps,
  )
  command = shlex.join(["python", "examples/quickstart/quickstart.py", *argv])
  results = {
    # Where the folder lies is nobody's business.
    "command": command.replace(f"{args.out.absolute().parent}/", ""),
    **provenance(),
    "settings": {
      **{"steps": args.steps, "seeds": args.seeds},
      **{"learning_rate": LEARNING_RATE},
      **{"batch_size": BATCH_SIZE, "momentum": MOMENTUM},
      **{"k": REWA.k, "m": REWA.m},
      **{"pruning_threshold": THRESHOLD, "rule": RULE},
    },
    "seconds": seconds,
    "decay_budget": float(budget),
    "chosen": chosen,
    "grids": grids,
  }
  files = {
    "accuracy_against_compression.png": plot(grids, chosen),
    "results.json": (json.dumps(results, indent=2) + "\n").encode(),
  }
  for name, content in files.items():
    (args.out / name).write_bytes(content)
  print(summary(chosen, seconds))
  print(f"ReWA's decay budget: {budget:.1f}; see rewa_jax.decay_budget.")
  print(f"Written to {args.out}: {', '.join(files)}")


def leave(*_) -> None:
  print("\nInterrupted, results not written.", file=sys.stderr, flush=True)
  os._exit(130)  # Not sys.exit: XLA's threads may be at work still.


if __name__ == "__main__":
  signal.signal(signal.SIGINT, leave)
  main(sys.argv[1:])
