"""Asks for sparsities, and trains a network that has each of them.

LeNet-300-100 or LeNet-5 by SGD with `sparsity=`, nothing else changed from
target to target: decay by rank lets the smallest weights fade while the network
trains, and `finalize` cuts exactly so many. Reads the IDX files of MNIST or of
a data set in its format from --data, or takes scikit-learn's digits, enlarged
to 28 x 28. All targets of a seed train as one vmap.

Writes table.md, accuracy.png and results.json, to a folder in --out for the
network.
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

from .. import kit
from ..compare_methods.compare import load_data
from ..compare_methods.methods import Recipe, asked_for
from ..compare_methods.networks import NETWORKS
from ..compare_methods.training import train

MODULE = "examples.ask_for_sparsity.ask"
# All zeros but one weight in so many.
COMPRESSIONS = {"lenet300": (20, 50, 120, 250), "lenet5": (200, 300, 600)}
EPOCHS = {"lenet300": 30, "lenet5": 20}


@functools.partial(jax.jit, static_argnums=0)
def measure(network, weights, sparsities, data) -> dict[str, jax.Array]:
  """Cuts every network to its sparsity, and measures it."""

  def accuracy(weights, images, labels):
    logits = [
      network.apply(weights, images[i : i + 1000])
      for i in range(0, len(images), 1000)
    ]
    return (jnp.concatenate(logits).argmax(-1) == labels).mean()

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


def ask(args, network, data, advance) -> list[dict[str, Any]]:
  """Trains a network for every target and seed, and measures it."""
  recipe = Recipe(asked_for(rewa_jax.Rewa(args.k, args.m)), ())
  sparsities = [1 - 1 / compression for compression in args.compressions]
  rows = []
  for seed in args.seeds:
    trained = train(
      network,
      recipe,
      [(sparsity, args.rate) for sparsity in sparsities],
      data,
      seed=seed,
      epochs=args.epochs,
      pilot=None,
      advance=advance,
    )
    found = measure(network, trained.weights, jnp.array(sparsities), data)
    found = jax.tree.map(np.ndarray.tolist, jax.tree.map(np.asarray, found))
    rows += [
      {"compression": compression, "seed": seed}
      | {name: values[i] for name, values in found.items()}
      for i, compression in enumerate(args.compressions)
    ]
  return rows


def table(rows) -> str:
  """Returns the means over seeds in Markdown."""
  lines = []
  for compression in sorted({row["compression"] for row in rows}):
    group = [row for row in rows if row["compression"] == compression]
    column = {
      name: 100 * np.array([row[name] for row in group])
      for name in ("test", "validation", "test_uncut")
    }
    cost = column["test_uncut"] - column["test"]
    spread = f" ± {column['test'].std():.2f}" if len(group) > 1 else ""
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
  columns = (
    *("asked for", "zeros", "weights left", "test accuracy"),
    *("held-back images", "points the cut cost", "largest cut"),
    "smallest kept",
  )
  return kit.markdown(columns, lines)


def draw(rows, title) -> plt.Figure:
  fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
  for name, color in (("test", "tab:green"), ("validation", "0.7")):
    x = np.array([row["compression"] for row in rows])
    y = np.array([100 * row[name] for row in rows])
    means = [(c, y[x == c].mean()) for c in sorted(set(x))]
    label = "test images" if name == "test" else "held-back images"
    ax.plot(*zip(*means), color=color, label=label)
    ax.plot(x, y, ".", color=color)
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
  add("--network", choices=tuple(NETWORKS), default="lenet300")
  add("--data", type=pathlib.Path, help="folder of IDX files (default: digits)")
  add("--epochs", type=int, help="default: 30, of LeNet-5 or digits 20")
  add("--rate", type=float, default=0.3, help="peak of the learning rate")
  add("--k", type=float, default=9, help="the power (default: %(default)s)")
  add("--m", type=float, default=2, help="default: %(default)s")
  add(
    "--compressions",
    type=float,
    nargs="+",
    help="what to ask for: all weights over nonzero ones",
  )
  add("--seeds", type=int, nargs="+", default=[1, 2, 3])
  args = parser.parse_args(argv)
  args.compressions = args.compressions or COMPRESSIONS[args.network]
  if min(args.compressions) < 1:
    parser.error(f"--compressions must be >= 1, got {min(args.compressions)}")
  if args.epochs is None:
    args.epochs = EPOCHS[args.network] if args.data else 20
  if args.epochs < 1:
    parser.error(f"--epochs must be at least 1, got {args.epochs}")
  # Python integers have powers of their own.
  args.k, args.m = (int(x) if x == int(x) else x for x in (args.k, args.m))
  args.out /= args.network
  return args


def main(argv) -> None:
  args = parse(argv)
  network, data = NETWORKS[args.network](10), load_data(args.data)
  total = len(args.seeds) * args.epochs
  with tqdm(total=total, unit="epoch", smoothing=0.1) as bar:
    rows = ask(args, network, data, bar.update)
  made = kit.provenance(MODULE, argv, "flax")
  kit.write_json(args.out / "results.json", made | {"rows": rows})
  shown = table(rows)
  kit.write(args.out / "table.md", shown + kit.made_by(made))
  name = "MNIST's format" if args.data else "digits"
  title = f"{args.network} on {name}, {args.epochs} epochs"
  kit.write_figure(args.out / "accuracy.png", draw(rows, title))
  print(f"\n{shown}\nWritten to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
