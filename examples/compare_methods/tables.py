"""The tables and the picture of a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from .. import kit
from .frontier import (
  COMPRESSIONS,
  DECISIVE,
  UNPRUNED,
  Found,
  columns,
  compression_at,
  ends_reached,
  frontier,
  interval,
)
from .methods import Recipe

BELOW = (0.01, 0.02)  # Dense, unpruned: accuracies to compare compressions at.
# Drawn in color; the others, in gray, are told apart by the table.
COLORED = (
  *("ReWA by rank", "ReWA", "Hadamard difference by rank"),
  *("Hadamard difference", "spred", "L1, proximal", "GMP"),
  "lp, clipped gradient",
)
COLUMNS = (
  *("method", "epochs", "compression", "strength", "rate"),
  *("validation_accuracy", "test_accuracy", "interval"),
  "structured_compression",
)


class Row(NamedTuple):
  """A method after some epochs.

  Attributes:
    method: its name.
    epochs: passes over the training images.
    rate: the learning rate found.
    strengths: the one chosen at every compression.
    frontier: validation and test accuracies by compression, and more.
    edges: what had its best at the end of what it was tuned over.
  """

  method: str
  epochs: int
  rate: float
  strengths: list[float]
  frontier: dict[str, np.ndarray]
  edges: list[str]


def rows(
  stages: Mapping[int, Mapping[str, Found]],
  recipes: Mapping[str, Recipe],
) -> list[Row]:
  """Returns a row for each method of each stage, the best first."""
  result = []
  for epochs, methods in stages.items():
    of_stage = []
    for name, (rates, trials) in methods.items():
      recipe, rate = recipes[name], rates[0]
      found = frontier(trials)
      at = UNPRUNED if name == "dense" else DECISIVE
      # As the search has it: of the seed that all strengths have.
      first = [t for t in trials if t["seed"] == trials[0]["seed"]]
      ends = dict(zip(("weakest", "strongest"), ends_reached(first, at)))
      edges = [end for end, reached in ends.items() if reached]
      if len(rates) > 1 and rate in (min(rates), max(rates)):
        edges.append("rate")
      strengths = [recipe.ladder(int(rung)) for rung in found["rung"]]
      of_stage.append(Row(name, epochs, rate, strengths, found, edges))
    result += sorted(of_stage, key=lambda row: -np.mean(_decisive(row)))
  return result


def _decisive(row):
  """Returns the mean test accuracies at DECISIVE."""
  return row.frontier["test"][columns(DECISIVE)].mean(1)


def _rivals(rows, epochs):
  return [r for r in rows if r.epochs == epochs and r.method != "dense"]


def levels(rows: Sequence[Row]) -> list[float]:
  """Returns the accuracies of BELOW: of dense networks of the same epochs."""
  dense = next(row for row in rows if row.method == "dense")
  return [dense.frontier["test"][0].mean() - below for below in BELOW]


def compressions(row: Row, level: float) -> str:
  """Says how sparse a method stays at an accuracy, and between which seeds."""
  each = [compression_at(seed, level) for seed in row.frontier["test"].T]
  middle = compression_at(row.frontier["test"].mean(1), level)
  if not middle:
    return "-"
  words = [
    f"over {COMPRESSIONS[-1]}" if np.isinf(x) else f"{x:.0f}"
    for x in (middle, min(each), max(each))
  ]
  if len(each) == 1:
    return f"{words[0]}x"
  return f"{words[0]}x ({words[1]} to {words[2]})"


def to_markdown(rows: Sequence[Row]) -> str:
  """Returns a table for each stage; the best of a column is bold."""
  text = ""
  for epochs in dict.fromkeys(row.epochs for row in rows):
    level = levels([row for row in rows if row.epochs == epochs])
    stage = _rivals(rows, epochs)
    if not stage:
      continue
    best = np.argmax([_decisive(row) for row in stage], 0)
    cells = []
    for i, row in enumerate(stage):
      accuracies = [
        f"{100 * np.mean(seeds):.2f} ± {100 * interval(seeds):.2f}"
        if len(seeds) > 1
        else f"{100 * seeds[0]:.2f}"
        for seeds in row.frontier["test"][columns(DECISIVE)]
      ]
      accuracies = [
        f"**{cell}**" if i == b else cell for cell, b in zip(accuracies, best)
      ]
      kept = [compressions(row, accuracy) for accuracy in level]
      edges = ", ".join(row.edges) or "-"
      cells.append([row.method, *accuracies, *kept, edges])
    heads = (
      *("method", *(f"{c}x" for c in DECISIVE)),
      *(f"{100 * below:.0f} below dense" for below in BELOW),
      "at an edge",
    )
    dense = 100 * (level[0] + BELOW[0])
    text += f"{epochs} epochs; dense, unpruned: {dense:.2f} %.\n\n"
    text += kit.markdown(heads, cells) + "\n"
  return text


def to_csv(rows: Sequence[Row]) -> tuple[Sequence[str], list[list[Any]]]:
  """Returns columns and a line for every method, stage and compression."""
  lines = []
  for row in rows:
    found = row.frontier
    for i, compression in enumerate(COMPRESSIONS):
      line = [row.method, row.epochs, compression, row.strengths[i], row.rate]
      test = found["test"][i]
      line += [float(found["validation"][i]), float(test.mean())]
      line += [interval(test), float(found["structured"][i].mean())]
      lines.append(line)
  return COLUMNS, lines


def plot(rows: Sequence[Row]) -> plt.Figure:
  """Draws accuracy over compression, a panel a stage, with intervals."""
  stages = list(dict.fromkeys(row.epochs for row in rows))
  fig, axes = plt.subplots(
    1,
    len(stages),
    figsize=(3.5 + 4.5 * len(stages), 5.5),
    layout="constrained",
    sharey=True,
    squeeze=False,
  )
  handles = {}
  for ax, epochs in zip(axes[0], stages):
    for row in _rivals(rows, epochs):
      accuracies = row.frontier["test"]
      middle = 100 * accuracies.mean(1)
      if row.method not in COLORED:
        ax.plot(COMPRESSIONS, middle, color="0.8", lw=0.8, zorder=1)
        continue
      color = f"C{COLORED.index(row.method)}"
      wide = 2.5 if row.method.startswith("ReWA") else 1.5
      (line,) = ax.plot(COMPRESSIONS, middle, color=color, lw=wide)
      handles.setdefault(row.method, line)
      if accuracies.shape[1] > 1:
        half = 100 * np.array([interval(seeds) for seeds in accuracies])
        ends = middle - half, middle + half
        ax.fill_between(COMPRESSIONS, *ends, alpha=0.12, lw=0, color=color)
    of_stage = [row for row in rows if row.epochs == epochs]
    dense = 100 * (levels(of_stage)[0] + BELOW[0])
    ax.axhline(dense, color="black", lw=0.8)
    ax.set_xscale("log")
    ax.set_xlim(COMPRESSIONS[1], COMPRESSIONS[-1])
    ax.set_xticks(DECISIVE, [f"{c}x" for c in DECISIVE])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.set_title(f"{epochs} epochs; the black line: dense, unpruned")
    ax.set_xlabel("compression: all weights / nonzero weights")
    ax.set_ylim(dense - 5, dense + 0.3)
  axes[0][0].set_ylabel("test accuracy in %, mean of seeds, 95 % interval")
  others = {row.method for row in rows} - {"dense", *COLORED}
  if others:
    line = plt.Line2D([], [], color="0.8", lw=0.8)
    handles[f"{len(others)} others, in the table"] = line
  fig.legend(handles.values(), handles.keys(), loc="outside right upper")
  return fig
