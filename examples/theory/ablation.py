"""Which parts of ReWA it takes: the paper's ablation, on digits.

Xu et al., ReWA, 2026, arXiv 2605.25134, ablate the adaptive step, the weight
decay and the reparameterization. Shown here for an MLP 64-128-10 on digits,
with networks and choices of this file and not the paper's, mean of 3 seeds:

  full               Algorithm 1 with k=9, m=2, eps=0
  no adaptive step   SGD on latents by the chain rule of y^k, the same decay
  no decay           Algorithm 1 with lambda = 0
  no power           SGD on weights with the penalty lambda*R(x) of Theorem 3.3,
                     p = 0.889, its slope R' clipped to [-2, 2], which it
                     reaches at |x| = 0.002
  dense              SGD on weights, no penalty

All have momentum 0.9, a cosine schedule and the same batches, and all decay and
the slope stay outside the momentum. The peak learning rate and lambda of each
come from the same grid by one rule: the sparsest after pruning at 1e-3 whose
mean validation accuracy is at most 1.5 points below that of the best dense; if
none is, the most accurate, as for the two without a penalty.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import rewa_jax
from rewa_jax import baselines

from .. import kit
from . import report, task

REWA = rewa_jax.Rewa(k=9, m=2)
WEIGHTS = rewa_jax.Rewa(k=1)  # Latents are the weights.
# By name, what is trained are its latents.
METHODS = {
  "full": REWA,
  "no adaptive step": baselines.PowerPropagation(REWA.k),
  "no decay": REWA,
  "no power": WEIGHTS,
  "dense": WEIGHTS,
}
STEPS, SEEDS = 2000, 3
RATES = (0.1, 0.02, 0.004)
LAMBDAS = tuple(0.002 * 2**i for i in range(9))
SLOPE_BOUND = 2
THRESHOLD, TOLERANCE = 1e-3, 0.015


def grid_of(method: str) -> list[tuple[float, float]]:
  """Returns pairs of peak learning rate and lambda."""
  lambdas = (0.0,) if method in ("no decay", "dense") else LAMBDAS
  return [(rate, weight_decay) for rate in RATES for weight_decay in lambdas]


def clipped_penalty(
  weight_decay: jax.typing.ArrayLike,
) -> optax.GradientTransformation:
  """Adds lambda times the clipped slope of R to the gradients of kernels."""
  penalty = rewa_jax.Penalty(REWA.k, REWA.m)

  def add(is_kernel, gradient, x):
    slope = jnp.clip(penalty.gradient(x), -SLOPE_BOUND, SLOPE_BOUND)
    return gradient + weight_decay * slope if is_kernel else gradient

  def update_fn(updates, params):
    return jax.tree.map(add, rewa_jax.kernels(params), updates, params)

  return optax.stateless(update_fn)


def solver_of(
  method: str, rates: optax.Schedule, weight_decay: jax.typing.ArrayLike
) -> optax.GradientTransformation:
  """Returns the optimizer."""
  if method == "no power":
    return optax.chain(
      optax.trace(task.MOMENTUM),
      clipped_penalty(weight_decay),
      optax.scale_by_learning_rate(rates),
    )
  return rewa_jax.sgd(
    rates,
    METHODS[method],
    weight_decay=weight_decay,
    momentum=task.MOMENTUM,
  )


def train(method: str, settings, part, steps: int, seeds: int) -> Any:
  """Returns trained weights with the leading axes setting, seed."""

  def one(setting, seed):
    rate, weight_decay = setting
    cosine = optax.cosine_decay_schedule(1.0, steps)
    solver = solver_of(method, lambda t: rate * cosine(t), weight_decay)
    return task.train(METHODS[method], solver, part, steps, seed)[0]

  grid = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
  return jax.jit(grid)(jnp.asarray(settings), jnp.arange(seeds))


def measure(weights: Any, settings, data: dict) -> list[dict[str, Any]]:
  """Returns a row for each setting: means over seeds of pruned networks."""

  def one(weights):
    pruned, _ = rewa_jax.prune(weights, threshold=THRESHOLD)
    counts = rewa_jax.sparsity(pruned)
    return {
      "above_1e-6_before": rewa_jax.sparsity(weights, 1e-6).total_nonzero,
      "nonzero": counts.total_nonzero,
      "finite": jnp.isfinite(optax.tree.norm(weights)),
      **{f"{p}_accuracy": task.accuracy(pruned, data[p]) for p in data},
    }

  measures = jax.jit(jax.vmap(jax.vmap(one)))(weights)
  size = rewa_jax.sparsity(task.pick(weights, (0, 0))).total_size
  rows = []
  for i, (rate, weight_decay) in enumerate(settings):
    row = {name: float(jnp.mean(v[i])) for name, v in measures.items()}
    # An empty network counts as one weight: JSON has no infinity.
    row["compression"] = size / max(row["nonzero"], 1)
    accuracies = measures["test_accuracy"][i]
    row["test_accuracy_of_seeds"] = np.asarray(accuracies).tolist()
    setting = {"learning_rate": rate, "weight_decay": weight_decay}
    rows.append({**setting, **row})
  return rows


def choose(rows: list[dict[str, Any]], least: float) -> dict[str, Any]:
  """Applies the rule of the docstring."""
  good = [row for row in rows if row["validation_accuracy"] >= least]
  if good:
    return min(good, key=lambda row: row["nonzero"])
  return max(rows, key=lambda row: row["validation_accuracy"])


def needed(chosen: dict[str, dict], name: str, least: float) -> bool:
  """Returns whether full keeps fewer weights, or the other is not accurate."""
  other = chosen[name]
  is_denser = other["nonzero"] > chosen["full"]["nonzero"]
  return is_denser or other["validation_accuracy"] < least


def plot(grids: dict[str, list], chosen: dict[str, dict]) -> plt.Figure:
  fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
  for (name, rows), marker in zip(grids.items(), "os^DX"):
    # The grid at the chosen learning rate.
    rate = chosen[name]["learning_rate"]
    mine = [row for row in rows if row["learning_rate"] == rate]
    x = [row["compression"] for row in mine]
    y = [100 * row["test_accuracy"] for row in mine]
    ax.plot(x, y, marker=marker, label=f"{name}, rate {rate:g}")
  x = [row["compression"] for row in chosen.values()]
  y = [100 * row["test_accuracy"] for row in chosen.values()]
  ring = {"s": 160, "facecolors": "none", "edgecolors": "black"}
  ax.scatter(x, y, label="chosen on validation", zorder=3, **ring)
  ax.set(xscale="log", xlim=(0.8, 300), ylim=(85, 98))
  ax.xaxis.set_major_formatter("{x:g}x")
  ax.set_xlabel("compression after pruning at 0.001: all / nonzero weights")
  ax.set_ylabel("test accuracy in %, mean of seeds")
  ax.set_title("points below 85 % are not drawn", fontsize=9)
  ax.grid(alpha=0.3)
  fig.legend(loc="outside upper center", ncols=3)
  return fig


def describe_budgets(steps: int) -> str:
  """Says how far decay alone goes in the grid of what has power and decay."""
  budgets = [
    rewa_jax.decay_budget(
      REWA.k, weight_decay, optax.cosine_decay_schedule(rate, steps), steps
    )
    for rate, weight_decay in grid_of("full")
  ]
  return kit.describe_budgets(
    budgets, lambda factor: f"lambdas up to {factor * max(LAMBDAS):.2g}"
  )


def main():
  out = report.parse_out(__doc__)
  data = task.load()
  print(describe_budgets(STEPS))
  grids = {}
  for method in tqdm(METHODS):
    settings = grid_of(method)
    weights = train(method, settings, data["train"], STEPS, SEEDS)
    grids[method] = measure(weights, settings, data)
  dense = max(row["validation_accuracy"] for row in grids["dense"])
  least = dense - TOLERANCE
  chosen = {
    name: choose(rows, least if len(rows) > len(RATES) else math.inf)
    for name, rows in grids.items()
  }
  print(
    "method            rate  lambda  validation   test  above 1e-6  above 1e-3"
    "  compression"
  )
  for name, row in chosen.items():
    print(
      f"{name:<16} {row['learning_rate']:>5g}  {row['weight_decay']:>6g}"
      f"  {row['validation_accuracy']:>10.1%}  {row['test_accuracy']:.1%}"
      f"  {row['above_1e-6_before']:>10,.0f}  {row['nonzero']:>10,.0f}"
      f"  {row['compression']:>10.1f}x"
    )
  verdict = {name: needed(chosen, name, least) for name in list(METHODS)[1:4]}
  for name, is_needed in verdict.items():
    print(
      f"{name}: {'denser or worse than' if is_needed else 'no worse than'} full"
    )
  numbers = {
    "claim": "Adaptive step, decay and power are each needed: without one, the"
    " chosen network is denser or less accurate.",
    "part_is_needed": verdict,
    "chosen": chosen,
    "least_validation_accuracy": least,
    "slope_bound": SLOPE_BOUND,
    "steps": STEPS,
    "seeds": SEEDS,
    "grids": grids,
  }
  report.save(out, numbers, plot(grids, chosen))


if __name__ == "__main__":
  main()
