import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewa_jax

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
  pruned, masks = rewa_jax.prune({}, sparsity=0.5)
  assert pruned == masks == {}


def test_latents_are_as_sparse_as_their_weights():
  weights = rewa_jax.sparsity(PARAMS)
  latents = rewa_jax.sparsity(rewa_jax.to_latents(PARAMS, 9))
  assert int(latents.total_nonzero) == int(weights.total_nonzero)


def test_prune_at_a_threshold():
  pruned, masks = rewa_jax.prune(PARAMS, threshold=0.5)
  np.testing.assert_array_equal(pruned["a"]["kernel"], [[0, 2], [0, 0]])
  np.testing.assert_array_equal(masks["b"]["kernel"], [[True], [False]])
  assert masks["a"]["bias"].all()


@given(
  values=st.lists(
    st.sampled_from([0.0, 0.1, -0.1, 1.0, -2.0, 3.0]), min_size=1
  ),
  share=st.floats(0, 1),
)
def test_prune_to_a_sparsity_zeroes_that_share_of_the_smallest(values, share):
  x = np.array(values, np.float32)
  pruned, masks = rewa_jax.prune({"w": x}, sparsity=share)
  number = len(x) - round((1 - share) * len(x))
  assert (pruned["w"] == 0).sum() == max(number, (x == 0).sum())
  kept, cut = np.abs(x[masks["w"]]), np.abs(x[~masks["w"]])
  assert not kept.size or not cut.size or kept.min() >= cut.max()
  np.testing.assert_array_equal(pruned["w"], np.where(masks["w"], x, 0))


def test_scope_of_a_sparsity():
  params = {"a": {"w": jnp.arange(1.0, 5)}, "b": {"w": jnp.arange(5.0, 9)}}
  overall, _ = rewa_jax.prune(params, sparsity=0.5)
  each, _ = rewa_jax.prune(params, sparsity=0.5, scope="leaf")
  assert not overall["a"]["w"].any() and overall["b"]["w"].all()
  assert each["a"]["w"].tolist() == [0, 0, 3, 4]
  assert each["b"]["w"].tolist() == [0, 0, 7, 8]


def test_prune_under_jit_with_a_traced_sparsity():
  prune = jax.jit(lambda share: rewa_jax.prune(PARAMS, sparsity=share))
  for share in (0.0, 0.5, 1.0):
    wanted = rewa_jax.prune(PARAMS, sparsity=share)
    jax.tree.map(np.testing.assert_array_equal, prune(share), wanted)


def test_masks_keep_zeros_zero_while_training_goes_on():
  pruned, masks = rewa_jax.prune(PARAMS, sparsity=0.5)
  updates = jax.tree.map(jnp.ones_like, PARAMS)
  updates = jax.tree.map(jnp.multiply, updates, masks)
  tuned = jax.tree.map(jnp.add, pruned, updates)
  report = rewa_jax.sparsity(tuned)
  assert int(report.total_nonzero) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_kept(dtype):
  params = {"w": jnp.arange(4, dtype=dtype)}
  pruned, masks = rewa_jax.prune(params, sparsity=0.5)
  assert pruned["w"].dtype == dtype and masks["w"].dtype == bool


@pytest.mark.parametrize(
  ("how", "message"),
  [
    (dict(), "exactly one of threshold and sparsity, got threshold=None"),
    (dict(threshold=0.1, sparsity=0.1), "exactly one"),
    (dict(threshold=-1), "threshold must be .* >= 0, got -1"),
    (dict(sparsity=1.5), "sparsity must be .* <= 1, got 1.5"),
    (dict(sparsity=float("nan")), "sparsity must be"),
    (dict(sparsity=0.5, scope="layer"), "'global' or 'leaf', got 'layer'"),
  ],
)
def test_bad_input_to_prune_is_refused(how, message):
  with pytest.raises(ValueError, match=message):
    rewa_jax.prune(PARAMS, **how)


def test_a_bad_threshold_for_counting_is_refused():
  with pytest.raises(ValueError, match="threshold must be .* >= 0, got -1"):
    rewa_jax.sparsity(PARAMS, -1)
