"""Changes one thing of decay by rank at a time: what moves the frontier?

LeNet-300-100 and LeNet-5 with SGD on MNIST's unpacked IDX files, or on
scikit-learn's digits, and a character-level transformer of 104,000 kernel
weights with AdamW on Python's help topics. All targets of a variant and a seed
train as one vmap. Everything is judged on held-back data; the test data is not
looked at.

  python -m examples.ask_for_sparsity.ablation --task text

Writes table.md, gains.png and results.json to a folder in --out for the task.
Started anew it goes on from the last variant that results.json has.
"""

import argparse
import functools
import math
import pathlib
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import rewa_jax
from rewa_jax import baselines

from .. import kit
from ..adamw import adamw
from ..compare_methods.compare import digest_of, load_data
from ..compare_methods.methods import Recipe
from ..compare_methods.networks import NETWORKS
from ..compare_methods.training import Data, logits_of, train
from . import variants as v

MODULE = "examples.ask_for_sparsity.ablation"
SPARSITIES = (0.95, 0.98, 0.99, 0.995, 0.998)
# What relatives of ReWA want in the place of the task's rate.
RATES = {"spred": 1.0, "Hadamard difference": 0.7}
BASE = "decay by rank"


class Task(NamedTuple):
  """What is trained, and on what.

  Attributes:
    network: from inputs to logits.
    data: to train on, to judge by, and what is not looked at.
    rate: the peak of the learning rate.
    epochs: passes over the data.
    batch_size: examples a step.
    variants: by name, the first is as it is.
  """

  network: nn.Module
  data: Data
  rate: float
  epochs: int
  batch_size: int
  variants: dict[str, v.Make]


def common(base: v.Base, shares) -> dict[str, v.Make]:
  """The variants for SGD and Adam alike."""
  plain = v.by_rank(base)
  return {
    BASE: plain,
    "mild decay, half": v.by_rank(base, mild=0.5),
    "mild decay, twice": v.by_rank(base, mild=2),
    "mild decay of 99 % for all": v.by_rank(base, at=0.99),
    "mild decay until 70 % alone": v.by_rank(base, released=True),
    "all of it from half the steps on": v.by_rank(base, end=0.5),
    "all of it from 85 % of the steps on": v.by_rank(base, end=0.85),
    "twice the strong decay": v.by_rank(base, budget=20),
    "ranked 4 times as often": v.by_rank(base, every=12),
    "ranked a quarter as often": v.by_rank(base, every=200),
    "rank of size times gradient": v.by_score(base, v.times_gradient),
    "LAMP's rank": v.by_score(base, v.lamp(base.method)),
    "equal shares of layers": v.by_rank(base, scope="leaf"),
    "Erdos-Renyi-kernel shares": v.by_rank(base, scope="leaf", shares=shares),
    "mask on the same schedule": v.hard(base),
    "mask from 70 % on": v.then_hard(plain),
    "soft-threshold": v.soft_threshold(plain, base.method),
  }


def image_variants(shares) -> dict[str, v.Make]:
  rewa = v.with_sgd(rewa_jax.Rewa(9, 2))
  plain = v.with_sgd(rewa_jax.Rewa(9, 0))
  others = {
    "m = 0": rewa_jax.Rewa(9, 0),
    "m = 1": rewa_jax.Rewa(9, 1),
    "m = 3": rewa_jax.Rewa(9, 3),
    "k = 5": rewa_jax.Rewa(5, 2),
    "k = 15": rewa_jax.Rewa(15, 2),
    "spred": baselines.spred(),
    "Hadamard difference": baselines.HadamardDifference(2),
    "untied power, K = 4": baselines.deep_weight_factorization(4),
  }
  return (
    common(rewa, shares)
    | {
      "m grows from 0": v.by_rank(rewa, scale=v.with_growing_m),
      "k grows from 3": v.with_growing_k(rewa),
      "floor of 0.3 in the step": v.by_rank(plain, scale=v.with_floor(0.3)),
      "floor that falls to 0": v.by_rank(
        plain, scale=v.with_floor(0.3, falls=True)
      ),
      "gradual pruning, no latents": v.gradual_pruning(optax.trace(0.9)),
    }
    | {name: v.by_rank(v.with_sgd(method)) for name, method in others.items()}
  )


