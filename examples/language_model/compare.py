"""Compares what sparse language models are worth, method by method.

AdamW and one cut at the end; AdamW with gradual magnitude pruning; with
proximal steps of L1; ReWA with a fixed weight decay; ReWA, or the difference of
squares, asked for a sparsity.
All have the same model, text, batches and number of updates. By validation loss
short runs choose two learning rates for every method, and whole runs one of
them: of a method that is compared sparse by its loss at 90 % zeros. Gradual
pruning and decay by rank have a run for each sparsity; runs of the others are
cut to each, and of these the best on validation is taken.

Every run is a folder in --out/runs, as train.py writes it. Stopped, by Ctrl-C
or kill -9, and started again, it goes on from the last checkpoint. Of what is
finished it writes results.json, table.md and loss.png.

  python -m examples.language_model.compare --fast
"""

import argparse
import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from .. import kit, settings
from ..parallel import Jit
from . import report
from .config import PRESETS, Config, check, from_arguments
from .data import Source, open_source
from .evaluate import Judge, cut, make_judge
from .plan import LABELS, OF_UNITS, RATES, SPARSITIES, STRENGTHS, Plan, Run
from .state import make_setup
from .train import load, train

PROGRAM = "examples.language_model.compare"
# What the plan decides.
PLANNED = (
  *("method", "sparsity", "groups", "way", "learning_rate", "weight_decay"),
  *("l1", "start", "latents"),
)
FAST = {
  **{"layers": 1, "width": 32, "heads": 2, "hidden": 64, "context": 32},
  **{"batch_size": 16, "steps": 120, "evaluate": 4096, "evaluate_steps": 120},
  "checkpoint_steps": 120,
}
PARTS = ("validation", "test", "other")


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Reads the command line; args.base has the settings common to all runs."""
  parser = kit.parser(__doc__, "results/language_model")
  add = parser.add_argument
  add(
    "--only",
    action="append",
    choices=tuple(LABELS),
    help="only this method; may be repeated",
  )
  add("--list", action="store_true", help="say what is finished, and end")
  add(
    "--fast",
    action="store_true",
    help="within a few minutes: a small model, two sparsities, one learning"
    " rate and strength, no difference, which needs more steps than that",
  )
  settings.add_arguments(parser, Config, PRESETS, "tiny", without=PLANNED)
  args = parser.parse_args(argv)
  try:
    args.base = from_arguments(args)
  except ValueError as error:
    parser.error(str(error))
  first = {name: values[1:2] for name, values in RATES.items()}
  one = {name: values[:1] for name, values in STRENGTHS.items()}
  plan = (SPARSITIES, OF_UNITS, RATES, STRENGTHS)
  if args.fast:
    given = {name: getattr(args, name) for name in FAST}
    values = {n: FAST[n] if x is None else x for n, x in given.items()}
    args.base = dataclasses.replace(args.base, **values)
    plan = ((0.5, 0.9), (0.5,), first, one)
  try:
    check(args.base)
  except ValueError as error:
    parser.error(str(error))
  args.plan = Plan(*plan, steps=args.base.steps, mid=0.9, k=args.base.k)
  # Two of them start from what AdamW trained.
  wanted = set(args.only or LABELS)
  wanted -= {"difference"} if args.fast and not args.only else set()
  wanted |= {"dense"} if wanted & {"drop-in", "dense-units"} else set()
  # Runs of units take the learning rate that others tune.
  tuned = {name.removesuffix("-units") for name in wanted}
  args.runs = [
    run
    for run in args.plan.runs()
    if run.method in wanted or (run.tunes and run.method in tuned)
  ]
  return args


def main(argv: Sequence[str]) -> None:
  """Runs the program."""
  args = parse(argv)
  try:
    if args.list:
      print(listed(args))
      return
    source = open_source(args.base, args.out)
    source.save_tokenizer(args.out)
    compare(args, source, kit.provenance(PROGRAM, argv, "flax"))
  except (ValueError, OSError, FloatingPointError) as error:
    sys.exit(f"compare.py: {error}")
  print((args.out / "table.md").read_text() + f"Written to {args.out}.")


def compare(args, source: Source, made: dict[str, Any]) -> None:
  """Trains what is not finished yet, and reports after every run."""
  vocabulary = len(source.vocabulary.bytes_of)
  judge = make_judge(
    args.base, make_setup(args.base, vocabulary), source, Jit()
  )
  tried: set[str] = set()
  for run in args.runs:
    if run.tuned_as not in tried:
      tried.add(run.tuned_as)
      for trial in args.plan.trials(run.tuned_as):
        finish(args, trial, source, judge)
    for each in resolve(args, run):
      finish(args, each, source, judge)
    rows = [
      row
      for planned in args.plan.runs()
      for each in resolve(args, planned)
      if is_finished(args, each) and not has_diverged(args, each)
      for row in worth(args, each, source, judge)
    ]
    if rows:
      report.write(args.out, rows, rates(args), LABELS, made)


def finish(args, run: Run, source: Source, judge: Judge) -> None:
  """Trains a run, or what is missing of it."""
  if is_finished(args, run):
    return
  folder = folder_of(args, run)
  try:
    train(config_of(args, run), folder, [f"--out {run.name}"], source)
    if run.sparsities:
      worth(args, run, source, judge)
  except FloatingPointError as error:
    # It loses, and the others go on.
    kit.write_json(folder / "results.json", {"diverged": str(error)})
  # Every run compiles its own step.
  jax.clear_caches()


def config_of(args, run: Run) -> Config:
  return dataclasses.replace(args.base, **run.settings)


def folder_of(args, run: Run) -> pathlib.Path:
  return args.out / "runs" / run.name


def outcome(args, run: Run) -> dict[str, Any]:
  """Returns the results of a run, or nothing before its end."""
  return kit.read_json(folder_of(args, run) / "results.json", {})


def has_diverged(args, run: Run) -> bool:
  return "diverged" in outcome(args, run)


def is_finished(args, run: Run) -> bool:
  """Says whether a run is finished; raises if it has other settings."""
  settings.check(folder_of(args, run), config_of(args, run))
  if run.method in args.plan.strengths and not has_diverged(args, run):
    return worth_of(args, run).exists()
  return bool(outcome(args, run))


def worth_of(args, run: Run) -> pathlib.Path:
  name = "worth" if run.groups == "none" else "units"
  return folder_of(args, run) / f"{name}.json"


def resolve(args, run: Run) -> list[Run]:
  """Returns a planned run with its learning rate, or the two that compete.

  Nothing while what chooses the rate is not finished.
  """
  if run.tunes:
    ranked = best_rates(args, args.plan.trials(run.method))
    return [run.at(rate) for rate in ranked[:2]]
  dense = args.plan.runs()[0]
  if run.method == "dense-units":
    return [
      run._replace(name=each.name, settings=each.settings)
      for each in resolve(args, dense)
    ]
  rate = rates(args).get("dense" if run.method == "drop-in" else run.tuned_as)
  if rate is None:
    return []
  changes: dict[str, Any] = {"learning_rate": rate}
  if run.method == "drop-in":
    trained = dense.at(rate) if dense.tunes else dense
    changes = {"start": str(folder_of(args, trained))}
  return [run._replace(settings=run.settings | changes)]


def rates(args) -> dict[str, float]:
  """Returns the learning rate of every method that has been tuned."""
  chosen = {}
  for method, values in args.plan.rates.items():
    first = next(r for r in args.plan.runs() if r.method == method)
    ranked = (
      best_rates(args, resolve(args, first)) if first.tunes else list(values)
    )
    if ranked:
      chosen[method] = ranked[0]
  return chosen


def best_rates(args, runs: Sequence[Run]) -> list[float]:
  """Returns the rates of runs, the best first, or none before all are done."""
  if not all(is_finished(args, run) for run in runs):
    return []

  def loss(run):
    if has_diverged(args, run):
      return math.inf
    judged = outcome(args, run)
    if run.method in args.plan.strengths:
      # Those are cut when they are compared, the others have been.
      rows = kit.read_json(worth_of(args, run), {})["rows"]
      judged = next(r for r in rows if r["sparsity"] == args.plan.mid)
    return judged["validation"]["nats_per_byte"]

  return [run.settings["learning_rate"] for run in sorted(runs, key=loss)]


def worth(args, run: Run, source: Source, judge: Judge) -> list[dict[str, Any]]:
  """Returns what a finished run comes to at every sparsity it is for."""
  folder, path = folder_of(args, run), worth_of(args, run)
  parts = [part for part in PARTS if part in source.parts]
  same = {"sparsities": list(run.sparsities), "parts": parts}
  stored = kit.read_json(path, same)
  if not stored:
    weights = load(folder, source)
    rows = []
    # Whole, too, where that is another network.
    whole = len(run.sparsities) > 1 and run.groups == "none"
    for sparsity in (*([0.0] if whole else []), *run.sparsities):
      pruned = cut(weights, sparsity, run.groups)[0] if sparsity else weights
      rows.append(
        {"sparsity": sparsity, **{part: judge(pruned, part) for part in parts}}
      )
    stored = {**same, "rows": rows}
    kit.write_json(path, stored)
  config = settings.read(folder, Config)
  rate = {"learning_rate": config.learning_rate}
  strength = config.l1 if run.method == "l1" else config.weight_decay
  return [
    {"run": run.name, "method": run.method, **rate, "strength": strength, **row}
    for row in stored["rows"]
  ]


def listed(args) -> str:
  """Says of every run whether it is finished, and how far it is."""
  lines, tried = [], set()
  for run in args.runs:
    trials = [] if run.tuned_as in tried else args.plan.trials(run.tuned_as)
    tried.add(run.tuned_as)
    for each in (*trials, *(resolve(args, run) or [run])):
      folder = folder_of(args, each)
      steps = each.settings.get("steps", args.base.steps)
      saved = [
        int(path.name)
        for path in (folder / "checkpoints").glob("*")
        if path.name.isdigit()
      ]
      state = f"{max(saved, default=0)} of {steps} steps"
      if (folder / "results.json").exists():
        state = "finished"
      lines.append(f"{each.name:22} {state}")
  return "\n".join(lines)


if __name__ == "__main__":
  # Devices for the cores: elementwise work of one device keeps to one core.
  jax.config.update("jax_num_cpu_devices", kit.cpu_devices(16))
  kit.leave_on_ctrl_c("the same command goes on from the last checkpoint.")
  main(sys.argv[1:])
