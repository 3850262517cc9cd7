import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewa_jax
from rewa_jax import baselines
from tests.baselines import descent

TWO = [baselines.spred(), baselines.HadamardDifference(2)]


# What they solve: gradient of the loss + weight decay * gradient of R = 0.


@pytest.mark.slow
@pytest.mark.parametrize(
  "method,p,scale,weight_decay,rate",
  [
    # R is scale * sum |x|^p.
    (baselines.spred(), 1, 1, 0.1, 0.5),
    (baselines.deep_weight_factorization(3), 2 / 3, 3 / 2, 0.02, 0.5),
    (baselines.deep_weight_factorization(4), 2 / 4, 4 / 2, 0.02, 0.5),
    (baselines.HadamardDifference(2), 1, 1 / 2, 0.2, 0.5),
    (baselines.HadamardDifference(3), 2 / 3, 1 / 2, 0.04, 0.5),
    (baselines.HadamardDifference(4), 2 / 4, 1 / 2, 0.04, 0.2),
  ],
  ids=str,
)
def test_stationary_points_are_those_of_the_penalized_loss(
  method, p, scale, weight_decay, rate, x64
):
  _, weights = descent.train(method, weight_decay, rate=rate)
  x = weights["kernel"]
  alive = np.abs(x) > 1e-4
  assert 0 < alive.sum() < alive.size
  assert np.abs(x[~alive]).max() < 1e-9
  with np.errstate(divide="ignore"):
    slope = scale * p * np.sign(x) * np.abs(x) ** (p - 1)
  descent.assert_stationary(weights, weight_decay, slope, alive)
  np.testing.assert_allclose(
    method.implicit_penalty(x), scale * np.sum(np.abs(x) ** p), rtol=1e-12
  )


def test_momentum_weakens_the_penalty_by_one_minus_momentum(x64):
  _, weights = descent.train(baselines.spred(), 0.4, rate=0.1, momentum=0.75)
  x = weights["kernel"]
  alive = np.abs(x) > 1e-4
  assert 0 < alive.sum() < alive.size
  descent.assert_stationary(weights, 0.1, np.sign(x), alive)


def test_weights_are_products_and_differences_of_powers():
  w = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.0]), jnp.array([1.0, 1.0])
  product = baselines.deep_weight_factorization(3)
  difference = baselines.HadamardDifference(3)
  np.testing.assert_array_equal(product.join(*w), [3, 0])
  np.testing.assert_array_equal(difference.join(*w[:2]), [1 - 27, -8])
  assert baselines.spred() == baselines.deep_weight_factorization(2)


# Where they start.


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_without_offset_the_factors_start_balanced(depth):
  x = jnp.array([32.0, -1.0, 0.0, -1e-20])
  factors = baselines.FactorProduct(depth, offset=0).split("kernel", x)
  for factor in factors:
    np.testing.assert_allclose(
      jnp.abs(factor), np.abs(x) ** (1 / depth), rtol=1e-5
    )
  # The last one carries the sign.
  assert all((factor >= 0).all() for factor in factors[:-1])
  np.testing.assert_array_equal(jnp.sign(factors[-1]), jnp.sign(x))


def test_an_offset_keeps_all_factors_but_one_from_zero():
  x = jnp.array([3.0, 0.0, -0.1])
  *first, last = baselines.FactorProduct(3, offset=4.0).split("kernel", x)
  size = np.sqrt(np.asarray(x) ** 2 + 16) ** (1 / 3)
  for factor in first:
    np.testing.assert_allclose(factor, size, rtol=1e-6)
  np.testing.assert_allclose(last, x / size**2, rtol=1e-6)


def test_an_offset_keeps_both_sides_of_a_difference_from_zero():
  x = jnp.array([3.0, 0.0, -3.0])
  u, v = baselines.HadamardDifference(2, offset=4.0).split("kernel", x)
  np.testing.assert_allclose(u**2, [4, 2, 1], rtol=1e-6)
  np.testing.assert_allclose(v**2, [1, 2, 4], rtol=1e-6)


def end_from(method, start, target, weight_decay):
  def loss(latents):
    return jnp.sum((method.to_weights(latents)["w"] - target) ** 2) / 2

  solver = rewa_jax.sgd(0.1, method, weight_decay=weight_decay)
  latents = method.to_latents({"w": jnp.asarray(start)})
  latents = jax.jit(
    lambda latents: descent.descend(solver, loss, latents, 500)
  )(latents)
  return method.to_weights(latents)["w"]


@pytest.mark.parametrize("method", TWO, ids=["spred", "HadamardDifference"])
def test_weights_change_sign_and_leave_zero_with_an_offset_only(method):
  target = np.array([1.0, 1.0, -1.0])
  start = np.array([-0.5, 0.0, 0.5])
  # Of the lasso with strength 0.01.
  decay = 0.01 / float(method.implicit_penalty(1.0))
  np.testing.assert_allclose(
    end_from(method, start, target, decay), 0.99 * target, rtol=1e-4
  )
  stuck = dataclasses.replace(method, offset=0)
  np.testing.assert_allclose(
    end_from(stuck, start, target, decay), 0, atol=1e-3
  )


@pytest.mark.parametrize("method", TWO, ids=["spred", "HadamardDifference"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_weights_survive(method, size):
  x = jnp.array([size, -size, 0.0])
  for offset in (0, size):
    split = dataclasses.replace(method, offset=offset).split("w", x)
    weights = method.join(*split)
    np.testing.assert_allclose(weights, x, rtol=1e-5, atol=1e-6 * size)


# Bad input.


@pytest.mark.parametrize(
  "make",
  [
    baselines.deep_weight_factorization,
    baselines.FactorProduct,
    baselines.HadamardDifference,
  ],
)
def test_depth_is_an_integer_of_at_least_two(make):
  for depth in (1, 0, -3):
    with pytest.raises(ValueError, match=f"integer >= 2, got {depth}"):
      make(depth)
  for depth in (2.0, True, "3", None):
    with pytest.raises(TypeError, match="must be a Python integer >= 2, got"):
      make(depth)


@pytest.mark.parametrize("bad", [-0.1, np.inf, np.nan])
def test_an_offset_is_finite_and_not_negative(bad):
  for make in (
    lambda: baselines.spred(offset=bad),
    lambda: baselines.deep_weight_factorization(3, offset=bad),
    lambda: baselines.HadamardDifference(2, offset=bad),
  ):
    with pytest.raises(ValueError, match="offset must be .* >= 0, got"):
      make()
