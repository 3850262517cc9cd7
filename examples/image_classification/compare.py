"""Compares what each method keeps of the accuracy of ResNet-20 on CIFAR-10.

  python -m examples.image_classification.compare --data FOLDER

trains it dense, with L1, with gradual magnitude pruning, with ReWA at fixed
decays, and with ReWA and the Hadamard difference asked for 90, 95 and 98 %
zeros. Every finished run is pruned to each of these; of each method the
strength that is best on the images held back is tested. Stopped at any moment,
the same command goes on.

Writes results.json, table.md, frontier.png, layers.png and training.png of the
runs that are finished, after each. A run is a folder in runs/, which the other
programs here take too.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .. import kit, settings
from . import pictures, train, worth
from .config import Config, to_arguments
from .pipeline import open_data
from .plan import FAST, METHODS, ORDER, SPARSITIES, Run, plan

MODULE = "examples.image_classification.compare"


def main(argv: Sequence[str]) -> int:
  """Runs the program, and returns its exit status."""
  args = parse(argv)
  try:
    source = open_data(args.base)
  except (OSError, ValueError) as error:
    sys.exit(f"compare.py: {error}")
  order = FAST if args.fast else ORDER
  runs = plan(args.base, source.steps_per_epoch, args.seeds, order)
  wanted = [run for run in runs if run.method in (args.only or METHODS)]
  try:
    # Finished runs of other settings are not what is compared.
    for run in runs:
      settings.check(args.out / "runs" / run.name, run.config)
  except ValueError as error:
    sys.exit(f"compare.py: {error}")
  if args.list:
    for run in wanted:
      print(f"{_progress(args.out / 'runs' / run.name):<9}  {run.name}")
    return 0
  report(args.out, runs, argv)
  for run in wanted:
    folder = args.out / "runs" / run.name
    if _progress(folder) != "finished":
      status = train_one(run, folder)
      if status:
        return status
      report(args.out, runs, argv)
  return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Reads the command line; adds `base`, settings that all runs share."""
  parser = kit.parser(__doc__, "results/resnet20_compared")
  add = parser.add_argument
  add("--data", help="folder of CIFAR-10, binary version")
  text = "of each run (default: %(default)s)"
  add("--epochs", type=kit.at_least(1), default=20, help=text)
  add("--seeds", type=kit.at_least(1), default=1, help=text)
  add(
    "--only",
    action="append",
    choices=METHODS,
    help="train only this method; may be repeated",
  )
  add("--list", action="store_true", help="say which runs are finished")
  add(
    "--fast",
    action="store_true",
    help="minutes: ResNet-8 on scikit-learn's digits, one strength of each but"
    " the difference, which needs more steps",
  )
  args = parser.parse_args(argv)
  if args.fast and "difference" in (args.only or ()):
    parser.error("--fast has too few steps for the difference")
  if bool(args.data) == args.fast:
    parser.error("give --data, or --fast, which has digits")
  common = {"epochs": args.epochs, "warmup_epochs": args.epochs / 20}
  args.base = (
    Config(**common, model="resnet8", held_back=200, checkpoint_epochs=5)
    if args.fast
    else Config(
      **common,
      data=args.data,
      model="resnet20",
      augment="crop-flip",
      held_back=5000,
    )
  )
  return args


def train_one(run: Run, folder: pathlib.Path) -> int:
  """Trains a run, from where it stopped, and returns the exit status."""
  print(f"{run.name}:", file=sys.stderr, flush=True)
  try:
    settings.write(folder, run.config)
    return train.train(run.config, folder, to_arguments(run.config))
  except FloatingPointError as error:
    # The others go on.
    print(f"{run.name}: {error}", file=sys.stderr, flush=True)
    return 0
  except (OSError, ValueError) as error:
    sys.exit(f"compare.py: {error}")


def report(out: pathlib.Path, runs: list[Run], argv: Sequence[str]) -> None:
  """Judges the finished runs, tests the best, and writes what came of it."""
  done = [r for r in runs if _progress(out / "runs" / r.name) == "finished"]
  if not done:
    return
  judged = {
    run.name: worth.judge(out / "runs" / run.name, SPARSITIES) for run in done
  }
  chosen = {
    method: {
      sparsity: choose(out / "runs", of_method, judged, number)
      for number, sparsity in enumerate(SPARSITIES)
    }
    for method in METHODS
    if (of_method := [run for run in done if run.method == method])
  }
  rows = [_describe(run, out / "runs" / run.name) for run in done]
  made = kit.provenance(MODULE, argv, "flax")
  results = {
    **made,
    "finished": f"{len(done)} of {len(runs)}",
    "chosen": chosen,
    "runs": [row | {"pruned": judged[row["name"]]} for row in rows],
  }
  kit.write_json(out / "results.json", results)
  text = (
    f"{pictures.table(chosen)}\nTest accuracy in %; before: of the same"
    f" networks, unpruned. {len(done)} of {len(runs)} runs are finished.\n"
  )
  print(text, flush=True)
  kit.write(out / "table.md", text + kit.made_by(made))
  kit.write_figure(out / "frontier.png", pictures.frontier(chosen))
  kit.write_figure(out / "layers.png", pictures.layers(chosen))
  first = [row for run, row in zip(done, rows) if not run.config.seed]
  kit.write_figure(out / "training.png", pictures.training(first))


def choose(
  folder: pathlib.Path,
  runs: list[Run],
  judged: dict[str, worth.Rows],
  number: int,
) -> dict[str, Any]:
  """Tests the strength of a method that is best on the images held back.

  Args:
    folder: holds those of the runs.
    runs: those of one method.
    judged: rows by name of run.
    number: which row, that is, which sparsity.

  Returns:
    The strength, accuracies as lists over seeds, and the weights left in each
    layer of the first seed.
  """
  by_strength: dict[float, list[Run]] = {}
  for run in runs:
    by_strength.setdefault(run.strength, []).append(run)

  def validation(strength):
    return [judged[r.name][number]["validation"] for r in by_strength[strength]]

  best = max(by_strength, key=lambda strength: np.mean(validation(strength)))
  first = judged[by_strength[best][0].name][number]
  return {
    "strength": best,
    "validation": validation(best),
    "test": [
      worth.test(folder / run.name, first["sparsity"])
      for run in by_strength[best]
    ],
    "unpruned": [
      _describe(run, folder / run.name)["unpruned"] for run in by_strength[best]
    ],
    "nonzero": first["nonzero"],
    "of": first["of"],
  }


def _progress(folder):
  if (folder / "results.json").exists():
    return "finished"
  return "begun" if (folder / "config.json").exists() else "not begun"


def _describe(run, folder):
  results = json.loads((folder / "results.json").read_text())
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  as_trained = results.get("cut", {}).get("before", results)
  return {
    "name": run.name,
    "method": run.method,
    "strength": run.strength,
    "unpruned": as_trained["test"]["accuracy"],
    "seconds": results["seconds"],
    "images_per_second": results["images_per_second"],
    "curve": [x["accuracy"] for x in lines if x["kind"] == "validation"],
  }


if __name__ == "__main__":
  # Two devices share a step of ResNet-20 better than the threads of one.
  jax.config.update("jax_num_cpu_devices", kit.cpu_devices(2))
  kit.leave_on_ctrl_c("the same command goes on.")
  sys.exit(main(sys.argv[1:]))
