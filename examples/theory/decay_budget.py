"""The decay budget B = k * lambda * sum of eta, and what lambda alone governs.

Without a gradient, Algorithm 1 of Xu et al., ReWA, 2026, arXiv 2605.25134,
shrinks a weight x = y^k by exp(-B) over a whole run. Shown here on digits: one
network, MLP 64-128-10, SGD with momentum, over two lengths and two schedules,
two k and a grid of lambda. At m = 1 + k/9 all have the penalty exponent
p = 1 + (1-m)/k = 0.889 (Theorem 3.3), so k=9, m=2 and k=2.25, m=1.25 of the
authors' public code mean the same penalty at the same lambda. Their B differs
by four, and that is why the second stays dense there: the program looks at both
at equal lambda and at equal B.

What governs a quantity is decided by its range over the eight combinations of
k, schedule and length: at equal B with lambda free, and at equal lambda with B
free, three levels each. The one of at most half the mean range governs, else
neither alone. The name and the claim of B are this library's, not the paper's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import rewa_jax

from . import report, task

POWERS = (9, 2.25)
SCHEDULES = ("constant", "cosine")
LENGTHS = (1000, 2000)
LAMBDAS = tuple(0.0025 * 2**i for i in range(7))
# The grid of lambda has each of them in all eight combinations.
EQUAL = {"budget": (4.5, 9, 18), "weight_decay": (0.01, 0.02, 0.04)}
SEEDS = 2
MEASURES = {
  "below_1e-6": "share of |x| < 1e-6",
  "below_1e-3": "share of |x| < 1e-3",
  "accuracy": "test accuracy",
  "survivors": "median |x| of those >= 1e-3",
}


def same_penalty(k: float) -> float:
  """Returns the m that has the exponent p of k = 9, m = 2."""
  return 1 + k / 9


def train_group(
  k: float, steps: int, lambdas: tuple[float, ...], part: task.Part, seeds: int
) -> Any:
  """Returns trained weights with the leading axes schedule, lambda, seed."""
  counts = jnp.arange(steps)
  rates = jnp.stack(
    [jax.vmap(task.schedule(n, steps))(counts) for n in SCHEDULES]
  )
  rewa = rewa_jax.Rewa(k, same_penalty(k))

  def one(rates, weight_decay, seed):
    solver = rewa_jax.sgd(
      lambda count: rates[count],
      rewa,
      weight_decay=weight_decay,
      momentum=task.MOMENTUM,
    )
    return task.train(rewa, solver, part, steps, seed)[0]

  grid = jax.vmap(one, (None, None, 0))
  grid = jax.vmap(jax.vmap(grid, (None, 0, None)), (0, None, None))
  return jax.jit(grid)(rates, jnp.asarray(lambdas), jnp.arange(seeds))


def sizes(weights: Any) -> np.ndarray:
  """Returns |x| of all kernels, one long array."""
  selected = jax.tree.leaves(rewa_jax.kernels(weights))
  leaves = zip(selected, jax.tree.leaves(weights))
  return np.concatenate([np.abs(np.ravel(x)) for s, x in leaves if s])


def measure(weights: Any, test: task.Part) -> dict[str, float]:
  x = sizes(weights)
  survivors = x[x >= 1e-3]
  return {
    "below_1e-6": float(np.mean(x < 1e-6)),
    "below_1e-3": float(np.mean(x < 1e-3)),
    "accuracy": float(task.accuracy(weights, test)),
    # A dead network counts as size 0: JSON has no NaN.
    "survivors": float(np.median(survivors)) if survivors.size else 0.0,
  }


def rows_of(
  weights: Any,
  k: float,
  steps: int,
  lambdas: tuple[float, ...],
  test: task.Part,
) -> list[dict[str, Any]]:
  """Returns a row for each schedule and lambda, the means over seeds."""
  rows = []
  for i, name in enumerate(SCHEDULES):
    for j, weight_decay in enumerate(lambdas):
      budget = rewa_jax.decay_budget(
        k, weight_decay, task.schedule(name, steps), steps
      )
      runs = [
        measure(task.pick(weights, (i, j, seed)), test)
        for seed in range(jax.tree.leaves(weights)[0].shape[2])
      ]
      means = {
        name: float(np.mean([r[name] for r in runs])) for name in runs[0]
      }
      setting = {"k": k, "schedule": name, "steps": steps}
      penalty = {"weight_decay": weight_decay, "budget": float(budget)}
      rows.append({**setting, **penalty, **means})
  return rows


def ranges(rows: list[dict], key: str, level: float) -> dict[str, float]:
  """Returns each measure's range over the rows at that level of B or lambda."""
  # Cosine's sum of steps is T + 1 over T of half the constant's.
  near = [row for row in rows if np.isclose(row[key], level, rtol=0.01)]
  columns = {name: [row[name] for row in near] for name in MEASURES}
  return {name: max(column) - min(column) for name, column in columns.items()}


def governs(rows: list[dict], name: str) -> str:
  """Applies the rule of the docstring to one measure."""
  mean = {
    key: np.mean([ranges(rows, key, level)[name] for level in levels])
    for key, levels in EQUAL.items()
  }
  if 2 * mean["budget"] <= mean["weight_decay"]:
    return "B"
  if 2 * mean["weight_decay"] <= mean["budget"]:
    return "lambda"
  return "neither alone"


