import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewa_jax
from tests import reference

POWERS = [1, 2, 2.25, 3, 4, 5, 9]
LATENTS = np.array([-1.5, -0.6, 0.0, 0.3, 1.0, 1.2])
# Zero, subnormal, tiny, huge.
EXTREMES = np.array([0.0, -0.0, 1e-45, 1e-38, -1e-38, 1e38, -1e38], np.float32)


@pytest.mark.parametrize("k", POWERS)
def test_power_is_signed_and_root_its_inverse(k, x64):
  weights = rewa_jax.power(LATENTS, k)
  np.testing.assert_allclose(weights, reference.power(LATENTS, k), rtol=1e-14)
  np.testing.assert_allclose(rewa_jax.root(weights, k), LATENTS, rtol=1e-14)


@given(
  x=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
  k=st.one_of(st.integers(1, 15), st.floats(1, 15)),
)
def test_power_undoes_root_in_float32(x, k):
  restored = float(rewa_jax.power(rewa_jax.root(jnp.float32(x), k), k))
  assert restored == pytest.approx(x, rel=2e-5)


@pytest.mark.parametrize("k", POWERS)
def test_a_traced_power_equals_a_static_one(k):
  static = rewa_jax.power(jnp.float32(LATENTS), k)
  traced = jax.jit(rewa_jax.power)(jnp.float32(LATENTS), k)
  as_array = rewa_jax.power(jnp.float32(LATENTS), jnp.asarray(k))
  np.testing.assert_allclose(traced, static, rtol=1e-6)
  np.testing.assert_allclose(as_array, static, rtol=1e-6)


@pytest.mark.parametrize("k", POWERS)
def test_the_gradient_is_the_chain_rule(k, x64):
  gradient = jax.grad(lambda y: rewa_jax.power(y, k).sum())(LATENTS)
  np.testing.assert_allclose(
    gradient, k * np.abs(LATENTS) ** (k - 1), rtol=1e-14
  )


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 2.25, 3, 9])
def test_forward_and_reverse_mode_agree_to_second_order(k, x64):
  latents = LATENTS[LATENTS != 0]  # |y| has no second derivative at 0.
  y = jnp.asarray(latents)
  forward = jax.jacfwd(jax.jacfwd(lambda y: rewa_jax.power(y, k).sum()))(y)
  reverse = jax.jacrev(jax.jacrev(lambda y: rewa_jax.power(y, k).sum()))(y)
  curvature = k * (k - 1) * np.sign(latents) * np.abs(latents) ** (k - 2)
  np.testing.assert_allclose(forward, np.diag(curvature), rtol=1e-13)
  np.testing.assert_allclose(reverse, np.diag(curvature), rtol=1e-13)


def test_derivative_with_respect_to_a_traced_power(x64):
  def power(k):
    return rewa_jax.power(LATENTS, k)

  step = 1e-6
  numeric = (power(2.5 + step) - power(2.5 - step)) / (2 * step)
  np.testing.assert_allclose(jax.jacfwd(power)(2.5), numeric, atol=1e-8)


@pytest.mark.parametrize("k", [1, 1.5, 2, 3, 9, 40])
@pytest.mark.parametrize("traced", [False, True])
def test_nothing_is_nan_at_the_edges_of_float32(k, traced):
  y = jnp.asarray(EXTREMES)
  k = jnp.float32(k) if traced else k
  x, pullback = jax.vjp(rewa_jax.power, y, k)
  assert not jnp.isnan(x).any()
  assert not jnp.isnan(rewa_jax.root(y, k)).any()
  for cotangent in (jnp.zeros_like(y), jnp.ones_like(y)):
    assert not jnp.isnan(pullback(cotangent)[0]).any()
  for fn in (rewa_jax.power, rewa_jax.root):
    assert jnp.isfinite(jax.vmap(jax.grad(fn), (0, None))(y[:2], k)).all()


@pytest.mark.parametrize("k", [np.int64(9), np.float32(9)])
def test_a_number_of_numpy_is_the_python_number_it_is(k):
  y = jnp.array([0.3, -1.7])
  assert jnp.array_equal(rewa_jax.power(y, k), rewa_jax.power(y, 9))
  assert jnp.array_equal(rewa_jax.root(y, k), rewa_jax.root(y, 9))
  graph = str(jax.make_jaxpr(lambda y: rewa_jax.power(y, k))(y))
  assert "integer_pow" in graph and "pow " not in graph.replace("integer_", "")


def test_a_root_of_power_1_is_the_identity():
  x = jnp.array([0.0, -jnp.inf, 3.0])
  np.testing.assert_array_equal(rewa_jax.root(x, 1), x)
  assert jax.grad(rewa_jax.root)(0.0, 1) == 1


def test_underflow_is_an_exact_zero():
  assert rewa_jax.power(jnp.float32(1e-6), 9) == 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_scalars_and_empty_arrays(shape):
  y = jnp.full(shape, 0.5)
  assert rewa_jax.power(y, 3).shape == rewa_jax.root(y, 3).shape == shape


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_is_kept_and_half_precision_rounds_once(dtype):
  y = jnp.asarray(LATENTS, dtype)
  for k in (9, 2.25, jnp.float32(2.25)):
    wanted = rewa_jax.power(y.astype(jnp.float32), k).astype(dtype)
    assert rewa_jax.power(y, k).dtype == dtype
    assert jnp.array_equal(rewa_jax.power(y, k), wanted)
    assert rewa_jax.root(y, k).dtype == dtype


def test_one_vmap_over_powers():
  powers = jnp.array([1.0, 2.0, 2.25, 9.0])
  gradient = jax.grad(lambda y, k: rewa_jax.power(y, k).sum())
  batch = jax.jit(jax.vmap(jax.jit(gradient), (None, 0)))(0.7, powers)
  np.testing.assert_allclose(batch, powers * 0.7 ** (powers - 1), rtol=1e-5)


@pytest.mark.parametrize(
  ("k", "error"),
  [
    (0.5, ValueError),
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (jnp.float32(0.5), ValueError),
    (jnp.array([2.0, 3.0]), ValueError),
    ("3", TypeError),
    (True, TypeError),
    (None, TypeError),
  ],
)
def test_a_power_that_is_no_number_from_1_up_is_refused(k, error):
  for fn in (rewa_jax.power, rewa_jax.root):
    with pytest.raises(error, match="k must be a finite real number >= 1, got"):
      fn(jnp.ones(2), k)


def test_other_bad_input_to_power_is_refused():
  with pytest.raises(TypeError, match="y is of type int32"):
    rewa_jax.power(jnp.arange(3), 3)
  for narrow in ("float8_e4m3fn", "float8_e5m2"):
    with pytest.raises(TypeError, match=f"y is of type {narrow}, .* 16 bits"):
      rewa_jax.power(jnp.ones(3, narrow), 3)
  with pytest.raises(TypeError, match="x is of type complex64"):
    rewa_jax.root(jnp.ones(3, "complex64"), 3)
