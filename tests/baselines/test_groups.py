import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from rewa_jax import baselines
from rewa_jax._trees import path_name
from rewa_jax.baselines import group_axes, group_norms
from tests.extras import needs

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 5, 5, 3))
SEQUENCES = jax.random.normal(KEY, (2, 7, 6))


def linen(module, inputs):
  return module.init(KEY, inputs), lambda params, x: module.apply(params, x)


def haiku(module, inputs):
  hk = needs("haiku")
  function = hk.without_apply_rng(hk.transform(lambda x: module(hk)(x)))
  return function.init(KEY, inputs), function.apply


def equinox(module, axes):
  eqx = needs("equinox")
  params, rest = eqx.partition(module(eqx), eqx.is_array)

  def apply(params, x):
    return jnp.moveaxis(
      eqx.combine(params, rest)(jnp.moveaxis(x, -1, 0)), 0, -1
    )

  return params, jax.vmap(apply, (None, 0)) if axes else apply


NETWORKS = {
  "linen Dense": lambda: (*linen(nn.Dense(4), SEQUENCES), SEQUENCES),
  "linen Conv": lambda: (*linen(nn.Conv(4, (3, 3)), IMAGES), IMAGES),
  "linen ConvTranspose": lambda: (
    *linen(nn.ConvTranspose(4, (3, 3)), IMAGES),
    IMAGES,
  ),
  "haiku Linear": lambda: (
    *haiku(lambda hk: hk.Linear(4), SEQUENCES),
    SEQUENCES,
  ),
  "haiku Conv2D": lambda: (*haiku(lambda hk: hk.Conv2D(4, 3), IMAGES), IMAGES),
  "haiku Conv2DTranspose": lambda: (
    *haiku(lambda hk: hk.Conv2DTranspose(4, 3), IMAGES),
    IMAGES,
  ),
  "equinox Linear": lambda: (
    *equinox(lambda eqx: eqx.nn.Linear(6, 4, key=KEY), False),
    SEQUENCES[0, 0],
  ),
  "equinox Conv": lambda: (
    *equinox(lambda eqx: eqx.nn.Conv2d(3, 4, 3, key=KEY), True),
    IMAGES,
  ),
}


def without_group(params, groups, index):
  """Zeroes one group of the kernel, and the biases."""

  def zero(path, leaf):
    if leaf.ndim < 2 or path_name(path).endswith("bias"):
      return jnp.zeros_like(leaf)
    axes = group_axes(groups, path_name(path), leaf)
    assert len(axes) == 1
    return leaf.at[(slice(None),) * axes[0] + (index,)].set(0)

  return jax.tree_util.tree_map_with_path(zero, params)


# What the names mean, told by what the network computes.


@pytest.mark.parametrize("network", NETWORKS)
def test_a_dead_output_group_is_a_dead_output_channel(network):
  params, apply, inputs = NETWORKS[network]()
  outputs = apply(without_group(params, "output", 2), inputs)
  assert outputs.shape[-1] == 4
  alive = jnp.abs(outputs).reshape(-1, 4).max(axis=0) > 0
  np.testing.assert_array_equal(alive, [True, True, False, True])


@pytest.mark.parametrize("network", NETWORKS)
def test_a_dead_input_group_is_an_input_channel_unseen(network):
  params, apply, inputs = NETWORKS[network]()
  dead = without_group(params, "input", 2)
  changed = apply(dead, inputs.at[..., 2].set(100.0))
  np.testing.assert_allclose(changed, apply(dead, inputs), atol=1e-5)
  changed = apply(dead, inputs.at[..., 1].set(100.0))
  assert jnp.abs(changed - apply(dead, inputs)).max() > 1


def attention_params(library):
  if library == "linen":
    attention = nn.MultiHeadDotProductAttention(
      num_heads=3, qkv_features=12, out_features=5
    )
    return attention.init(KEY, SEQUENCES)
  attention = nnx.MultiHeadAttention(
    num_heads=3,
    in_features=6,
    qkv_features=12,
    out_features=5,
    decode=False,
    rngs=nnx.Rngs(0),
  )
  return nnx.state(attention, nnx.Param)


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize(
  ("groups", "of_query", "of_out"),
  [("heads", (1,), (0,)), ("output", (1, 2), (2,)), ("input", (0,), (0, 1))],
)
def test_attention_kernels_have_heads_and_channels(
  library, groups, of_query, of_out
):
  seen = set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    attention_params(library)
  ):
    owner, name = path_name(path).split("/")[-2:]
    if name == "kernel":
      expected = of_out if owner == "out" else of_query
      assert group_axes(groups, path_name(path), leaf) == expected
      seen.add(owner)
  assert seen == {"query", "key", "value", "out"}


def test_layers_that_are_stacked_have_groups_of_their_own():
  layers = nn.vmap(
    nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}
  )
  kernel = layers(6).init(KEY, SEQUENCES)["params"]["kernel"]
  assert kernel.shape == (2, 6, 6)
  groups = baselines.stacked("output", within="layers")
  assert group_axes(groups, "layers/kernel", kernel) == (0, 2)
  assert group_axes(groups, "last/kernel", kernel[0]) == (1,)
  one_by_one = [group_norms(layer, (1,)) for layer in kernel]
  np.testing.assert_allclose(
    group_norms(kernel, group_axes(groups, "layers/kernel", kernel)),
    jnp.stack(one_by_one),
  )


def test_attention_that_is_stacked_must_be_said_to_be():
  kernel, path = jnp.zeros((2, 6, 3, 4)), "attention/query/kernel"
  with pytest.raises(ValueError, match=f"{path} .* stacked"):
    group_axes("output", path, kernel)
  assert group_axes(baselines.stacked("heads"), path, kernel) == (0, 2)
  assert group_axes(baselines.stacked("output"), path, kernel) == (0, 2, 3)


