"""The product of K decayed factors and the lp problem have the same minima.

Xu et al., ReWA, 2026, arXiv 2605.25134, Lemma 3.1: the minima, local and
global, of

  [Cp]  f(y_1 * ... * y_K) + lambda/2 (|y_1|^2 + ... + |y_K|^2)
  lp    f(x) + K/2 lambda sum |x_i|^p,  p = 2/K

correspond by x = y_1 * ... * y_K. (Of all factors of x the sum of squares is
smallest where they are equally large, by the inequality of the means.) Shown by
searching for all local minima of both, on four f in one and two dimensions and
K = 2, 3, 4, in two independent ways: lp, with its cusps, by a search on grids
on the plane and the axes, then halved, without gradients; [Cp], which is
smooth, by gradient descent from random starts, then Newton steps, then a look
at the Hessian. What both miss would not be seen, and what one misses looks like
a difference: 600 starts instead of 2000 miss one minimum of the last f. The
penalty of lp is that of the library for k = K and m = K - 1.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tqdm

import rewa_jax

from . import report

# f of x, a vector. None is symmetric: a search cannot stop on a ridge by luck.
FUNCTIONS = {
  "convex, 1-D": (1, lambda x: (x[0] - 1) ** 2),
  "waves, 1-D": (1, lambda x: 0.5 * x[0] ** 2 + 0.6 * jnp.sin(5 * x[0] + 1)),
  "regression, 2-D": (
    2,
    lambda x: (x[0] + 0.6 * x[1] - 1) ** 2 + 0.3 * (x[1] - 0.8 * x[0]) ** 2,
  ),
  "waves, 2-D": (
    2,
    lambda x: (
      0.5 * x @ x
      + 0.5 * jnp.sin(4 * x[0] + 1)
      + 0.4 * jnp.sin(4 * x[1] + 0.8 * x[0] - 0.5)
    ),
  ),
}
DECAY = 0.2


def lp_loss(f, factors):
  """Returns the lp problem."""
  penalty = rewa_jax.Penalty(factors, factors - 1)
  return lambda x: f(x) + DECAY * penalty.value(x)


def product_loss(f):
  """Returns the problem [Cp] of factors of shape (K, dimension)."""
  return lambda y: (
    f(functools.reduce(jnp.multiply, y)) + (DECAY / 2 * jnp.sum(y**2))
  )


def minima_on_grid(loss, dimension, reach=4.0, points=65):
  """Returns the local minima of a loss that may have cusps on the axes."""
  moves = jnp.array(list(itertools.product((-1, 0, 1), repeat=dimension)))
  losses = jax.vmap(loss)

  def gain(x, moves):
    # By more than rounding, or the search could go in circles.
    values = losses(x + moves)
    best = jnp.argmin(values)
    return moves[best], values[best] < loss(x) - 1e-14

  def search(x, free):
    # To the best neighbour; where none is better the grid is halved. Basins at
    # zero can be thinner than the grid, so coordinates at zero stay there.
    def step(carry):
      x, spacing = carry
      move, better = gain(x, spacing * moves * free)
      return x + better * move, jnp.where(better, spacing, spacing / 2)

    x, _ = jax.lax.while_loop(lambda c: c[1] > 1e-8, step, (x, 2.0**-6))
    # Whether they would stay of themselves.
    return x, ~gain(x, 2.0**-20 * moves)[1]

  axis = jnp.linspace(-reach, reach, points)
  starts = jnp.stack(jnp.meshgrid(*[axis] * dimension), axis=-1)
  starts = starts.reshape(-1, dimension)
  x, is_minimum = jax.jit(jax.vmap(search))(starts, starts != 0)
  return distinct(x[is_minimum])


def minima_of_factors(loss, factors, dimension, starts=2000, steps=1000):
  """Returns the local minima of a smooth loss of factors, and what failed.

  The minima are (count, K, dimension); failed is the share of starts that did
  not end at a stationary point with a positive definite Hessian.
  """
  shape = (factors, dimension)

  def flat(y):
    return loss(y.reshape(shape))

  gradient, hessian = jax.grad(flat), jax.hessian(flat)

  def search(y):
    y = jax.lax.fori_loop(0, steps, lambda _, y: y - 0.01 * gradient(y), y)
    y = jax.lax.fori_loop(
      0, 10, lambda _, y: y - jnp.linalg.solve(hessian(y), gradient(y)), y
    )
    return y, gradient(y), hessian(y)

  # Factors of any sign and imbalance. Products of any order of magnitude, for
  # the basins at zero can be thin.
  random = np.random.default_rng(0)
  x = 4 * 10 ** random.uniform(-4, 0, (starts, 1, dimension))
  spread = np.exp(0.3 * random.normal(size=(starts, *shape)))
  signs = random.choice([-1, 1], (starts, *shape))
  y = (x ** (1 / factors) * spread * signs).reshape(starts, -1)
  y, slope, curvature = map(np.asarray, jax.jit(jax.vmap(search))(y))
  # Diverged starts have no eigenvalues.
  y, slope, curvature = (
    a[np.isfinite(curvature).all((1, 2))] for a in (y, slope, curvature)
  )
  lowest = np.linalg.eigvalsh(curvature)[:, 0]
  good = (lowest > 1e-6) & (np.abs(slope).max(axis=1) < 1e-9)
  return distinct(y[good]).reshape(-1, *shape), 1 - good.sum() / starts


def distinct(points, apart=1e-4):
  """Returns one of each cluster of points, in lexical order."""
  found = []
  for point in np.asarray(points):
    if not any(np.abs(point - other).max() < apart for other in found):
      found.append(point)
  return np.array(sorted(found, key=tuple))


def compare(name, factors, **search):
  """Returns the minima of both problems and how far apart they are."""
  dimension, f = FUNCTIONS[name]
  loss = lp_loss(f, factors)
  lp = minima_on_grid(loss, dimension)
  y, failed = minima_of_factors(product_loss(f), factors, dimension, **search)
  products = distinct(y.prod(axis=1))
  lp_values = np.array([loss(x) for x in lp])
  # One value per product: all factors of one product should have the same.
  values = jax.vmap(product_loss(f))(y)
  gap = np.abs(y.prod(axis=1)[:, None] - lp).max(axis=2)
  nearest = gap.argmin(axis=1)
  lowest_lp, lowest = lp_values.argmin(), values.argmin()
  return {
    "f": name,
    "factors": factors,
    "lp_minima": lp.tolist(),
    "lp_values": lp_values.tolist(),
    "product_minima": products.tolist(),
    "largest_distance": float(
      max(gap.min(axis=0).max(), gap.min(axis=1).max())
    ),
    "largest_difference_in_value": float(
      np.abs(values - lp_values[nearest]).max()
    ),
    "same_global_minimum": bool(nearest[lowest] == lowest_lp),
    "largest_imbalance_of_factors": float(np.ptp(np.abs(y), axis=1).max()),
    "starts_that_failed": float(failed),
  }


def plot(rows):
  figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
  grid = np.linspace(-1.8, 1.8, 721)
  name = "waves, 1-D"
  for factors, color in zip((2, 3, 4), ("C0", "C1", "C2")):
    loss = jax.vmap(lp_loss(FUNCTIONS[name][1], factors))
    axes[0].plot(grid, loss(grid[:, None]), color, label=f"lp, K={factors}")
    row = next(r for r in rows if (r["f"], r["factors"]) == (name, factors))
    x = np.array(row["product_minima"])
    axes[0].plot(x, loss(x), "o", color=color, label=f"[Cp], K={factors}")
  axes[0].set(
    xlabel="weight x", ylabel="loss", title=name, ylim=(-1, 3), xlim=(-2, 2)
  )
  axes[0].legend(ncols=3, fontsize=8, loc="upper center", columnspacing=1)
  for axis, name in zip(axes[1:], ("regression, 2-D", "waves, 2-D")):
    loss = jax.vmap(jax.vmap(lp_loss(FUNCTIONS[name][1], 3)))
    mesh = np.stack(np.meshgrid(grid[::6], grid[::6]), axis=-1)
    shades = axis.contourf(grid[::6], grid[::6], loss(mesh), 30)
    figure.colorbar(shades, label="loss of lp")
    row = next(r for r in rows if (r["f"], r["factors"]) == (name, 3))
    for x, mark, label in (
      (row["lp_minima"], "ws", "lp"),
      (row["product_minima"], "r.", "[Cp]"),
    ):
      axis.plot(*np.array(x).T, mark, label=f"minima of {label}")
    axis.set(
      xlabel="weight $x_1$",
      ylabel="weight $x_2$",
      title=f"{name}, K=3",
      xlim=(-1.8, 1.8),
      ylim=(-1.8, 1.8),
    )
    axis.legend(loc="lower right", fontsize=8)
  return figure


def main():
  out = report.parse_out(__doc__)
  jax.config.update("jax_enable_x64", True)
  rows = [
    compare(name, factors)
    for name, factors in tqdm.tqdm(
      list(itertools.product(FUNCTIONS, (2, 3, 4)))
    )
  ]
  print("f, K | minima of lp, [Cp] | distance, difference in value | imbalance")
  for row in rows:
    print(
      f"{row['f']}, {row['factors']} | {len(row['lp_minima'])},"
      f" {len(row['product_minima'])} | {row['largest_distance']:.0e},"
      f" {row['largest_difference_in_value']:.0e} |"
      f" {row['largest_imbalance_of_factors']:.0e} | global one the same:"
      f" {row['same_global_minimum']}"
    )
  numbers = {
    "claim": "local and global minima of [Cp] and of lp correspond",
    "decay": DECAY,
    "problems": rows,
  }
  report.save(out, numbers, plot(rows))


if __name__ == "__main__":
  main()
