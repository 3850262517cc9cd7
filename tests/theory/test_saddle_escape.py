import jax.numpy as jnp
import numpy as np
import pytest

from examples.theory import saddle_escape
from examples.theory.saddle_escape import ADAPTIVE, PLAIN, Recipe


@pytest.mark.parametrize("k", [3, 5, 9])
def test_adaptive_step_stays_within_the_bound_and_plain_gradient_stays(k, x64):
  rate, steps = 0.01, 3000
  y = saddle_escape.descend(ADAPTIVE, k, rate, steps)
  # The recursion by hand.
  expected = [-1.0]
  for _ in range(steps):
    expected.append(expected[-1] - rate * 2 * (expected[-1] ** k - 1))
  np.testing.assert_allclose(y, expected[1:], rtol=1e-9, atol=1e-12)
  assert saddle_escape.against_bound(y, k, rate)["within_the_bound"]
  assert abs(y[-1] - 1) < 1e-12
  plain = saddle_escape.descend(PLAIN, k, rate, steps)
  assert plain.max() < 0
  assert not saddle_escape.against_bound(plain, k, rate)["within_the_bound"]


@pytest.mark.parametrize("k", [3, 5, 9])
def test_fixed_eps_holds_the_latent_where_predicted(k, x64):
  rate, steps, eps = 0.01, 20_000, 1e-3
  y = saddle_escape.descend(Recipe("", eps=eps), k, rate, steps)
  predicted = saddle_escape.predicted_position(
    Recipe("", eps=eps), k, rate, steps
  )
  assert y[-1] == pytest.approx(predicted, rel=0.02)
  # By hand, from a step of 2 eta |y|^(k-1) / eps all the way.
  by_hand = -((2 * rate * (k - 2) * steps / eps) ** (-1 / (k - 2)))
  assert y[-1] == pytest.approx(by_hand, rel=0.05)


def test_m_of_one_or_more_never_reaches_zero_and_m_of_a_half_leaps(x64):
  ends = {
    m: saddle_escape.descend(Recipe("", m=m), 3, 0.01, 3000)
    for m in (0.5, 1, 2)
  }
  assert abs(ends[0.5][-1] - 1) < 1e-9
  assert ends[1].max() < 0 and ends[1][-1] > -1e-20
  # dy/dt = 2 y^2 near zero.
  assert ends[2][-1] == pytest.approx(-1 / (1 + 2 * 0.01 * 3000), rel=0.02)


def test_only_the_adaptive_step_leaves_exact_zero(x64):
  left = [
    recipe.label
    for recipe in saddle_escape.RECIPES
    if saddle_escape.descend(recipe, 3, 0.01, 10, start=0.0).any()
  ]
  assert left == [ADAPTIVE.label]


def test_steps_to_double_follow_the_closed_forms(x64):
  rate, starts = 1e-3, jnp.array([0.01, 0.02])
  by_hand = {
    ADAPTIVE: starts / (2 * rate),
    Recipe("", m=1): np.log(2) / (2 * rate) * np.ones(2),
    Recipe("", m=2): 1 / (4 * rate * starts),
    # Of eps / y^2, from d to 2d: eps / (2 d).
    Recipe("", eps=1e-2): (starts + 1e-2 / (2 * starts)) / (2 * rate),
  }
  for recipe, expected in by_hand.items():
    measured = saddle_escape.steps_to_double(recipe, 3, rate, starts, 50_000)
    np.testing.assert_allclose(measured, expected, rtol=0.01, atol=1.5)
    for start, steps in zip(starts, expected):
      predicted = saddle_escape.predicted_steps_to_double(
        recipe, 3, rate, float(start)
      )
      assert predicted == pytest.approx(float(steps), rel=1e-3)
  capped = saddle_escape.steps_to_double(PLAIN, 9, rate, starts, 100)
  assert (capped == 100).all()