def text_variants(shares) -> dict[str, v.Make]:
  rewa = v.with_adam(rewa_jax.Rewa(9, eps=1e-3))
  return common(rewa, shares) | {
    "m = 1": v.by_rank(v.with_adam(rewa_jax.Rewa(9, 1, eps=1e-3))),
    "k = 5": v.by_rank(v.with_adam(rewa_jax.Rewa(5, eps=1e-3))),
    "gradual pruning, no latents": v.gradual_pruning(optax.scale_by_adam()),
  }


def task_of(name: str, folder: pathlib.Path | None, sparsities) -> Task:
  """Returns a task; images come from the folder, or are digits."""
  if name == "text":
    text = adamw.text()
    inputs, labels = text.test
    half = len(inputs) // 2
    first = inputs[:half], labels[:half]
    second = inputs[half:], labels[half:]
    network, data = text.model, Data(text.train, first, second)
    size, rate, epochs = text.batch_size, 0.01, 2
  else:
    data = load_data(folder)
    network = NETWORKS[name](int(data.train[1].max()) + 1)
    size, rate, epochs = 128, 0.3, {"lenet300": 12, "lenet5": 8}[name]
  template = jax.eval_shape(network.init, jax.random.key(0), data.train[0][:1])
  shares = v.of_thin_layers_less(template, sparsities)
  make = text_variants if name == "text" else image_variants
  return Task(network, data, rate, epochs, size, make(shares))


@functools.partial(jax.jit, static_argnums=0)
def measure(network, weights, sparsities, inputs, labels):
  """Cuts every network to its sparsity; returns accuracies and losses."""

  def one(args):
    weights, sparsity = args
    left, _ = rewa_jax.finalize(weights, sparsity)
    logits = logits_of(network, left, inputs)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (logits.argmax(-1) == labels).mean(), loss.mean()

  return jax.lax.map(one, (weights, sparsities))


def run(task: Task, variant: str, seed: int, sparsities, advance) -> list[dict]:
  """Trains a variant for all targets."""
  weights = train(
    task.network,
    Recipe(task.variants[variant]),
    [(s, RATES.get(variant, task.rate)) for s in sparsities],
    task.data,
    seed=seed,
    epochs=task.epochs,
    pilot=None,
    advance=advance,
    batch_size=task.batch_size,
  )
  found = measure(
    task.network, weights, jnp.array(sparsities), *task.data.validation
  )
  return [
    {
      "variant": variant,
      "seed": seed,
      "sparsity": sparsity,
      "accuracy": float(accuracy),
      "loss": float(loss),
    }
    for sparsity, accuracy, loss in zip(sparsities, *found)
  ]


def gains(rows, column: str) -> dict[str, dict[float, tuple[float, float]]]:
  """Returns what a variant has more than the first: mean and its error.

  Seeds are compared in pairs; of one seed the error is 0.
  """
  value = {
    (row["variant"], row["sparsity"], row["seed"]): row[column] for row in rows
  }
  result: dict = {}
  for variant, sparsity, _ in value:
    pairs = [
      value[v, s, seed] - value[BASE, s, seed]
      for v, s, seed in value
      if (v, s) == (variant, sparsity) and (BASE, s, seed) in value
    ]
    error = np.std(pairs, ddof=1) / len(pairs) ** 0.5 if len(pairs) > 1 else 0
    result.setdefault(variant, {})[sparsity] = np.mean(pairs), float(error)
  return result


def table(rows) -> str:
  """Returns accuracy and loss as they are, and what variants change."""
  sparsities = sorted({row["sparsity"] for row in rows})

  def mean(column, sparsity):
    return np.mean(
      [
        row[column]
        for row in rows
        if (row["variant"], row["sparsity"]) == (BASE, sparsity)
      ]
    )

  points, losses = gains(rows, "accuracy"), gains(rows, "loss")
  lines = [
    (
      f"**{BASE}**",
      *(
        f"**{100 * mean('accuracy', s):.2f} %, {mean('loss', s):.3f}**"
        for s in sparsities
      ),
    )
  ]
  for variant in points:
    if variant == BASE:
      continue
    cells = []
    for s in sparsities:
      if s not in points[variant]:
        cells.append("")
        continue
      gain, error = points[variant][s]
      spread = f" ± {100 * error:.2f}" if error else ""
      loss = losses[variant][s][0]
      cells.append(f"{100 * gain:+.2f}{spread}, {loss:+.3f}")
    lines.append((variant, *cells))
  return kit.markdown(("", *(f"{s:.1%}" for s in sparsities)), lines)


