"""Trains one network dense, with L1 and with ReWA, and compares them.

An MLP learns scikit-learn's digits in five-fold cross-validation: each of the
1,797 images is a test image once, of the networks that never saw it. Every
method gets the initial weights, batches, steps, clipping and learning rate of
the dense network, and L1, by proximal steps, and ReWA get the same grid of
penalties; the grid of a method, all folds, trains as one `jax.vmap`. Once more
ReWA gets no grid: it is asked for 99 % zeros. `recipes` shows what it changes.

Run in the repository, about a minute on two cores and without a download:

  pip install -e '.[examples]'
  python examples/quickstart/quickstart.py

It prints a table and writes accuracy_against_compression.png and results.json.
Test images choose no penalty: the table interpolates along the whole curves and
reads L1 and ReWA off at the same accuracy, 1 to 3 points below dense, and at
the compression that was asked for.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.isotonic import isotonic_regression
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

import rewa_jax
from rewa_jax import baselines

matplotlib.use("Agg")
import matplotlib.pyplot as plt

REWA = rewa_jax.Rewa(k=9, m=2)
# From the dense network to where either curve has fallen.
PENALTIES = (0.004, 0.008, 0.012, 0.018, 0.026, 0.035, 0.044, 0.05)
LEARNING_RATE = 0.1
MOMENTUM = 0.9
# Without it some runs of ReWA break down for good, at this learning rate.
LARGEST_GRADIENT = 1.0
BATCH_SIZE = 64
# Decay leaves ReWA's dead weights tiny, the last small steps leave L1 some too:
# both are pruned alike, and every accuracy is that of the pruned network.
THRESHOLD = 1e-3
ASKED = 0.99
# In fewer nothing can vanish, and asking for it is an error.
FEWEST_STEPS = 60
FOLDS = 5
METHODS = ("L1", "ReWA")
# Curves are read off at these accuracies, in points below the dense network.
POINTS_BELOW = (1, 2, 3)
BOOTSTRAPS = 1000


class Data(NamedTuple):
  images: jax.Array
  labels: jax.Array
  # The fold that tests an image; and what each fold trains on, equally many.
  fold_of: np.ndarray
  train: jax.Array


class Curve(NamedTuple):
  """What came of a grid, with a row for each penalty."""

  # Compression has a column for each fold.
  compression: np.ndarray
  # Whether the network that never saw an image is right: a column an image.
  hits: np.ndarray

  @property
  def mean_compression(self) -> np.ndarray:
    return np.exp(np.log(self.compression).mean(axis=1))


class MLP(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for width in (256, 256):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(10)(x)


class Recipe(NamedTuple):
  """All that differs between dense, L1 and ReWA."""

  optimizer: Callable[[jax.Array], optax.GradientTransformation]
  penalties: Sequence[float]
  # What the trained params are latents of; None: they are the weights.
  method: rewa_jax.Method | None = None
  # What is cut off in the end; None: what is at most THRESHOLD.
  sparsity: float | None = None

  @property
  def model(self) -> nn.Module:
    if self.method is None:
      return MLP()
    return rewa_jax.linen.Reparameterized(MLP(), self.method)


def recipes(steps: int) -> dict[str, Recipe]:
  schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
  return {
    "dense": Recipe(
      lambda _: optax.sgd(schedule, MOMENTUM),
      penalties=(0.0,),
    ),
    "L1": Recipe(
      lambda penalty: baselines.proximal_sgd(
        schedule, baselines.L1(penalty), momentum=MOMENTUM
      ),
      penalties=PENALTIES,
    ),
    "ReWA": Recipe(
      lambda penalty: rewa_jax.sgd(
        schedule, REWA, weight_decay=penalty, momentum=MOMENTUM
      ),
      penalties=PENALTIES,
      method=REWA,
    ),
    "asked": Recipe(
      lambda _: rewa_jax.sgd(
        schedule, REWA, sparsity=ASKED, steps=steps, momentum=MOMENTUM
      ),
      penalties=(0.0,),
      method=REWA,
      sparsity=ASKED,
    ),
  }


def load_data() -> Data:
  images, labels = load_digits(return_X_y=True)
  folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
  splits = list(folds.split(images, labels))
  fold_of = np.empty(len(labels), int)
  for fold, (_, test) in enumerate(splits):
    fold_of[test] = fold
  # One compiled program serves all folds; it costs an image or two of training.
  fewest = min(len(train) for train, _ in splits)
  train = np.stack([train[:fewest] for train, _ in splits])
  images = np.float32(images / 16)
  return Data(
    jnp.asarray(images), jnp.asarray(labels), fold_of, jnp.asarray(train)
  )


def describe_budgets(steps: int) -> str:
  """Says how far ReWA's decay shrinks a dead weight: by exp(-budget)."""
  k, schedule = REWA.k, optax.cosine_decay_schedule(LEARNING_RATE, steps)
  low, high = (
    rewa_jax.decay_budget(k, penalty, schedule, steps)
    for penalty in (PENALTIES[0], PENALTIES[-1])
  )
  enough = rewa_jax.weight_decay_for(15, k, schedule, steps)
  return (
    f"{'warning: ' if high < 8 else ''}ReWA has decay budgets {low:.1f} to"
    f" {high:.1f}, and below 8 a network may stay dense. It takes a penalty of"
    f" {enough:.2g} for a budget of 15."
  )


