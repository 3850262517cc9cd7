import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewa_jax
from tests import reference

POWERS = [1, 2, 2.25, 3, 4, 5, 9]
CONVENTIONS = ["latent", "weight"]
WEIGHTS = np.array([-1.5, -0.6, 0.0, 0.3, 1.0, 1.2])
# Zero, subnormal, tiny, huge.
EXTREMES = np.array([0.0, -0.0, 1e-45, 1e-38, -1e-38, 1e38, -1e38], np.float32)


def of_all(k, gradient="weight"):
  return rewa_jax.Rewa(k, gradient=gradient, mask=None)


@pytest.mark.parametrize("gradient", CONVENTIONS)
@pytest.mark.parametrize("k", POWERS)
def test_latents_are_roots_and_weights_their_powers(k, gradient, x64):
  rewa = rewa_jax.Rewa(k, gradient=gradient)
  params = {"layer": {"kernel": WEIGHTS, "bias": WEIGHTS}}
  latents = rewa.to_latents(params)
  np.testing.assert_allclose(
    latents["layer"]["kernel"], reference.root(WEIGHTS, k), rtol=1e-14
  )
  assert latents["layer"]["bias"] is WEIGHTS
  weights = rewa.to_weights(latents)
  np.testing.assert_allclose(weights["layer"]["kernel"], WEIGHTS, rtol=1e-14)
  assert weights["layer"]["bias"] is WEIGHTS


@pytest.mark.parametrize("k", POWERS)
def test_the_gradient_of_weights_passes_through(k):
  y, cotangent = jnp.float32(WEIGHTS), jnp.arange(6.0)
  to_weights = of_all(k).to_weights
  assert jnp.array_equal(jax.vjp(to_weights, y)[1](cotangent)[0], cotangent)
  assert jnp.array_equal(jax.jvp(to_weights, (y,), (cotangent,))[1], cotangent)


@pytest.mark.parametrize("k", POWERS)
def test_second_derivatives_are_those_of_weights(k):
  def loss(weights):
    return jnp.sum(jnp.cos(weights) * jnp.roll(weights, 1))

  to_weights, y = of_all(k).to_weights, jnp.float32(WEIGHTS)
  found = jax.hessian(lambda y: loss(to_weights(y)))(y)
  expected = jax.hessian(loss)(to_weights(y))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [2.5, 9])
def test_the_gradient_of_latents_is_the_chain_rule(k, x64):
  to_weights = of_all(k, "latent").to_weights
  gradient = jax.grad(lambda y: to_weights(y).sum())(WEIGHTS)
  np.testing.assert_allclose(
    gradient, k * np.abs(WEIGHTS) ** (k - 1), rtol=1e-14
  )


def test_the_gradient_of_weights_outlives_an_underflow():
  y = jnp.array([1e-6])  # Its eighth power is no float32.
  for gradient, wanted in [("weight", 1.0), ("latent", 0.0)]:
    to_weights = of_all(9, gradient).to_weights
    assert jax.grad(lambda y, f=to_weights: f(y).sum())(y) == wanted


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_derivative_with_respect_to_a_traced_power(gradient, x64):
  def to_weights(k):
    return of_all(k, gradient).to_weights(WEIGHTS)

  step = 1e-6
  numeric = (to_weights(2.5 + step) - to_weights(2.5 - step)) / (2 * step)
  np.testing.assert_allclose(jax.jacfwd(to_weights)(2.5), numeric, atol=1e-8)


@pytest.mark.parametrize("k", [1, 1.5, 2, 3, 9, 40])
@pytest.mark.parametrize("traced", [False, True])
def test_nothing_is_nan_at_the_edges_of_float32(k, traced):
  def to_weights(y, k):
    return of_all(k).to_weights(y)

  y, k = jnp.asarray(EXTREMES), jnp.float32(k) if traced else k
  x, pullback = jax.vjp(to_weights, y, k)
  assert not jnp.isnan(x).any()
  for cotangent in (jnp.zeros_like(y), jnp.ones_like(y)):
    assert not jnp.isnan(pullback(cotangent)[0]).any()
  at_zero = jax.vmap(jax.grad(to_weights), (0, None))(y[:2], k)
  assert jnp.isfinite(at_zero).all()


@pytest.mark.parametrize(("k", "m", "eps"), [(9, 2, 0), (5, 0, 1e-2)])
def test_the_penalty_that_weight_decay_is(k, m, eps):
  rewa = rewa_jax.Rewa(k, m, eps)
  wanted = rewa_jax.Penalty(k, m, eps).value(WEIGHTS)
  np.testing.assert_array_equal(rewa.implicit_penalty(WEIGHTS), wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_kept(dtype):
  params = {"w": jnp.asarray(WEIGHTS, dtype)}
  latents = rewa_jax.Rewa(k=3).to_latents(params)
  weights = rewa_jax.Rewa(k=3).to_weights(latents)
  assert latents["w"].dtype == weights["w"].dtype == dtype


def test_an_unknown_convention_is_refused():
  with pytest.raises(ValueError, match="'weight' or 'latent', got 'weights'"):
    rewa_jax.Rewa(k=3, gradient="weights")
