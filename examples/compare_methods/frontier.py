"""From trials to frontiers: what a method keeps at every compression.

A trial is a network trained with one strength, rate and seed, pruned to each of
COMPRESSIONS: a dict with its rung, rate and seed, a list of validation
accuracies and, where it was tested, of test accuracies. Validation images alone
decide what stands on a frontier.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

COMPRESSIONS = (
  *(1, 7, 10, 14, 20, 28, 35, 50, 70, 100),
  *(140, 200, 280, 400, 560, 800),
)
# What strengths and rates are chosen for; those of dense networks, unpruned.
DECISIVE = (20, 50, 100, 200, 400)
UNPRUNED = (1,)

Trial = dict[str, Any]


class Found(NamedTuple):
  """What is found of a method.

  Attributes:
    rates: those that were tried, the best first.
    trials: of the best, tested.
  """

  rates: list[float]
  trials: list[Trial]


def ranked_rates(
  trials: Sequence[Trial], at: Sequence[int] = DECISIVE
) -> list[float]:
  """Returns the rates, those whose best trials are the most accurate first."""

  def score_of(rate):
    return score([trial for trial in trials if trial["rate"] == rate], at)

  rates = sorted({trial["rate"] for trial in trials})
  return sorted(rates, key=score_of, reverse=True)


def score(trials: Sequence[Trial], at: Sequence[int] = DECISIVE) -> float:
  """Returns the mean of the best validation accuracies at compressions."""
  accuracies = np.array([trial["validation"] for trial in trials])
  return float(accuracies[:, columns(at)].max(0).mean())


def columns(compressions: Sequence[int]) -> list[int]:
  """Returns where compressions are in COMPRESSIONS."""
  return [COMPRESSIONS.index(compression) for compression in compressions]


def chosen_rungs(
  trials: Sequence[Trial], at: Sequence[int] = DECISIVE
) -> list[int]:
  """Returns the rung that is best at each of the compressions.

  Of equally good ones the middle one, as where all are of no use.
  """
  rungs = sorted({trial["rung"] for trial in trials})
  means = np.array([_mean(trials, rung) for rung in rungs])[:, columns(at)]
  ties = [np.flatnonzero(column >= column.max()) for column in means.T]
  return [rungs[tie[len(tie) // 2]] for tie in ties]


def ends_reached(
  trials: Sequence[Trial], at: Sequence[int] = DECISIVE
) -> tuple[bool, bool]:
  """Says whether the weakest is best at first, the strongest at last."""
  rungs = {trial["rung"] for trial in trials}
  chosen = chosen_rungs(trials, at)
  return chosen[0] == min(rungs), chosen[-1] == max(rungs)


def frontier(trials: Sequence[Trial]) -> dict[str, np.ndarray]:
  """Returns what is best on validation images, at every compression.

  Args:
    trials: of one rate; rungs that lack a seed do not count.

  Returns:
    Arrays with a row for each compression: the rung, the mean validation
    accuracy, and of every seed the test accuracy and the compression when only
    whole channels are dropped.
  """
  of = {(trial["rung"], trial["seed"]): trial for trial in trials}
  rungs, seeds = (sorted(set(values)) for values in zip(*of))
  rungs = [r for r in rungs if all((r, seed) in of for seed in seeds)]
  means = np.array([_mean(trials, rung) for rung in rungs])
  picks = means.argmax(0)

  def of_picks(name):
    return np.array(
      [
        [of[rungs[pick], seed][name][i] for seed in seeds]
        for i, pick in enumerate(picks)
      ]
    )

  return {
    "rung": np.array(rungs)[picks],
    "validation": means.max(0),
    "test": of_picks("test"),
    "structured": of_picks("structured"),
  }


def _mean(trials, rung):
  return np.mean([t["validation"] for t in trials if t["rung"] == rung], 0)


def interval(values: Sequence[float]) -> float:
  """Returns half the width of Student's 95 % interval of the mean."""
  if len(values) < 2:
    return math.nan
  quantile = stats.t.ppf(0.975, len(values) - 1)
  return float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))


def compression_at(accuracies: Sequence[float], level: float) -> float:
  """Returns the highest compression that keeps an accuracy.

  Between compressions by interpolation, linear in the logarithm.

  Args:
    accuracies: one for each of COMPRESSIONS.
    level: the least accuracy.

  Returns:
    The compression; 0 where even the first is below, infinity where the last
    is not.
  """
  good = np.flatnonzero(np.asarray(accuracies) >= level)
  if not len(good):
    return 0.0
  i = good[-1]
  if i == len(COMPRESSIONS) - 1:
    return math.inf
  low, high = np.log(COMPRESSIONS[i : i + 2])
  share = (accuracies[i] - level) / (accuracies[i] - accuracies[i + 1])
  return float(np.exp(low + share * (high - low)))
