import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

import rewa_jax
from rewa_jax._trees import path_name
from tests.extras import needs

KEY = jax.random.key(0)
REWA = rewa_jax.Rewa(k=3)


def selected(params, mask=None):
  """The paths that kernels selects."""
  mask = rewa_jax.kernels(params) if mask is None else mask
  leaves = jax.tree_util.tree_leaves_with_path(mask)
  return {path_name(path) for path, chosen in leaves if chosen}


def test_linen_kernels_but_no_biases_scales_embeddings_or_statistics():
  class Network(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      x = nn.Embed(5, 8, name="embed")(tokens)
      x = nn.LayerNorm(name="norm")(x)
      x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
      x = nn.RNN(nn.LSTMCell(8, name="lstm"))(x)
      x = nn.Conv(4, (3,), name="conv")(x)
      x = nn.BatchNorm(use_running_average=False, name="batch_norm")(x)
      return nn.DenseGeneral((2, 3), name="dense")(x)

  variables = jax.eval_shape(Network().init, KEY, jnp.zeros((1, 6), int))
  paths = selected(variables)
  assert {path.split("/")[-1] for path in paths} == {"kernel"}
  assert {path.split("/")[1] for path in paths} == {
    "attention",
    "lstm",
    "conv",
    "dense",
  }
  # The bias of DenseGeneral and of attention has two axes.
  assert variables["params"]["dense"]["bias"].ndim == 2


def test_nnx_kernels_with_and_without_variables_around_them():
  class Network(nnx.Module):
    def __init__(self, rngs):
      self.embed = nnx.Embed(5, 8, rngs=rngs)
      self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
      self.layers = nnx.List([nnx.Conv(8, 4, (3,), rngs=rngs)])
      self.norm = nnx.BatchNorm(4, rngs=rngs)

  state = nnx.state(Network(nnx.Rngs(0)), nnx.Param)
  wanted = {
    f"attention/{name}/kernel" for name in ("query", "key", "value", "out")
  } | {"layers/0/kernel"}
  assert selected(state) == wanted
  assert selected(nnx.to_pure_dict(state)) == wanted


def test_equinox_weights_but_not_those_of_norms_and_embeddings():
  eqx = needs("equinox")
  keys = jax.random.split(KEY, 6)
  model = {
    "linear": eqx.nn.Linear(3, 3, key=keys[0]),
    "conv": eqx.nn.Conv2d(3, 3, 2, key=keys[1]),
    "gru": eqx.nn.GRUCell(3, 3, key=keys[2]),
    "attention": eqx.nn.MultiheadAttention(1, 3, key=keys[3]),
    "others": [
      eqx.nn.Embedding(3, 3, key=keys[4]),
      eqx.nn.LayerNorm((3, 3)),
      eqx.nn.GroupNorm(1, 3),
    ],
  }
  params = eqx.filter(model, eqx.is_inexact_array)
  assert selected(params) == {
    "linear/weight",
    "conv/weight",
    "gru/weight_ih",
    "gru/weight_hh",
    *(
      f"attention/{name}_proj/weight"
      for name in ("query", "key", "value", "output")
    ),
  }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_haiku_weights():
  hk = needs("haiku")

  def forward(tokens):
    x = hk.Embed(5, 4)(tokens)
    x = hk.LayerNorm(-1, True, True)(x)
    x, _ = hk.GRU(4)(x, jnp.zeros((1, 4)))
    return hk.Linear(2)(x)

  params = hk.transform(forward).init(KEY, jnp.zeros(1, int))
  assert selected(params) == {"gru/w_i", "gru/w_h", "linear/w"}


def test_boxed_params_keep_their_boxes():
  init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
  params = nn.Dense(3, kernel_init=init).init(KEY, jnp.ones((1, 2)))
  mask = rewa_jax.kernels(params)
  assert jax.tree.structure(mask) == jax.tree.structure(params)
  assert selected(params) == {"params/kernel"}


def test_dicts_of_other_libraries():
  params = {
    "fc": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "ln": {"weight": jnp.ones(2)},
    "embedding": {"weight": jnp.ones((5, 2))},
  }
  assert selected(params) == {"fc/weight"}


def test_the_scales_of_norms_are_plain_whatever_their_names():
  params = {
    "linear": {"w": jnp.ones((2, 2))},
    "scale": {"w": jnp.ones(2)},
    "rms_norm": {"w": jnp.ones((4, 2))},
  }
  assert selected(params) == {"linear/w"}


def test_the_weights_of_a_regression_are_kernels():
  assert selected({"w": jnp.ones(3), "b": jnp.ones(())}) == {"w"}


def test_a_tree_without_kernels_is_refused_with_its_paths():
  params = {"layer": {"alpha": jnp.ones(2)}, "beta": jnp.ones(2)}
  with pytest.raises(ValueError, match=r"beta, layer/alpha\. Pass mask"):
    REWA.to_latents(params)
  with pytest.raises(ValueError, match=r"\(the only leaf\)"):
    rewa_jax.sgd(0.1, REWA, weight_decay=0.1).init(jnp.ones(2))


def test_a_tree_without_leaves_is_fine():
  solver = rewa_jax.sgd(0.1, REWA, weight_decay=0.1, momentum=0.9)
  assert rewa_jax.kernels({}) == REWA.to_latents({}) == {}
  updates, _ = solver.update({}, solver.init({}), {})
  assert updates == {}


PARAMS = {"a": {"x": jnp.full(2, 8.0), "y": jnp.full(2, 8.0)}, "b": jnp.ones(1)}


@pytest.mark.parametrize(
  ("mask", "wanted"),
  [
    ({"a": {"x": True, "y": False}, "b": False}, {"a/x"}),
    ({"a": True, "b": False}, {"a/x", "a/y"}),
    (lambda params: jax.tree.map(lambda leaf: leaf.size == 1, params), {"b"}),
    (None, {"a/x", "a/y", "b"}),
  ],
)
def test_a_mask_is_a_tree_its_prefix_a_function_or_none(mask, wanted):
  latents = rewa_jax.Rewa(k=3, mask=mask).to_latents(PARAMS)
  halved = jax.tree.map(lambda x, y: bool((x != y).any()), PARAMS, latents)
  assert selected(PARAMS, halved) == wanted - {"b"}  # The root of 1 is 1.
  assert jax.tree.structure(latents) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
  ("mask", "error", "message"),
  [
    ({"a": True}, ValueError, "mask has the leaves a, params has a/x, a/y, b"),
    ([True, False], ValueError, "mask has the leaves 0, 1, params has a/x"),
    ({"a": 1, "b": True}, TypeError, "bools as leaves, got 1 at a"),
    ({"a": jnp.ones(2), "b": True}, TypeError, "bools as leaves"),
    (True, TypeError, "mask must be a tree of bools.*, got True"),
    (np.False_, TypeError, "mask must be a tree of bools.*, got .*False"),
    (jnp.array(True), TypeError, "mask must be a tree of bools.*, got Array"),
  ],
)
def test_a_mask_of_another_kind_is_refused(mask, error, message):
  rewa = rewa_jax.Rewa(k=3, mask=mask)
  for use in (
    lambda: rewa.to_latents(PARAMS),
    lambda: rewa.to_weights(PARAMS),
    lambda: rewa.decaying(PARAMS),
    lambda: rewa_jax.scale_by_rewa(3, mask=mask).init(PARAMS),
    lambda: rewa_jax.rewa_adamw(0.1, 3, weight_decay=0, mask=mask).init(PARAMS),
    lambda: rewa_jax.adamw(0.1, rewa, weight_decay=0).init(PARAMS),
    lambda: rewa_jax.reparameterize(optax.sgd(0.1), rewa).init(PARAMS),
    lambda: rewa_jax.sparsity(PARAMS, mask=mask),
    lambda: rewa_jax.prune(PARAMS, sparsity=0.5, mask=mask),
  ):
    with pytest.raises(error, match=message):
      use()


