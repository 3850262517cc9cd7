"""Measures again, and fails where a ratio is worse than the committed one.

Optimizer steps on ResNet-18's parameters, the training step of ResNet-20 and
the grid, with fewer turns. A ratio more than a quarter above that of the
committed results, or another folder of --results, makes the exit status 1. For
a machine that does nothing else.

  python -m examples.benchmarks.check
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import kit
from . import grids, optimizer_step, training_step

COMMITTED = pathlib.Path(__file__).parent / "results"
METHODS = ("rewa_sgd", "drop-in", "rewa_adamw")
SLACK = 1.25


def ratios(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """Yields name and value of each ratio that is checked."""
  for name, row in results["optimizer"].items():
    if name.startswith(METHODS):
      yield f"optimizer step, {name}", row["ratio"]
  for way, row in results["training"].items():
    for key in ("time_ratio", "memory_ratio", "compile_ratio"):
      if way != "dense":
        yield f"training step, {way}, {key}", row[key]
  yield "grid", results["grids"]["grid"]["ratio"]


def committed(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the committed results, in the form of :func:`measured`."""

  def read(name):
    return json.loads((folder / f"{name}.json").read_text())

  return {
    "optimizer": read("optimizer_step_drop_in")["trees"]["resnet18"]["methods"],
    "training": read("training_step_resnet20")["ways"],
    "grids": read("grids")["ways"],
  }


def measured() -> dict[str, Any]:
  names = [n for n in optimizer_step.methods() if n.startswith(METHODS)]
  quick = training_step.parse(["--turns", "5", "--compilations", "5"])
  return {
    "optimizer": optimizer_step.measure("resnet18", names, 5)["methods"],
    "training": training_step.measure(quick),
    "grids": grids.measure(steps=1000, turns=1),
  }


def compare(
  now: Mapping[str, Any], before: Mapping[str, Any]
) -> list[tuple[str, float, float, str]]:
  """Returns a row for each ratio: name, committed, measured and a verdict."""
  known = dict(ratios(before))
  return [
    (
      name,
      known[name],
      ratio,
      "worse" if ratio > SLACK * known[name] else "fine",
    )
    for name, ratio in ratios(now)
  ]


def main(argv: Sequence[str]) -> int:
  """Runs the program, and returns its exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  text = "folder of the results to compare with (default: those committed)"
  add = parser.add_argument
  add("--results", type=pathlib.Path, default=COMMITTED, help=text)
  args = parser.parse_args(argv)
  with kit.in_a_sentence():
    before = committed(args.results)
  rows = compare(measured(), before)
  print(kit.markdown(("ratio", "committed", "measured", ""), rows))
  return int(any(row[-1] == "worse" for row in rows))


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  sys.exit(main(sys.argv[1:]))
