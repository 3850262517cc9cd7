"""Steps that take turns, so that they share whatever else the machine does."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from .. import kit

Step = Callable[[Any], Any]


def add_options(parser: argparse.ArgumentParser, turns: int, text: str) -> None:
  """Adds --turns, of which text says what is timed, and --repeat."""
  count = kit.at_least(1)
  parser.add_argument("--turns", type=count, default=turns, help=text)
  text = "steps a program (default: 1)"
  parser.add_argument("--repeat", type=count, default=1, help=text)


def repeated(step: Step, repeat: int) -> Step:
  """Returns so many steps as one: a GPU is faster than Python starts them."""
  if repeat == 1:
    return step
  return lambda carry: jax.lax.fori_loop(
    0, repeat, lambda _, carry: step(carry), carry
  )


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
