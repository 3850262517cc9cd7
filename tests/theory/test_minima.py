import jax
import numpy as np
import pytest

from examples.theory import minima

QUADRATIC = 1, lambda x: (x[0] - 1) ** 2


@pytest.mark.parametrize("name", ["waves, 1-D"])
@pytest.mark.parametrize(
  "factors", [pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_minima_of_both_problems_correspond(name, factors, x64):
  row = minima.compare(name, factors, starts=600)
  assert len(row["lp_minima"]) == len(row["product_minima"])
  assert row["largest_distance"] < 1e-6
  assert row["largest_difference_in_value"] < 1e-12
  assert row["same_global_minimum"]
  assert row["largest_imbalance_of_factors"] < 1e-9


def test_the_grid_finds_the_minima_known_by_hand(x64):
  """K = 2 is soft thresholding; for K = 3 zero joins, in a thin basin."""
  dimension, f = QUADRATIC
  lasso = minima.minima_on_grid(minima.lp_loss(f, 2), dimension)
  np.testing.assert_allclose(lasso, [[1 - minima.DECAY / 2]], atol=1e-6)
  # With u = x^(1/3): 2 (u^3 - 1) = -lambda / u, times u a quartic.
  roots = np.roots([2, 0, 0, -2, minima.DECAY])
  largest = roots[np.isreal(roots)].real.max() ** 3
  cubes = minima.minima_on_grid(minima.lp_loss(f, 3), dimension)
  np.testing.assert_allclose(cubes, [[0], [largest]], atol=1e-6)


def test_factors_end_only_at_minima(x64):
  dimension, f = QUADRATIC
  loss = minima.product_loss(f)
  found, _ = minima.minima_of_factors(loss, 3, dimension, starts=100)
  assert len(found) == 5  # Zero, and four ways to sign a positive product.
  noise = 1e-3 * jax.random.normal(jax.random.key(1), (100, 3, 1))
  for y in found:
    assert (jax.vmap(loss)(y + noise) > loss(y)).all()