def train_grid(
  recipe: Recipe, data: Data, steps: int, progress: Callable[[int], Any]
) -> Any:
  """Returns params with a leading axis: penalty by penalty, all its folds."""
  model = recipe.model

  def solver_of(penalty):
    clip = optax.clip_by_global_norm(LARGEST_GRADIENT)
    return optax.chain(clip, recipe.optimizer(penalty))

  def start(penalty, fold):
    init_key, _ = jax.random.split(jax.random.key(fold))
    params = model.init(init_key, data.images[:1])
    return params, solver_of(penalty).init(params)

  def loss(params, images, labels):
    logits = model.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  def train(carry, counts, penalty, fold):
    solver = solver_of(penalty)
    _, batch_key = jax.random.split(jax.random.key(fold))

    def step(carry, count):
      params, state = carry
      key = jax.random.fold_in(batch_key, count)
      draw = jax.random.randint(key, (BATCH_SIZE,), 0, data.train.shape[1])
      batch = data.train[fold, draw]
      grads = jax.grad(loss)(params, data.images[batch], data.labels[batch])
      updates, state = solver.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, carry, counts)[0]

  penalties = jnp.repeat(jnp.asarray(recipe.penalties), FOLDS)
  folds = jnp.tile(jnp.arange(FOLDS), len(recipe.penalties))
  carry = jax.jit(jax.vmap(start))(penalties, folds)
  train = jax.jit(jax.vmap(train, (0, None, 0, 0)), donate_argnums=0)
  # Equal chunks: the bar moves between them, and one program serves them all.
  chunks = max(n for n in range(1, 31) if steps % n == 0)
  for counts in np.arange(steps).reshape(chunks, -1):
    carry = jax.block_until_ready(train(carry, counts, penalties, folds))
    progress(len(counts))
  return carry[0]


def evaluate(recipe: Recipe, params: Any, data: Data) -> Curve:
  """Prunes every network and tests it on the images of its fold."""

  def measure(params):
    # Of latents, too, what comes back is the weights of a plain MLP.
    pruned, _ = rewa_jax.prune(
      params,
      threshold=None if recipe.sparsity else THRESHOLD,
      sparsity=recipe.sparsity,
      method=recipe.method,
    )
    hits = MLP().apply(pruned, data.images).argmax(-1) == data.labels
    kernels = rewa_jax.sparsity(pruned)
    # An empty network counts as one weight: JSON has no infinity.
    return kernels.total_size / jnp.maximum(kernels.total_nonzero, 1), hits

  compression, hits = map(np.asarray, jax.jit(jax.vmap(measure))(params))
  hits = hits.reshape(-1, FOLDS, len(data.labels))
  unseen = hits[:, data.fold_of, np.arange(len(data.labels))]
  return Curve(compression.reshape(-1, FOLDS), unseen)


def read_off(
  compression: np.ndarray, accuracy: np.ndarray, levels: np.ndarray
) -> np.ndarray:
  """Returns the compressions at which accuracy falls to some levels.

  In between it is linear in the logarithm of compression; NaN below the curve.
  Where a curve rises with compression it does so by noise, which isotonic
  regression averages.
  """
  order = np.argsort(compression)
  falling = isotonic_regression(accuracy[order], increasing=False)
  logs = np.log(compression[order])
  return np.exp(np.interp(-levels, -falling, logs, right=np.nan))


def accuracy_at(
  compression: float, compressions: np.ndarray, accuracy: np.ndarray
) -> np.ndarray:
  """Returns the accuracy of a curve at a compression, read as above."""
  order = np.argsort(compressions)
  falling = isotonic_regression(accuracy[order], increasing=False)
  return np.interp(np.log(compression), np.log(compressions[order]), falling)


