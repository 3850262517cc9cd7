import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rewa_jax import baselines

KEY = jax.random.key(0)
DWF = {depth: baselines.deep_weight_factorization(depth) for depth in (2, 3, 4)}


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
  latents = baselines.draw_factors(KEY, kernel(sigma), DWF[depth])
  expected = rejected_sample(sigma, depth, 100_000)
  quantiles = np.linspace(0, 1, 41)
  low, high = (0.01 * sigma) ** (1 / depth), min(1, (2 * sigma) ** (1 / depth))
  factors = jax.tree.leaves(latents["kernel"])
  assert len(factors) == depth
  for factor in factors:
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


@pytest.mark.parametrize(
  "depth,share",
  [
    (3, 0.40),
    pytest.param(2, 0.56, marks=pytest.mark.slow),
    pytest.param(4, 0.31, marks=pytest.mark.slow),
  ],
)
def test_the_product_is_as_wide_as_known(depth, share):
  sigma = 0.02
  method = DWF[depth]

  def width(corrected):
    latents = baselines.draw_factors(
      KEY, kernel(sigma, (1000, 1000)), method, corrected=corrected
    )
    return float(jnp.std(method.to_weights(latents)["kernel"])) / sigma

  assert round(width(False), 2) == share
  assert round(width(True), 2) == 1.00


def test_correction_scales_all_factors_alike():
  plain, corrected = (
    jax.tree.leaves(
      baselines.draw_factors(KEY, kernel(0.1), DWF[3], corrected=corrected)
    )
    for corrected in (False, True)
  )
  ratios = [b / a for a, b in zip(plain, corrected, strict=True)]
  for ratio in ratios:
    np.testing.assert_allclose(ratio, ratios[0][0, 0], rtol=1e-5)


def test_a_wide_leaf_is_corrected_too():
  """Where the bound of 1 is the tighter one."""
  latents = baselines.draw_factors(
    KEY, kernel(0.9, (1000, 1000)), DWF[2], corrected=True
  )
  weights = DWF[2].to_weights(latents)["kernel"]
  np.testing.assert_allclose(jnp.std(weights), 0.9, rtol=0.01)


def test_factors_and_leaves_are_drawn_independently():
  params = {"a": kernel(0.1), "b": kernel(0.1), "bias": jnp.ones(3)}
  latents = baselines.draw_factors(KEY, params, DWF[2])
  drawn = jax.tree.leaves((latents["a"], latents["b"]))
  flat = np.stack([np.ravel(x) for x in drawn])
  correlation = np.corrcoef(flat) - np.eye(4)
  assert np.abs(correlation).max() < 0.02
  assert latents["bias"] is params["bias"]
  again = baselines.draw_factors(KEY, params, DWF[2])
  jax.tree.map(np.testing.assert_array_equal, latents, again)
  other = baselines.draw_factors(jax.random.key(1), params, DWF[2])
  assert (other["a"]["kernel"]["latent_0"] != drawn[0]).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_shapes_and_dtypes_are_those_of_params(dtype):
  params = {"conv": {"kernel": jnp.full((3, 3, 2, 4), 0.1, dtype)}}
  latents = baselines.draw_factors(KEY, params, DWF[3])
  for factor in jax.tree.leaves(latents["conv"]):
    assert factor.shape == (3, 3, 2, 4)
    assert factor.dtype == dtype
    assert len(np.unique(factor.astype(jnp.float32))) > 20


def test_the_scale_is_that_of_each_leaf_and_zeros_stay_zeros():
  params = {
    "a": kernel(0.01),
    "b": kernel(0.1),
    "c": {"kernel": jnp.zeros((3, 3))},
  }
  latents = baselines.draw_factors(KEY, params, DWF[2], corrected=True)
  weights = DWF[2].to_weights(latents)
  np.testing.assert_allclose(jnp.std(weights["a"]["kernel"]), 0.01, rtol=0.02)
  np.testing.assert_allclose(jnp.std(weights["b"]["kernel"]), 0.1, rtol=0.02)
  np.testing.assert_array_equal(weights["c"]["kernel"], 0)


def test_it_compiles_and_vmaps_over_keys():
  params = kernel(0.1, (20, 30))
  keys = jax.random.split(KEY, 3)
  many = jax.jit(
    jax.vmap(lambda key: baselines.draw_factors(key, params, DWF[2]))
  )(keys)
  for i in range(3):
    one = baselines.draw_factors(keys[i], params, DWF[2])
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5),
      many,
      one,
    )


def test_what_is_drawn_are_latents_of_the_method():
  params = {"dense": kernel(0.1, (4, 3)) | {"bias": jnp.ones(3)}}
  drawn = baselines.draw_factors(KEY, params, DWF[3])
  split = DWF[3].to_latents(params)
  assert jax.tree.structure(drawn) == jax.tree.structure(split)
  assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, split)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_factors_are_sharded_as_weights_are(axis_type, compiled):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
  params = kernel(0.1, (16, 4))
  sharded = jax.device_put(params, NamedSharding(mesh, P("x")))

  def draw(params):
    return baselines.draw_factors(KEY, params, DWF[3], corrected=True)

  found = (jax.jit(draw) if compiled else draw)(sharded)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    found,
    draw(params),
  )
  for factor in jax.tree.leaves(found):
    assert factor.sharding.is_equivalent_to(sharded["kernel"].sharding, 2)


def test_bad_input_is_named():
  params = kernel(0.1, (2, 2))
  for no_product in (3, baselines.HadamardDifference(2)):
    with pytest.raises(TypeError, match="a product of factors, got .*[3H]"):
      baselines.draw_factors(KEY, params, no_product)
  with pytest.raises(TypeError, match="kernel is of type int32"):
    baselines.draw_factors(KEY, {"kernel": jnp.arange(3)}, DWF[2])
  with pytest.raises(ValueError, match="nothing would be reparameterized"):
    baselines.draw_factors(KEY, {"scale": jnp.ones(3)}, DWF[2])


def test_the_mask_of_the_method_says_what_is_drawn():
  params = {"a": kernel(0.1, (2, 2)), "b": kernel(0.1, (2, 2))}
  method = baselines.spred(mask={"a": False, "b": True})
  latents = baselines.draw_factors(KEY, params, method)
  assert latents["a"]["kernel"] is params["a"]["kernel"]
  assert set(latents["b"]["kernel"]) == {"latent_0", "latent_1"}
