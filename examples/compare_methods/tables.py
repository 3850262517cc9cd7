"""The table and the curves of a comparison."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from .. import kit

Results = dict[str, dict[str, Any]]

COLUMNS = (
  *("method", "tolerance", "strength", "rate", "threshold"),
  *("validation_accuracy", "test_accuracy", "test_accuracy_range"),
  *("compression", "structured_compression"),
  *("milliseconds_per_step", "bytes_per_weight"),
)


def rows(results: Results) -> list[dict[str, Any]]:
  """Returns a row for every chosen network."""
  return [
    {
      "method": name,
      **{key: chosen[key] for key in COLUMNS[1:6]},
      "test_accuracy": np.mean(chosen["test_accuracy"]),
      "test_accuracy_range": np.ptp(chosen["test_accuracy"]),
      "compression": ratio(chosen, "nonzero"),
      "structured_compression": ratio(chosen, "structured"),
      "milliseconds_per_step": result["milliseconds_per_step"],
      "bytes_per_weight": result["bytes"] / chosen["size"],
    }
    for name, result in results.items()
    for chosen in result["chosen"]
  ]


def ratio(chosen: dict[str, Any], counted: str) -> float:
  # An empty network counts as one weight.
  return chosen["size"] / max(np.mean(chosen[counted]), 1)


def to_markdown(results: Results, dense: float) -> str:
  """Returns the table: compression at 1 and at 2 points below dense."""
  every = {(row["method"], row["tolerance"]): row for row in rows(results)}
  lines = []
  for name, result in results.items():
    cells = [name]
    for tolerance in (0.01, 0.02):
      row = every.get((name, tolerance))
      cells += (
        [
          f"{row['compression']:.0f}x",
          f"{row['test_accuracy']:.2%}",
          f"{row['structured_compression']:.1f}x",
        ]
        if row
        else ["not reached", "", ""]
      )
    # Blank until all are timed in one go.
    time = result["milliseconds_per_step"]
    cells.append("" if time is None else f"{time:.2f}")
    size = result["grid"]["size"]
    lines.append([*cells, f"{result['bytes'] / size:.1f}"])
  of_each = ("test accuracy", "whole channels only")
  columns = (
    *("method", "1 point below dense", *of_each),
    *("2 points below dense", *of_each, "ms per step", "bytes per weight"),
  )
  table = kit.markdown(columns, lines)
  return f"{table}\nDense, unpruned: {dense:.2%} on test.\n"


def plot(rows: list[dict[str, Any]], dense: float, title: str) -> plt.Figure:
  """Draws accuracy against compression, on test."""
  fig, axes = plt.subplots(
    1, 2, figsize=(13, 5.5), layout="constrained", sharey=True
  )
  styles = [
    {"color": color, "marker": marker, "ls": line}
    for marker, line in (("o", "-"), ("s", "--"), ("^", ":"))
    for color in plt.get_cmap("tab10").colors
  ]
  names = dict.fromkeys(row["method"] for row in rows)
  for ax, column in zip(axes, ("compression", "structured_compression")):
    for style, name in zip(styles, names):
      points = sorted(
        (row[column], 100 * row["test_accuracy"])
        for row in rows
        if row["method"] == name
      )
      width = 3 if name.startswith("ReWA") else 1.2
      ax.plot(*zip(*points), label=name, lw=width, ms=4, **style)
    ax.axhline(100 * dense, color="black", lw=0.8, label="dense, unpruned")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}x")
    ax.grid(alpha=0.3)
  axes[0].set_xlabel("compression: all weights / nonzero weights")
  axes[1].set_xlabel("compression when only whole channels are dropped")
  axes[0].set_ylabel("test accuracy in %, mean of seeds")
  axes[0].set_ylim(100 * dense - 6, 100 * dense + 0.5)
  fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
  fig.suptitle(title)
  return fig
