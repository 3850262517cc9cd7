"""The table and the pictures of the comparison."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from .. import kit
from .plan import METHODS, SPARSITIES

Chosen = dict[str, dict[float, dict[str, Any]]]

_COLORS = dict(zip(METHODS, plt.get_cmap("tab10").colors))


def table(chosen: Chosen) -> str:
  """Returns the accuracy on test images of what was chosen, in Markdown.

  Args:
    chosen: by method and sparsity, with "test" and "unpruned", lists over
      seeds.
  """
  columns = ["method"]
  for sparsity in SPARSITIES:
    columns += [f"{sparsity:.0%} zeros", "before"]
  rows = [
    [METHODS[method]]
    + [
      _percent(of_method[sparsity][name])
      for sparsity in SPARSITIES
      for name in ("test", "unpruned")
    ]
    for method, of_method in chosen.items()
  ]
  return kit.markdown(columns, rows)


def _percent(accuracies):
  text = f"{100 * np.mean(accuracies):.2f}"
  if len(accuracies) > 1:
    text += f" ± {100 * np.std(accuracies, ddof=1):.2f}"
  return text


def frontier(chosen: Chosen) -> plt.Figure:
  """Draws accuracy on test images over compression."""
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  lowest = 100.0
  for method, of_method in chosen.items():
    compression = [
      sum(row["of"].values()) / max(sum(row["nonzero"].values()), 1)
      for row in of_method.values()
    ]
    accuracy = [100 * np.mean(row["test"]) for row in of_method.values()]
    label, color = METHODS[method], _COLORS[method]
    axes.plot(compression, accuracy, "o-", color=color, label=label)
    if method != "dense":
      lowest = min(lowest, *accuracy)
  if "dense" in chosen:
    dense = 100 * np.mean(chosen["dense"][SPARSITIES[0]]["unpruned"])
    axes.axhline(dense, color="black", lw=0.8, label="dense, unpruned")
  axes.set(xscale="log", xlabel="compression", ylabel="test accuracy, %")
  ticks = [round(1 / (1 - sparsity)) for sparsity in SPARSITIES]
  axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
  axes.minorticks_off()
  if lowest < 100:
    # One cut at the end is soon off the chart.
    axes.set_ylim(bottom=lowest - 2)
  axes.grid(alpha=0.3)
  axes.legend(loc="lower left", fontsize="small")
  return figure


def layers(chosen: Chosen) -> plt.Figure:
  """Draws the share of each layer that is left, a panel for each sparsity."""
  figure, panels = plt.subplots(
    1, len(SPARSITIES), figsize=(13, 5), layout="constrained", sharey=True
  )
  for axes, sparsity in zip(panels, SPARSITIES):
    for method, of_method in chosen.items():
      nonzero, of = (of_method[sparsity][name] for name in ("nonzero", "of"))
      names = sorted(of, key=_depth)
      left = [nonzero[name] / of[name] for name in names]
      short = [name.removesuffix("/kernel") for name in names]
      axes.plot(left, short, "o-", ms=4, lw=1, color=_COLORS[method])
    axes.set(xscale="log", xlabel="share of weights left")
    axes.set_title(f"{sparsity:.0%} zeros in all")
    axes.grid(alpha=0.3)
  panels[0].invert_yaxis()
  for method in chosen:
    panels[0].plot([], [], "o-", color=_COLORS[method], label=METHODS[method])
  figure.legend(loc="outside lower center", ncols=len(METHODS))
  return figure


def _depth(name):
  return name.startswith("head"), not name.startswith("stem"), name


def training(runs: list[dict[str, Any]]) -> plt.Figure:
  """Draws the accuracy on images held back, by epoch.

  Args:
    runs: with "name", "method", and "curve", the accuracy by epoch.
  """
  figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
  markers: dict[str, int] = {}
  for run in runs:
    method, accuracy = run["method"], [100 * x for x in run["curve"]]
    number = markers[method] = markers.get(method, -1) + 1
    axes.plot(
      range(1, len(accuracy) + 1),
      accuracy,
      marker=".x+^vsD*"[number % 8],
      ms=4,
      lw=1,
      color=_COLORS[method],
      label=run["name"],
    )
  axes.set(xlabel="epoch", ylabel="accuracy on images held back, %")
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3)
  figure.legend(loc="outside right upper", fontsize="small")
  return figure
