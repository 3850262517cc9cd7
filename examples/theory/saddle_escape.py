"""Escape from the saddle at zero: Example 3.2, and what it leaves open.

Xu et al., ReWA, 2026, arXiv 2605.25134. The loss is f(x) = (x - 1)^2, the
weight x = sign(y)|y|^k, the latent starts at y = -1 and the minimum y = 1 lies
beyond y = 0, where the slope of the power vanishes. The claim: with the
adaptive step (m = 0, eps = 0), |y_T - 1| <= 2 (1 - 2 eta / (k - 1))^T, while
the plain gradient on y^k stays at zero.

Beyond the claim: eps > 0 or m > 0 slow a latent near zero by

  (1 + eps / |y|^(k-1)) / |y|^m   against the adaptive step,

so that with m = 0 the step is 2 eta |y|^(k-1) / eps there. Integrated over y,
this predicts how many steps a latent takes (in the limit of small steps), set
here beside the measured ones: for the way in from y = -1, and for the way out
from y = d to y = 2 d. Coming from y = -1, a latent may still leap over zero in
one step: for m < 1, and where eps^(1 / (k - 1)) is below about eta.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import rewa_jax
from rewa_jax import baselines

from . import report


class Recipe(NamedTuple):
  """A method of any k; plain is descent by the chain rule."""

  label: str
  m: float = 0.0
  eps: float = 0.0
  plain: bool = False

  def method(self, k: int) -> rewa_jax.Method:
    if self.plain:
      return baselines.PowerPropagation(k, mask=None)
    return rewa_jax.Rewa(k, self.m, self.eps, mask=None)


ADAPTIVE = Recipe("adaptive (m = 0, eps = 0)")
PLAIN = Recipe("plain gradient", plain=True)
RECIPES = (
  ADAPTIVE,
  PLAIN,
  Recipe("eps = 1e-3", eps=1e-3),
  Recipe("eps = 1e-6", eps=1e-6),
  Recipe("m = 0.5", m=0.5),
  Recipe("m = 1", m=1.0),
  Recipe("m = 2", m=2.0),
)


def step(recipe, k, rate, y):
  """Returns the latent after one step of gradient descent without decay."""
  method = recipe.method(k)
  solver = rewa_jax.sgd(rate, method, weight_decay=0.0)
  grad = jax.grad(lambda y: (method.to_weights(y) - 1) ** 2)(y)
  updates, _ = solver.update(grad, solver.init(y), y)
  return optax.apply_updates(y, updates)


def descend(recipe, k, rate, steps, start=-1.0):
  """Returns the latents y_1, ..., y_steps."""

  def body(y, _):
    y = step(recipe, k, rate, y)
    return y, y

  return np.asarray(jax.lax.scan(body, jnp.asarray(start), length=steps)[1])


def bound(k, rate, steps):
  """Returns the paper's bound on |y_T - 1| for T = 1, ..., steps."""
  return 2 * (1 - 2 * rate / (k - 1)) ** np.arange(1.0, steps + 1)


def steps_to_double(recipe, k, rate, starts, limit):
  """Returns the steps from each start to twice it; limit where not reached."""

  @jax.jit
  @jax.vmap
  def run(start):
    def body(carry):
      y, count = carry
      return step(recipe, k, rate, y), count + 1

    def unfinished(carry):
      return (carry[0] < 2 * start) & (carry[1] < limit)

    return jax.lax.while_loop(unfinished, body, (start, 0))[1]

  return np.asarray(run(jnp.asarray(starts)))


def slow_down(recipe, k, size):
  """Returns how many times slower a latent is than with the adaptive step."""
  if recipe.plain:
    return 1 / (k * size ** (k - 1))
  return (1 + recipe.eps / size ** (k - 1)) / size**recipe.m


def predicted_steps(recipe, k, rate, sizes, sign):
  """Returns the steps from each of sizes to the next, for small steps."""
  pace = slow_down(recipe, k, sizes) / (2 * rate * (1 - sign * sizes**k))
  # The trapezoid rule in log|y|.
  height = pace * sizes
  return np.diff(np.log(sizes)) * (height[:-1] + height[1:]) / 2


def predicted_steps_to_double(recipe, k, rate, start):
  """Returns what steps_to_double would be for small steps."""
  sizes = np.geomspace(start, 2 * start, 1001)
  return float(predicted_steps(recipe, k, rate, sizes, 1).sum())


def predicted_position(recipe, k, rate, steps):
  """Returns y after steps from y = -1, for small steps; 0 if it gets there."""
  sizes = np.geomspace(1e-30, 1, 100_001)
  elapsed = np.cumsum(predicted_steps(recipe, k, rate, sizes, -1)[::-1])
  return -float(np.interp(steps, elapsed, sizes[-2::-1], right=0))


def against_bound(y, k, rate):
  """Compares a trajectory with the paper's bound, until rounding stops it."""
  # A step of 2 eta k |y - 1| below half an ulp of 1 is lost.
  floor = np.finfo(y.dtype).eps / (4 * rate * k)
  highest = bound(k, rate, len(y))
  distance = np.abs(y - 1)
  above = highest > 10 * floor
  ratio = distance[above] / highest[above]
  return {
    "within_the_bound": bool((distance <= highest + 10 * floor).all()),
    "largest_distance_over_bound": float(ratio.max()),
    "smallest_distance": float(distance.min()),
  }


