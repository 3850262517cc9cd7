"""Clipping the gradient of an lp penalty bounds it or keeps the penalty.

Xu et al., ReWA, 2026, arXiv 2605.25134, Theorem 3.7: lp (0 < p < 1) with
clipped gradients cannot have both a bounded gradient and a small approximation
error. The paper's proof and constants are not reproduced; shown instead is what
follows from clipping by hand. The gradient lambda p |x|^(p-1) clipped at G is
that of a penalty which is linear up to x_c = (G / (lambda p))^(1/(p-1)) and
from there on lies below the true one by (1-p) lambda x_c^p. In d dimensions

  the largest norm of the gradient is  N = G sqrt(d),
  the largest error of the penalty is  E = d (1-p) lambda x_c^p,

so that for every G, E = d (1-p) lambda (lambda p sqrt(d) / N)^(p/(1-p)): what
makes one small makes the other large, and below fixed N and E there is a last
dimension. If N <= sqrt(d) then G <= 1, and for lambda = 1 the error is at least
d (1-p) p^(p/(1-p)), more than d / (2e) for p <= 1/2.

Beside it, runs on one quadratic with p = 1/2 for both: gradient descent on lp,
clipped or not, and ReWA, k=6 and m=4, whose step lambda y + |y|^m grad f of
bounded latents is bounded, without clipping. The gain is the step's alone: with
m > 1 latents do not cross zero by small steps (stagnation.py), so ReWA loses
nonzero targets that start with the wrong sign or too near zero, which lp and
clipped lp find, but leave all weights moving where ReWA has zeros.
"""

import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import rewa_jax

from . import report

BOUNDS = (0.1, 1.0, 10.0)
REWA = rewa_jax.Rewa(k=6, m=4, mask=None)


def crossing(p, decay, bound):
  """Returns x_c, below which the gradient of the penalty is clipped."""
  return (bound / (decay * p)) ** (1 / (p - 1))


def clipped_gradient(x, p, decay, bound):
  """Returns the gradient of decay |x|^p, clipped; bound may be infinite."""
  size = jnp.where(x == 0, 1, jnp.abs(x))
  return jnp.sign(x) * jnp.minimum(decay * p * size ** (p - 1), bound)


def gradient_norm(d, bound):
  """Returns N."""
  return bound * d**0.5


def penalty_error(d, p, decay, bound):
  """Returns E."""
  return d * (1 - p) * decay * crossing(p, decay, bound) ** p


def penalty_error_measured(p, decay, bound, points=200_001):
  """Returns E for d = 1, from the integral of the clipped gradient."""
  # Finer towards zero; the gradient lost there is what the error is made of.
  x = np.linspace(0, 1, points) ** 4 * 2 * crossing(p, decay, bound)
  middle = (x[1:] + x[:-1]) / 2
  clipped = np.cumsum(clipped_gradient(middle, p, decay, bound) * np.diff(x))
  return float(np.max(decay * x[1:] ** p - clipped))


def last_dimension(p, decay, largest_norm, largest_error):
  """Returns the largest d for which some G keeps both below their limits."""
  # The best G is the largest one that the norm allows; E then grows with d.
  power = 1 + p / (2 * (1 - p))
  at_one = penalty_error(1, p, decay, largest_norm)
  return int((largest_error / at_one) ** (1 / power))