def compare(curves: dict[str, Curve]) -> list[dict[str, Any]]:
  """Reads L1, ReWA and their ratio off at POINTS_BELOW the dense network.

  Each is an estimate and a 95 % interval, by a bootstrap over the test images,
  the same for all methods, of everything: dense, curves and ratio.
  """

  def read(images):
    accuracy = {n: c.hits[:, images].mean(axis=1) for n, c in curves.items()}
    levels = accuracy["dense"] - np.array(POINTS_BELOW) / 100
    l1, rewa = (
      read_off(curves[name].mean_compression, accuracy[name], levels)
      for name in METHODS
    )
    return np.stack([levels, l1, rewa, rewa / l1], axis=-1)

  values = bootstrap(read, curves).tolist()
  names = ("accuracy", *METHODS, "ReWA / L1")
  return [
    {"points_below": points, **dict(zip(names, row))}
    for points, row in zip(POINTS_BELOW, values)
  ]


def judge_asked(curves: dict[str, Curve]) -> dict[str, list[float]]:
  """Reads all methods off at the compression asked for, as `compare`."""

  def read(images):
    accuracy = {n: c.hits[:, images].mean(axis=1) for n, c in curves.items()}
    asked = accuracy["asked"][0]
    others = [
      accuracy_at(
        1 / (1 - ASKED), curves[name].mean_compression, accuracy[name]
      )
      for name in METHODS
    ]
    return np.stack([asked, *others, *(asked - other for other in others)])

  names = ("asked", *METHODS, *(f"asked - {name}" for name in METHODS))
  return dict(zip(names, bootstrap(read, curves).tolist()))


def bootstrap(read, curves: dict[str, Curve]) -> np.ndarray:
  """Returns an estimate and the ends of its interval, as a last axis."""
  count = curves["dense"].hits.shape[1]
  draws = np.random.default_rng(0).integers(count, size=(BOOTSTRAPS, count))
  ends = np.quantile([read(draw) for draw in draws], [0.025, 0.975], axis=0)
  return np.stack([read(np.arange(count)), *ends], axis=-1)


def sentence(asked: dict[str, list[float]]) -> str:
  """Says how the network that was asked for compares."""
  at = {name: 100 * np.array(values) for name, values in asked.items()}
  text = (
    f"Asked for {ASKED:.0%}, ReWA has {at['asked'][0]:.1f} % at"
    f" {1 / (1 - ASKED):.0f}x"
  )
  for name in METHODS:
    value, low, high = at[f"asked - {name}"]
    text += (
      f"; {name} of the grid {at[name][0]:.1f} %, difference"
      f" {value:+.1f} ({low:+.1f} to {high:+.1f})"
    )
  return text + "."


def table(readings: Sequence[dict[str, Any]]) -> str:
  """Returns the comparison in Markdown, and in a sentence."""
  lines = [
    "| points below dense | accuracy | L1 | ReWA | ReWA / L1 |",
    "|---|---|---|---|---|",
  ]
  verdicts = []
  for row in readings:
    points, (_, low, high) = row["points_below"], row["ReWA / L1"]
    l1, rewa = ("{:.0f}x ({:.0f} to {:.0f})".format(*row[n]) for n in METHODS)
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*row["ReWA / L1"])
    accuracy = f"{100 * row['accuracy'][0]:.1f} %"
    lines.append(f"| {points} | {accuracy} | {l1} | {rewa} | {ratio} |")
    ahead = "ReWA ahead" if low > 1 else "L1 ahead" if high < 1 else "even"
    if np.isnan(low):
      ahead = "beyond the grid"
    verdicts.append(f"{ahead} at {points}")
  return "\n".join([*lines, "", f"{', '.join(verdicts)} points below dense."])


