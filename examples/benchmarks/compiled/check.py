"""Compiles again, and fails where a count is worse than the committed one.

Kernels, bytes moved and held, conditionals, flops and bytes exchanged may grow
by a hundredth. Made for a new version of JAX or of rewa_jax; the one after it
has its results committed by hand.

  python -m examples.benchmarks.compiled.check --target h100 --part optimizer
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from ... import kit
from . import table

COMMITTED = pathlib.Path(__file__).parents[1] / "results" / "compiled"
COUNTS = (
  *("kernels", "bytes", "temporary", "not_in_place", "conditionals"),
  *("bytes_per_device", "flops", "exchanged"),
)
SLACK = 1.01


def worse(now: dict, before: dict) -> Iterator[tuple[str, float, float]]:
  """Yields name, committed and present value of every count that is worse."""
  if "error" in now and "error" not in before:
    yield now["error"], 0, 1
  for name in COUNTS:
    old, new = (_number(row.get(name)) for row in (before, now))
    if new > SLACK * old and name in before:
      yield name, old, new


def _number(value):
  return sum(value.values()) if isinstance(value, dict) else value or 0


def main(argv: Sequence[str]) -> int:
  """Runs the program, and returns its exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  text = "folder of the tables to compare with (default: those committed)"
  add = parser.add_argument
  add("--results", type=pathlib.Path, default=COMMITTED, help=text)
  table.add_choices(parser)
  args = parser.parse_args(argv)
  with kit.in_a_sentence():
    text = (args.results / f"{args.target}.json").read_text()
    committed = json.loads(text)["tables"]
  rows = [
    (name, step, *found)
    for name, steps in table.compile_all(args.target, args.part).items()
    for step, count in tqdm(steps.items(), name, unit="program")
    if step in committed.get(name, {})
    for found in worse(table.attempt(count), committed[name][step])
  ]
  print(kit.markdown(("table", "step", "count", "committed", "now"), rows))
  return int(bool(rows))


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  sys.exit(main(sys.argv[1:]))
