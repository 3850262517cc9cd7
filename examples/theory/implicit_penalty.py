"""The penalty that weight decay on latents amounts to: Theorem 3.3.

Xu et al., ReWA, 2026, arXiv 2605.25134. The claim: where training with ReWA
stops, grad f(x) = -lambda R'(x) on every nonzero weight, with

  R(x) = k / (k+1-m) sum |x|^(1 + (1-m)/k) + eps k / (2-m) sum |x|^((2-m)/k).

The theorem assumes even m; here also odd and fractional ones, on three smooth
losses: a quadratic with correlated Hessian, a logistic regression and a small
two-layer tanh network, in float64. Weights below ZERO count as zero. There is
no momentum: it would make the gradient count 1 / (1 - momentum) times.

Then what R does to one weight: the shrinkage curve, the argmin over x of
(x - z)^2 / 2 + lambda R(x) against z, beside soft threshold, hard threshold,
MCP and SCAD, and the jump: the z where x leaves zero and the x it leaves for.
For m >= 2 and eps > 0, R is minus infinity at zero and the argmin is zero for
every z; such a setting has stationary points but no shrinkage curve.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import rewa_jax

from . import report

ZERO = 1e-8

SETTINGS = (
  (3, 0, 0.0),
  (3, 1, 0.0),
  (3, 2, 0.0),
  (9, 2, 0.0),
  (9, 4, 0.0),
  (5, 3, 0.0),
  (2.25, 1.25, 0.0),
  (4, 2.5, 0.0),
  (3, 0, 1e-2),
  (5, 1, 1e-2),
  (5, 0.5, 1e-2),
  (9, 0, 1e-3),
  (9, 2, 1e-3),
  (9, 4, 1e-3),
)

SHRINKING = (
  (9, 2, 0.0),
  (9, 4, 0.0),
  (9, 6, 0.0),
  (9, 0, 0.3),
  (3, 0, 0.3),
)


def losses(seed=0):
  """Returns smooth losses of trees of kernels, and the kernels' shapes."""
  rng = np.random.default_rng(seed)
  hessian = 0.5 ** np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
  target = np.geomspace(1, 0.01, 12) * rng.choice([-1, 1], 12)
  inputs = rng.normal(size=(60, 10))
  slope = np.where(np.arange(10) < 4, 2.0, 0.0)
  labels = np.sign(inputs @ slope + rng.normal(size=60))
  inputs_of_net = rng.normal(size=(40, 3))
  outputs = np.tanh(inputs_of_net @ [1.0, -1.0, 0.0])

  def quadratic(params):
    error = params["kernel"] - target
    return 0.5 * error @ hessian @ error

  def logistic(params):
    return jnp.mean(jax.nn.softplus(-labels * (inputs @ params["kernel"])))

  def network(params):
    hidden = jnp.tanh(inputs_of_net @ params["first"]["kernel"])
    return jnp.mean((hidden @ params["second"]["kernel"] - outputs) ** 2)

  return {
    "quadratic": (quadratic, {"kernel": (12,)}),
    "logistic": (logistic, {"kernel": (10,)}),
    "tanh network": (
      network,
      {"first": {"kernel": (3, 4)}, "second": {"kernel": (4,)}},
    ),
  }


def train(loss, shapes, settings, weight_decay, learning_rate, steps, seeds=3):
  """Returns x and grad f(x), of (setting, seed, weight), where training ends.

  The weights start at random between -1 and 1.
  """

  rng = np.random.default_rng(0)
  starts = jax.tree.map(
    lambda shape: jnp.asarray(rng.uniform(-1, 1, (seeds, *shape))),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
  )

  def run(setting, start):
    rewa = rewa_jax.Rewa(*setting)
    solver = rewa_jax.sgd(learning_rate, rewa, weight_decay=weight_decay)
    gradient = jax.grad(lambda latents: loss(rewa.to_weights(latents)))

    def step(carry, _):
      latents, state = carry
      updates, state = solver.update(gradient(latents), state, latents)
      return (optax.apply_updates(latents, updates), state), None

    latents = rewa.to_latents(start)
    carry = latents, solver.init(latents)
    latents, _ = jax.lax.scan(step, carry, length=steps)[0]
    weights = rewa.to_weights(latents)
    return [
      jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
      for tree in (weights, gradient(latents))
    ]

  over_seeds = jax.vmap(run, in_axes=(None, 0))
  settings = tuple(map(jnp.asarray, zip(*settings)))
  x, g = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(settings, starts)
  return np.asarray(x), np.asarray(g)


