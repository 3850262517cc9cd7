"""The table, the curves and the files of a comparison."""

import csv
import io
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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


def to_csv(results: Results) -> bytes:
  text = io.StringIO(newline="")
  writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
  writer.writeheader()
  for row in rows(results):
    writer.writerow(
      {
        name: f"{value:.6g}" if isinstance(value, float) else value
        for name, value in row.items()
      }
    )
  return text.getvalue().encode()


def to_markdown(results: Results, dense: float) -> str:
  """Returns the table: compression at 1 and at 2 points below dense."""
  lines = [
    "| method | 1 point below dense | test accuracy | whole channels only |"
    " 2 points below dense | test accuracy | whole channels only |"
    " ms per step | bytes per weight |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  every = rows(results)
  for name, result in results.items():
    cells = [name]
    for tolerance in (0.01, 0.02):
      found = [
        row
        for row in every
        if row["method"] == name and row["tolerance"] == tolerance
      ]
      if not found:
        cells += ["not reached", "", ""]
      for row in found:
        cells += [
          f"{row['compression']:.0f}x",
          f"{row['test_accuracy']:.2%}",
          f"{row['structured_compression']:.1f}x",
        ]
    cells.append(f"{result['milliseconds_per_step']:.2f}")
    size = result["grid"]["size"]
    cells.append(f"{result['bytes'] / size:.1f}")
    lines.append("| " + " | ".join(cells) + " |")
  lines += ["", f"Dense, unpruned: {dense:.2%} on test."]
  return "\n".join(lines) + "\n"


def plot(results: Results, dense: float, title: str) -> bytes:
  """Returns a PNG of accuracy against compression, on test."""
  fig, axes = plt.subplots(
    1, 2, figsize=(13, 5.5), layout="constrained", sharey=True
  )
  styles = [
    {"color": color, "marker": marker, "ls": line}
    for marker, line in (("o", "-"), ("s", "--"), ("^", ":"))
    for color in plt.get_cmap("tab10").colors
  ]
  every = rows(results)
  for ax, column in zip(axes, ("compression", "structured_compression")):
    for style, name in zip(styles, results):
      points = sorted(
        (row[column], 100 * row["test_accuracy"])
        for row in every
        if row["method"] == name
      )
      if points:
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
  png = io.BytesIO()
  fig.savefig(png, dpi=130)
  plt.close(fig)
  return png.getvalue()
