import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso

import rewa_jax
from rewa_jax.baselines import (
  L1,
  MCP,
  SCAD,
  AdaptiveL1,
  GroupL1,
  proximal_adam,
  proximal_sgd,
  proximal_step,
)
from tests.extras import needs

STRENGTHS = np.array([0.003, 0.01, 0.05, 0.1, 0.3])


def diabetes():
  x, y = load_diabetes(return_X_y=True, scaled=False)
  x = (x - x.mean(axis=0)) / x.std(axis=0)
  return x, (y - y.mean()) / y.std()


def well_conditioned():
  """Returns a task on which MCP and SCAD have one stationary point."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(200, 20))
  y = x[:, :4] @ [2.0, -1.0, 0.6, 0.4] + rng.normal(size=200)
  assert np.linalg.eigvalsh(x.T @ x / 200)[0] > 1 / 2.5
  return x, y


def minimize(make_solver, task, steps, start=None):
  """Returns the weights that full-batch training ends at."""
  inputs, targets = task
  hessian = inputs.T @ inputs / len(targets)
  offset = inputs.T @ targets / len(targets)
  rate = 1 / np.linalg.eigvalsh(hessian)[-1]
  solver = make_solver(rate)
  x = {"w": jnp.zeros(len(offset)) if start is None else start}

  def step(_, carry):
    x, state = carry
    grads = jnp.asarray(hessian) @ x["w"].ravel() - offset
    grads = {"w": grads.reshape(x["w"].shape)}
    updates, state = solver.update(grads, state, x)
    return optax.apply_updates(x, updates), state

  x, _ = jax.lax.fori_loop(0, steps, step, (x, solver.init(x)))
  return x["w"]


# What it solves.


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_l1_reaches_the_lasso_for_a_grid_of_strengths_in_one_vmap(
  momentum, x64
):
  inputs, targets = task = diabetes()
  # As documented: momentum counts the gradient 1 / (1 - momentum) times.
  times = 1 if momentum is None else 1 / (1 - momentum)

  def weights(strength):
    def solver(rate):
      penalty = L1(times * strength)
      return proximal_sgd(rate / times, penalty, momentum=momentum)

    return minimize(solver, task, 5000)

  found = jax.jit(jax.vmap(weights))(STRENGTHS)
  for strength, x in zip(STRENGTHS, found):
    lasso = Lasso(strength, fit_intercept=False, tol=1e-14, max_iter=100_000)
    expected = lasso.fit(inputs, targets).coef_
    np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_array_equal(x == 0, expected == 0)


@pytest.mark.parametrize("name", ["MCP", "SCAD"])
def test_mcp_and_scad_reach_the_solution_of_skglm(name, x64):
  skglm = needs("skglm")
  inputs, targets = task = well_conditioned()
  ours, theirs = {
    "MCP": (MCP(0.2, 2.6), skglm.penalties.MCPenalty(0.2, 2.6)),
    "SCAD": (SCAD(0.2, 3.7), skglm.penalties.SCAD(0.2, 3.7)),
  }[name]
  peer = skglm.GeneralizedLinearEstimator(
    skglm.datafits.Quadratic(),
    theirs,
    skglm.solvers.FISTA(max_iter=2000, tol=1e-12),
  )
  expected = peer.fit(inputs, targets).coef_
  x = minimize(lambda rate: proximal_sgd(rate, ours), task, 1000)
  assert 0 < np.sum(expected != 0) < 20
  np.testing.assert_allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["MCP", "SCAD", "AdaptiveL1"])
def test_end_points_are_stationary_on_real_data(name, x64):
  skglm = needs("skglm")
  inputs, targets = task = diabetes()
  pilot = np.linalg.lstsq(inputs, targets)[0]
  ours, theirs = {
    "MCP": (MCP(0.05, 3.0), skglm.penalties.MCPenalty(0.05, 3.0)),
    "SCAD": (SCAD(0.05, 3.7), skglm.penalties.SCAD(0.05, 3.7)),
    "AdaptiveL1": (
      AdaptiveL1(0.01, {"w": pilot}, delta=1e-3),
      skglm.penalties.WeightedL1(0.01, 1 / (np.abs(pilot) + 1e-3)),
    ),
  }[name]
  x = np.asarray(
    minimize(lambda rate: proximal_sgd(rate, ours), task, 5000, pilot)
  )
  grads = inputs.T @ (inputs @ x - targets) / len(targets)
  assert 0 < np.sum(x != 0) < 10
  gaps = theirs.subdiff_distance(x, grads, np.arange(10))
  np.testing.assert_allclose(gaps, 0, atol=1e-8)


def test_groups_reach_the_group_lasso(x64):
  """Its optimality conditions, for five groups of two inputs."""
  inputs, targets = task = diabetes()

  def solver(rate):
    return proximal_sgd(rate, GroupL1(0.1, "rows"))

  x = np.asarray(minimize(solver, task, 5000, jnp.zeros((5, 2))))
  grads = (inputs.T @ (inputs @ x.ravel() - targets) / 442).reshape(5, 2)
  norms = np.linalg.norm(x, axis=1, keepdims=True)
  alive = norms[:, 0] > 0
  assert 0 < alive.sum() < 5
  direction = x[alive] / norms[alive]
  np.testing.assert_allclose(grads[alive], -0.1 * direction, atol=1e-9)
  assert (np.linalg.norm(grads[~alive], axis=1) < 0.1).all()


# One step.


PARAMS = {
  "dense": {
    "kernel": jnp.array([[1.0, -0.02, 0.5], [-3.0, 0.1, 0.0]]),
    "bias": jnp.array([0.01, 0.02, 0.03]),
  }
}
GRADS = jax.tree.map(lambda x: jnp.full_like(x, 0.25), PARAMS)


def test_adam_is_adam_followed_by_the_proximal_step():
  adam, solver = optax.adam(0.1), proximal_adam(0.1, L1(0.5))
  updates, _ = adam.update(GRADS, adam.init(PARAMS), PARAMS)
  ahead = optax.apply_updates(PARAMS, updates)["dense"]["kernel"]
  updates, _ = solver.update(GRADS, solver.init(PARAMS), PARAMS)
  kernel = optax.apply_updates(PARAMS, updates)["dense"]["kernel"]
  expected = np.sign(ahead) * np.maximum(np.abs(ahead) - 0.05, 0)
  np.testing.assert_allclose(kernel, expected, atol=1e-6)


def test_unselected_leaves_have_plain_sgd():
  solver, sgd = proximal_sgd(0.1, L1(0.5)), optax.sgd(0.1)
  updates, _ = solver.update(GRADS, solver.init(PARAMS), PARAMS)
  plain, _ = sgd.update(GRADS, sgd.init(PARAMS), PARAMS)
  np.testing.assert_array_equal(
    updates["dense"]["bias"], plain["dense"]["bias"]
  )
  assert (updates["dense"]["kernel"] != plain["dense"]["kernel"]).any()
  mask = {"dense": {"kernel": False, "bias": True}}
  solver = proximal_sgd(0.1, L1(0.5), mask=mask)
  updates, _ = solver.update(GRADS, solver.init(PARAMS), PARAMS)
  assert (updates["dense"]["bias"] != plain["dense"]["bias"]).any()
  np.testing.assert_array_equal(
    updates["dense"]["kernel"], plain["dense"]["kernel"]
  )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_zeros_are_exact_and_dtypes_kept(dtype, x64):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=1000) * 10.0 ** rng.integers(-3, 3, 1000))
  params = {"w": x.astype(dtype)}
  grads = {"w": jnp.asarray(rng.normal(size=1000)).astype(dtype)}

  @jax.jit
  def step(params):
    solver = proximal_sgd(0.1, L1(20.0))
    updates, _ = solver.update(grads, solver.init(params), params)
    assert updates["w"].dtype == dtype
    return optax.apply_updates(params, updates)["w"]

  after = step(params)
  assert after.dtype == dtype
  ahead = np.float64(params["w"]) - 0.1 * np.float64(grads["w"])
  dead = np.abs(ahead) < 2 * 0.99
  assert dead.sum() > 100
  np.testing.assert_array_equal(after[dead], 0)


def test_the_learning_rate_follows_its_schedule():
  schedule = optax.piecewise_constant_schedule(0.1, {2: 0.5})
  solver = proximal_sgd(schedule, L1(1.0))
  params = {"w": jnp.array([1.0, -1.0])}
  state = solver.init(params)
  for _ in range(4):
    updates, state = solver.update({"w": jnp.zeros(2)}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["w"], [0.7, -0.7], rtol=1e-6)


def test_injected_hyperparameters_act_as_given_ones():
  def solver(learning_rate, strength):
    return proximal_sgd(learning_rate, MCP(strength))

  injected = optax.inject_hyperparams(solver)(
    learning_rate=0.1, strength=lambda count: 0.5 * count
  )
  state = injected.init(PARAMS)
  for strength in (0.0, 0.5):
    plain = solver(0.1, strength)
    expected, _ = plain.update(GRADS, plain.init(PARAMS), PARAMS)
    updates, state = jax.jit(injected.update)(GRADS, state, PARAMS)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
      updates,
      expected,
    )
  # The default mask is a function, which inject_hyperparams calls.
  direct = optax.inject_hyperparams(proximal_sgd)(0.1, penalty=MCP(0.5))
  updates, _ = direct.update(GRADS, direct.init(PARAMS), PARAMS)
  jax.tree.map(np.testing.assert_array_equal, updates, expected)


# Other libraries.


def test_nnx_finds_its_pilots_by_path():
  model = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
  pilot = {"kernel": jnp.array([[1.0, 1e3]] * 3)}
  model.kernel[...] = jnp.ones((3, 2))
  solver = proximal_sgd(1.0, AdaptiveL1(0.5, pilot))
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  optimizer.update(
    model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
  )
  np.testing.assert_allclose(model.kernel[...], [[0.5, 0.9995]] * 3)


def test_leaves_without_a_gradient_stay():
  eqx = needs("equinox")
  model = eqx.nn.Linear(3, 2, key=jax.random.key(0))
  params = eqx.filter(model, eqx.is_array)
  grads = jax.tree.map(jnp.zeros_like, params)
  grads = eqx.tree_at(lambda m: m.weight, grads, None)
  solver = proximal_step(L1(0.5), 0.1)
  updates, _ = solver.update(grads, solver.init(params), params)
  assert updates.weight is None
  assert (updates.bias == 0).all()


# Errors.


def test_missing_params_and_foreign_updates_are_named():
  solver = proximal_step(L1(0.5), 0.1)
  state = solver.init(PARAMS)
  with pytest.raises(ValueError, match="params"):
    solver.update(GRADS, state)
  wrong = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(3)}}
  with pytest.raises(ValueError, match=r"dense/kernel: .* \(2, 2\)"):
    solver.update(wrong, state, PARAMS)
  with pytest.raises(ValueError, match="No leaf is named"):
    solver.init({"scale": jnp.ones(3)})


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="learning_rate must .* got -0.1"):
    proximal_step(L1(0.5), -0.1)
  with pytest.raises(TypeError, match="value and prox, as L1.* got 0.5"):
    proximal_step(0.5, 0.1)
  with pytest.raises(TypeError, match=r"got Penalty\(k=3"):
    proximal_step(rewa_jax.Penalty(3), 0.1)
  solver = proximal_sgd(0.1, GroupL1(0.5), mask=None)
  with pytest.raises(ValueError, match="dense/bias"):
    solver.update(GRADS, solver.init(PARAMS), PARAMS)