def escape(k, rate, steps):
  """Returns a row for every method, and its trajectory from y = -1."""
  rows, trajectories = [], {}
  for recipe in RECIPES:
    y = descend(recipe, k, rate, steps)
    arrived = np.flatnonzero(np.abs(y - 1) < 0.01)
    row = {
      "k": k,
      "method": recipe.label,
      "steps_to_within_0.01_of_1": int(arrived[0]) + 1
      if arrived.size
      else None,
      "y_at_the_end": float(y[-1]),
      "y_at_the_end_predicted_if_it_does_not_leap": predicted_position(
        recipe, k, rate, steps
      ),
      "y_at_the_end_from_0": float(descend(recipe, k, rate, steps, 0.0)[-1]),
    }
    if recipe == ADAPTIVE:
      row |= against_bound(y, k, rate)
    rows.append(row)
    trajectories[recipe.label] = y
  return rows, trajectories


def way_out(k, rate, starts, limit):
  """Returns a row for every method and start: steps to twice the start."""
  rows = []
  for recipe in RECIPES:
    measured = steps_to_double(recipe, k, rate, starts, limit)
    for start, count in zip(starts, measured):
      rows.append(
        {
          "k": k,
          "method": recipe.label,
          "start": float(start),
          "steps_to_twice_the_start": int(count) if count < limit else None,
          "predicted": predicted_steps_to_double(recipe, k, rate, start),
        }
      )
  return rows


def plot(trajectories, out_rows, rate, out_rate, limit):
  figure, axes = plt.subplots(
    2, len(trajectories), figsize=(12, 7.4), sharey="row"
  )
  for k, upper, lower in zip(trajectories, *axes):
    rows = [row for row in out_rows if row["k"] == k]
    for i, recipe in enumerate(RECIPES):
      y = trajectories[k][recipe.label]
      shown = np.unique(np.geomspace(1, len(y), 600).astype(int)) - 1
      # The adaptive one on top and dashed: small eps may coincide with it.
      style = {"ls": "--", "zorder": 3} if recipe == ADAPTIVE else {}
      upper.plot(shown + 1, y[shown], f"C{i}", label=recipe.label, **style)
      mine = [row for row in rows if row["method"] == recipe.label]
      starts = [row["start"] for row in mine]
      fine = np.geomspace(min(starts), max(starts))
      predicted = [
        predicted_steps_to_double(recipe, k, out_rate, start) for start in fine
      ]
      lower.plot(fine, predicted, f"C{i}", lw=1, **style)
      lower.plot(
        starts,
        [row["steps_to_twice_the_start"] or np.nan for row in mine],
        f"C{i}o",
        ms=4,
      )
    steps = np.arange(1, len(y) + 1)
    lowest = 1 - bound(k, rate, len(y))
    upper.plot(
      steps[shown], lowest[shown], "k:", label="bound for the adaptive step"
    )
    upper.set(title=f"k = {k}", xscale="log", xlabel="step")
    lower.set(xscale="log", yscale="log", ylim=(1, 3 * limit))
    lower.set(xlabel="latent d at the start")
  axes[0, 0].set_ylabel("latent y, from y = -1")
  axes[1, 0].set_ylabel("steps from d to 2d\n(dots measured, lines predicted)")
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=4)
  figure.set_layout_engine("constrained")
  return figure


def main():
  out = report.parse_out(__doc__)
  jax.config.update("jax_enable_x64", True)
  powers, rate, steps = (3, 5, 9), 0.01, 100_000
  # A smaller step for the way out, so that the adaptive one takes several.
  out_rate, limit, starts = 1e-3, 200_000, np.geomspace(0.01, 0.3, 6)
  escape_rows, out_rows, trajectories = [], [], {}
  for k in tqdm(powers, desc="k"):
    rows, trajectories[k] = escape(k, rate, steps)
    escape_rows += rows
    out_rows += way_out(k, out_rate, starts, limit)
  print(f"From y = -1, eta = {rate}, {steps} steps")
  print("k  method                     steps to 1   y at the end    predicted")
  for row in escape_rows:
    *_, arrived, y, predicted = list(row.values())[:5]
    print(
      f"{row['k']}  {row['method']:26} {arrived or 'never':>10}  {y:13.3e}"
      f"  {'-' if arrived else format(predicted, '.3e'):>11}"
    )
  print("   (for m = 1 the latent underflows to zero)")
  held = all(row.get("within_the_bound", True) for row in escape_rows)
  print(f"Adaptive within the paper's bound at every step: {held}")
  for row in escape_rows[:: len(RECIPES)]:
    ratio = row["largest_distance_over_bound"]
    print(f"  k = {row['k']}: |y_T - 1| / bound at most {ratio:.3f}")
  left = {r["method"] for r in escape_rows if r["y_at_the_end_from_0"] != 0}
  print(f"From exactly y = 0, these leave: {', '.join(sorted(left))}")
  print(f"Steps from d to 2d, eta = {out_rate}: measured (predicted)")
  print("k  method                           d = 0.01             d = 0.3")
  for first, last in zip(
    out_rows[:: len(starts)], out_rows[len(starts) - 1 :: len(starts)]
  ):
    cells = [
      f"{r['steps_to_twice_the_start'] or f'>{limit}'} ({r['predicted']:.3g})"
      for r in (first, last)
    ]
    print(f"{first['k']}  {first['method']:26} {cells[0]:>19} {cells[1]:>19}")
  numbers = {
    "claim": "Example 3.2: |y_T - 1| <= 2 (1 - 2 eta/(k-1))^T with the adaptive"
    " step, while the plain gradient on y^k stays at zero",
    "within_the_bound": held,
    "escape": {"learning_rate": rate, "steps": steps, "rows": escape_rows},
    "way_out": {"learning_rate": out_rate, "limit": limit, "rows": out_rows},
  }
  report.save(out, numbers, plot(trajectories, out_rows, rate, out_rate, limit))


if __name__ == "__main__":
  main()
