"""Asks for sparsities, and trains a network that has each of them.

LeNet-300-100 or LeNet-5 by SGD with `sparsity=`, nothing else changed from
target to target: decay by rank lets the smallest weights fade while the network
trains, and `finalize` cuts exactly so many. Reads the IDX files of MNIST or of
a data set in its format from --data, or takes scikit-learn's digits, enlarged
to 28 x 28. All targets of a seed train as one vmap. With --grid, eight fixed
weight decays are trained beside them and cut to the same sparsities: those who
know no better way try so many.

Writes table.md, accuracy.png and results.json to a folder in --out for the
network. Started anew it goes on from the last seed that results.json has.
"""

import argparse
import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import rewa_jax
from rewa_jax import baselines

from .. import kit
from ..compare_methods.compare import digest_of, load_data
from ..compare_methods.methods import Recipe, asked_for, reparameterized
from ..compare_methods.networks import NETWORKS
from ..compare_methods.training import logits_of, train

MODULE = "examples.ask_for_sparsity.ask"
# All zeros but one weight in so many.
COMPRESSIONS = {"lenet300": (20, 50, 120, 250), "lenet5": (200, 300, 600)}
EPOCHS = {"lenet300": 30, "lenet5": 20}
# The peak of the learning rate that each method wants.
RATES = {"rewa": 0.3, "hadamard": 0.7}
FIXED_DECAYS = tuple(float(f"{2.5e-4 * 1.7**i:.2g}") for i in range(8))


@functools.partial(jax.jit, static_argnums=0)
def measure(network, weights, sparsities, data) -> dict[str, jax.Array]:
  """Cuts every network to its sparsity, and measures it."""

  def accuracy(weights, images, labels):
    return (logits_of(network, weights, images).argmax(-1) == labels).mean()

  def one(args):
    weights, sparsity = args
    left, cut = rewa_jax.finalize(weights, sparsity)
    return {
      "nonzero": cut.sparsity.total_nonzero,
      "largest_cut": cut.largest_cut,
      "smallest_kept": cut.smallest_kept,
      "validation": accuracy(left, *data.validation),
      "validation_uncut": accuracy(weights, *data.validation),
      "test": accuracy(left, *data.test),
      "test_uncut": accuracy(weights, *data.test),
    }

  return jax.lax.map(one, (weights, sparsities))


def method_of(args) -> rewa_jax.Method:
  if args.method == "hadamard":
    return baselines.HadamardDifference(2)
  return rewa_jax.Rewa(args.k, args.m)


def run(args, network, data, recipe, strengths, seed, advance):
  """Trains a network for every strength; returns weights on a first axis."""
  cells = [(strength, args.rate) for strength in strengths]
  return train(
    network,
    recipe,
    cells,
    data,
    seed=seed,
    epochs=args.epochs,
    pilot=None,
    advance=advance,
  )


def measured(network, weights, sparsities, data) -> list[dict[str, Any]]:
  found = measure(network, weights, jnp.array(sparsities), data)
  found = jax.tree.map(np.ndarray.tolist, jax.tree.map(np.asarray, found))
  return [dict(zip(found, values)) for values in zip(*found.values())]


def ask(args, network, data, seed, advance) -> list[dict[str, Any]]:
  """Trains a network for every target, and measures it."""
  recipe = Recipe(asked_for(method_of(args)))
  sparsities = [1 - 1 / compression for compression in args.compressions]
  weights = run(args, network, data, recipe, sparsities, seed, advance)
  rows = measured(network, weights, sparsities, data)
  return [
    {"compression": compression, "seed": seed} | row
    for compression, row in zip(args.compressions, rows)
  ]


def try_decays(args, network, data, seed, advance) -> list[dict[str, Any]]:
  """Trains at every fixed weight decay, and cuts each to every target."""
  recipe = reparameterized(method_of(args))
  every = run(args, network, data, recipe, FIXED_DECAYS, seed, advance)
  rows = []
  for i, decay in enumerate(FIXED_DECAYS):
    for compression in args.compressions:
      one = jax.tree.map(lambda x, i=i: x[i : i + 1], every)
      (row,) = measured(network, one, [1 - 1 / compression], data)
      start = {"compression": compression, "seed": seed, "weight_decay": decay}
      rows.append(start | row)
  return rows


def best_decay(rows, compression) -> tuple[float, float]:
  """Returns the decay that held-back images choose, and its test accuracy."""
  means = {}
  for decay in {row["weight_decay"] for row in rows}:
    wanted = compression, decay
    group = [r for r in rows if (r["compression"], r["weight_decay"]) == wanted]
    means[decay] = [
      float(np.mean([row[name] for row in group]))
      for name in ("validation", "test")
    ]
  decay = max(means, key=lambda decay: means[decay][0])
  return decay, means[decay][1]


