import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rewa_jax
from rewa_jax import baselines

SETTINGS = [
  (9, 2, 0),
  (9, 2, 1e-2),
  (9, 4, 0),
  (9, 4, 1e-2),
  (5, 0, 1e-2),
  (3, 1, 1e-3),
  (2.25, 1.25, 0),
  (2, 0, 0),
  (1, 0, 0),
]


@pytest.mark.parametrize(("k", "m", "eps"), SETTINGS)
def test_gradient_is_that_of_the_value(k, m, eps, x64):
  penalty = rewa_jax.Penalty(k, m, eps)
  x = jnp.array([-1.3, 0.2, 0.9])
  np.testing.assert_allclose(
    jax.grad(penalty.value)(x), penalty.gradient(x), rtol=1e-12
  )


@pytest.mark.parametrize(("k", "m", "eps"), SETTINGS)
def test_training_stops_where_theorem_3_3_says(k, m, eps, x64):
  """grad f = -lambda grad R on the nonzero coordinates."""
  decay, target = 0.02, jnp.array([1.0, -0.8, 0.6])
  rewa = rewa_jax.Rewa(k, m, eps)
  solver = rewa_jax.sgd(0.05, rewa, weight_decay=decay)

  def gradient(latents):
    return {"w": rewa.to_weights(latents)["w"] - target}

  def step(carry, _):
    latents, state = carry
    updates, state = solver.update(gradient(latents), state, latents)
    return (optax.apply_updates(latents, updates), state), None

  latents = rewa.to_latents({"w": 1.2 * target})
  (latents, _), _ = jax.lax.scan(
    step, (latents, solver.init(latents)), length=20_000
  )
  x = rewa.to_weights(latents)["w"]
  assert (jnp.abs(x) > 0.1).all()
  np.testing.assert_allclose(
    gradient(latents)["w"],
    -decay * rewa_jax.Penalty(k, m, eps).gradient(x),
    rtol=1e-8,
  )


def test_exponents_and_configurations_of_proposition_3_4():
  simple = rewa_jax.Penalty(9, 2)
  assert simple.config == "A" and simple.p == 1 - 1 / 9
  complex_ = rewa_jax.Penalty(3, 0, 1e-3)
  assert complex_.config == "B" and complex_.q == 2 / 3
  assert rewa_jax.Penalty(9, 0).config is None
  assert rewa_jax.Penalty(9, 2, 1e-3).config is None


@pytest.mark.parametrize(("k", "m", "eps"), SETTINGS)
def test_at_zero_the_gradient_is_zero_and_nothing_is_nan(k, m, eps):
  penalty = rewa_jax.Penalty(k, m, eps)
  x = jnp.array([0.0, 1e-38, 1e38])
  assert penalty.gradient(x)[0] == 0
  assert not jnp.isnan(penalty.gradient(x)).any()
  assert not jnp.isnan(penalty.value(x))
  assert penalty.value(jnp.zeros(2)) == (-jnp.inf if m >= 2 and eps else 0)
  assert penalty.value(jnp.zeros(0)) == 0


@pytest.mark.parametrize(("k", "m", "eps"), SETTINGS)
def test_at_zero_the_value_has_the_gradient_it_says(k, m, eps):
  penalty = rewa_jax.Penalty(k, m, eps)
  x = jnp.array([0.0, 0.5, -2.0])
  with jax.debug_nans(True):
    gradient = jax.grad(penalty.value)(x)
    assert not jnp.isnan(penalty.value(x))
  np.testing.assert_allclose(gradient, penalty.gradient(x), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
  "penalty",
  [
    rewa_jax.Penalty(9, 2).value,
    rewa_jax.Rewa(9, 2, 1e-3).implicit_penalty,
    baselines.spred().implicit_penalty,
    baselines.HadamardDifference(3).implicit_penalty,
    baselines.PowerPropagation(2).implicit_penalty,
  ],
)
def test_half_precision_is_summed_in_float32(penalty, dtype):
  x = jnp.ones(100_000, dtype)
  found = penalty(x)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, 100_000 * penalty(x[:1]), rtol=1e-5)


def test_the_derivative_by_eps_is_there_at_none():
  def value(eps):
    return rewa_jax.Penalty(9, 0.0, eps).value(jnp.array([0.5, 0.0]))

  np.testing.assert_allclose(
    jax.grad(value)(0.0), 9 / 2 * 0.5 ** (2 / 9), rtol=1e-5
  )


def test_hyperparameters_may_be_traced():
  x = jnp.array([0.5, -2.0])
  k, m, eps = map(jnp.array, zip(*SETTINGS))
  together = jax.vmap(lambda *h: rewa_jax.Penalty(*h).value(x))(k, m, eps)
  one_by_one = [rewa_jax.Penalty(*h).value(x) for h in SETTINGS]
  np.testing.assert_allclose(together, jnp.stack(one_by_one), rtol=1e-5)
