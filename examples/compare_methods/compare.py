"""Compares the sparsity methods of the field on one network and data set.

Every method gets the same steps and batches and a grid of the same size over
its own strength and learning rate, which trains as one compiled vmap. Every
network of the grid is pruned at every threshold of one list, and the pair with
the highest compression whose accuracy on validation images is at most 1, 2
or 4 points below the dense network's is chosen. What was chosen is trained anew
from other seeds and tested once.

Reads the IDX files of MNIST or of a data set in its format from --data, or
takes scikit-learn's digits, enlarged to 28 x 28. Writes results.csv, table.md,
curves.png and, for every method, a JSON, to a folder in --out for the network;
one that holds finished methods is continued.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

import rewa_jax

from .. import idx, kit
from . import tables
from .methods import METHODS
from .networks import NETWORKS
from .peers import peers
from .training import (
  BATCH_SIZE,
  CLIP,
  Data,
  describe_budgets,
  measure,
  train,
)

TOLERANCES = (0.01, 0.02, 0.04)
THRESHOLDS = (
  *(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 5e-3),
  *(1e-2, 1.5e-2, 2e-2, 3e-2, 4e-2, 5e-2, 6e-2, 7e-2, 8e-2),
  *(0.1, 0.12, 0.15, 0.2),
)
GRID_SEED, FINAL_SEEDS = 0, (1, 2, 3)
TIMED_STEPS = 100
MODULE = "examples.compare_methods.compare"
FAST = ("dense", "ReWA", "spred", "L1, proximal", "GMP")


def load_data(folder: pathlib.Path | None) -> Data:
  """Returns the parts; 5,000 training images, or a tenth, are held back."""
  if folder is not None:
    images, labels, *test = idx.load(folder)
  else:
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8) / 16, np.ones((3, 3)))
    images = np.pad(np.float32(images), ((0, 0), (2, 2), (2, 2)))
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order].astype(np.int32)
    test = [images[:400], labels[:400]]
    images, labels = images[400:], labels[400:]
  held_back = min(5000, len(labels) // 10)
  order = np.random.default_rng(1).permutation(len(labels))
  validation, rest = order[:held_back], order[held_back:]
  parts = (
    (images[rest], labels[rest]),
    (images[validation], labels[validation]),
    test,
  )
  return Data(*(tuple(map(jnp.asarray, part)) for part in parts))


def choose(
  grid: dict[str, Any], least_accuracy: float
) -> tuple[int, int] | None:
  """Returns the sparsest (threshold, cell) that is accurate enough."""
  accuracy, nonzero = map(np.array, (grid["accuracy"], grid["nonzero"]))
  good = accuracy >= least_accuracy
  if not good.any():
    return None
  nonzero = np.where(good, nonzero, np.inf)
  # Of equally sparse ones the most accurate.
  best = np.lexsort((-accuracy.ravel(), nonzero.ravel()))[0]
  return divmod(int(best), accuracy.shape[1])


def tune(network, recipe, data, epochs, pilot, advance) -> dict[str, Any]:
  """Trains the grid, and measures it on validation images."""
  cells = [(s, r) for s in recipe.strengths for r in recipe.rates]
  trained = train(
    network,
    recipe,
    cells,
    data,
    seed=GRID_SEED,
    epochs=epochs,
    pilot=pilot,
    advance=advance,
  )
  measured = measure(
    network, trained.weights, jnp.array(THRESHOLDS), *data.validation
  )
  steps = epochs * (len(data.train[1]) // BATCH_SIZE) * len(cells)
  first = jax.tree.map(lambda leaf: leaf[0], trained.weights)
  return {
    "grid": {
      "cells": cells,
      "size": rewa_jax.sparsity(first).total_size,
      **{name: values.tolist() for name, values in measured.items()},
    },
    "milliseconds_per_step": 1e3 * trained.seconds / steps,
    "bytes": trained.bytes,
    "weights": trained.weights,
  }


def test(
  network, recipe, data, grid, picks, epochs, pilots, seeds, advance
) -> list[dict[str, Any]]:
  """Trains the chosen cells from other seeds, and measures them on test."""
  found = {t: pick for t, pick in picks.items() if pick is not None}
  chosen = sorted({cell for _, cell in found.values()})
  if not chosen:
    return []
  cells = [grid["cells"][cell] for cell in chosen]
  indices = sorted({threshold for threshold, _ in found.values()})
  thresholds = jnp.array([THRESHOLDS[i] for i in indices])
  measures = []
  for seed in seeds:
    trained = train(
      network,
      recipe,
      cells,
      data,
      seed=seed,
      epochs=epochs,
      pilot=pilots.get(seed),
      advance=advance,
    )
    measured = measure(network, trained.weights, thresholds, *data.test)
    measures.append(jax.tree.map(np.asarray, measured))
  rows = []
  for tolerance, (threshold, cell) in found.items():
    at = indices.index(threshold), chosen.index(cell)
    strength, rate = grid["cells"][cell]
    rows.append(
      {
        "tolerance": tolerance,
        "strength": strength,
        "rate": rate,
        "threshold": THRESHOLDS[threshold],
        "validation_accuracy": grid["accuracy"][threshold][cell],
        "size": grid["size"],
        "test_accuracy": [float(m["accuracy"][at]) for m in measures],
        "nonzero": [int(m["nonzero"][at]) for m in measures],
        "structured": [int(m["structured"][at]) for m in measures],
      }
    )
  return rows


def train_pilots(network, recipe, data, grid, epochs, seeds, advance):
  """Trains the most accurate dense network from every seed."""
  cell = grid["cells"][int(np.argmax(grid["accuracy"][0]))]
  pilots = {}
  for seed in seeds:
    trained = train(
      network,
      recipe,
      [cell],
      data,
      seed=seed,
      epochs=epochs,
      pilot=None,
      advance=advance,
    )
    pilots[seed] = jax.tree.map(lambda leaf: leaf[0], trained.weights)
  return pilots


def read_pilots(path, like) -> dict[int, Any]:
  with np.load(path, allow_pickle=False) as file:
    leaves = {name: file[name] for name in file.files}
  treedef = jax.tree.structure(like)
  seeds = {int(name.split("-")[0]) for name in leaves}
  return {
    seed: treedef.unflatten(
      leaves[f"{seed}-{i}"] for i in range(treedef.num_leaves)
    )
    for seed in seeds
  }


def write_pilots(path, pilots) -> None:
  leaves = {
    f"{seed}-{i}": leaf
    for seed, weights in pilots.items()
    for i, leaf in enumerate(jax.tree.leaves(weights))
  }
  content = io.BytesIO()
  np.savez(content, **leaves)
  kit.write(path, content.getvalue())


def write_json(path: pathlib.Path, content: Any) -> None:
  text = json.dumps(content, indent=1)
  # A line for each innermost list, of which there are many.
  text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
  kit.write(path, text + "\n")


def file_name(method: str) -> str:
  return re.sub(r"\W+", "_", method.lower()).strip("_") + ".json"


def parse(argv) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/compare_methods")
  add = parser.add_argument
  add(
    "--network",
    choices=tuple(METHODS),
    default="lenet300",
    help="LeNet-300-100 with every method, or LeNet-5 with the main ones and"
    " a smaller grid (default: %(default)s)",
  )
  add("--data", type=pathlib.Path, help="folder of IDX files (default: digits)")
  add(
    "--epochs",
    type=int,
    help="passes over the training images (default: 12, with --fast 1; over"
    " digits 100, with --fast 15)",
  )
  add(
    "--only",
    action="append",
    metavar="METHOD",
    help="compare only this method with the dense network; may be repeated",
  )
  add(
    "--fast",
    action="store_true",
    help="within a minute: five methods, one final seed",
  )
  add(
    "--time",
    action="store_true",
    help="train nothing: time the methods that --out holds anew, one right"
    " after the other, for a column of milliseconds measured in one go",
  )
  args = parser.parse_args(argv)
  known = METHODS[args.network]()
  if args.network == "lenet300":
    known |= peers()
  for name in args.only or ():
    if name not in known:
      parser.error(f"--only {name}: not one of {', '.join(known)}")
  names = args.only or (FAST if args.fast else known)
  args.recipes = {
    name: known[name] for name in known if name in names or name == "dense"
  }
  if args.epochs is None:
    slow, fast = (12, 1) if args.data else (100, 15)
    args.epochs = fast if args.fast else slow
  if args.epochs < 1:
    parser.error(f"--epochs must be at least 1, got {args.epochs}")
  args.out /= args.network
  # Timing anew is not what made the results.
  args.argv = [word for word in argv if word != "--time"]
  args.seeds = FINAL_SEEDS[:1] if args.fast else FINAL_SEEDS
  return args


def compare(args, network, data) -> dict[str, Any]:
  """Trains, chooses and tests every method that is not finished yet."""
  digest = hashlib.sha256(np.asarray(data.train[0]).tobytes()).hexdigest()
  common = {
    **{"network": args.network, "epochs": args.epochs, "data": digest[:16]},
    **{"batch_size": BATCH_SIZE, "clip": CLIP, "seeds": list(args.seeds)},
    "thresholds": list(THRESHOLDS),
  }
  passes = 1 + len(args.seeds)
  bar = tqdm(
    total=len(args.recipes) * passes * args.epochs, unit="epoch", smoothing=0.1
  )
  results, pilots, reference = {}, {}, None
  for done, (name, recipe) in enumerate(args.recipes.items(), 1):
    bar.set_description(name)
    settings = {
      **common,
      "strengths": list(recipe.strengths),
      "rates": list(recipe.rates),
    }
    path = args.out / file_name(name)
    pilot_path = args.out / "dense.npz"
    stored = json.loads(path.read_text()) if path.exists() else {}
    if stored.get("settings") == settings and (
      name != "dense" or pilot_path.exists()
    ):
      result = stored
    else:
      result = {"method": name, "settings": settings}
      result |= kit.provenance(MODULE, args.argv)
      if recipe.method:
        text = describe_budgets(network, recipe, data, args.epochs)
        bar.write(f"{name}: {text}")
      pilot = pilots.get(GRID_SEED)
      advance = bar.update
      tuned = tune(network, recipe, data, args.epochs, pilot, advance)
      del tuned["weights"]
      result |= tuned
      if name == "dense":
        pilots = train_pilots(
          network,
          recipe,
          data,
          result["grid"],
          args.epochs,
          (GRID_SEED, *args.seeds),
          lambda: None,
        )
        write_pilots(pilot_path, pilots)
        result["validation_accuracy"] = float(
          np.max(result["grid"]["accuracy"][0])
        )
        result["test_accuracy"] = [
          float(
            measure(
              network,
              jax.tree.map(lambda leaf: leaf[None], pilots[seed]),
              jnp.zeros(1),
              *data.test,
            )["accuracy"][0, 0]
          )
          for seed in args.seeds
        ]
      least = (reference or result)["validation_accuracy"]
      picks = {t: choose(result["grid"], least - t) for t in TOLERANCES}
      result["chosen"] = test(
        network,
        recipe,
        data,
        result["grid"],
        picks,
        args.epochs,
        pilots,
        args.seeds,
        advance,
      )
      write_json(path, result)
    if name == "dense":
      reference = result
      if not pilots:
        like = jax.eval_shape(
          network.init, jax.random.key(0), data.train[0][:1]
        )
        pilots = read_pilots(pilot_path, like)
    results[name] = result
    bar.update(done * passes * args.epochs - bar.n)
  bar.close()
  return results


def time_again(args, network, data) -> dict[str, Any]:
  """Times the first steps of finished methods, one right after the other."""
  paths = {name: args.out / file_name(name) for name in args.recipes}
  results = {
    name: json.loads(path.read_text())
    for name, path in paths.items()
    if path.exists()
  }
  if "dense" not in results:
    sys.exit(f"--time: {args.out} holds no finished comparison")
  images, labels = data.train
  steps = min(TIMED_STEPS, len(labels) // BATCH_SIZE)
  part = steps * BATCH_SIZE
  data = data._replace(train=(images[:part], labels[:part]))
  pilot = network.init(jax.random.key(0), images[:1])
  # Schedules of the whole run: in a short one GMP would sort all the time.
  planned = args.epochs * (len(labels) // BATCH_SIZE) // steps
  for name, result in tqdm(results.items()):
    recipe = args.recipes[name]
    cells = [(s, r) for s in recipe.strengths for r in recipe.rates]
    trained = train(
      network,
      recipe,
      cells,
      data,
      seed=GRID_SEED,
      epochs=1,
      pilot=pilot,
      advance=lambda: None,
      planned_epochs=planned,
    )
    seconds = trained.seconds / steps / len(cells)
    result["milliseconds_per_step"] = 1e3 * seconds
    write_json(paths[name], result)
  return results


def main(argv) -> None:
  args = parse(argv)
  data = load_data(args.data)
  network = NETWORKS[args.network](int(data.train[1].max()) + 1)
  results = (time_again if args.time else compare)(args, network, data)
  reference = results["dense"]
  dense = float(np.mean(reference["test_accuracy"]))
  epochs = reference["settings"]["epochs"]
  table = tables.to_markdown(results, dense)
  table += kit.made_by(kit.provenance(MODULE, args.argv))
  seeds = len(reference["test_accuracy"])
  title = f"{args.network}, {epochs} epochs, mean of {seeds} runs"
  rows = tables.rows(results)
  cells = [list(row.values()) for row in rows]
  kit.write_csv(args.out / "results.csv", tables.COLUMNS, cells)
  kit.write(args.out / "table.md", table)
  kit.write_figure(args.out / "curves.png", tables.plot(rows, dense, title))
  print(f"{table}Written to {args.out}.")


if __name__ == "__main__":
  # A device for every core: elementwise work of one device keeps to one core.
  jax.config.update("jax_num_cpu_devices", os.cpu_count())
  kit.leave_on_ctrl_c("the same command goes on after the last method.")
  main(sys.argv[1:])