def test_dropping_a_head_in_all_four_kernels_is_attention_without_it():
  three = nn.MultiHeadDotProductAttention(3, qkv_features=12, use_bias=False)
  two = nn.MultiHeadDotProductAttention(2, qkv_features=8, use_bias=False)
  params = three.init(KEY, SEQUENCES)

  def drop(path, leaf, remove):
    (axis,) = group_axes("heads", path_name(path), leaf)
    if remove:
      return jnp.delete(leaf, 1, axis)
    return leaf.at[(slice(None),) * axis + (1,)].set(0)

  zeroed, smaller = (
    jax.tree_util.tree_map_with_path(
      lambda path, leaf, remove=remove: drop(path, leaf, remove), params
    )
    for remove in (False, True)
  )
  np.testing.assert_allclose(
    three.apply(zeroed, SEQUENCES), two.apply(smaller, SEQUENCES), atol=1e-5
  )


def test_rows_are_the_first_axis_of_any_leaf():
  assert group_axes("rows", "anything", jnp.ones((4, 3))) == (0,)
  assert group_axes("rows", "dense/bias", jnp.ones(4)) == (0,)


def test_a_function_of_the_path_and_the_leaf_decides():
  def groups(path, leaf):
    assert leaf.shape == (2, 3, 4)
    return {"a": (-1, 0), "b": [np.int64(1)], "c": ()}[path]

  leaf = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
  assert group_axes(groups, "a", leaf) == (0, 2)
  assert group_axes(groups, "b", leaf) == (1,)
  assert group_axes(groups, "c", leaf) == ()


# Norms.


@pytest.mark.parametrize("axes", [(), (0,), (2,), (0, 2), (0, 1, 2)])
def test_norms_are_those_of_numpy(axes, x64):
  x = np.random.default_rng(0).normal(size=(2, 3, 4))
  members = tuple({0, 1, 2} - set(axes))
  expected = np.sqrt(np.sum(x**2, axis=members, keepdims=True))
  np.testing.assert_allclose(group_norms(x, axes), expected, rtol=1e-14)


def test_derivative_is_the_direction_and_zero_for_a_group_of_zeros():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  slope = jax.grad(lambda x: group_norms(x, (0,)).sum())(x)
  np.testing.assert_allclose(slope, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_sizes_whose_squares_leave_float32_have_norms_and_derivatives():
  for size in (1e-30, 1e30):
    x = jnp.array([3.0, 4.0]) * size
    norm, slope = jax.value_and_grad(lambda x: group_norms(x, ()).sum())(x)
    np.testing.assert_allclose(norm, 5 * size, rtol=1e-6)
    np.testing.assert_allclose(slope, [0.6, 0.8], rtol=1e-6)


def test_norms_of_bfloat16_are_float32_and_nan_is_seen():
  x = jnp.full((300, 2), 0.1, jnp.bfloat16)
  norms = group_norms(x, (1,))
  assert norms.dtype == jnp.float32
  exact = np.sqrt(300.0) * np.float64(x[0, 0])
  np.testing.assert_allclose(norms[0], exact, rtol=1e-6)
  assert jnp.isnan(group_norms(jnp.array([jnp.nan, 1.0]), ())).all()


def test_norms_under_jit_and_vmap():
  x = jax.random.normal(KEY, (5, 2, 3))
  norms = jax.jit(jax.vmap(lambda x: group_norms(x, (1,))))(x)
  np.testing.assert_allclose(norms, group_norms(x, (0, 2)), rtol=1e-6)


# Errors.


@pytest.mark.parametrize(
  ("groups", "path", "shape", "message"),
  [
    ("columns", "a/kernel", (2, 2), "'heads' or a function .* got 'columns'"),
    (3, "a/kernel", (2, 2), "got 3"),
    ("output", "a/bias", (2,), r"a/bias of shape \(2,\) .* 2 axes.*mask"),
    ("rows", "a/scale", (), r"a/scale of shape \(\) .* 1 axes"),
    ("heads", "a/kernel", (2, 3, 4), "a/kernel .* no heads.*mask"),
    ("heads", "query/kernel", (2, 3), "query/kernel .* no heads"),
    ("heads", "query/bias", (2, 3, 4), "query/bias .* no heads"),
    ("output", "a/kernel", (0, 3), r"a/kernel has shape \(0, 3\).*no members"),
    (lambda *_: (2,), "a/kernel", (2, 2), r"axes \(2,\) for a/kernel.* 2 axes"),
    (lambda *_: (0, -2), "a/kernel", (2, 2), "axis of a/kernel twice"),
  ],
)
def test_groups_that_a_leaf_cannot_have_are_named(groups, path, shape, message):
  with pytest.raises(ValueError, match=message):
    group_axes(groups, path, jnp.zeros(shape))


def test_a_stack_of_no_layers_is_refused():
  for axes in (0, -1, 1.5, True):
    with pytest.raises(ValueError, match="axes must be an integer >= 1, got"):
      baselines.stacked("output", axes=axes)
  with pytest.raises(ValueError, match=r"a/kernel of shape \(2,\) .* 2 axes"):
    group_axes(baselines.stacked("output"), "a/kernel", jnp.zeros((3, 2)))


@pytest.mark.parametrize("given", [1, None, (0.5,), (True,)])
def test_a_function_must_return_a_sequence_of_integers(given):
  with pytest.raises(TypeError, match="the axes of a/kernel, got"):
    group_axes(lambda *_: given, "a/kernel", jnp.zeros((2, 2)))
