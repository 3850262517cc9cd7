"""Compares the sparsity methods of the field on one network and data set.

For every method a frontier: how accurate it is at every compression. A first
stage finds its learning rate by two strengths, of three rates and up to two
beyond an end that turns out best. A second trains eight strengths at that rate,
and two more beyond an end that is best, up to twice. Those that are best at 20,
50, 100, 200 or 400 times are trained anew from two other seeds. Every network
is pruned to every compression of one list; images held back choose, test images
are only reported. Then the eight best methods train long, with the same
strengths at the rate found.

Reads the IDX files of MNIST or of a data set in its format from --data, or
takes scikit-learn's digits, enlarged to 28 x 28. Writes table.md, frontiers.csv
and frontiers.png, and for every method a JSON of its trials, to a folder in
--out for the network; the same command goes on where it was stopped.
"""

import argparse
import functools
import hashlib
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from .. import idx, kit
from . import tables
from .frontier import (
  COMPRESSIONS,
  DECISIVE,
  UNPRUNED,
  Found,
  Trial,
  chosen_rungs,
  ends_reached,
  ranked_rates,
  score,
)
from .methods import MAIN, Recipe, methods
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

RUNGS, PROBES = range(8), (2, 5)
BEYOND, EXTENSIONS = 2, 2
RATE_SEED, SEEDS = 0, (1, 2, 3)
BEST = 8
EPOCHS = {"lenet300": (12, 60), "lenet5": (8, 20)}
MODULE = "examples.compare_methods.compare"
FAST = ("dense", "ReWA by rank", "ReWA", "GMP", "L1, proximal")


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


def digest_of(data: Data) -> str:
  """Returns what tells data sets apart, of the training images."""
  whole = hashlib.sha256(np.asarray(data.train[0]).tobytes())
  return whole.hexdigest()[:16]


def parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/compare_methods")
  add = parser.add_argument
  add(
    "--network",
    choices=tuple(NETWORKS),
    default="lenet300",
    help="LeNet-300-100 with every method, or LeNet-5 with the main ones"
    " (default: %(default)s)",
  )
  add("--data", type=pathlib.Path, help="folder of IDX files (default: digits)")
  add(
    "--epochs",
    type=int,
    nargs=2,
    metavar=("SHORT", "LONG"),
    help="passes over the training images, of all methods and of the best; no"
    " long training with a 0 (default: 12 60, of LeNet-5 8 20; over digits ten"
    " times as many)",
  )
  add(
    "--only",
    action="append",
    metavar="METHOD",
    help="compare only this method; may be repeated",
  )
  add(
    "--fast",
    action="store_true",
    help="within a minute or two: five methods, three strengths, one seed and"
    " 15 epochs over digits or one over --data, no long training",
  )
  args = parser.parse_args(argv)
  known = methods() | peers()
  for name in args.only or ():
    if name not in known:
      parser.error(f"--only {name}: not one of {', '.join(known)}")
  main = MAIN if args.network == "lenet5" else tuple(known)
  names = args.only or (FAST if args.fast else main)
  args.recipes = {n: known[n] for n in known if n in names or n == "dense"}
  if args.epochs is None:
    passes = 1 if args.data else 10
    args.epochs = [passes * epochs for epochs in EPOCHS[args.network]]
    if args.fast:
      args.epochs = [1 if args.data else 15, 0]
  if args.epochs[0] < 1 or args.epochs[1] < 0:
    parser.error(
      "--epochs must be at least 1 and at least 0, got"
      f" {args.epochs[0]} and {args.epochs[1]}"
    )
  if args.epochs[0] == args.epochs[1]:
    parser.error(f"--epochs must differ, got {args.epochs[0]} twice")
  args.out /= args.network
  args.argv = argv
  args.seeds = SEEDS[:1] if args.fast else SEEDS
  args.rungs = RUNGS[1::3] if args.fast else RUNGS
  args.extensions = 0 if args.fast else EXTENSIONS
  return args


class Trials:
  """The trials of a method, in a file; those that are there are not repeated.

  Attributes:
    all: the trials so far.
  """

  def __init__(self, path: pathlib.Path, settings: dict, made: dict):
    self._path = path
    self._content = made | settings | kit.read_json(path, settings)
    self.all: list[Trial] = self._content.setdefault("trials", [])

  def add(self, cells, seed, run: Callable[[Sequence, int], list[Trial]]):
    """Runs the cells, pairs of rung and rate, that have no trial of a seed."""
    there = {(t["rung"], t["rate"]) for t in self.all if t["seed"] == seed}
    missing = [cell for cell in cells if cell not in there]
    if missing:
      self.all += run(missing, seed)
      kit.write_json(self._path, self._content)

  def of(self, seeds: Sequence[int], rate: float | None = None) -> list[Trial]:
    """Returns the trials of some seeds, of all rates or of one."""
    return [
      trial
      for trial in self.all
      if trial["seed"] in seeds and rate in (None, trial["rate"])
    ]


def run_cells(network, recipe, data, epochs, pilot, name, cells, seed):
  """Trains pairs of rung and rate from a seed, and measures them."""
  strengths = [recipe.ladder(rung) for rung, _ in cells]
  pairs = [(s, rate) for s, (_, rate) in zip(strengths, cells)]
  title = f"{name}, seed {seed}, {len(cells)} trials"
  with tqdm(total=epochs, desc=title, unit="epoch", leave=False) as bar:
    if recipe.method and seed == SEEDS[0]:
      said = describe_budgets(network, recipe, pairs, data, epochs)
      bar.write(f"{name}: {said}")
    weights = train(
      network,
      recipe,
      pairs,
      data,
      seed=seed,
      epochs=epochs,
      pilot=pilot(seed) if recipe.from_pilot else None,
      advance=bar.update,
    )
  compressions = jnp.float32(COMPRESSIONS)
  parts = {
    "validation": measure(network, weights, compressions, *data.validation)
  }
  # What only chooses a rate is not tested.
  if seed != RATE_SEED:
    parts["test"] = measure(network, weights, compressions, *data.test)
  rounded = jax.tree.map(lambda x: np.float64(x).round(5).T.tolist(), parts)
  return [
    {"rung": rung, "strength": strength, "rate": rate, "seed": seed}
    | {part: measured["accuracy"][i] for part, measured in rounded.items()}
    | {"structured": rounded["validation"]["structured"][i]}
    for i, ((rung, rate), strength) in enumerate(zip(cells, strengths))
  ]


