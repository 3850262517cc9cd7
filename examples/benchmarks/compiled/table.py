"""What the compilers of TPUs and GPUs make of optimizer and training steps.

Nothing runs: programs are compiled for devices that are not here, and what they
start, move and hold is counted in the result. Microseconds are bytes over the
memory bandwidth of the data sheet, a bound from below and no measurement. Needs
the extra tpu for TPUs and cuda for GPUs. Prints tables, and writes a JSON after
every program.

  python -m examples.benchmarks.compiled.table --target v5e
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from ... import kit
from . import counting, programs, targets

TREES = ("transformer", "resnet50")
PARTS = ("optimizer", "training")
OPTIMIZER = {
  "bytes_per_weight": "bytes a weight",
  "ratio": "times base",
  "kernels_per_leaf": "kernels a leaf",
  "kernels": "kernels",
  "temporary": "temporary, bytes",
  "not_in_place": "not in place",
  "microseconds": "µs",
}
TRAINING = {
  "bytes_per_device": "bytes a device",
  "memory_ratio": "times dense",
  "flops": "flops",
  "flops_ratio": "times dense",
  "kernels": "kernels",
  "collectives": "collectives",
  "exchanged_ratio": "their bytes, times dense",
}


def optimizer_row(step: programs.Step, tree: str, target: str) -> dict:
  """Returns the counts of an optimizer step."""
  program = programs.compile_optimizer_step(
    step, tree, targets.devices(target)[0]
  )
  work = counting.work(program.as_text())
  memory = program.memory_analysis()
  leaves = jax.tree.leaves(programs.shapes(tree))
  accessed = (program.cost_analysis() or {}).get("bytes accessed")
  return {
    "kernels": work.kernels,
    "kernels_per_leaf": round(work.kernels / len(leaves), 3),
    "bytes": work.moved,
    "bytes_per_weight": round(work.moved / sum(x.size for x in leaves), 3),
    "microseconds": round(1e6 * work.moved / targets.TARGETS[target].bandwidth),
    "conditionals": work.conditionals,
    "temporary": memory.temp_size_in_bytes,
    # The table of results itself; all else is where what is donated was.
    "not_in_place": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    # A GPU's compiler has no analysis.
    "bytes_of_compiler": accessed and round(accessed / work.accessed, 4),
  }


def training_row(compile: Callable[[], Any]) -> dict:
  """Returns the counts of a training step."""
  program = compile()
  work = counting.work(program.as_text())
  memory = program.memory_analysis()
  return {
    "bytes_per_device": memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
    "flops": (program.cost_analysis() or {}).get("flops"),
    "kernels": work.kernels,
    "conditionals": work.conditionals,
    "collectives": work.collectives,
    "exchanged": work.exchanged,
  }


def compile_all(
  target: str, parts: Sequence[str]
) -> dict[str, dict[str, Callable[[], dict]]]:
  """Returns a function for every row of every table."""
  tables = {}
  if "optimizer" in parts:
    for tree in TREES:
      tables[tree] = {
        name: lambda step=step, tree=tree: {
          "base": step.base,
          **optimizer_row(step, tree, target),
        }
        for name, step in programs.optimizer_steps().items()
        # Random bits of 161 leaves take some ten minutes to compile.
        if tree == "transformer" or step.dtype == jnp.float32
      }
  if "training" in parts:
    for name, ways in programs.training_steps(target).items():
      tables[name] = {
        way: lambda compile=compile: training_row(compile)
        for way, compile in ways.items()
      }
  return tables


def attempt(count: Callable[[], dict]) -> dict:
  """Returns a row, which says so of a program that does not compile."""
  try:
    return count()
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    return {"error": str(error).splitlines()[0][:200]}


def with_ratios(rows: dict[str, dict]) -> dict[str, dict]:
  """Returns rows beside the one that each is compared with."""
  first = next(iter(rows.values()))

  def beside(row, base):
    def ratio(a, b):
      return round(a / b, 4) if a and b else None

    if "bytes" in row:
      return {"ratio": ratio(row["bytes"], base["bytes"])}
    return {
      "memory_ratio": ratio(row["bytes_per_device"], base["bytes_per_device"]),
      "flops_ratio": ratio(row["flops"], base["flops"]),
      "exchanged_ratio": ratio(
        sum(row["exchanged"].values()), sum(base["exchanged"].values())
      ),
    }

  return {
    name: row
    if "error" in row
    else row | beside(row, rows.get(row.get("base"), first))
    for name, row in rows.items()
  }


def show(name: str, rows: dict[str, dict]) -> str:
  """Returns one table."""
  columns = OPTIMIZER if name in TREES else TRAINING
  cells = [
    (step, *(_cell(row.get(key, row.get("error"))) for key in columns))
    for step, row in rows.items()
  ]
  return f"\n{name}\n{kit.markdown(('step', *columns.values()), cells)}"


def _cell(value):
  if isinstance(value, dict):
    return ", ".join(f"{n} {kind}" for kind, n in value.items()) or "none"
  return "" if value is None else value


def add_choices(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--target", choices=targets.TARGETS, required=True)
  add("--part", choices=PARTS, nargs="+", default=PARTS)


def main(argv: Sequence[str]) -> None:
  parser = kit.parser(__doc__, "results/benchmarks/compiled")
  add_choices(parser)
  text = "keep the rows that are there, and compile what is missing"
  parser.add_argument("--resume", action="store_true", help=text)
  args = parser.parse_args(argv)
  path = args.out / f"{args.target}.json"
  before = json.loads(path.read_text()) if path.exists() else {}
  tables = before.get("tables", {})
  made = kit.provenance("examples.benchmarks.compiled.table", argv, "jaxlib")
  made["machine"] = "none: compiled for a device that is not here"
  for name, rows in compile_all(args.target, args.part).items():
    tables[name] = tables.get(name, {}) if args.resume else {}
    missing = {row: rows[row] for row in rows if row not in tables[name]}
    for row, count in tqdm(missing.items(), name, unit="program"):
      tables[name][row] = attempt(count)
      tables[name] = with_ratios(tables[name])
      kit.write_json(path, {**made, "tables": tables})
    print(show(name, tables[name]), flush=True)


if __name__ == "__main__":
  kit.leave_on_ctrl_c("--resume goes on after the last program.")
  main(sys.argv[1:])