def published() -> dict[str, float]:
  """Returns B of the authors' CIFAR-10 setting, and of its sibling."""
  steps = 19_600
  rates = optax.cosine_decay_schedule(0.256, steps)
  # Their decay of 1e-4 is inside a momentum of 0.875.
  decay = 1e-4 / (1 - 0.875)
  return {
    f"k={k}": float(rewa_jax.decay_budget(k, decay, rates, steps))
    for k in POWERS
  }


def plot(
  rows: list[dict], pair: dict[str, np.ndarray], start: np.ndarray
) -> plt.Figure:
  """Draws measures against B and lambda, and how large the weights are."""
  fig = plt.figure(figsize=(10, 8.5), layout="constrained")
  upper, lower = fig.subfigures(2, 1, height_ratios=(2.1, 1))
  axes = upper.subplots(2, 4, sharey="col")
  labels = {
    "budget": "decay budget B",
    "weight_decay": "weight decay $\\lambda$",
  }
  for line, (key, label) in zip(axes, labels.items()):
    for ax, (name, title) in zip(line, MEASURES.items()):
      for i, (k, steps, how) in enumerate(combinations()):
        setting = {"k": k, "steps": steps, "schedule": how}
        mine = [row for row in rows if setting.items() <= row.items()]
        ax.plot(
          *([row[column] for row in mine] for column in (key, name)),
          "o-" if k == POWERS[0] else "^--",
          color=f"C{i % 4}",
          markersize=5,
          linewidth=1,
          label=f"k={k:g}, {how}, {steps} steps" if ax is axes[0, 0] else None,
        )
      ax.set(xscale="log", xlabel=label, ylabel=title)
      ax.grid(alpha=0.3)
  budgets = np.geomspace(0.25, 300, 100)
  for ax, threshold in zip(axes[0], (1e-6, 1e-3)):
    share = [np.mean(start < threshold * np.exp(b)) for b in budgets]
    ax.plot(
      budgets,
      share,
      color="black",
      linewidth=1,
      label="initial weights, decay alone" if ax is axes[0, 0] else None,
    )
  upper.legend(loc="outside lower center", ncols=3, fontsize=9)
  for ax, (title, x) in zip(lower.subplots(1, 3, sharey=True), pair.items()):
    # Below is drawn at the edge, so that nothing is missing.
    exponents = np.log10(np.clip(x, 1e-12, None))
    weights = np.full(x.size, 1 / x.size)
    ax.hist(exponents, np.linspace(-12, 1, 53), weights=weights)
    ax.axvspan(-6, -3, color="C1", alpha=0.2, linewidth=0)
    ax.set(xlabel="log10 |x|, smaller at -12", yscale="log")
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3)
  lower.axes[0].set_ylabel("share of all weights")
  return fig


def combinations() -> list[tuple[float, int, str]]:
  return [(k, t, name) for k in POWERS for t in LENGTHS for name in SCHEDULES]


def main():
  out = report.parse_out(__doc__)
  data = task.load()
  rows, pair = [], {}
  for k, steps in tqdm([(k, steps) for k in POWERS for steps in LENGTHS]):
    weights = train_group(k, steps, LAMBDAS, data["train"], SEEDS)
    group = rows_of(weights, k, steps, LAMBDAS, data["test"])
    rows += group
    # The published kind: cosine, the longer run, B = 18 at k = 9.
    for i, decay in ((3, "lambda of k=9"), (5, "B of k=9")):
      if steps == LENGTHS[1] and (k, i) != (POWERS[0], 5):
        row = group[SCHEDULES.index("cosine") * len(LAMBDAS) + i]
        name = f"k={k:g}, lambda={row['weight_decay']:g}, B={row['budget']:.1f}"
        name += f"\nthe {decay}" if k != POWERS[0] else "\nthe published kind"
        cosine = SCHEDULES.index("cosine")
        pair[name] = (row, sizes(task.pick(weights, (cosine, i))))
  print("range over k, schedule, length:", *MEASURES.values(), sep="\n  ")
  table = {}
  for key, levels in EQUAL.items():
    for level in levels:
      name = f"{'B' if key == 'budget' else 'lambda'}={level:g}"
      table[name] = ranges(rows, key, level)
      values = [f"{value:.3f}" for value in table[name].values()]
      print(f"{name:>11}  " + "  ".join(values))
  verdict = {name: governs(rows, name) for name in MEASURES}
  for name, winner in verdict.items():
    print(f"{MEASURES[name]}: governed by {winner}")
  for name, (row, _) in pair.items():
    smear = row["below_1e-3"] - row["below_1e-6"]
    print(
      name.replace("\n", ", "),
      f"\n  {row['below_1e-6']:.1%} below 1e-6, {smear:.1%} between that"
      f" and 1e-3, accuracy {row['accuracy']:.1%}",
    )
  budgets = published()
  print(f"B of the published CIFAR-10 setting: {budgets}")
  numbers = {
    "claim": "B governs how many weights are near zero, lambda the accuracy;"
    " k=2.25, m=1.25 stays dense at the lambda of k=9, m=2 since its B is a"
    " quarter, and separates at equal B.",
    "governed_by": verdict,
    "ranges": table,
    "published_budgets": budgets,
    "pair": {name.replace("\n", ", "): r for name, (r, _) in pair.items()},
    "seeds": SEEDS,
    "rows": rows,
  }
  start = sizes(task.initial_weights(0))
  drawn = {name: x for name, (_, x) in pair.items()}
  report.save(out, numbers, plot(rows, drawn, start))


if __name__ == "__main__":
  main()
