"""Cuts dead heads and channels out of finished runs, and times what is left.

Heads and hidden channels without effect go, by `rewa_jax.deploy.compact`: those
that --groups units made zero. Both models are compared on the same tokens, and
timed in turns.

  python -m examples.language_model.train --method rewa --sparsity 0.5 \\
      --groups units --learning-rate 1e-2 --out results/half
  python -m examples.language_model.compact results/half

Writes compact.json and compact.md to --out.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

import rewa_jax
from rewa_jax import deploy

from .. import kit, settings
from ..benchmarks.timing import take_turns
from .config import Config
from .data import open_source, windows
from .model import kernels
from .state import make_setup
from .train import load

PROGRAM = "examples.language_model.compact"
# Of which module's kernel, along which axis, there is one for each.
UNITS = {"heads": ("attention/output", 0), "channels": ("mlp/output", 0)}


def main(argv: Sequence[str]) -> None:
  """Runs the program."""
  args = parse(argv)
  rows = []
  try:
    for run in tqdm(args.runs, unit="run"):
      rows.append(
        {"run": run.name, **measure(run, args.batch_size, args.turns)}
      )
  except (ValueError, OSError) as error:
    sys.exit(f"compact.py: {error}")
  made = kit.provenance(PROGRAM, argv, "flax")
  kit.write_json(args.out / "compact.json", {**made, "rows": rows})
  table = to_markdown(rows)
  kit.write(args.out / "compact.md", table + kit.made_by(made))
  print(f"{table}\nWritten to {args.out}.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Reads the command line."""
  parser = kit.parser(__doc__, "results/language_model_compact")
  add = parser.add_argument
  add("runs", type=pathlib.Path, nargs="+", help="folders of runs")
  add("--batch-size", type=int, default=8, help="sequences (default: 8)")
  add("--turns", type=int, default=30, help="of timing (default: 30)")
  args = parser.parse_args(argv)
  for name in ("batch_size", "turns"):
    if getattr(args, name) < 1:
      parser.error(f"{name} must be at least 1, got {getattr(args, name)}")
  return args


def measure(run: pathlib.Path, size: int, turns: int) -> dict[str, Any]:
  """Returns how large and fast a run's model is, whole and cut."""
  config = settings.read(run, Config)
  source = open_source(config, run)
  weights = jax.tree.map(jnp.asarray, load(run, source))
  setup = make_setup(config, len(source.vocabulary.bytes_of))
  apply = setup._replace(graph=setup.bare, method=None).apply
  rows = windows(source.parts["test"], config.context, size * config.context)
  tokens = jnp.asarray(rows[:, :-1])
  small = deploy.compact(apply, weights, tokens)
  forms = {
    "whole": (jax.jit(apply), weights),
    "small": (small.apply, small.params),
  }
  logits = {
    name: call(params, tokens) for name, (call, params) in forms.items()
  }
  seconds = take_turns(
    {
      name: lambda _, call=call, params=params: call(params, tokens)
      for name, (call, params) in forms.items()
    },
    dict.fromkeys(forms),
    turns,
  )
  return {
    "tokens": tokens.size,
    "largest_difference": float(
      jnp.abs(logits["whole"] - logits["small"]).max()
    ),
    **{
      name: {
        **{unit: number_of(unit, params) for unit in UNITS},
        "kernel_weights": rewa_jax.sparsity(params, mask=kernels).total_size,
        "ms": 1e3 * seconds[name],
      }
      for name, (_, params) in forms.items()
    },
  }


def number_of(unit: str, params: Any) -> int:
  """Returns how many heads or channels there are."""
  module, axis = UNITS[unit]
  return sum(
    leaf.shape[axis]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if module in jax.tree_util.keystr(path, simple=True, separator="/")
  )


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
  """Returns what is left of every run, and how fast that is."""
  lines = []
  for row in rows:
    whole, small = row["whole"], row["small"]
    cells = (f"{small[unit]} of {whole[unit]}" for unit in UNITS)
    left = small["kernel_weights"] / whole["kernel_weights"]
    faster = whole["ms"] / small["ms"]
    lines.append(
      (
        *(row["run"], *cells, f"{left:.1%}"),
        *(f"{whole['ms']:.1f}", f"{small['ms']:.1f}", f"{faster:.2f}x"),
        f"{row['largest_difference']:.0e}",
      )
    )
  columns = "run", *UNITS, "of the kernels' weights", "ms whole", "ms cut"
  return kit.markdown((*columns, "faster", "largest difference"), lines)


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