def runs(d=50, steps=20_000, learning_rate=0.01, decay=0.05, seed=0):
  """Returns by method the sizes of all updates, and start, end and target.

  The size is the largest coordinate, divided by the learning rate.
  """
  keys = jax.random.split(jax.random.key(seed), 3)
  design = jax.random.normal(keys[0], (2 * d, d)) / (2 * d) ** 0.5
  target = jnp.where(jnp.arange(d) < d // 5, 1.0, 0.0)
  start = 0.5 * jax.random.normal(keys[2], (d,))

  def loss_gradient(x):
    return design.T @ (design @ (x - target))

  # The same penalty: lambda grad R of ReWA is decay |x|^(p-1).
  p = rewa_jax.Penalty(REWA.k, REWA.m).p
  rewa = rewa_jax.sgd(learning_rate, REWA, weight_decay=decay)
  sgd = optax.sgd(learning_rate)

  def lp(bound):
    return (
      sgd,
      start,
      lambda x: loss_gradient(x) + clipped_gradient(x, p, decay / p, bound),
    )

  methods = {
    "lp": lp(jnp.inf),
    "lp, clipped at 1": lp(1.0),
    "lp, clipped at 0.1": lp(0.1),
    "ReWA, latents": (
      rewa,
      REWA.to_latents(start),
      lambda y: loss_gradient(REWA.to_weights(y)),
    ),
  }
  largest, ends = {}, {}
  for name, (solver, x, gradient) in methods.items():

    def step(carry, _, solver=solver, gradient=gradient):
      x, state = carry
      updates, state = solver.update(gradient(x), state, x)
      size = jnp.abs(updates).max() / learning_rate
      return (optax.apply_updates(x, updates), state), size

    (x, _), sizes = jax.lax.scan(step, (x, solver.init(x)), length=steps)
    largest[name] = np.asarray(sizes)
    ends[name] = REWA.to_weights(x) if solver is rewa else x
  return largest, ends, start, target


def plot(p, decay, largest):
  figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
  d = np.geomspace(1, 1e6, 100)
  for bound, color in zip(BOUNDS, ("C0", "C1", "C2")):
    axes[0].plot(d, gradient_norm(d, bound), color, label=f"N, G={bound}")
    error = penalty_error(d, p, decay, bound)
    axes[0].plot(d, error, color, linestyle="--", label=f"E, G={bound}")
  axes[0].set(xlabel="dimension d", title=f"p = {p}, lambda = {decay}")
  axes[0].set(ylabel="largest norm N, largest error E")
  norm = np.geomspace(0.1, 1e3, 100)
  for dimension in (1, 100, 10_000):
    bound = norm / dimension**0.5
    error = penalty_error(dimension, p, decay, bound)
    axes[1].plot(norm, error, label=f"d = {dimension}")
  axes[1].set(xlabel="largest gradient norm N", ylabel="largest error E")
  axes[1].set(title="frontier over all G")
  for name, sizes in largest.items():
    window = sizes[: len(sizes) // 100 * 100].reshape(-1, 100).max(axis=1)
    axes[2].plot(100 * np.arange(len(window)), window, label=name)
  axes[2].set(xlabel="step", ylabel="largest |update| / learning rate")
  axes[2].set(title="runs, largest of 100 steps")
  for axis in axes:
    axis.set_yscale("log")
    axis.legend(fontsize=8)
  axes[0].set_xscale("log")
  axes[1].set_xscale("log")
  return figure


def main():
  out = report.parse_out(__doc__)
  jax.config.update("jax_enable_x64", True)
  errors = [
    {
      "p, G": (p, bound),
      "error_per_dimension": penalty_error(1, p, 1.0, bound),
      "error_per_dimension_by_integral": penalty_error_measured(p, 1.0, bound),
    }
    for p, bound in itertools.product((0.25, 0.5, 0.75), BOUNDS)
  ]
  print("p, G | largest error per dimension | by integration")
  for row in errors:
    (p, bound), formula, integral = row.values()
    print(f"{p}, {bound} | {formula:.6g} | {integral:.6g}")
  half_e = 1 / (2 * np.e)
  at_one = {p: penalty_error(1, p, 1.0, 1.0) for p in (0.25, 0.5, 0.6, 0.75)}
  print(f"N <= sqrt(d): E / d against 1/(2e) = {half_e:.4f}:", at_one)
  limits = {
    f"N <= {n}, E <= {e}": last_dimension(0.5, 1.0, n, e)
    for n, e in itertools.product((1, 10, 100), (0.1, 1, 10))
  }
  print("last dimension with both, p = 1/2, lambda = 1:", limits)
  largest, ends, start, target = runs()
  summary = {
    name: {
      "largest_update": float(sizes.max()),
      "largest_update_in_last_tenth": float(sizes[-len(sizes) // 10 :].max()),
      "targets_found": int((target * ends[name] > 0.5).sum()),
      "weights_below_1e-6": int((jnp.abs(ends[name]) < 1e-6).sum()),
    }
    for name, sizes in largest.items()
  }
  right = int((target * start > 0).sum())
  print(f"{int(target.sum())} nonzero targets, {right} start on their side")
  for name, values in summary.items():
    print(name, values)
  numbers = {
    "claim": "bounded gradient and small error of a clipped lp penalty exclude"
    " each other as d grows; the step of ReWA is bounded without clipping",
    "errors": errors,
    "error_per_dimension_at_norm_sqrt_d": at_one,
    "one_over_2e": half_e,
    "last_dimension_with_both": limits,
    "targets": int(target.sum()),
    "targets_that_start_on_their_side": right,
    "runs": summary,
  }
  report.save(out, numbers, plot(0.5, 1.0, largest))


if __name__ == "__main__":
  main()