def plot(curves: dict[str, Curve]) -> plt.Figure:
  """Draws accuracy against compression."""
  fig, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
  dense = 100 * curves["dense"].hits.mean()
  for points in POINTS_BELOW:
    ax.axhline(dense - points, color="0.8", linewidth=0.8, zorder=0)
    text = f"dense less {points} %"
    ax.text(3800, dense - points + 0.07, text, color="0.5", ha="right", size=9)
  # Each name stands on its side of the other curve, where both fall.
  sides = (("tab:orange", "right", 0.85), ("tab:green", "left", 1.3))
  for name, (color, side, shift) in zip(METHODS, sides):
    hits = 100 * curves[name].hits
    x, y = curves[name].mean_compression, hits.mean(axis=1)
    error = hits.std(axis=1) / hits.shape[1] ** 0.5
    ax.fill_between(x, y - error, y + error, color=color, alpha=0.2, lw=0)
    ax.plot(x, y, "o-", color=color, markersize=4)
    at = (shift * read_off(x, y, dense - 4.5), dense - 4.5)
    ax.text(*at, name, color=color, ha=side, size=13, weight="bold")
  asked = 100 * curves["asked"].hits.mean()
  ax.plot(1 / (1 - ASKED), asked, "*", color="tab:red", markersize=13)
  label = f"ReWA, asked for {ASKED:.0%}"
  ax.text(85, asked - 0.1, label, color="tab:red", ha="right", va="top")
  ax.plot(1, dense, "ko")
  ax.text(1.1, dense + 0.25, f"dense {dense:.1f} %", weight="bold")
  ax.set(xscale="log", xlim=(0.8, 4000), ylim=(dense - 6, dense + 0.8))
  ax.xaxis.set_major_formatter("{x:g}x")
  ax.set_xlabel("compression: all weights / nonzero weights")
  ax.set_ylabel("test accuracy in %, ± a standard error")
  ax.set_title("Digits, MLP of 84,480 weights, five-fold cross-validation")
  ax.spines[["top", "right"]].set_visible(False)
  return fig


def parse(argv: Sequence[str]) -> argparse.Namespace:
  def enough(text: str) -> int:
    if text.isdecimal() and int(text) >= FEWEST_STEPS:
      return int(text)
    raise argparse.ArgumentTypeError(
      f"must be an integer >= {FEWEST_STEPS}, got {text}"
    )

  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  out, steps = "folder for the two files", "training steps of every network"
  default = " (default: %(default)s)"
  parser.add_argument(
    "--out", type=pathlib.Path, default="results/quickstart", help=out + default
  )
  parser.add_argument(
    "--steps", type=enough, default=1500, help=steps + default
  )
  args = parser.parse_args(argv)
  try:
    args.out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    parser.error(f"argument --out: {error}")
  return args


def main(argv: Sequence[str]) -> None:
  args = parse(argv)
  data = load_data()
  methods = recipes(args.steps)
  print(describe_budgets(args.steps), flush=True)
  begin = time.perf_counter()
  bar = tqdm(total=len(methods) * args.steps, desc="training", unit="step")

  def run(recipe):
    params = train_grid(recipe, data, args.steps, bar.update)
    return evaluate(recipe, params, data)

  # Two at a time: the program of a grid keeps but one core busy.
  with bar, ThreadPoolExecutor(2) as pool:
    curves = dict(zip(methods, pool.map(run, methods.values())))
  seconds = {"wall": time.perf_counter() - begin, "cpu": time.process_time()}
  # Without a penalty either method is the dense network: curves begin there.
  for name in METHODS:
    curves[name] = Curve(*map(np.vstack, zip(curves["dense"], curves[name])))
  readings, asked = compare(curves), judge_asked(curves)
  command = shlex.join(["python", "examples/quickstart/quickstart.py", *argv])
  now = datetime.datetime.now(datetime.UTC)
  packages = ("rewa_jax", "jax", "flax", "optax", "numpy", "scikit-learn")
  results = {
    # Where the folder lies is nobody's business.
    "command": command.replace(f"{args.out.absolute().parent}/", ""),
    "date": now.isoformat(timespec="seconds"),
    "versions": {name: importlib.metadata.version(name) for name in packages},
    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    "seconds": seconds,
    "steps": args.steps,
    "readings": readings,
    "asked": asked,
    "penalties": [0, *PENALTIES],
    "curves": {
      name: {
        "compression": curve.compression.tolist(),
        "accuracy": [
          [row[data.fold_of == fold].mean() for fold in range(FOLDS)]
          for row in curve.hits
        ],
      }
      for name, curve in curves.items()
    },
  }
  name = "accuracy_against_compression.png"
  plot(curves).savefig(args.out / name, dpi=150)
  text = json.dumps(results, indent=1) + "\n"
  (args.out / "results.json").write_text(text)
  print(f"{table(readings)}\n{sentence(asked)}\n")
  print(f"Written to {args.out}: {name}, results.json")


def leave(*_) -> None:
  print("\nInterrupted, results not written.", file=sys.stderr, flush=True)
  os._exit(130)  # Not sys.exit: XLA's threads may be at work still.


if __name__ == "__main__":
  signal.signal(signal.SIGINT, leave)
  main(sys.argv[1:])