def test_a_bool_is_the_mask_of_a_single_array():
  x = jnp.full(2, 8.0)
  for mask, y in [(True, 2), (False, 8)]:
    latents = rewa_jax.Rewa(k=3, mask=mask).to_latents(x)
    np.testing.assert_allclose(latents, y, rtol=1e-6)


class Linears(nnx.Module):
  def __init__(self):
    self.a = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    self.b = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0))])


STATE = nnx.state(Linears(), nnx.Param)
NESTED = nnx.to_pure_dict(STATE)


WITH_STATISTICS = {
  "params": NESTED,
  "batch_stats": {"norm": {"mean": jnp.full(2, 0.5), "kernel": jnp.ones(3)}},
}


@pytest.mark.parametrize("like", [lambda tree: tree, freeze])
@pytest.mark.parametrize(
  ("mask", "names"),
  [
    (None, {"a/kernel", "a/bias", "b/0/kernel", "b/0/bias"}),
    (rewa_jax.kernels, {"a/kernel", "b/0/kernel"}),
    (lambda params: {"a": "kernel" in params["a"], "b": False}, None),
    ({"a": True, "b": False}, None),
    ({"params": {"a": True, "b": False}}, None),
    ({"params": {"a": True, "b": False}, "batch_stats": False}, None),
  ],
)
def test_masks_are_of_the_params_of_variables(like, mask, names):
  variables = like(WITH_STATISTICS)
  rewa = rewa_jax.Rewa(k=3, mask=mask)
  latents = rewa.to_latents(variables)
  chosen = names or {"a/kernel", "a/bias"}
  chosen = {f"params/{name}" for name in chosen}
  assert selected(latents, rewa.decaying(latents)) == chosen
  assert set(rewa_jax.sparsity(variables, mask=mask).size) == chosen
  for tree in (
    rewa.to_weights(latents),
    rewa_jax.prune(variables, sparsity=0, mask=mask)[0],
  ):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), tree, variables
    )
  solver = rewa_jax.sgd(0.1, rewa, sparsity=0.5, steps=100)
  updates, _ = solver.update(latents, solver.init(latents), latents)
  np.testing.assert_allclose(
    updates["batch_stats"]["norm"]["kernel"], -0.1, rtol=1e-6
  )