def draw(rows, title: str) -> plt.Figure:
  """One row of dots for each variant, in points of accuracy."""
  points = gains(rows, "accuracy")
  names = [name for name in points if name != BASE]
  sparsities = sorted({row["sparsity"] for row in rows})
  fig, ax = plt.subplots(
    figsize=(8, 1 + 0.28 * len(names)), layout="constrained"
  )
  colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(sparsities)))
  for i, (sparsity, color) in enumerate(zip(sparsities, colors)):
    nothing = math.nan, math.nan
    mean, error = (
      100
      * np.reshape([points[n].get(sparsity, nothing) for n in names], (-1, 2)).T
    )
    place = np.arange(len(names)) + (i / len(sparsities) - 0.4) * 0.7
    ax.errorbar(
      mean,
      place,
      xerr=error,
      fmt="o",
      ms=3,
      color=color,
      label=f"{sparsity:.1%}",
    )
  ax.axvline(0, color="0.6", lw=0.8)
  ax.set_xscale("symlog", linthresh=1)
  limits = ax.get_xlim()
  ax.set_xticks([-5, -2, -1, -0.5, 0, 0.5, 1, 2])
  ax.set_xlim(limits)
  ax.xaxis.set_major_formatter("{x:g}")
  ax.set_yticks(range(len(names)), names)
  ax.invert_yaxis()
  ax.set(xlabel=f"points of accuracy beside {BASE}", title=title)
  fig.legend(title="zeros", frameon=False, loc="outside right upper")
  ax.spines[["top", "right"]].set_visible(False)
  return fig


def parse(argv) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/ablation")
  add = parser.add_argument
  tasks = ("lenet300", "lenet5", "text")
  add("--task", choices=tasks, default="lenet300", help="default: %(default)s")
  add("--data", type=pathlib.Path, help="folder of IDX files (default: digits)")
  text = "default: 12, of LeNet-5 8, of the text 2"
  add("--epochs", type=kit.at_least(1), help=text)
  text = f"default: {' '.join(map(str, SPARSITIES))}"
  add("--sparsities", type=float, nargs="+", default=SPARSITIES, help=text)
  add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
  add("--variants", nargs="+", help="some of those in the table")
  args = parser.parse_args(argv)
  if not all(0 <= s < 1 for s in args.sparsities):
    parser.error(f"--sparsities must be in [0, 1), got {args.sparsities}")
  if args.data and args.task == "text":
    parser.error("--data are images, and the task is text")
  args.seeds = list(dict.fromkeys(args.seeds))
  args.out /= args.task
  return args


def main(argv) -> None:
  args = parse(argv)
  with kit.in_a_sentence():
    task = task_of(args.task, args.data, args.sparsities)
  if args.epochs is not None:
    task = task._replace(epochs=args.epochs)
  unknown = set(args.variants or ()) - set(task.variants)
  if unknown:
    known = ", ".join(task.variants)
    sys.exit(f"--variants {sorted(unknown)} are none of: {known}")
  names = [n for n in task.variants if n in (args.variants or task.variants)]
  path = args.out / "results.json"
  made = kit.provenance(MODULE, argv, "flax")
  settings = {"rate": task.rate, "epochs": task.epochs}
  settings["data"] = digest_of(task.data)
  rows = kit.read_json(path, settings).get("rows", [])
  known = {(row["variant"], row["seed"], row["sparsity"]) for row in rows}
  todo = [
    (name, seed, missing)
    for seed in args.seeds
    for name in dict.fromkeys([BASE, *names])
    if (missing := [s for s in args.sparsities if (name, seed, s) not in known])
  ]
  title = f"{args.task}, {task.epochs} epochs, held-back data"
  with tqdm(total=len(todo) * task.epochs, unit="epoch", smoothing=0.1) as bar:
    for name, seed, missing in todo:
      bar.set_description(f"{name}, seed {seed}")
      rows += run(task, name, seed, missing, bar.update)
      kit.write_json(path, made | settings | {"rows": rows})
  shown = table(rows)
  kit.write(args.out / "table.md", shown + kit.made_by(made))
  kit.write_figure(args.out / "gains.png", draw(rows, title))
  print(f"\n{shown}\nWritten to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c("the same command goes on after the last variant.")
  main(sys.argv[1:])
