import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rewa_jax
from rewa_jax import baselines

PARAMS = {
  "a": {"kernel": jnp.array([[0.0, 2.0], [-0.5, 0.0]]), "bias": jnp.zeros(2)},
  "b": {"kernel": jnp.array([[3.0], [-1e-7]])},
}


def test_pruning_obeys_numpys_strictest_promotion():
  params = {"w": jnp.arange(8.0).reshape(4, 2)}
  strict = jax.numpy_dtype_promotion("strict")
  with strict, jax.numpy_rank_promotion("raise"):
    halves = [
      rewa_jax.prune(params, sparsity=0.5)[0]["w"],
      rewa_jax.prune(params, sparsity=0.5, scope="2:4")[0]["w"],
    ]
    rewa_jax.separation(params)
    mixed = {"w": params["w"], "half": {"w": jnp.ones((2, 2), jnp.bfloat16)}}
    weights, cut = rewa_jax.finalize(mixed, 0.5)
    rewa_jax.separation(mixed)
  for half in halves:
    np.testing.assert_array_equal(half, [[0, 0], [0, 0], [4, 5], [6, 7]])
  assert (cut.largest_cut, cut.smallest_kept) == (1, 2)
  assert not weights["half"]["w"].any()


def test_prune_at_a_threshold():
  pruned, masks = rewa_jax.prune(PARAMS, threshold=0.5)
  np.testing.assert_array_equal(pruned["a"]["kernel"], [[0, 2], [0, 0]])
  np.testing.assert_array_equal(masks["b"]["kernel"], [[True], [False]])
  assert masks["a"]["bias"].all()


@given(
  values=st.lists(
    st.sampled_from([0.0, 0.1, -0.1, 1.0, -2.0, 3.0]), min_size=1, max_size=9
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
  a, b = jnp.arange(1.0, 5), jnp.arange(5.0, 9)
  params = {"a": {"kernel": a}, "b": {"kernel": b}}
  overall, _ = rewa_jax.prune(params, sparsity=0.5)
  each, _ = rewa_jax.prune(params, sparsity=0.5, scope="leaf")
  assert not overall["a"]["kernel"].any() and overall["b"]["kernel"].all()
  assert each["a"]["kernel"].tolist() == [0, 0, 3, 4]
  assert each["b"]["kernel"].tolist() == [0, 0, 7, 8]


def test_prune_under_jit_with_a_traced_sparsity():
  prune = jax.jit(lambda share: rewa_jax.prune(PARAMS, sparsity=share))
  for share in (0.0, 0.5, 1.0):
    wanted = rewa_jax.prune(PARAMS, sparsity=share)
    jax.tree.map(np.testing.assert_array_equal, prune(share), wanted)


# At scale.


def prune_half(params):
  return rewa_jax.prune(params, sparsity=0.5)


@pytest.mark.parametrize("devices", [1, 8])
def test_pruning_to_a_sparsity_keeps_nothing_of_the_weights_size(devices):
  mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
  kernels = [jnp.ones((800, 200)), jnp.ones((800, 40), jnp.bfloat16)]
  params = jax.device_put(
    [{"kernel": kernel} for kernel in kernels], NamedSharding(mesh, P("x"))
  )
  memory = jax.jit(prune_half).lower(params).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 5_000


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_pruning_to_a_sparsity_keeps_the_sharding_of_weights(
  axis_type, compiled
):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
  rng = np.random.default_rng(0)
  params, sharded = {}, {}
  for name, shape, spec in [
    ("a", (16, 6), P("x")),
    ("b", (4, 3, 8), P(None, None, "x")),
    ("c", (5,), P()),
  ]:
    # Many are equal, some of them where two devices meet.
    kernel = jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)
    params[name] = {"kernel": kernel}
    on_mesh = jax.device_put(kernel, NamedSharding(mesh, spec))
    sharded[name] = {"kernel": on_mesh}
  found = (jax.jit(prune_half) if compiled else prune_half)(sharded)
  jax.tree.map(np.testing.assert_array_equal, found, prune_half(params))
  for tree in found:
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(sharded)):
      assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_weights_beyond_32_bits_of_them_can_be_pruned_to_a_sparsity():
  params = {"kernel": jax.ShapeDtypeStruct((2**16 + 5, 2**16 + 5), "bfloat16")}
  pruned, masks = jax.eval_shape(prune_half, params)
  assert pruned == params
  assert masks["kernel"].shape == params["kernel"].shape


