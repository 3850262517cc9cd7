"""What the methods solve, against scikit-learn, skglm and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso

import rewa_jax
from rewa_jax import baselines
from tests.baselines.descent import descend
from tests.extras import needs

# Shares of the least strength that leaves no weight.
STRENGTHS = np.array([0.5, 0.4, 0.3, 0.2, 0.1])


def diabetes():
  inputs, targets = load_diabetes(return_X_y=True)
  inputs = (inputs - inputs.mean(0)) / inputs.std(0)
  return inputs, (targets - targets.mean()) / targets.std()


def synthetic(samples=200, features=500):
  # A seed for which no zero is within 1 % of the strength of becoming nonzero:
  # there the methods are right too, but gradient descent is very slow.
  rng = np.random.default_rng(1)
  inputs = rng.normal(size=(samples, features))
  true = np.zeros(features)
  true[:20] = rng.choice([-1, 1], 20) * rng.uniform(0.5, 1.5, 20)
  return inputs, inputs @ true + rng.normal(scale=0.5, size=samples)


def small_synthetic():
  return synthetic(100, 200)


def gradient_at_zero(inputs, targets):
  return inputs.T @ targets / len(targets)


def least_squares(inputs, targets):
  """The loss of scikit-learn and skglm, up to a constant."""
  q, r = np.linalg.qr(inputs)  # With more samples than features, a small r.
  outputs, r = jnp.asarray(q.T @ targets), jnp.asarray(r)

  def loss(weights):
    errors = r @ weights["kernel"].ravel() - outputs
    return jnp.sum(errors**2) / (2 * len(targets))

  return loss


def path_of_solutions(method, loss, start, decays, rate, steps):
  """The weights that SGD on latents reaches, for every decay at once."""

  def solve(weight_decay):
    latents = descend(
      rewa_jax.sgd(rate, method, weight_decay=weight_decay),
      lambda latents: loss(method.to_weights(latents)),
      method.to_latents({"kernel": start}),
      steps,
    )
    return method.to_weights(latents)["kernel"].ravel()

  return np.asarray(jax.jit(jax.vmap(solve))(decays))


# Convex problems: the solution itself.


@pytest.mark.parametrize(
  "method,scale",
  # The scale of R: sum |x| for spred, half of it for the difference.
  [(baselines.spred(), 1), (baselines.HadamardDifference(2), 1 / 2)],
  ids=["spred", "HadamardDifference"],
)
@pytest.mark.parametrize(
  "data,rate,steps",
  [
    (diabetes, 0.2, 20000),
    pytest.param(synthetic, 0.2, 10000, marks=pytest.mark.slow),
  ],
)
def test_l1_methods_reach_the_lasso(method, scale, data, rate, steps, x64):
  inputs, targets = data()
  largest = np.abs(gradient_at_zero(inputs, targets)).max()
  found = path_of_solutions(
    method,
    least_squares(inputs, targets),
    jnp.zeros(inputs.shape[1]),
    largest * STRENGTHS / scale,
    rate,
    steps,
  )
  for x, strength in zip(found, largest * STRENGTHS):
    peer = Lasso(strength, fit_intercept=False, tol=1e-12, max_iter=100_000)
    solution = peer.fit(inputs, targets).coef_
    assert 0 < np.count_nonzero(solution) < inputs.shape[1]
    np.testing.assert_allclose(x, solution, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_lbfgs_on_latents_reaches_the_lasso(x64):
  """Strengths so small that gradient descent would take very long."""
  inputs, targets = synthetic()
  strength = 0.05 * np.abs(gradient_at_zero(inputs, targets)).max()
  solution = Lasso(strength, fit_intercept=False, tol=1e-12).fit(
    inputs, targets
  )
  method = baselines.spred()
  loss = least_squares(inputs, targets)

  def penalized(latents):
    squares = optax.tree.norm(latents, squared=True)
    return loss(method.to_weights(latents)) + strength * squares / 2

  solver = optax.lbfgs(memory_size=20)
  value_and_grad = optax.value_and_grad_from_state(penalized)

  def step(carry, _):
    latents, state = carry
    value, grads = value_and_grad(latents, state=state)
    updates, state = solver.update(
      grads, state, latents, value=value, grad=grads, value_fn=penalized
    )
    return (optax.apply_updates(latents, updates), state), None

  latents = method.to_latents({"kernel": jnp.zeros(inputs.shape[1])})
  start = latents, solver.init(latents)
  run = jax.jit(functools.partial(jax.lax.scan, step, length=300))
  latents = run(start)[0][0]
  x = method.to_weights(latents)["kernel"]
  np.testing.assert_allclose(x, solution.coef_, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  "data,size,rate,steps",
  [(diabetes, 2, 0.2, 20000), (synthetic, 5, 0.2, 2000)],
)
def test_gates_reach_the_group_lasso(data, size, rate, steps, x64):
  skglm = needs("skglm")
  inputs, targets = data()
  groups = gradient_at_zero(inputs, targets).reshape(-1, size)
  largest = np.linalg.norm(groups, axis=1).max()
  found = path_of_solutions(
    baselines.Gated("rows"),
    least_squares(inputs, targets),
    jnp.zeros(groups.shape),
    largest * STRENGTHS,
    rate,
    steps,
  )
  for x, strength in zip(found, largest * STRENGTHS):
    peer = skglm.GroupLasso(
      groups=size, alpha=strength, tol=1e-12, fit_intercept=False
    )
    solution = peer.fit(inputs, targets).coef_
    norms = np.linalg.norm(solution.reshape(-1, size), axis=1)
    assert 0 < np.count_nonzero(norms) < len(norms)
    np.testing.assert_allclose(x, solution, rtol=0, atol=1e-5)


# Penalties of power p < 1: points that are stationary for them.


@pytest.mark.parametrize(
  "data,rate,steps", [(diabetes, 0.2, 20000), (small_synthetic, 0.05, 6000)]
)
@pytest.mark.parametrize(
  "method,penalty,scale",
  [
    # The scale of R: D / 2 sum |x|^(2/D) for DWF, k / (k + 1 - m) sum |x|^p for
    # ReWA, half the sum for the difference and PowerPropagation.
    (baselines.deep_weight_factorization(3), "L2_3", 3 / 2),
    (baselines.deep_weight_factorization(4), "L0_5", 2),
    (baselines.HadamardDifference(3), "L2_3", 1 / 2),
    (baselines.HadamardDifference(4), "L0_5", 1 / 2),
    (baselines.PowerPropagation(3), "L2_3", 1 / 2),
    (rewa_jax.Rewa(k=3, m=2), "L2_3", 3 / 2),
    (rewa_jax.Rewa(k=6, m=4), "L0_5", 2),
  ],
  ids=str,
)
def test_nonconvex_methods_land_on_stationary_points_of_skglm(
  method, penalty, scale, data, rate, steps, x64
):
  inputs, targets = data()
  features = inputs.shape[1]
  largest = np.abs(gradient_at_zero(inputs, targets)).max()
  strength = 0.1 * largest
  start = gradient_at_zero(inputs, targets)
  (x,) = path_of_solutions(
    method,
    least_squares(inputs, targets),
    jnp.asarray(start),
    np.array([strength / scale]),
    rate,
    steps,
  )
  x = np.where(np.abs(x) > 1e-6, x, 0)
  assert 0 < np.count_nonzero(x) < features
  peer = getattr(needs("skglm").penalties, penalty)(strength)
  gradient = inputs.T @ (inputs @ x - targets) / len(targets)
  off = peer.subdiff_distance(x, gradient, np.arange(features))
  assert off.max() < 1e-8 * largest
  value = strength / scale * method.implicit_penalty(x)
  np.testing.assert_allclose(value, peer.value(x), rtol=1e-12)


# ReWA and deep weight factorization.


@pytest.mark.parametrize(
  "depth", [3, *(pytest.param(d, marks=pytest.mark.slow) for d in (2, 4))]
)
def test_tied_power_of_rewa_follows_balanced_factors(depth, x64):
  r"""Step by step, with the same decay.

  Let the factors be balanced, w_1 = ... = w_{D-1} = a > 0 and w_D = s a, with
  s the sign of x = s a^D, and g the gradient in x. DWF's step is

    w_i <- (1 - eta lambda) w_i - eta g prod_{j != i} w_j.

  The product is s a^(D-1) for i < D and a^(D-1) for i = D, so that both read

    a <- (1 - eta lambda) a - eta s g a^(D-1),

  and the factors stay balanced. ReWA with k = D, m = D - 1, eps = 0 stores
  y = s a and makes the step

    y <- (1 - eta lambda) y - eta |y|^(D-1) g,

  s times the same.
  """
  rate, weight_decay = 0.02, 0.05
  inputs, targets = diabetes()
  loss = least_squares(inputs, targets)
  start = {"kernel": jnp.asarray(gradient_at_zero(inputs, targets))}
  factors = baselines.deep_weight_factorization(depth, offset=0)
  tied = rewa_jax.Rewa(k=depth, m=depth - 1)

  def trajectory(method):
    solver = rewa_jax.sgd(rate, method, weight_decay=weight_decay)

    def step(carry, _):
      latents, state = carry
      grads = jax.grad(lambda y: loss(method.to_weights(y)))(latents)
      updates, state = solver.update(grads, state, latents)
      latents = optax.apply_updates(latents, updates)
      return (latents, state), jax.tree.leaves(latents)

    latents = method.to_latents(start)
    first = latents, solver.init(latents)
    return jax.lax.scan(step, first, length=1000)[1]

  w = trajectory(factors)
  (y,) = trajectory(tied)
  assert (jnp.abs(y[-1]) < 0.6 * jnp.abs(y[0])).any()
  np.testing.assert_allclose(w[-1], y, rtol=0, atol=1e-13)
  for factor in w[:-1]:
    np.testing.assert_allclose(factor, jnp.abs(y), rtol=0, atol=1e-13)