def residuals(x, g, setting, weight_decay):
  """Returns |grad f + lambda R'| / |lambda R'| on the nonzero weights."""
  nonzero = np.abs(x) >= ZERO
  slope = np.asarray(rewa_jax.Penalty(*setting).gradient(x[nonzero]))
  pull = weight_decay * slope
  return np.abs(g[nonzero] + pull) / np.abs(pull)


def penalties(weight_decay, sizes):
  """Returns the penalties of ReWA and its relatives on a grid of |x|."""
  lam = weight_decay
  gamma, a = 3.0, 3.7
  curves = {
    "soft threshold": lam * sizes,
    # The penalty lambda^2 / 2 per nonzero weight has its threshold at lambda.
    "hard threshold": np.where(sizes > 0, lam**2 / 2, 0),
    f"MCP (gamma = {gamma:g})": np.where(
      sizes <= gamma * lam,
      lam * sizes - sizes**2 / (2 * gamma),
      gamma * lam**2 / 2,
    ),
    f"SCAD (a = {a})": np.select(
      [sizes <= lam, sizes <= a * lam],
      [
        lam * sizes,
        (2 * a * lam * sizes - sizes**2 - lam**2) / (2 * (a - 1)),
      ],
      lam**2 * (a + 1) / 2,
    ),
  }
  for k, m, eps in SHRINKING:
    value = jax.vmap(rewa_jax.Penalty(k, m, eps).value)(sizes)
    name = f"ReWA {rewa_jax.Penalty(k, m, eps).config}: k={k}, m={m}"
    curves[name + (f", eps={eps}" if eps else "")] = lam * np.asarray(value)
  return curves


def shrink(z, sizes, penalty):
  """Returns the argmin over the grid of (x - z)^2 / 2 + penalty(x), z >= 0."""
  return sizes[np.argmin((sizes - z) ** 2 / 2 + penalty)]


def jump(sizes, penalty):
  """Returns the z where the argmin leaves zero, and the x it leaves for."""
  low, high = 0.0, sizes[-1]
  for _ in range(50):
    middle = (low + high) / 2
    if shrink(middle, sizes, penalty) > 0:
      high = middle
    else:
      low = middle
  return high, shrink(high, sizes, penalty)


def plot(points, curves, sizes, weight_decay, shrinkage_decay):
  figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.4))
  shown = ((3, 0, 0.0), (3, 1, 0.0), (9, 4, 0.0), (5, 1, 1e-2), (9, 4, 1e-3))
  reach = jnp.geomspace(1e-4, 2)
  for i, setting in enumerate(shown):
    k, m, eps = setting
    slope = rewa_jax.Penalty(*setting).gradient(reach)
    left.plot(
      reach, slope, f"C{i}", lw=1, label=f"R': k={k}, m={m}, eps={eps:g}"
    )
    for loss, marker in zip(points, "os^"):
      x, g = points[loss][setting]
      left.plot(np.abs(x), np.abs(g) / weight_decay, f"C{i}{marker}", ms=4)
  for loss, marker in zip(points, "os^"):
    left.plot([], [], f"k{marker}", ms=4, label=f"|grad f| / lambda: {loss}")
  left.set(xscale="log", yscale="log", ylim=(0.03, 30))
  left.set(xlabel="weight |x| where training stopped")
  left.set(ylabel="|grad f(x)| / lambda and R'(|x|)")
  left.set(title=f"Theorem 3.3, lambda = {weight_decay}")
  z = np.linspace(0, 2.5, 501)
  for i, (name, penalty) in enumerate(curves.items()):
    x = [shrink(one, sizes, penalty) for one in z]
    style = "-" if name.startswith("ReWA") else "--"
    right.plot(z, x, f"C{i}{style}", lw=1.3, label=name)
  right.plot(z, z, "k:", lw=0.8, label="x = z")
  right.set(xlabel="z", ylabel="argmin of (x - z)^2 / 2 + lambda R(x)")
  right.set(title=f"Shrinkage, lambda = {shrinkage_decay}")
  for axes in (left, right):
    axes.legend(
      loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8
    )
  figure.set_layout_engine("constrained")
  return figure


