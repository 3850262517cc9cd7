import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewa_jax


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
