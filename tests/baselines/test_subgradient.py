import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rewa_jax.baselines import add_clipped_lp, add_l1_subgradient

X = jnp.array([2.0, 0.5, 1e-3, 0.0, -1e-3, -0.5, -2.0])


def added(transform, x):
  """Returns what the transformation adds to a gradient of zero."""
  params = {"w": jnp.asarray(x)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = transform.update(zeros, transform.init(params), params)
  return updates["w"]


# What they add.


def test_l1_adds_the_sign_and_nothing_at_zero():
  np.testing.assert_allclose(
    added(add_l1_subgradient(0.3), X), 0.3 * np.sign(X), rtol=1e-6
  )


@pytest.mark.parametrize("p", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("clip", [0.1, 1.0, 1e3])
def test_lp_adds_the_gradient_or_the_clip(p, clip, x64):
  x = np.asarray(X, np.float64)
  gradient = added(add_clipped_lp(0.7, p, clip), x)
  expected = [
    0 if v == 0 else np.sign(v) * min(0.7 * p * abs(v) ** (p - 1), clip)
    for v in x
  ]
  np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_clipping_loses_the_penalty_that_its_docstring_says(x64):
  strength, p, clip = 0.7, 0.5, 2.0
  crossing = (clip / (strength * p)) ** (1 / (p - 1))
  ends = np.linspace(0, 4 * crossing, 100_001)
  middle = (ends[1:] + ends[:-1]) / 2
  slope = added(add_clipped_lp(strength, p, clip), middle)
  penalty = np.cumsum(slope) * (ends[1] - ends[0])
  lost = strength * ends[1:] ** p - penalty
  beyond = ends[1:] > crossing
  expected = (1 - p) * strength * crossing**p
  np.testing.assert_allclose(lost[beyond], expected, rtol=1e-6)
  inside = ends[1:] <= crossing
  np.testing.assert_allclose(penalty[inside], clip * ends[1:][inside])


def test_lp_of_exponent_one_is_l1():
  np.testing.assert_array_equal(
    added(add_clipped_lp(0.3, 1.0, 5.0), X), added(add_l1_subgradient(0.3), X)
  )


def test_lp_is_finite_wherever_weights_are():
  x = jnp.array([0.0, 1e-45, -1e-38, 1e-30, 3e38])
  for strength, p in [(0.0, 0.0), (0.0, 0.5), (1.0, 0.0), (1e30, 0.5)]:
    gradient = added(add_clipped_lp(strength, p, 10.0), x)
    assert (jnp.abs(gradient) <= 10).all()
    assert gradient[0] == 0


# In a chain.


def test_subgradient_steps_end_near_the_lasso():
  """One weight: the lasso's solution is the soft threshold of the target."""
  target = jnp.array([2.0, 0.2, -1.0])
  rate, strength = 0.01, 0.5
  solver = optax.chain(add_l1_subgradient(strength), optax.sgd(rate))

  def step(_, carry):
    x, state = carry
    updates, state = solver.update({"w": x["w"] - target}, state, x)
    return optax.apply_updates(x, updates), state

  start = {"w": jnp.ones(3)}
  x, _ = jax.lax.fori_loop(0, 3000, step, (start, solver.init(start)))
  np.testing.assert_allclose(x["w"][::2], [1.5, -0.5], atol=1e-5)
  # No zero is reached, which is why there is a proximal step.
  assert 0 < abs(x["w"][1]) < rate * (strength + 0.2)


def test_end_points_of_lp_are_stationary():
  target = jnp.array([2.0, -1.0])
  solver = optax.chain(add_clipped_lp(0.3, 0.5, 10.0), optax.sgd(0.1))
  x = {"w": target}
  state = solver.init(x)
  for _ in range(200):
    updates, state = solver.update({"w": x["w"] - target}, state, x)
    x = optax.apply_updates(x, updates)
  x = np.float64(x["w"])
  slope = 0.3 * 0.5 * np.sign(x) * np.abs(x) ** -0.5
  np.testing.assert_allclose(x - target, -slope, rtol=1e-5)


def test_a_grid_is_one_vmap_and_hyperparameters_can_be_injected():
  grid = jnp.array([[0.3, 0.5, 1.0], [0.1, 0.9, 0.05], [1.0, 0.1, 20.0]])
  together = jax.jit(
    jax.vmap(lambda s, p, c: added(add_clipped_lp(s, p, c), X))
  )
  for row, gradient in zip(grid.tolist(), together(*grid.T)):
    expected = added(add_clipped_lp(*row), X)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
  injected = optax.inject_hyperparams(add_l1_subgradient)(strength=0.3)
  np.testing.assert_array_equal(
    added(injected, X), added(add_l1_subgradient(0.3), X)
  )


@pytest.mark.parametrize(
  "transform", [add_l1_subgradient(0.3), add_clipped_lp(0.3, 0.5, 1.0)]
)
def test_masks_dtypes_and_missing_gradients(transform, x64):
  params = {
    "a": {"kernel": X.astype(jnp.bfloat16), "bias": X},
    "b": {"kernel": jnp.asarray(X, jnp.float64)},
    "c": {"kernel": X},
  }
  grads = jax.tree.map(jnp.ones_like, params) | {"c": {"kernel": None}}
  updates, _ = transform.update(grads, transform.init(params), params)
  assert updates["a"]["kernel"].dtype == jnp.bfloat16
  assert updates["b"]["kernel"].dtype == jnp.float64
  np.testing.assert_array_equal(updates["a"]["bias"], 1)
  assert updates["c"]["kernel"] is None
  np.testing.assert_array_equal(
    updates["b"]["kernel"] - 1, -(updates["b"]["kernel"][::-1] - 1)
  )
  assert (updates["b"]["kernel"][:3] > 1.05).all()


# Errors.


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: add_l1_subgradient(-1.0), "strength must .* >= 0, got -1.0"),
    (lambda: add_clipped_lp(-1.0, 0.5, 1.0), "strength must .* >= 0"),
    (lambda: add_clipped_lp(1.0, 1.5, 1.0), "p must .* >= 0 and <= 1, got 1.5"),
    (lambda: add_clipped_lp(1.0, 0.5, -1.0), "clip must .* >= 0, got -1.0"),
    (lambda: add_clipped_lp(1.0, 0.5, np.inf), "clip must be a finite"),
  ],
)
def test_hyperparameters_out_of_range_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_missing_params_and_foreign_updates_are_named():
  transform = add_l1_subgradient(0.3)
  params = {"w": X}
  state = transform.init(params)
  with pytest.raises(ValueError, match="params"):
    transform.update(params, state)
  with pytest.raises(ValueError, match=r"at w: updates has shape \(2,\)"):
    transform.update({"w": jnp.ones(2)}, state, params)
  with pytest.raises(ValueError, match="No leaf is named"):
    transform.init({"scale": X})