def table(rows, fixed=()) -> str:
  """Returns the means over seeds in Markdown."""
  lines = []
  for compression in sorted({row["compression"] for row in rows}):
    group = [row for row in rows if row["compression"] == compression]
    column = {
      name: 100 * np.array([row[name] for row in group])
      for name in ("test", "validation", "test_uncut")
    }
    cost = column["test_uncut"] - column["test"]
    spread = f" ± {column['test'].std(ddof=1):.2f}" if len(group) > 1 else ""
    left = sorted({row["nonzero"] for row in group})
    lines.append(
      (
        f"{compression:g}x",
        f"{1 - 1 / compression:.2%}",
        " to ".join(f"{n:,}" for n in left),
        f"{column['test'].mean():.2f} %{spread}",
        f"{column['validation'].mean():.2f} %",
        f"{cost.mean():.2f}",
        f"{max(row['largest_cut'] for row in group):.0e}",
        f"{min(row['smallest_kept'] for row in group):.0e}",
      )
    )
    if fixed:
      decay, accuracy = best_decay(fixed, compression)
      lines[-1] += (f"{100 * accuracy:.2f} % ({decay:g})",)
  columns = (
    *("asked for", "zeros", "weights left", "test accuracy"),
    *("held-back images", "points the cut cost", "largest cut"),
    *("smallest kept", "best of 8 fixed decays"),
  )
  columns = columns[: len(lines[0])]
  return kit.markdown(columns, lines)


def draw(rows, title, fixed=()) -> plt.Figure:
  fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
  for name, color in (("test", "tab:green"), ("validation", "0.7")):
    x = np.array([row["compression"] for row in rows])
    y = np.array([100 * row[name] for row in rows])
    means = [(c, y[x == c].mean()) for c in sorted(set(x))]
    label = "test images" if name == "test" else "held-back images"
    ax.plot(*zip(*means), color=color, label=label)
    ax.plot(x, y, ".", color=color)
  if fixed:
    best = [(c, 100 * best_decay(fixed, c)[1]) for c in sorted(set(x))]
    label = "test images, best of 8 fixed decays"
    ax.plot(*zip(*best), color="tab:orange", label=label)
  ax.set(xscale="log", xlabel="compression asked for", title=title)
  ax.set_xticks(sorted({row["compression"] for row in rows}))
  ax.xaxis.set_major_formatter("{x:g}x")
  ax.minorticks_off()
  ax.set_ylabel("accuracy in %")
  ax.legend(frameon=False)
  ax.spines[["top", "right"]].set_visible(False)
  return fig


def parse(argv) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/ask_for_sparsity")
  add = parser.add_argument
  text = "default: %(default)s"
  add("--network", choices=tuple(NETWORKS), default="lenet300", help=text)
  add("--data", type=pathlib.Path, help="folder of IDX files (default: digits)")
  text = "default: 30, of LeNet-5 or digits 20"
  add("--epochs", type=kit.at_least(1), help=text)
  text = (
    "ReWA, or the Hadamard difference, whose weights may change sign"
    " (default: %(default)s)"
  )
  add("--method", choices=tuple(RATES), default="rewa", help=text)
  text = "peak of the learning rate (default: 0.3, of hadamard 0.7)"
  add("--rate", type=kit.at_least(0.0), help=text)
  add("--k", type=kit.at_least(1.0), help="ReWA's power (default: 9)")
  add("--m", type=kit.at_least(0.0), help="ReWA's m (default: 2)")
  add(
    "--compressions",
    type=kit.at_least(1.0),
    nargs="+",
    help="what to ask for, all weights over nonzero ones (default: "
    + ", of LeNet-5 ".join(
      " ".join(map(str, asked)) for asked in COMPRESSIONS.values()
    )
    + ")",
  )
  add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
  add("--grid", action="store_true", help="try 8 fixed weight decays besides")
  args = parser.parse_args(argv)
  args.compressions = args.compressions or list(COMPRESSIONS[args.network])
  if args.epochs is None:
    args.epochs = EPOCHS[args.network] if args.data else 20
  if args.rate is None:
    args.rate = RATES[args.method]
  if args.method == "hadamard" and {args.k, args.m} != {None}:
    parser.error("--k and --m are of --method rewa, got hadamard")
  args.k = 9 if args.k is None else args.k
  args.m = 2 if args.m is None else args.m
  args.seeds = list(dict.fromkeys(args.seeds))
  args.out /= args.network
  return args


def main(argv) -> None:
  args = parse(argv)
  with kit.in_a_sentence():
    data = load_data(args.data)
    method_of(args)
  network = NETWORKS[args.network](int(data.train[1].max()) + 1)
  path = args.out / "results.json"
  names = ("method", "epochs", "rate", "k", "m", "compressions", "grid")
  settings = {name: getattr(args, name) for name in names}
  settings["data"] = digest_of(data)
  results = {"rows": [], "fixed": []} | kit.read_json(path, settings)
  rows, fixed = results["rows"], results["fixed"]
  made = kit.provenance(MODULE, argv, "flax") | settings
  seeds = [s for s in args.seeds if s not in {row["seed"] for row in rows}]
  total = len(seeds) * args.epochs * (1 + args.grid)
  with tqdm(total=total, unit="epoch", smoothing=0.1) as bar:
    for seed in seeds:
      new = ask(args, network, data, seed, bar.update)
      if args.grid:
        fixed += try_decays(args, network, data, seed, bar.update)
      rows += new
      kit.write_json(path, made | {"rows": rows, "fixed": fixed})
  rows, fixed = (
    [row for row in every if row["seed"] in args.seeds]
    for every in (rows, fixed)
  )
  shown = table(rows, fixed)
  kit.write(args.out / "table.md", shown + kit.made_by(made))
  name = "MNIST's format" if args.data else "digits"
  title = f"{args.network} on {name}, {args.epochs} epochs"
  kit.write_figure(args.out / "accuracy.png", draw(rows, title, fixed))
  print(f"\n{shown}\nWritten to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c("the same command goes on from the last seed.")
  main(sys.argv[1:])
