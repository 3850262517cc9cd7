import numpy as np
import pytest

from examples.theory import clipped_lp


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("bound", clipped_lp.BOUNDS)
def test_error_of_the_penalty_is_what_integration_gives(p, bound, x64):
  formula = clipped_lp.penalty_error(1, p, 0.7, bound)
  integral = clipped_lp.penalty_error_measured(p, 0.7, bound, points=20_001)
  assert integral == pytest.approx(formula, rel=1e-4)


def test_the_clipped_gradient_is_clipped_below_the_crossing_only(x64):
  p, decay, bound = 0.5, 0.7, 2.0
  edge = clipped_lp.crossing(p, decay, bound)
  x = edge * np.array([-2, -0.5, 1e-9, 0, 0.99, 1.01, 3])
  gradient = np.asarray(clipped_lp.clipped_gradient(x, p, decay, bound))
  np.testing.assert_allclose(gradient[[1, 2, 4]], [-2, 2, 2])
  assert gradient[3] == 0
  outside = np.array([0, 5, 6])
  np.testing.assert_allclose(
    gradient[outside],
    np.sign(x[outside]) * decay * p * np.abs(x[outside]) ** (p - 1),
  )


@pytest.mark.parametrize(("norm", "error"), [(1, 10), (10, 1), (100, 10)])
def test_beyond_the_last_dimension_no_bound_keeps_both(norm, error):
  last = clipped_lp.last_dimension(0.5, 1.0, norm, error)
  bounds = np.geomspace(1e-3, 1e3, 20_001)

  def both(d):
    return (
      (clipped_lp.gradient_norm(d, bounds) <= norm)
      & (clipped_lp.penalty_error(d, 0.5, 1.0, bounds) <= error)
    ).any()

  assert last > 0
  assert both(last)
  assert not both(last + 1) and not both(100 * last)


def test_norm_of_sqrt_d_leaves_an_error_above_d_over_2e():
  d = 1000
  bounds = np.geomspace(1e-3, 1, 50)
  assert (clipped_lp.gradient_norm(d, bounds) <= d**0.5).all()
  for p in (0.1, 0.25, 0.5):
    error = clipped_lp.penalty_error(d, p, 1.0, bounds)
    assert (error > d / (2 * np.e)).all()


def test_updates_of_lp_explode_and_those_of_rewa_do_not(x64):
  sizes, _, _, _ = clipped_lp.runs(d=20, steps=4000)
  assert sizes["lp"][2000:].max() > 10
  assert sizes["ReWA, latents"].max() < 3
  # Clipped lp goes on at the size of its clip, ReWA comes to rest.
  assert sizes["lp, clipped at 1"][2000:].max() > 0.9
  assert sizes["ReWA, latents"][-1] < 0.05
