import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import rewa_jax
from rewa_jax import baselines

PARAMS = {
  "a": {"kernel": jnp.array([[0.0, 2.0], [-0.5, 0.0]]), "bias": jnp.zeros(2)},
  "b": {"kernel": jnp.array([[3.0], [-1e-7]])},
}


def test_counts_by_leaf_and_in_all():
  report = rewa_jax.sparsity(PARAMS)
  assert report.size == {"a/kernel": 4, "b/kernel": 2}
  assert {k: int(v) for k, v in report.nonzero.items()} == {
    "a/kernel": 2,
    "b/kernel": 2,
  }
  assert (int(report.total_nonzero), report.total_size) == (4, 6)
  assert float(report.sparsity) == pytest.approx(1 / 3)
  assert float(report.compression) == pytest.approx(1.5)
  above = rewa_jax.sparsity(PARAMS, threshold=0.5)
  assert int(above.total_nonzero) == 2


def test_it_prints_a_table():
  lines = str(rewa_jax.sparsity(PARAMS)).splitlines()
  assert lines[1].split() == ["a/kernel", "2", "4", "50.00%", "2.0x"]
  assert lines[-1].split() == ["all", "4", "6", "33.33%", "1.5x"]


def test_counts_under_jit_and_vmap():
  count = jax.jit(jax.vmap(rewa_jax.sparsity, (None, 0)))
  report = count(PARAMS, jnp.array([0.0, 1e-6, 10.0]))
  assert report.total_nonzero.tolist() == [4, 3, 0]
  assert report.compression.tolist() == [1.5, 2.0, float("inf")]


def test_edges():
  empty = rewa_jax.sparsity({})
  assert (float(empty.sparsity), float(empty.compression)) == (0, 1)
  assert "all" in str(empty)
  assert "0x" not in str(rewa_jax.sparsity({"w": jnp.zeros(3)}))
  assert int(rewa_jax.sparsity({"w": jnp.array(jnp.nan)}).total_nonzero) == 1
  assert int(rewa_jax.sparsity({"w": 0.5}).total_nonzero) == 1


def test_latents_are_as_sparse_as_their_weights():
  weights = rewa_jax.sparsity(PARAMS)
  latents = rewa_jax.sparsity(rewa_jax.Rewa(k=9).to_latents(PARAMS))
  assert int(latents.total_nonzero) == int(weights.total_nonzero)


@pytest.mark.parametrize(
  "method",
  [rewa_jax.Rewa(k=9), baselines.spred(), baselines.Gated("output")],
)
@pytest.mark.parametrize("threshold", [0, 1e-6, 0.6])
def test_of_latents_the_weights_are_counted(method, threshold):
  latents = method.to_latents(PARAMS)
  report = rewa_jax.sparsity(latents, threshold, method=method)
  # Factors of a small weight and its zeros start away from zero.
  wanted = rewa_jax.sparsity(method.to_weights(latents), threshold)
  assert report.size == wanted.size
  assert report.nonzero == wanted.nonzero


def test_the_mask_of_the_method_says_what_is_counted():
  rewa = rewa_jax.Rewa(k=3, mask={"a": True, "b": False})
  latents = rewa.to_latents(PARAMS)
  report = rewa_jax.sparsity(latents, method=rewa)
  assert report.size == {"a/kernel": 4, "a/bias": 2}
  with pytest.raises(ValueError, match="mask and method both say .* mask None"):
    rewa_jax.sparsity(latents, mask=None, method=rewa)


@pytest.mark.parametrize(
  "mask", [rewa_jax.kernels, None, {"kernel": True, "bias": False}]
)
@pytest.mark.parametrize("form", [lambda state: state, nnx.to_pure_dict])
def test_latents_of_nnx_are_counted_with_their_method_alone(mask, form):
  rewa = rewa_jax.Rewa(k=9, mask=mask)
  model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  weights = rewa_jax.sparsity(nnx.state(model, nnx.Param), 0.4, mask)
  wrapped = rewa_jax.nnx.reparameterize(model, rewa)
  latents = form(nnx.state(wrapped, nnx.Param))
  report = rewa_jax.sparsity(latents, 0.4, method=rewa)
  assert 0 < int(report.total_nonzero) == int(weights.total_nonzero) < 8
  assert report.total_size == weights.total_size
  for use in (rewa_jax.sparsity, rewa_jax.prune):
    with pytest.raises(ValueError, match="rewa_latents/.* holds latents"):
      use(latents, threshold=0.4)


def test_latents_of_several_arrays_are_refused_without_their_method():
  latents = baselines.spred().to_latents(PARAMS)
  with pytest.raises(ValueError, match="a/kernel holds latents, not weights"):
    rewa_jax.sparsity(latents)
  with pytest.raises(
    ValueError, match="a/kernel holds 2 arrays for one, but R"
  ):
    rewa_jax.sparsity(latents, method=rewa_jax.Rewa(k=3))


def test_a_bad_threshold_for_counting_is_refused():
  with pytest.raises(ValueError, match="threshold must be .* >= 0, got -1"):
    rewa_jax.sparsity(PARAMS, -1)
