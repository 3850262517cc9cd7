import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rewa_jax
from rewa_jax import baselines
from tests.baselines import descent


def every_weight(path, leaf):
  """Groups of one weight each."""
  del path
  return range(leaf.ndim)


def steps_of(solver, loss, latents, steps):
  """The latents after every step."""

  def step(carry, _):
    latents, state = carry
    updates, state = solver.update(jax.grad(loss)(latents), state, latents)
    latents = optax.apply_updates(latents, updates)
    return (latents, state), latents

  start = latents, solver.init(latents)
  return jax.jit(lambda start: jax.lax.scan(step, start, length=steps)[1])(
    start
  )


def weights_after_steps(method, solver, steps):
  params = jax.tree.map(jnp.asarray, descent.START)

  def loss(latents):
    return descent.logistic(method.to_weights(latents))

  latents = method.to_latents(params)
  return jax.vmap(method.to_weights)(steps_of(solver, loss, latents, steps))


# What they solve.


def rewa_slope(k, m, eps, size):
  """The derivative of R along the size of a weight or a group."""
  p, q = 1 + (1 - m) / k, (2 - m) / k
  with np.errstate(divide="ignore", invalid="ignore"):
    return size ** (p - 1) + eps * size ** (q - 1)


@pytest.mark.parametrize(
  "k,m,eps",
  [
    (9, 2, 0.0),
    pytest.param(2.5, 1.2, 0.0, marks=pytest.mark.slow),
    pytest.param(3, 0, 0.1, marks=pytest.mark.slow),
    pytest.param(4, 1, 0.1, marks=pytest.mark.slow),
    # The second term is a logarithm.
    pytest.param(3, 2, 0.01, marks=pytest.mark.slow),
  ],
)
def test_stationary_points_of_rewa_are_those_of_theorem_3_3(k, m, eps, x64):
  """Where some weights vanish."""
  weight_decay = 0.02
  _, weights = descent.train(rewa_jax.Rewa(k, m, eps), weight_decay, rate=0.5)
  x = weights["kernel"]
  alive = np.abs(x) > 1e-4
  assert 0 < alive.sum() < alive.size
  assert np.abs(x[~alive]).max() < 1e-9
  slope = np.sign(x) * rewa_slope(k, m, eps, np.abs(x))
  descent.assert_stationary(weights, weight_decay, slope, alive)


@pytest.mark.parametrize(
  "k,m,eps,groups",
  [
    (3, 2, 0.0, "output"),
    (3, 0, 0.1, "output"),
    pytest.param(9, 2, 0.0, "output", marks=pytest.mark.slow),
    pytest.param(5, 3, 0.0, "input", marks=pytest.mark.slow),
    pytest.param(3, 2, 0.01, "output", marks=pytest.mark.slow),
    pytest.param(3, 2, 0.0, every_weight, marks=pytest.mark.slow),
  ],
)
def test_stationary_groups_of_rewa_are_those_of_its_penalty_on_norms(
  k, m, eps, groups, x64
):
  weight_decay = 0.03
  method = baselines.GroupedRewa(k, groups, m, eps)
  _, weights = descent.train(method, weight_decay, rate=0.5)
  x = weights["kernel"]
  axis = {"output": 0, "input": 1, every_weight: ()}[groups]
  norms = np.sqrt(np.sum(x**2, axis=axis, keepdims=True))
  alive = norms > 1e-4
  # Whole groups vanish while others live.
  assert 0 < alive.sum() < alive.size
  assert norms[~alive].max() < 1e-9
  with np.errstate(divide="ignore", invalid="ignore"):
    slope = rewa_slope(k, m, eps, norms) * x / norms
  descent.assert_stationary(weights, weight_decay, slope, alive)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_the_penalty_on_groups_is_rewas_on_their_norms(eps):
  x = jnp.array([[3.0, 0.0], [4.0, 2.0]])
  grouped = baselines.GroupedRewa(5, "output", m=3, eps=eps)
  expected = rewa_jax.Penalty(5, 3, eps).value(jnp.array([5.0, 2.0]))
  np.testing.assert_allclose(grouped.implicit_penalty(x), expected, rtol=1e-6)
  rows = baselines.GroupedRewa(5, "rows", m=3).implicit_penalty(x)
  expected = rewa_jax.Penalty(5, 3).value(jnp.array([3.0, 20**0.5]))
  np.testing.assert_allclose(rows, expected, rtol=1e-6)


@pytest.mark.parametrize(
  "alpha,weight_decay",
  [(2, 0.1), pytest.param(3, 0.04, marks=pytest.mark.slow)],
)
def test_stationary_points_of_powerpropagation_are_those_of_its_penalty(
  alpha, weight_decay, x64
):
  method = baselines.PowerPropagation(alpha)
  _, weights = descent.train(method, weight_decay, rate=0.5)
  x = weights["kernel"]
  alive = np.abs(x) > 1e-4
  assert 0 < alive.sum() < alive.size
  slope = np.sign(x) * np.abs(x) ** (2 / alpha - 1) / alpha
  descent.assert_stationary(weights, weight_decay, slope, alive)
  np.testing.assert_allclose(
    method.implicit_penalty(x), np.sum(np.abs(x) ** (2 / alpha)) / 2, rtol=1e-12
  )


def test_without_decay_powerpropagation_has_no_penalty(x64):
  _, weights = descent.train(baselines.PowerPropagation(1.5), 0.0, rate=1.5)
  gradient = descent.logistic_gradient(weights)
  alive = np.abs(weights["kernel"]) > 1e-4
  assert alive.sum() > alive.size / 2
  np.testing.assert_allclose(gradient["kernel"][alive], 0, atol=1e-9)
  np.testing.assert_allclose(gradient["bias"], 0, atol=1e-9)