def main():
  out = report.parse_out(__doc__)
  jax.config.update("jax_enable_x64", True)
  decay, rate, steps, seeds = 0.05, 0.03, 60_000, 3
  rows, points = [], {}
  for name, (loss, shapes) in tqdm(losses().items(), desc="losses"):
    xs, gs = train(loss, shapes, SETTINGS, decay, rate, steps, seeds)
    points[name] = {}
    for setting, x, g in zip(SETTINGS, xs, gs):
      nonzero = np.abs(x) >= ZERO
      k, m, eps = setting
      rows.append(
        {
          "loss": name,
          "k": k,
          "m": m,
          "eps": eps,
          "nonzero": int(nonzero.sum()),
          "zero": int((~nonzero).sum()),
          "smallest_nonzero": float(np.abs(x[nonzero]).min(initial=np.inf)),
          "largest_zero": float(np.abs(x[~nonzero]).max(initial=0)),
          "largest_relative_residual": float(
            residuals(x, g, setting, decay).max(initial=0)
          ),
        }
      )
      points[name][setting] = x[nonzero], g[nonzero]
  print("k     m     eps    loss          nonzero  zero  smallest  residual")
  for row in sorted(
    rows, key=lambda r: SETTINGS.index((r["k"], r["m"], r["eps"]))
  ):
    print(
      f"{row['k']:<5} {row['m']:<5} {row['eps']:<6g} {row['loss']:13}"
      f" {row['nonzero']:7} {row['zero']:5}  {row['smallest_nonzero']:8.1e}"
      f"  {row['largest_relative_residual']:8.1e}"
    )
  worst = max(row["largest_relative_residual"] for row in rows)
  # Half an ulp of y against its decay: smaller changes are rounded away.
  floor = np.finfo(np.float64).eps / (2 * rate * decay)
  print(f"Largest relative residual of all: {worst:.1e}")
  print(f"Rounding alone stops training at: {floor:.1e}")

  shrinkage_decay, sizes = 0.5, np.linspace(0, 3, 30_001)
  curves = penalties(shrinkage_decay, sizes)
  jumps = []
  print("penalty                    leaves 0 at z    for x")
  for name, penalty in curves.items():
    z, x = jump(sizes, penalty)
    jumps.append({"penalty": name, "z": z, "x": float(x)})
    print(f"{name:28} {z:11.4f} {x:8.4f}")
  numbers = {
    "claim": "Theorem 3.3: grad f(x) = -lambda R'(x) on nonzero weights",
    "largest_relative_residual": worst,
    "relative_residual_from_rounding": float(floor),
    "zero_below": ZERO,
    "weight_decay": decay,
    "learning_rate": rate,
    "steps": steps,
    "starts": seeds,
    "stationary_points": rows,
    "shrinkage": {
      "weight_decay": shrinkage_decay,
      "spacing_of_the_grid": float(sizes[1]),
      "jumps": jumps,
    },
  }
  figure = plot(points, curves, sizes, decay, shrinkage_decay)
  report.save(out, numbers, figure)


if __name__ == "__main__":
  main()
