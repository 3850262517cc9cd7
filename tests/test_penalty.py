import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewa_jax

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
  solver = rewa_jax.rewa_sgd(0.05, k, m, eps, weight_decay=decay)

  def gradient(latents):
    return {"w": rewa_jax.to_weights(latents, k)["w"] - target}

  def step(carry, _):
    latents, state = carry
    updates, state = solver.update(gradient(latents), state, latents)
    return (optax.apply_updates(latents, updates), state), None

  latents = rewa_jax.to_latents({"w": 1.2 * target}, k)
  (latents, _), _ = jax.lax.scan(
    step, (latents, solver.init(latents)), length=20_000
  )
  x = rewa_jax.to_weights(latents, k)["w"]
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


def test_hyperparameters_may_be_traced():
  x = jnp.array([0.5, -2.0])
  k, m, eps = map(jnp.array, zip(*SETTINGS))
  together = jax.vmap(lambda *h: rewa_jax.Penalty(*h).value(x))(k, m, eps)
  one_by_one = [rewa_jax.Penalty(*h).value(x) for h in SETTINGS]
  np.testing.assert_allclose(together, jnp.stack(one_by_one), rtol=1e-5)


@given(k=st.floats(1, 15), rate=st.floats(1e-4, 1), budget=st.floats(0.1, 100))
def test_weight_decay_for_inverts_the_decay_budget(k, rate, budget):
  for schedule in (rate, optax.cosine_decay_schedule(rate, 50)):
    decay = rewa_jax.weight_decay_for(budget, k, schedule, 50)
    restored = rewa_jax.decay_budget(k, decay, schedule, 50)
    assert float(restored) == pytest.approx(budget, rel=1e-5)


def test_decay_budget_is_k_lambda_and_the_sum_of_steps():
  schedule = optax.warmup_cosine_decay_schedule(0, 0.1, 10, 100)
  total = sum(float(schedule(t)) for t in range(100))
  assert float(rewa_jax.decay_budget(9, 0.01, schedule, 100)) == pytest.approx(
    9 * 0.01 * total, rel=1e-5
  )
  assert float(rewa_jax.decay_budget(9, 0.01, 0.1, 100)) == pytest.approx(0.9)


def test_bad_input_is_refused():
  for args, message in [
    ((0.5, 0.1, 0.1, 10), "k must be"),
    ((9, -0.1, 0.1, 10), "weight_decay must be"),
    ((9, 0.1, -0.1, 10), "learning_rate must be"),
    ((9, 0.1, 0.1, 0), "steps must be"),
  ]:
    with pytest.raises(ValueError, match=message):
      rewa_jax.decay_budget(*args)
  with pytest.raises(ValueError, match="budget must be"):
    rewa_jax.weight_decay_for(-1, 9, 0.1, 10)
