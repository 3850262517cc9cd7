"""Steps that take turns, so that they share whatever else the machine does."""

import json
import pathlib
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..provenance import provenance

Step = Callable[[Any], Any]


def take_turns(
  steps: dict[str, Step],
  carries: dict[str, Any],
  turns: int,
  *,
  progress: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
  """Returns the median seconds of each step.

  The order changes from turn to turn. Two turns go before, uncounted.

  Args:
    steps: functions of a carry that return the next one; they may donate it.
    carries: what each step starts from; the dict is emptied.
    turns: how often each step is timed.
    progress: called after every turn.
  """
  names = list(steps)
  now = {name: carries.pop(name) for name in names}
  times: dict[str, list[float]] = {name: [] for name in names}
  for turn in range(-2, turns):
    for number in range(len(names)):
      name = names[(number + turn) % len(names)]
      begin = time.perf_counter()
      now[name] = jax.block_until_ready(steps[name](now[name]))
      if turn >= 0:
        times[name].append(time.perf_counter() - begin)
    progress()
  return {name: statistics.median(times[name]) for name in names}


def save(
  path: pathlib.Path, program: str, argv: Sequence[str], results: Any
) -> None:
  """Writes results as JSON with the command, machine, versions and date."""
  path.parent.mkdir(parents=True, exist_ok=True)
  command = shlex.join(
    ["python", "-m", f"examples.benchmarks.{program}", *argv]
  )
  everything = {"command": command, **provenance("flax"), **results}
  path.write_text(json.dumps(everything, indent=1) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns rows as a markdown table; floats get three digits."""
  cells = [
    [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
    for row in rows
  ]
  lines = [columns, ["---"] * len(columns), *cells]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
