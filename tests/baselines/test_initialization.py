import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewa_jax import baselines

KEY = jax.random.key(0)


def kernel(sigma, shape=(300, 400)):
  x = np.random.default_rng(0).normal(size=shape)
  return {
    "kernel": jnp.asarray(sigma * x / np.sqrt(np.mean(x**2)), jnp.float32)
  }


def rejected_sample(sigma, depth, size):
  """Factors as the paper draws them: drawn, and drawn again."""
  rng = np.random.default_rng(1)
  low = (0.01 * sigma) ** (1 / depth)
  high = min(1, (2 * sigma) ** (1 / depth))
  drawn = rng.normal(scale=sigma ** (1 / depth), size=6 * size)
  kept = drawn[(low < np.abs(drawn)) & (np.abs(drawn) < high)]
  return kept[:size]


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("sigma", [0.05, 0.7])
def test_factors_are_distributed_as_those_drawn_by_rejection(depth, sigma):
  latents = baselines.draw_factors(KEY, kernel(sigma), depth)
  expected = rejected_sample(sigma, depth, 100_000)
  quantiles = np.linspace(0, 1, 41)
  low, high = (0.01 * sigma) ** (1 / depth), min(1, (2 * sigma) ** (1 / depth))
  assert len(latents["kernel"].values) == depth
  for factor in latents["kernel"].values:
    factor = np.asarray(factor)
    size = np.abs(factor)
    assert size.min() >= low * (1 - 1e-5)
    assert size.max() <= high * (1 + 1e-5)
    np.testing.assert_allclose(
      np.quantile(size, quantiles),
      np.quantile(np.abs(expected), quantiles),
      atol=0.01 * high,
    )
    assert abs(np.mean(factor > 0) - 0.5) < 0.01


@pytest.mark.parametrize("depth,share", [(2, 0.56), (3, 0.40), (4, 0.31)])
def test_the_product_is_as_wide_as_known(depth, share):
  sigma = 0.02
  method = baselines.deep_weight_factorization(depth)

  def width(corrected):
    latents = baselines.draw_factors(
      KEY, kernel(sigma, (1000, 1000)), depth, corrected=corrected
    )
    return float(jnp.std(method.to_weights(latents)["kernel"])) / sigma

  assert round(width(False), 2) == share
  assert round(width(True), 2) == 1.00


def test_correction_scales_all_factors_alike():
  plain = baselines.draw_factors(KEY, kernel(0.1), 3)["kernel"].values
  corrected = baselines.draw_factors(KEY, kernel(0.1), 3, corrected=True)
  ratios = [b / a for a, b in zip(plain, corrected["kernel"].values)]
  for ratio in ratios:
    np.testing.assert_allclose(ratio, ratios[0][0, 0], rtol=1e-5)


def test_a_wide_leaf_is_corrected_too():
  """Where the bound of 1 is the tighter one."""
  method = baselines.deep_weight_factorization(2)
  latents = baselines.draw_factors(
    KEY, kernel(0.9, (1000, 1000)), 2, corrected=True
  )
  weights = method.to_weights(latents)["kernel"]
  np.testing.assert_allclose(jnp.std(weights), 0.9, rtol=0.01)


def test_factors_and_leaves_are_drawn_independently():
  params = {"a": kernel(0.1), "b": kernel(0.1), "bias": jnp.ones(3)}
  latents = baselines.draw_factors(KEY, params, 2)
  drawn = [*latents["a"]["kernel"].values, *latents["b"]["kernel"].values]
  flat = np.stack([np.ravel(x) for x in drawn])
  correlation = np.corrcoef(flat) - np.eye(4)
  assert np.abs(correlation).max() < 0.02
  assert latents["bias"] is params["bias"]
  again = baselines.draw_factors(KEY, params, 2)
  jax.tree.map(np.testing.assert_array_equal, latents, again)
  other = baselines.draw_factors(jax.random.key(1), params, 2)
  assert (other["a"]["kernel"].values[0] != drawn[0]).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_shapes_and_dtypes_are_those_of_params(dtype):
  params = {"conv": {"kernel": jnp.full((3, 3, 2, 4), 0.1, dtype)}}
  latents = baselines.draw_factors(KEY, params, 3)
  for factor in latents["conv"]["kernel"].values:
    assert factor.shape == (3, 3, 2, 4)
    assert factor.dtype == dtype
    assert len(np.unique(factor.astype(jnp.float32))) > 20


def test_the_scale_is_that_of_each_leaf_and_zeros_stay_zeros():
  params = {
    "a": kernel(0.01),
    "b": kernel(0.1),
    "c": {"kernel": jnp.zeros((3, 3))},
  }
  method = baselines.deep_weight_factorization(2)
  latents = baselines.draw_factors(KEY, params, 2, corrected=True)
  weights = method.to_weights(latents)
  np.testing.assert_allclose(jnp.std(weights["a"]["kernel"]), 0.01, rtol=0.02)
  np.testing.assert_allclose(jnp.std(weights["b"]["kernel"]), 0.1, rtol=0.02)
  np.testing.assert_array_equal(weights["c"]["kernel"], 0)


def test_it_compiles_and_vmaps_over_keys():
  params = kernel(0.1, (20, 30))
  keys = jax.random.split(KEY, 3)
  many = jax.jit(jax.vmap(lambda key: baselines.draw_factors(key, params, 2)))(
    keys
  )
  for i in range(3):
    one = baselines.draw_factors(keys[i], params, 2)
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5),
      many,
      one,
    )


def test_what_is_drawn_trains_as_factors_do():
  params = kernel(0.1, (4, 3))
  latents = baselines.draw_factors(KEY, params, 3)
  method = baselines.deep_weight_factorization(3)
  baselines.sgd(0.1, method, strength=0.1).init(latents)
  assert method.to_weights(latents)["kernel"].shape == (4, 3)


def test_bad_input_is_named():
  params = kernel(0.1, (2, 2))
  with pytest.raises(ValueError, match="depth must be .* >= 2, got 1"):
    baselines.draw_factors(KEY, params, 1)
  with pytest.raises(TypeError, match="depth must be a Python integer"):
    baselines.draw_factors(KEY, params, 2.5)
  with pytest.raises(TypeError, match="kernel is of type int32"):
    baselines.draw_factors(KEY, {"kernel": jnp.arange(3)}, 2)
  with pytest.raises(ValueError, match="nothing would be reparameterized"):
    baselines.draw_factors(KEY, {"scale": jnp.ones(3)}, 2)
  plain = baselines.draw_factors(KEY, params, 2, mask=lambda _: False)
  np.testing.assert_array_equal(plain["kernel"], params["kernel"])