def test_powerpropagation_slows_small_weights():
  method = baselines.PowerPropagation(3)
  latents = method.to_latents({"w": jnp.array([8.0, -1.0, 0.0])})
  grads = jax.grad(lambda y: method.to_weights(y)["w"].sum())(latents)
  # 3 |y|^2 with y = 2, -1, 0.
  np.testing.assert_allclose(grads["w"], [12, 3, 0], rtol=1e-6)


# ReWA in groups.


@pytest.mark.parametrize("k,m,eps", [(3, 2, 0.0), (4, 1, 0.1)])
def test_groups_of_one_weight_follow_rewa(k, m, eps, x64):
  trajectories = [
    weights_after_steps(
      method, rewa_jax.sgd(0.1, method, weight_decay=0.05, momentum=0.5), 300
    )
    for method in (
      rewa_jax.Rewa(k, m, eps),
      baselines.GroupedRewa(k, every_weight, m, eps),
    )
  ]
  single, grouped = trajectories
  assert np.ptp(single["kernel"], axis=0).max() > 0.5
  np.testing.assert_allclose(
    grouped["kernel"], single["kernel"], rtol=0, atol=1e-12
  )


def test_gates_and_directions_start_from_norms():
  x = jnp.array([[3.0, 0.0, 1e-3], [-4.0, 0.0, 0.0]])
  method = baselines.GroupedRewa(3, "output")
  gates, directions = method.split("kernel", x)
  np.testing.assert_allclose(
    gates, np.array([[5, 0, 1e-3]]) ** (1 / 3), rtol=1e-6
  )
  np.testing.assert_allclose(
    directions,
    np.array([[0.6, 0.5**0.5, 1.0], [-0.8, 0.5**0.5, 0.0]]),
    rtol=1e-6,
  )
  # The length of a direction is no part of the weights.
  np.testing.assert_allclose(
    method.join(gates, 7 * directions), x, rtol=1e-6, atol=1e-9
  )


def test_the_gradients_of_a_group_are_those_along_and_across_its_norm():
  method = baselines.GroupedRewa(3, "output")
  slope = np.array([[1.0, 0.5], [2.0, -1.0], [0.0, 3.0]])

  def loss(latents):
    return jnp.sum(slope * method.to_weights(latents)["kernel"])

  x = np.array([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0]], np.float32)
  latents = method.to_latents({"kernel": jnp.asarray(x)})
  gates, directions = jax.tree.leaves(jax.grad(loss)(latents))
  unit = np.array([0.6, 0.8, 0])
  along = slope[:, 0] @ unit
  np.testing.assert_allclose(gates[0, 0], along, rtol=1e-6)
  across = 5 * (slope[:, 0] - along * unit)
  np.testing.assert_allclose(directions[:, 0], across, rtol=1e-5, atol=1e-6)
  # A group at zero: its gate feels the gradient, its direction does not.
  np.testing.assert_allclose(gates[0, 1], 2.5 / 3**0.5, rtol=1e-6)
  np.testing.assert_array_equal(directions[:, 1], 0)


@pytest.mark.parametrize("m,stays", [(0, False), (2, True)])
def test_a_group_at_zero_stays_there_if_m_is_positive(m, stays):
  method = baselines.GroupedRewa(3, "output", m=m)

  def loss(latents):
    return jnp.sum((method.to_weights(latents)["kernel"] - 1) ** 2) / 2

  latents = method.to_latents({"kernel": jnp.zeros((2, 2))})
  solver = rewa_jax.sgd(0.1, method, weight_decay=0.01)
  latents = steps_of(solver, loss, latents, 300)
  x = jax.vmap(method.to_weights)(latents)["kernel"][-1]
  np.testing.assert_allclose(x, 0 if stays else 1, atol=0.1 * (not stays))


def test_the_adaptive_step_is_of_gates_alone():
  method = baselines.GroupedRewa(3, "output", m=2, eps=0.5)
  params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 8.0]]), "bias": jnp.ones(2)}
  latents = method.to_latents(params)
  ones = jax.tree.map(jnp.ones_like, latents)
  solver = rewa_jax.scale_by_method(method)
  updates, _ = solver.update(ones, solver.init(latents), latents)
  gates, directions = jax.tree.leaves(updates["kernel"])
  y = np.cbrt([5, 8])
  np.testing.assert_allclose(gates[0], y**2 * y**2 / (y**2 + 0.5), rtol=1e-6)
  np.testing.assert_array_equal(directions, 1)
  np.testing.assert_array_equal(updates["bias"], 1)


# Bad input.


@pytest.mark.parametrize("alpha", [0.5, 0, -1, np.nan, np.inf])
def test_alpha_is_at_least_one(alpha):
  with pytest.raises(ValueError, match="alpha must be .* >= 1, got"):
    baselines.PowerPropagation(alpha)


def test_bad_hyperparameters_are_named():
  for k, m, eps, message in [
    (0.5, 0, 0, "k must be .* >= 1, got 0.5"),
    (3, 2.5, 0, "m must be at most k - 1 = 2.0, got 2.5"),
    (3, -1, 0, "m must be .* >= 0, got -1"),
    (3, 1, -0.1, "eps must be .* >= 0, got -0.1"),
  ]:
    with pytest.raises(ValueError, match=message):
      baselines.GroupedRewa(k, "rows", m, eps)


def test_unknown_groups_are_named():
  with pytest.raises(ValueError, match="groups must be one of .*'channels'"):
    baselines.GroupedRewa(3, "channels")