def find_rate(args, recipe: Recipe, trials: Trials, run, at) -> list[float]:
  """Tries learning rates; returns them, the best first."""
  rates = list(recipe.rates)
  for _ in range(1 + args.extensions):
    cells = [(rung, rate) for rate in rates for rung in PROBES]
    trials.add(cells, RATE_SEED, run)
    best, *others = ranked_rates(trials.of([RATE_SEED]), at)
    if not others or min(others) < best < max(others):
      break
    rates.append(best / 2 if best < min(others) else 2 * best)
  return [best, *others]


def search(
  args, recipe: Recipe, trials: Trials, run, rates=None, at=DECISIVE
) -> Found:
  """Finds a rate, if none are given, and trains what makes a frontier."""
  rates = rates or find_rate(args, recipe, trials, run, at)
  rate = rates[0]
  first, *others = args.seeds
  rungs = list(args.rungs)
  for _ in range(1 + args.extensions):
    trials.add([(rung, rate) for rung in rungs], first, run)
    weakest, strongest = ends_reached(trials.of([first], rate), at)
    low, high = min(rungs), max(rungs)
    rungs += range(low - BEYOND * weakest, low)
    rungs += range(high + 1, high + 1 + BEYOND * strongest)
  chosen = sorted(set(chosen_rungs(trials.of([first], rate), at)))
  for seed in others:
    trials.add([(rung, rate) for rung in chosen], seed, run)
  return Found(rates, trials.of(args.seeds, rate))


def compare(
  args, network, data, epochs, stage, rates=None
) -> Iterator[tuple[str, Found]]:
  """Yields every method and what is found of it, the dense one first."""
  digest = digest_of(data)
  made = kit.provenance(MODULE, args.argv)
  dense, pilots = [], {}

  def pilot(seed):
    """The dense network of this seed that is most accurate unpruned."""
    if seed not in pilots:
      best = max(dense, key=lambda trial: trial["validation"][0])
      cell = best["strength"], best["rate"]
      with tqdm(total=epochs, desc="pilot", unit="epoch", leave=False) as bar:
        weights = train(
          *(network, args.recipes["dense"], [cell], data),
          **{"seed": seed, "epochs": epochs, "pilot": None},
          advance=bar.update,
        )
      pilots[seed] = jax.tree.map(lambda leaf: leaf[0], weights)
    return pilots[seed]

  names = tqdm([n for n in args.recipes if rates is None or n in rates])
  for name in names:
    names.set_description(f"{stage}, {name}")
    recipe = args.recipes[name]
    settings = {
      **{"method": name, "network": args.network, "epochs": epochs},
      **{"data": digest, "batch_size": BATCH_SIZE, "clip": CLIP},
      **{"compressions": list(COMPRESSIONS), "seeds": list(args.seeds)},
      "rates": list(recipe.rates),
      "strengths": [recipe.ladder(rung) for rung in args.rungs],
    }
    trials = Trials(args.out / stage / file_name(name), settings, made)
    run = functools.partial(
      run_cells, network, recipe, data, epochs, pilot, name
    )
    at = UNPRUNED if name == "dense" else DECISIVE
    found = search(args, recipe, trials, run, rates and rates[name], at)
    dense = dense or found.trials
    yield name, found


def file_name(method: str) -> str:
  return re.sub(r"\W+", "_", method.lower()).strip("_") + ".json"


def report(args, stages: dict[int, dict[str, Found]]) -> str:
  """Writes what is there so far; returns the table."""
  rows = tables.rows(stages, args.recipes)
  table = tables.to_markdown(rows)
  table += kit.made_by(kit.provenance(MODULE, args.argv))
  kit.write_csv(args.out / "frontiers.csv", *tables.to_csv(rows))
  kit.write(args.out / "table.md", table)
  kit.write_figure(args.out / "frontiers.png", tables.plot(rows))
  return table


def main(argv: Sequence[str]) -> None:
  args = parse(argv)
  with kit.in_a_sentence():
    data = load_data(args.data)
  network = NETWORKS[args.network](int(data.train[1].max()) + 1)
  short, long = args.epochs
  stages: dict[int, dict[str, Found]] = {short: {}}
  for name, found in compare(args, network, data, short, "short"):
    stages[short][name] = found
    table = report(args, stages)
  if long:
    scores = {name: score(f.trials) for name, f in stages[short].items()}
    rivals = sorted(scores.keys() - {"dense"}, key=scores.get)
    rates = {n: stages[short][n].rates for n in ("dense", *rivals[-BEST:])}
    stages[long] = {}
    for name, found in compare(args, network, data, long, "long", rates):
      stages[long][name] = found
      table = report(args, stages)
  print(f"{table}Written to {args.out}.")


if __name__ == "__main__":
  # Devices for the cores: elementwise work of one device keeps to one core.
  jax.config.update("jax_num_cpu_devices", kit.cpu_devices(len(RUNGS)))
  kit.leave_on_ctrl_c("the same command goes on after the last trials.")
  main(sys.argv[1:])
