"""Tables and a picture of a comparison."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from .. import kit

TITLES = {"test": "text of the same kind", "other": "text of another kind"}
FIGURES = {
  "nats_per_byte": ("Nats a byte", ".3f"),
  "perplexity": ("Perplexity a token", ".1f"),
}
Rows = list[dict[str, Any]]


def best(rows: Rows) -> Rows:
  """Returns, of every method at every sparsity, the best on validation."""
  found: dict[tuple[str, float], dict[str, Any]] = {}
  for row in rows:
    key = row["method"], row["sparsity"]
    if key not in found or _validation(row) < _validation(found[key]):
      found[key] = row
  return list(found.values())


def write(
  out: pathlib.Path,
  rows: Rows,
  rates: dict[str, float],
  labels: dict[str, str],
  made: dict[str, Any],
) -> None:
  """Writes results.json, table.md and loss.png of what there is so far."""
  chosen = best(rows)
  results = {**made, "learning_rates": rates, "best": chosen, "all": rows}
  kit.write_json(out / "results.json", results)
  parts = [part for part in TITLES if part in rows[0]]
  text = "".join(
    f"{heading}, {TITLES[part]}:\n\n{_table(chosen, labels, part, name)}\n"
    for part in parts
    for name, (heading, _) in FIGURES.items()
  )
  kit.write(out / "table.md", text + kit.made_by(made))
  kit.write_figure(out / "loss.png", _plot(chosen, labels, parts))


def _validation(row):
  return row["validation"]["nats_per_byte"]


def _table(rows: Rows, labels, part: str, name: str) -> str:
  sparsities = sorted({row["sparsity"] for row in rows})
  _, digits = FIGURES[name]
  values = {
    (row["method"], row["sparsity"]): f"{row[part][name]:{digits}}"
    for row in rows
  }
  columns = ["", *(f"{s:.0%}" if s else "whole" for s in sparsities)]
  lines: list[Sequence[str]] = [
    [label, *(values.get((method, s), "") for s in sparsities)]
    for method, label in labels.items()
    if any(row["method"] == method for row in rows)
  ]
  return kit.markdown(columns, lines)


def _plot(rows: Rows, labels, parts: Sequence[str]) -> plt.Figure:
  figure, axes = plt.subplots(
    1,
    len(parts),
    figsize=(5.5 * len(parts), 4.6),
    layout="constrained",
    squeeze=False,
  )
  for axis, part in zip(axes[0], parts):
    colors: dict[str, str] = {}
    for method, label in labels.items():
      alike = method.removesuffix("-units")
      color = colors.setdefault(alike, f"C{len(colors)}")
      points = sorted(
        (100 * row["sparsity"], row[part]["nats_per_byte"])
        for row in rows
        if row["method"] == method and row["sparsity"]
      )
      if points:
        line = "o-" if method == alike else "s--"
        axis.plot(*zip(*points), line, color=color, label=label)
    for row in rows:
      if row["method"] == "dense" and not row["sparsity"]:
        whole = row[part]["nats_per_byte"]
        axis.axhline(whole, color="gray", ls=":", label="AdamW, dense")
        # One cut at the end is soon off the chart.
        lowest = min(row[part]["nats_per_byte"] for row in rows)
        axis.set_ylim(0.98 * lowest, min(1.25 * whole, axis.get_ylim()[1]))
    axis.set_xlabel("zeros of attention and feed-forward kernels, or units, %")
    axis.set_ylabel("nats a byte")
    axis.set_title(TITLES[part])
  lines = axes[0, 0].get_legend_handles_labels()
  figure.legend(*lines, loc="outside lower center", ncols=3, fontsize=7)
  return figure
