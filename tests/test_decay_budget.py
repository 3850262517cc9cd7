import math

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import rewa_jax
from rewa_jax import baselines


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


def test_schedules_may_be_plain_python():
  def warm_up(step):
    return 0.1 * math.sin(step) ** 2 if step < 5 else 0.1

  total = sum(map(warm_up, range(20)))
  assert float(rewa_jax.decay_budget(9, 0.01, warm_up, 20)) == pytest.approx(
    9 * 0.01 * total, rel=1e-5
  )


REWA = rewa_jax.Rewa(k=9, m=2)
PARAMS = {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.zeros(2)}
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.2, 10, 100)
# The same decay in optimizers that optax's users write.
SOLVERS = {
  "sgd": lambda lr, decay: rewa_jax.sgd(lr, REWA, weight_decay=decay),
  "momentum": lambda lr, decay: rewa_jax.sgd(
    lr, REWA, weight_decay=decay, momentum=0.9
  ),
  "adamw": lambda lr, decay: optax.apply_if_finite(
    rewa_jax.adamw(lr, REWA, weight_decay=decay), 5
  ),
  "injected": lambda lr, decay: optax.inject_hyperparams(rewa_jax.rewa_sgd)(
    lr, k=9, weight_decay=decay
  ),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("learning_rate", [0.2, SCHEDULE])
def test_the_budget_measured_is_that_of_the_formula(solver, learning_rate):
  wanted = float(rewa_jax.decay_budget(9, 0.1, learning_rate, 100))
  measured = rewa_jax.measure_decay_budget(
    SOLVERS[solver](learning_rate, 0.1),
    REWA.to_latents(PARAMS),
    100,
    method=REWA,
  )
  # A step takes 1 - eta lambda, the formula has exp(-eta lambda).
  assert measured == pytest.approx(wanted, rel=0.011)


@pytest.mark.parametrize(
  ("inner", "wanted"),
  [
    (optax.sgd(0.1), 0),
    (optax.adam(0.1), 0),
    (optax.adamw(1e-3), 9 * 1e-3 * 1e-4 * 10_000),
    (optax.adamw(1e-3, weight_decay=0.2), 9 * 1e-3 * 0.2 * 10_000),
  ],
)
def test_a_drop_in_that_would_stay_dense_is_seen_before_it_trains(
  inner, wanted
):
  solver = rewa_jax.reparameterize(inner, REWA)
  measured = rewa_jax.measure_decay_budget(solver, PARAMS, 10_000)
  assert measured == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
  "method", [baselines.spred(), baselines.HadamardDifference(3)]
)
def test_the_budget_of_other_methods_is_that_of_their_weights(method):
  solver = rewa_jax.sgd(0.01, method, weight_decay=0.5)
  measured = rewa_jax.measure_decay_budget(
    solver, method.to_latents(PARAMS), 1000, method=method
  )
  degree = {"FactorProduct": 2, "HadamardDifference": 3}[type(method).__name__]
  assert measured == pytest.approx(degree * 0.01 * 0.5 * 1000, rel=0.01)


def test_the_budget_of_a_model_is_that_of_its_kernel_that_decays_least():
  model = rewa_jax.nnx.reparameterize(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), REWA)
  latents = nnx.state(model, nnx.Param)
  solver = rewa_jax.sgd(0.1, REWA, weight_decay=0.1)
  measured = rewa_jax.measure_decay_budget(solver, latents, 50, method=REWA)
  assert measured == pytest.approx(9 * 0.1 * 0.1 * 50, rel=0.01)

  layers = {"first": PARAMS, "last": PARAMS}
  one = {"first": {"kernel": True, "bias": False}, "last": False}
  partial = optax.chain(optax.add_decayed_weights(0.1, one), optax.sgd(0.1))
  drop_in = rewa_jax.reparameterize(partial, REWA)
  assert rewa_jax.measure_decay_budget(drop_in, layers, 50) == 0
  shapes = jax.eval_shape(lambda: layers)
  assert rewa_jax.measure_decay_budget(drop_in, shapes, 50, mask=one) > 4


def test_latents_are_measured_with_their_method_alone():
  latents = baselines.spred().to_latents(PARAMS)
  solver = rewa_jax.sgd(0.1, baselines.spred(), weight_decay=0.1)
  with pytest.raises(ValueError, match="kernel holds latents, not weights"):
    rewa_jax.measure_decay_budget(solver, latents, 10)
  with pytest.raises(ValueError, match="steps must be .* >= 1, got 0"):
    rewa_jax.measure_decay_budget(optax.sgd(0.1), PARAMS, 0)


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


def test_masks_that_look_at_sizes_see_them():
  params = {"kernel": jnp.ones((20, 30)), "bias": jnp.zeros(30)}
  rewa = rewa_jax.Rewa(
    k=9, mask=lambda params: jax.tree.map(lambda x: x.size > 100, params)
  )
  dropin = rewa_jax.reparameterize(optax.adamw(0.1, weight_decay=0.1), rewa)
  budget = rewa_jax.measure_decay_budget(dropin, params, 100)
  assert budget == pytest.approx(-9 * 100 * math.log(1 - 0.01), rel=1e-6)
  latents = rewa.to_latents(params)
  for decay in (0.0, 0.1):
    sgd = rewa_jax.sgd(0.1, rewa, weight_decay=decay)
    budget = rewa_jax.measure_decay_budget(sgd, latents, 100, method=rewa)
    assert budget == pytest.approx(-900 * math.log(1 - 0.1 * decay), rel=1e-6)


def test_a_mask_that_selects_nothing_is_refused():
  params = {"kernel": jnp.ones(2)}
  with pytest.raises(ValueError, match="selects nothing"):
    rewa_jax.measure_decay_budget(
      optax.sgd(0.1), params, 10, mask={"kernel": False}
    )