def test_a_grid_of_sparsities_prunes_as_one_by_one():
  shares = jnp.array([0.0, 0.4, 1.0])
  stacked = jax.vmap(lambda s: rewa_jax.prune(PARAMS, sparsity=s))(shares)
  for i, share in enumerate(shares):
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_array_equal(a[i], b),
      stacked,
      rewa_jax.prune(PARAMS, sparsity=share),
    )


# Afterwards.


def test_masks_keep_zeros_zero_while_training_goes_on():
  pruned, masks = rewa_jax.prune(PARAMS, sparsity=0.5)
  updates = jax.tree.map(jnp.ones_like, PARAMS)
  updates = jax.tree.map(jnp.multiply, updates, masks)
  tuned = jax.tree.map(jnp.add, pruned, updates)
  report = rewa_jax.sparsity(tuned)
  assert int(report.total_nonzero) == 3


def test_a_tree_without_leaves_has_nothing_to_prune():
  pruned, masks = rewa_jax.prune({}, sparsity=0.5)
  assert pruned == masks == {}


@pytest.mark.parametrize("method", [rewa_jax.Rewa(k=9), baselines.spred()])
@pytest.mark.parametrize("how", [{"threshold": 0.6}, {"sparsity": 0.5}])
def test_of_latents_the_weights_are_pruned(method, how):
  latents = method.to_latents(PARAMS)
  wanted = rewa_jax.prune(method.to_weights(latents), **how)
  pruned = rewa_jax.prune(latents, **how, method=method)
  jax.tree.map(np.testing.assert_array_equal, pruned, wanted)
  # Latents again, of zeros where weights are zero.
  again = method.to_latents(pruned[0])
  report = rewa_jax.sparsity(again, 1e-6, method=method)
  wanted = rewa_jax.sparsity(pruned[0], 1e-6)
  assert int(report.total_nonzero) == int(wanted.total_nonzero)


def test_the_mask_of_the_method_says_what_is_pruned():
  rewa = rewa_jax.Rewa(k=3, mask={"a": False, "b": True})
  latents = rewa.to_latents(PARAMS)
  pruned, _ = rewa_jax.prune(latents, sparsity=1, method=rewa)
  jax.tree.map(np.testing.assert_array_equal, pruned["a"], PARAMS["a"])
  assert not pruned["b"]["kernel"].any()
  with pytest.raises(ValueError, match="mask and method both say"):
    rewa_jax.prune(latents, sparsity=1, mask=None, method=rewa)


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
    (dict(threshold=0.1, scope="leaf"), "go with sparsity, got scope='leaf'"),
    (dict(threshold=0.1, groups="output"), "go with sparsity, .*'output'"),
    (dict(threshold=-1), "threshold must be .* >= 0, got -1"),
    (dict(sparsity=1.5), "sparsity must be .* <= 1, got 1.5"),
    (dict(sparsity=float("nan")), "sparsity must be"),
    (
      dict(sparsity=0.5, scope="layer"),
      "'global', 'leaf' or n:m .*got 'layer'",
    ),
  ],
)
def test_bad_input_to_prune_is_refused(how, message):
  with pytest.raises(ValueError, match=message):
    rewa_jax.prune(PARAMS, **how)


def test_a_threshold_is_not_rounded_to_sixteen_bits():
  x = jnp.array([0.1001, 0.0996], jnp.bfloat16)
  assert 0.1 < float(x[0]) == float(jnp.bfloat16(0.1))
  pruned, _ = rewa_jax.prune({"kernel": x}, threshold=0.1)
  assert (pruned["kernel"] != 0).tolist() == [True, False]
  assert pruned["kernel"].dtype == jnp.bfloat16
  report = rewa_jax.sparsity({"kernel": x}, threshold=0.1)
  assert int(report.total_nonzero) == 1