def test_a_mask_of_statistics_is_refused():
  rewa = rewa_jax.Rewa(k=3, mask={"params": True, "batch_stats": True})
  with pytest.raises(ValueError, match="other than params, got True at batch"):
    rewa.to_latents(WITH_STATISTICS)


@pytest.mark.parametrize("params", [NESTED, freeze(NESTED), STATE])
@pytest.mark.parametrize("like", [lambda mask: mask, freeze, nnx.State])
@pytest.mark.parametrize(
  "mask",
  [
    {
      "a": {"kernel": True, "bias": False},
      "b": {0: {"kernel": False, "bias": True}},
    },
    {"a": {"kernel": True, "bias": False}, "b": True},  # A prefix.
  ],
)
def test_masks_are_matched_by_path_whatever_the_containers(params, like, mask):
  wanted = rewa_jax.Rewa(k=3, mask=mask).to_latents(NESTED)
  rewa = rewa_jax.Rewa(k=3, mask=like(mask))
  latents = rewa.to_latents(params)
  assert jax.tree.structure(latents) == jax.tree.structure(params)
  for one, other in zip(jax.tree.leaves(latents), jax.tree.leaves(wanted)):
    np.testing.assert_array_equal(one, other)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    rewa.to_weights(latents),
    params,
  )
  # All other ways to select.
  decaying = rewa.decaying(latents)
  assert jax.tree.structure(decaying) == jax.tree.structure(params)
  solver = rewa_jax.reparameterize(optax.sgd(0.1), rewa)
  solver.update(params, solver.init(params), params)
  assert selected(params, decaying) == set(
    rewa_jax.sparsity(params, mask=like(mask)).size
  )


def test_a_selected_leaf_that_is_not_floating_point_is_refused_by_path():
  params = {"layer": {"kernel": jnp.arange(4)}}
  for use in (
    lambda: REWA.to_latents(params),
    lambda: rewa_jax.scale_by_rewa(3).init(params),
    lambda: rewa_jax.sparsity(params),
  ):
    with pytest.raises(TypeError, match="layer/kernel is of type int32"):
      use()


def test_a_selected_leaf_that_is_no_array_is_refused_by_path():
  with pytest.raises(TypeError, match="layer/kernel is of type str"):
    REWA.to_latents({"layer": {"kernel": "tanh"}})


def test_a_weight_inside_a_node_without_attributes_is_told_by_the_nodes_key():
  eqx = needs("equinox")

  @jax.tree_util.register_pytree_with_keys_class
  class Layers:
    def __init__(self, *layers):
      self.layers = layers

    def tree_flatten_with_keys(self):
      keys = map(jax.tree_util.FlattenedIndexKey, range(len(self.layers)))
      return tuple(zip(keys, self.layers)), None

    @classmethod
    def tree_unflatten(cls, _, layers):
      return cls(*layers)

  layer = eqx.nn.Linear(2, 3, key=KEY)
  assert selected(Layers(layer)) == {"0/weight"}
