"""Tells what trained networks are worth when they are pruned.

  python -m examples.image_classification.compress curve RUN...
  python -m examples.image_classification.compress table RUN...
  python -m examples.image_classification.compress layers RUN --threshold 1e-3

`curve` prunes at thresholds from 1e-8 to 0.5 and tests what is left. `table`
chooses one of them for all runs, on validation images, and says what it gives
on test images. `layers` shows how sparse each layer is. Files (CSV, JSON, PNG)
go into the folder of the first run, or into --out. To train the weights that
are left some more, with zeros staying zero: train.py --start RUN --prune SIZE.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import rewa_jax

from .. import kit, settings
from ..parallel import Jit
from . import checkpoints as ckpt
from .config import Config
from .pipeline import Folders, Memory, open_data
from .state import count, make_network, make_setup

THRESHOLDS = tuple(
  float(f"{digit}e{power}")
  for power in range(-8, 0)
  for digit in ((1, 2, 5) if power >= -3 else (1,))
)


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(required=True)
  curve = commands.add_parser("curve", help="accuracy against compression")
  curve.set_defaults(command=draw_curves)
  table = commands.add_parser("table", help="one point of each run")
  table.add_argument(
    "--tolerance",
    type=kit.at_least(0.0),
    default=0.001,
    help="accuracy on validation images that pruning may cost (default:"
    " %(default)s)",
  )
  table.set_defaults(command=write_table)
  for command in (curve, table):
    command.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN")
    command.add_argument(
      "--recalibrate",
      type=kit.at_least(0),
      default=0,
      metavar="N",
      help="take batch statistics anew from N train batches after pruning",
    )
  layers = commands.add_parser("layers", help="sparsity of each layer")
  layers.add_argument("runs", nargs=1, type=pathlib.Path, metavar="RUN")
  layers.add_argument(
    "--threshold",
    type=kit.at_least(0.0),
    default=1e-3,
    help="size up to which a weight counts as zero (default: %(default)s)",
  )
  layers.set_defaults(command=draw_layers)
  for command in (curve, table, layers):
    command.add_argument(
      "--out", type=kit.folder, help="folder (default: that of the first run)"
    )
  args = parser.parse_args(argv)
  out = args.out or args.runs[0]
  try:
    args.command(args, out)
  except (ValueError, OSError) as error:
    sys.exit(f"compress.py: {error}")


def draw_curves(args: argparse.Namespace, out: pathlib.Path) -> None:
  """Writes curve.csv and curve.png, and prints the table."""
  rows = _measure_all(args)
  cells = [list(row.values()) for row in rows]
  kit.write_csv(out / "curve.csv", list(rows[0]), cells)
  for row in rows:
    print("  ".join(f"{name} {value}" for name, value in row.items()))
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  for run, name in zip(args.runs, _names(args.runs)):
    own = [row for row in rows if row["run"] == name]
    axes.plot(
      [row["compression"] for row in own],
      [100 * row["test"] for row in own],
      "o-",
      markersize=3,
      label=f"{name} ({settings.read(run, Config).method})",
    )
  axes.set(xscale="log", xlabel="compression", ylabel="test accuracy, %")
  best = 100 * max(row["test"] for row in rows)
  axes.set_ylim(best - 10, best + 1)
  axes.grid(alpha=0.3)
  axes.legend()
  kit.write_figure(out / "curve.png", figure)


def write_table(args: argparse.Namespace, out: pathlib.Path) -> None:
  """Writes table.json, and prints it.

  Raises:
    ValueError: if a run held back no images.
  """
  rows = _measure_all(args)
  if "validation" not in rows[0]:
    raise ValueError("table needs runs with --held-back images to choose on.")
  kept = {
    threshold: np.mean(
      [row["validation"] for row in rows if row["threshold"] == threshold]
    )
    for threshold in THRESHOLDS
  }
  least = max(kept.values()) - args.tolerance
  chosen = max(threshold for threshold in kept if kept[threshold] >= least)
  rows = [row for row in rows if row["threshold"] == chosen]
  names = "compression", "validation", "test"
  columns = {name: [row[name] for row in rows] for name in names}
  results = {
    "runs": rows,
    "mean": {k: round(np.mean(v), 5) for k, v in columns.items()},
    # Of runs, not of their mean; of one run it is unknown.
    "deviation": {
      k: round(np.std(v, ddof=1), 5) if len(v) > 1 else None
      for k, v in columns.items()
    },
    "settings": dataclasses.asdict(settings.read(args.runs[0], Config)),
    "trained": [
      json.loads((run / "results.json").read_text()) for run in args.runs
    ],
  }
  kit.write_json(out / "table.json", results)
  print(json.dumps({k: results[k] for k in ("runs", "mean", "deviation")}))


def _measure_all(args):
  rows = [
    row | {"run": name}
    for run, name in zip(args.runs, _names(args.runs))
    for row in measure(run, THRESHOLDS, args.recalibrate)
  ]
  if len(set(map(tuple, rows))) > 1:
    raise ValueError(
      "Some of these runs held images back and some did not: they have no table"
      " in common."
    )
  return rows


def _names(runs):
  """Returns names of folders, or paths where two have the same name."""
  names = [run.name for run in runs]
  return names if len({*names}) == len(names) else list(map(str, runs))


def measure(
  run: pathlib.Path, thresholds: Sequence[float], recalibrate: int = 0
) -> list[dict[str, Any]]:
  """Prunes a run's weights at each threshold, and tests what is left.

  Args:
    run: its folder.
    thresholds: weights of at most this size become zero.
    recalibrate: train batches that batch statistics are taken from anew; 0 to
      leave them.

  Returns:
    A row for each threshold: run, threshold, compression, nonzero, and the
    accuracy on each split.
  """
  config, weights, statistics = ckpt.load(run)
  if recalibrate and not jax.tree.leaves(statistics):
    raise ValueError(f"{config.model} has no batch statistics to recalibrate.")
  source = open_data(config)
  accuracy = testing(config, source)
  if recalibrate:
    recalibrated = recalibration(config, source, recalibrate)
  rows = []
  for threshold in tqdm(thresholds, unit="threshold", desc=run.name):
    pruned, _ = rewa_jax.prune(weights, threshold=threshold)
    report = rewa_jax.sparsity(pruned)
    if recalibrate:
      statistics = recalibrated(pruned, statistics)
    row = {
      "run": run.name,
      "threshold": threshold,
      "compression": round(float(report.compression), 2),
      "nonzero": int(report.total_nonzero),
    }
    for split in source.splits:
      row[split] = accuracy(pruned, statistics, split)
    rows.append(row)
  return rows


def testing(
  config: Config, source: Memory | Folders
) -> Callable[[Any, Any, str], float]:
  """Returns a function of weights, statistics and split to the accuracy.

  Args:
    config: settings of the run.
    source: its data set.
  """
  parallel = Jit()
  # However it was trained: what is tested are weights.
  dense = dataclasses.replace(config, method="dense")
  network = make_network(config, source.classes)
  setup = make_setup(dense, network, source.steps_per_epoch)
  test_on = parallel.test(count(setup, source.to_images))
  arrays = {
    split: parallel.copies(split_arrays)
    for split, split_arrays in source.arrays.items()
  }

  def accuracy(weights, statistics, split):
    correct = images = 0
    for batch in source.test_batches(split):
      batch.pop("skipped", None)
      evaluated = weights, statistics
      counts = test_on(evaluated, parallel.batch(batch), arrays[split])
      correct, images = correct + counts["correct"], images + counts["count"]
    return round(int(correct) / int(images), 5)

  return accuracy


def recalibration(
  config: Config, source: Memory | Folders, batches: int
) -> Callable[[Any, Any], Any]:
  """Returns a function that takes batch statistics from train batches anew.

  Args:
    config: settings of the run.
    source: its data set.
    batches: how many to average over.

  Returns:
    A function of weights and their statistics so far, which says only what
    statistics there are, to the new ones.
  """
  parallel = Jit()
  # Without memory, what is left after a batch are its own statistics.
  network = make_network(config, source.classes).clone(momentum=0.0)
  arrays = parallel.copies(source.arrays["train"])

  @jax.jit
  def statistics_of(key, weights, statistics, batch, arrays):
    images, _ = source.to_images(key, batch, arrays)
    variables = {"params": weights, "batch_stats": statistics}
    _, changed = network.apply(
      variables, images, train=True, mutable=["batch_stats"]
    )
    return changed["batch_stats"]

  def recalibrated(weights, statistics):
    total = jax.tree.map(jnp.zeros_like, statistics)
    train_batches = itertools.islice(source.train_batches(0), batches)
    for number, batch in enumerate(train_batches):
      batch.pop("skipped", None)
      key = jax.random.fold_in(jax.random.key(config.seed), number)
      one = statistics_of(
        key, weights, statistics, parallel.batch(batch), arrays
      )
      total = jax.tree.map(jnp.add, total, one)
    return jax.tree.map(lambda x: x / (number + 1), total)

  return recalibrated


def draw_layers(args: argparse.Namespace, out: pathlib.Path) -> None:
  """Writes layers.csv and layers.png, and prints the table."""
  (run,) = args.runs
  _, weights, _ = ckpt.load(run)
  report = rewa_jax.sparsity(weights, args.threshold)
  print(report)
  rows = [
    (name, int(report.nonzero[name]), size)
    for name, size in report.size.items()
  ]
  kit.write_csv(out / "layers.csv", ("layer", "nonzero", "of"), rows)
  figure, axes = plt.subplots(
    figsize=(6, 1 + 0.22 * len(rows)), layout="constrained"
  )
  names, nonzero, sizes = zip(*rows)
  axes.barh(names, sizes, color="0.85", label="all")
  axes.barh(names, nonzero, label="nonzero")
  axes.invert_yaxis()
  axes.set(xscale="log", xlabel="weights", xlim=(0.5, None))
  figure.legend(loc="outside upper right", ncols=2)
  kit.write_figure(out / "layers.png", figure)


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
