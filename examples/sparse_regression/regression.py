"""Finds the true coefficients of sparse linear and logistic models.

  linear          one true coefficient, 1, of 10,000; 2,000 samples
  logistic        true coefficients 1 and 0.5, of 10,000; 2,000 samples
  20 correlated   20 true coefficients, 0.2 to 1 with random signs, of 5,000;
                  1,000 samples; neighbouring columns correlate by 0.7
  100 correlated  the same with 100 true coefficients

Inputs are Gaussian, the noise of linear models has variance 1. The first two
are the tasks of the ReWA paper (Xu et al., 2026, arXiv 2605.25134).

Every method takes 12 strengths of its penalty, chooses by its loss on a quarter
of the samples, and solves anew with all of them. ReWA, spred and deep weight
factorization (DWF) descend by full gradients, all strengths in one vmap; MCP,
SCAD and L0.5 are skglm's coordinate descent. The lasso is scikit-learn's
LassoCV, which chooses by its own 5 folds, and of the logistic model skglm's L1.
What is below 1e-3 counts as zero.

Writes results.csv, table.md, paths.png and results.json.
"""

import argparse
import sys
import time
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from .. import kit
from .problems import TASKS, draw
from .solvers import HELD_BACK, LOWEST_STRENGTH, STRENGTHS, THRESHOLD, methods

# Seed 0 is where the settings of solvers.py come from.
SEEDS = (1, 2, 3)
MEASURES = ("nonzero", "precision", "recall", "error", "seconds")


def measure(coefficients: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  """Compares coefficients with the truth.

  Returns:
    How many are not zero, which share of them is true (1 where there are none),
    which share of the true ones is found, and the distance to the truth.
  """
  chosen, true = coefficients != 0, truth != 0
  hits = (chosen & true).sum()
  return {
    "nonzero": int(chosen.sum()),
    "precision": float(hits / chosen.sum()) if chosen.any() else 1.0,
    "recall": float(hits / true.sum()),
    "error": float(np.linalg.norm(coefficients - truth)),
  }


def run(task, seed, known, samples, dimension, advance) -> list[dict[str, Any]]:
  """Fits every method to one problem."""
  problem = draw(TASKS[task], seed, samples, dimension)
  truth = np.asarray(problem.truth)
  rows = []
  for name, fit in known.items():
    begin = time.perf_counter()
    found = fit(problem)
    seconds = time.perf_counter() - begin
    path = [] if found.path is None else found.path
    rows.append(
      {
        **{"task": task, "seed": seed, "method": name},
        **measure(found.coefficients, truth),
        **{"seconds": seconds, "strength": found.strength},
        "path": [measure(coefficients, truth) for coefficients in path],
      }
    )
    advance(task, name)
  return rows


def summarize(rows) -> dict[tuple[str, str], dict[str, float]]:
  """Returns means over seeds; of seconds the median, free of compilation."""
  groups = {}
  for row in rows:
    groups.setdefault((row["task"], row["method"]), []).append(row)
  return {
    key: {
      name: float(
        (np.median if name == "seconds" else np.mean)([r[name] for r in group])
      )
      for name in MEASURES
    }
    for key, group in groups.items()
  }


def to_markdown(rows) -> str:
  columns = ("task", "method", "nonzero", "precision", "recall", "error")
  return kit.markdown(
    (*columns, "seconds"),
    [
      (
        *(task, method, f"{mean['nonzero']:.1f}", f"{mean['precision']:.2f}"),
        *(f"{mean['recall']:.2f}", f"{mean['error']:.3f}"),
        f"{mean['seconds']:.1f}",
      )
      for (task, method), mean in summarize(rows).items()
    ],
  )


def plot(rows) -> plt.Figure:
  """Draws error against nonzero coefficients along strengths, first seed."""
  tasks = list(dict.fromkeys(row["task"] for row in rows))
  fig, axes = plt.subplots(
    1,
    len(tasks),
    figsize=(4.2 * len(tasks) + 2, 4.4),
    layout="constrained",
    squeeze=False,
  )
  colors = plt.get_cmap("tab10").colors
  names = list(dict.fromkeys(row["method"] for row in rows))
  for ax, task in zip(axes[0], tasks):
    first = min(row["seed"] for row in rows)
    for row in rows:
      if (row["task"], row["seed"]) != (task, first):
        continue
      style = {"color": colors[names.index(row["method"]) % len(colors)]}
      wide = row["method"].startswith("ReWA")
      points = [(max(p["nonzero"], 0.5), p["error"]) for p in row["path"]]
      ax.plot(
        *np.reshape(points, (-1, 2)).T,
        **{"lw": 2.5 if wide else 1.2, "label": row["method"], **style},
      )
      ax.plot(max(row["nonzero"], 0.5), row["error"], "o", ms=8, **style)
    ax.axvline(len(TASKS[task].sizes), color="black", lw=0.8, ls=":")
    # Far beyond the distance of nothing at all, only some diverge.
    ax.set_ylim(0, 1.2 * np.linalg.norm(TASKS[task].sizes))
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_title(task)
    ax.set_xlabel("nonzero coefficients (dotted: true ones)")
    ax.grid(alpha=0.3)
  axes[0, 0].set_ylabel("distance to the true coefficients")
  fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
  fig.suptitle("Lines: all strengths, three quarters of samples. Dots: chosen")
  return fig


def parse(argv) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/sparse_regression")
  add = parser.add_argument
  add(
    "--task",
    action="append",
    choices=tuple(TASKS),
    help="only this one; may be repeated",
  )
  add("--steps", type=int, default=2000, help="of descent (default: 2000)")
  add(
    "--fast",
    action="store_true",
    help="a fifth of the dimension and of the samples, one seed",
  )
  args = parser.parse_args(argv)
  if args.steps < 20:
    parser.error(f"--steps must be at least 20, got {args.steps}")
  args.task = args.task or list(TASKS)
  return args


def main(argv) -> None:
  args = parse(argv)
  known = methods(args.steps)
  seeds = SEEDS[:1] if args.fast else SEEDS
  rows = []
  bar = tqdm(total=len(args.task) * len(seeds) * len(known), unit="fit")

  def advance(task, name):
    bar.set_description(f"{task}, {name}")
    bar.update()

  for task in args.task:
    size = 1 if "correlated" not in task else 2
    size *= 5 if args.fast else 1
    for seed in seeds:
      rows += run(task, seed, known, 2000 // size, 10_000 // size, advance)
  bar.close()
  module = "examples.sparse_regression.regression"
  made = kit.provenance(module, argv, "scikit-learn", "skglm")
  settings = {
    **{"strengths": STRENGTHS, "lowest_strength": LOWEST_STRENGTH},
    **{"held_back": HELD_BACK, "threshold": THRESHOLD, "steps": args.steps},
  }
  table = to_markdown(rows) + kit.made_by(made)
  columns = ("task", "seed", "method", *MEASURES, "strength")
  cells = [[row[column] for column in columns] for row in rows]
  kit.write_csv(args.out / "results.csv", columns, cells)
  kit.write(args.out / "table.md", table)
  kit.write_json(
    args.out / "results.json", {**made, "settings": settings, "rows": rows}
  )
  kit.write_figure(args.out / "paths.png", plot(rows))
  print(f"{table}Written to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
