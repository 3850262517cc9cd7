import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import rewa_jax
from examples.image_classification.models import MODELS
from rewa_jax import deploy

from .sparse import sparsify, widths

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 8, 8, 2))


def edited(model, x, edit, seed=None):
  """Returns variables of a linen model with params of one's own."""
  variables = model.init(KEY, x)
  if seed is not None:
    variables = sparsify(variables, seed)
  variables = jax.tree.map(np.array, variables)
  edit(variables["params"])
  return variables


def shrink(model, x, edit=lambda params: None, seed=None, **options):
  """Compacts a linen model of given weights, and checks its outputs."""
  variables = edited(model, x, edit, seed)
  small = deploy.compact(model.apply, variables, x, **options)
  # Other values, and another number of them.
  fresh = jnp.concatenate([x, x + 1, -2 * x])
  check_same(model.apply(variables, fresh), small.apply(small.params, fresh))
  return small, fresh


def check_same(wanted, found):
  scale = np.abs(wanted).max()
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * scale)


class MLP(nn.Module):
  widths: tuple = (6, 5)

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(3)(x)


X = jax.random.normal(KEY, (2, 4))


# What is cut.


def test_neurons_that_read_or_write_nothing_are_cut_and_a_class_can_be_built():
  def edit(params):
    params["Dense_0"]["kernel"][:, 1] = 0
    params["Dense_0"]["kernel"][:, 2] = 0
    params["Dense_0"]["bias"][2] = -1  # ReLU makes a zero of it.
    params["Dense_1"]["kernel"][3] = 0
    params["Dense_2"]["kernel"][:2] = 0

  small, x = shrink(MLP(), X, edit)
  assert widths(small) == {"Dense_0": 3, "Dense_1": 3, "Dense_2": 3}
  built = MLP((3, 3)).apply(small.params, x)
  check_same(built, small.apply(small.params, x))
  assert small.shapes["params/Dense_1/kernel"] == ((6, 5), (3, 3))
  assert str(small).splitlines()[-1].split() == ["all", "83", "39"]


def test_what_only_dead_neurons_read_is_cut_too():
  def edit(params):
    params["Dense_2"]["kernel"][2:] = 0
    params["Dense_1"]["kernel"][4:, :2] = 0

  small, _ = shrink(MLP(), X, edit)
  assert widths(small) == {"Dense_0": 4, "Dense_1": 2, "Dense_2": 3}


def test_a_neuron_that_is_constant_goes_into_the_next_bias():
  def edit(params):
    params["Dense_0"]["kernel"][:, 1:3] = 0
    params["Dense_0"]["bias"][1:3] = 2, 0.5

  small, _ = shrink(MLP(), X, edit)
  assert widths(small)["Dense_0"] == 4
  bias = np.maximum(
    model_params(MLP(), X)["Dense_1"]["kernel"][1:3].T @ [2, 0.5], -9
  )
  found = small.params["params"]["Dense_1"]["bias"]
  np.testing.assert_allclose(found, bias, rtol=1e-6)


def model_params(model, x):
  return jax.tree.map(np.asarray, model.init(KEY, x)["params"])


def test_constants_pass_through_layers_of_constants():
  def edit(params):
    params["Dense_0"]["kernel"][:] = 0
    params["Dense_0"]["bias"][:] = 1

  small, _ = shrink(MLP(), X, edit)
  # Of every axis something stays.
  assert widths(small) == {"Dense_0": 1, "Dense_1": 1, "Dense_2": 3}


def test_without_a_bias_to_take_it_a_constant_stays():
  class Unbiased(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.tanh(nn.Dense(5)(x))
      return nn.Dense(3, use_bias=False)(x)

  def edit(params):
    params["Dense_0"]["kernel"][:, :2] = 0
    params["Dense_0"]["bias"][0] = 1

  small, _ = shrink(Unbiased(), X, edit)
  assert widths(small)["Dense_0"] == 4


class ConvNet(nn.Module):
  padding: str = "VALID"
  size: int = 3
  use_bias: bool = False
  filters: tuple = (6, 4)

  @nn.compact
  def __call__(self, x):
    for filters in self.filters:
      x = nn.Conv(
        filters,
        (self.size, self.size),
        padding=self.padding,
        use_bias=self.use_bias,
      )(x)
      x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(3)(x.reshape(len(x), -1))


def dead_filters(params):
  params["Conv_0"]["kernel"][..., :3] = 0
  params["BatchNorm_0"]["bias"][:3] = -1, 0, 2
  params["Conv_1"]["kernel"][..., 1] = 0
  params["BatchNorm_1"]["bias"][1] = 5


def test_a_constant_channel_goes_into_the_mean_of_the_next_normalization():
  small, x = shrink(ConvNet(), IMAGES, dead_filters)
  assert widths(small) == {"Conv_0": 3, "Conv_1": 3, "Dense_0": 3}
  assert small.params["batch_stats"]["BatchNorm_1"]["mean"].any()
  built = ConvNet(filters=(3, 3)).apply(small.params, x)
  check_same(built, small.apply(small.params, x))


@pytest.mark.parametrize(
  ("padding", "size", "left"),
  [
    ("SAME", 3, 4),
    ("VALID", 3, 3),
    pytest.param("SAME", 1, 3, marks=pytest.mark.slow),
  ],
)
def test_before_padding_a_constant_channel_stays(padding, size, left):
  model = ConvNet(padding, size, use_bias=True)
  small, _ = shrink(model, IMAGES, dead_filters)
  assert widths(small) == {"Conv_0": left, "Conv_1": 3, "Dense_0": 3}


def test_a_scale_of_zero_cuts_its_channel():
  def edit(params):
    params["BatchNorm_0"]["scale"][2:4] = 0

  small, _ = shrink(ConvNet(), IMAGES, edit)
  assert widths(small)["Conv_0"] == 4


def test_a_channel_of_a_residual_stream_goes_when_nothing_reads_or_writes_it():
  class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(6, name="stem")(x)
      x = x + nn.Dense(6, name="second")(nn.relu(nn.Dense(5, name="first")(x)))
      return nn.Dense(2, name="head")(x)

  def edit(params):
    for name in ("first", "head"):  # 0 is not read.
      params[name]["kernel"][0] = 0
    for name in ("stem", "second"):  # 1 is not written, 2 by one alone.
      params[name]["kernel"][:, 1] = 0
    params["second"]["kernel"][:, 2] = 0

  small, _ = shrink(Residual(), X, edit)
  assert widths(small) == {"stem": 4, "first": 5, "second": 4, "head": 2}


class Grouped(nn.Module):
  groups: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (1, 1), name="before")(x))
    conv = nn.Conv(8, (3, 3), 2, feature_group_count=self.groups, name="conv")
    return nn.Conv(2, (1, 1), name="after")(nn.relu(conv(x)))


@pytest.mark.slow
def test_of_a_grouped_convolution_whole_groups_go_or_the_same_part_of_each():
  def whole_group(params):
    params["after"]["kernel"][..., 2:4, :] = 0

  small, _ = shrink(Grouped(4), IMAGES, whole_group)
  assert widths(small) == {"before": 6, "conv": 6, "after": 2}

  def parts(params):
    # Input 1 of every group; output 0 of some groups alone.
    params["conv"]["kernel"][:, :, 1] = 0
    params["after"]["kernel"][..., :4:2, :] = 0

  small, _ = shrink(Grouped(4), IMAGES, parts)
  assert widths(small) == {"before": 4, "conv": 8, "after": 2}
  assert small.shapes["params/conv/kernel"][1] == (3, 3, 1, 8)


@pytest.mark.slow
def test_a_depthwise_convolution_loses_channels():
  def edit(params):
    params["after"]["kernel"][..., :3, :] = 0
    params["before"]["kernel"][..., 3] = 0

  small, _ = shrink(Grouped(8), IMAGES, edit)
  assert widths(small) == {"before": 4, "conv": 4, "after": 2}


def attend(heads=3, size=4):
  return nn.MultiHeadDotProductAttention(heads, qkv_features=heads * size)


@pytest.mark.slow
def test_a_head_that_is_not_read_goes_and_attention_can_be_built():
  def edit(params):
    params["out"]["kernel"][1] = 0

  tokens = jax.random.normal(KEY, (2, 5, 6))
  small, x = shrink(attend(), tokens, edit)
  assert small.shapes["params/query/kernel"] == ((6, 3, 4), (6, 2, 4))
  assert small.shapes["params/out/kernel"] == ((3, 4, 6), (2, 4, 6))
  built = attend(heads=2).apply(small.params, x)
  check_same(built, small.apply(small.params, x))


@pytest.mark.slow
def test_axes_to_keep_are_kept():
  def edit(params):
    params["out"]["kernel"][:, :2] = 0

  tokens = jax.random.normal(KEY, (2, 5, 6))
  small, _ = shrink(attend(), tokens, edit)
  assert small.shapes["params/value/kernel"][1] == (6, 3, 2)
  assert small.shapes["params/query/kernel"][1] == (6, 3, 4)
  small, _ = shrink(
    attend(),
    tokens,
    edit,
    keep=lambda path, _: (2,) if "value/k" in path else (),
  )
  assert "Nothing to remove" in str(small)


@pytest.mark.slow
def test_a_transformer_block_is_cut():
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(6)(x)
      y = nn.LayerNorm()(x)
      x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8)(y)
      y = nn.gelu(nn.Dense(7, name="up")(nn.LayerNorm()(x)))
      return nn.Dense(2)((x + nn.Dense(6, name="down")(y)).mean(1))

  def edit(params):
    params["down"]["kernel"][:3] = 0
    params["Dense_1"]["kernel"][0] = 0

  tokens = jax.random.normal(KEY, (2, 5, 3))
  small, _ = shrink(Block(), tokens, edit)
  # The stream's size is that of the norms.
  assert widths(small)["up"] == 4 and widths(small)["down"] == 6


def test_what_a_mean_goes_over_keeps_its_size():
  def apply(params, x):
    return jnp.tanh(x @ params["w"]).mean(-1, keepdims=True) * params["scale"]

  w = np.array(jax.random.normal(KEY, (4, 6)))
  w[:, 2] = 0
  params = {"w": w, "scale": np.ones(1)}
  small = deploy.compact(apply, params, X)
  assert small.params["w"].shape == (4, 6)


@pytest.mark.slow
def test_other_layouts_and_reshapes_are_followed():
  def apply(params, x):
    x = jax.vmap(lambda x: params["first"] @ x + params["bias"])(x)
    x = jnp.concatenate([jax.nn.elu(x), jnp.flip(x, -1)], -1)
    x = x.reshape(len(x), 2, 6).transpose(0, 2, 1)
    x = jnp.pad(x, ((0, 0), (1, 2), (0, 0)))[:, :, 1]
    x = jnp.where(x > 0, x, 0.1 * x) @ params["second"]
    first, second = jnp.split(x, 2, -1)
    return jnp.einsum(
      "nd,od->no", first * jax.nn.sigmoid(second), params["out"]
    )

  rng = np.random.default_rng(0)
  shapes = {"first": (6, 4), "bias": (6,), "second": (9, 10), "out": (3, 5)}
  params = {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}
  params["out"][:, 1:3] = 0
  params["second"][2] = 0
  small = deploy.compact(apply, params, X)
  shapes = {name: leaf.shape for name, leaf in small.params.items()}
  assert shapes["second"][1] == 6 and shapes["out"] == (3, 3)
  assert shapes["second"][0] < 9 and shapes["bias"] == shapes["first"][:1]
  fresh = jax.random.normal(jax.random.key(1), (5, 4))
  check_same(apply(params, fresh), small.apply(small.params, fresh))


@pytest.mark.slow
def test_a_dense_layer_before_images_loses_whole_channels():
  class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Dense(4 * 4 * 5)(x)).reshape(len(x), 4, 4, 5)
      return nn.ConvTranspose(2, (3, 3), strides=(2, 2))(x)

  def edit(params):
    params["ConvTranspose_0"]["kernel"][:, :, 1] = 0

  small, _ = shrink(Decoder(), X, edit)
  assert widths(small) == {"Dense_0": 4 * 4 * 4, "ConvTranspose_0": 2}


def test_an_embedding_loses_columns():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      return nn.Dense(2)(nn.relu(nn.Embed(7, 5)(tokens)))

  tokens = jnp.array([[1, 2, 3]])
  variables = jax.tree.map(np.array, Model().init(KEY, tokens))
  variables["params"]["Embed_0"]["embedding"][:, 1] = 0
  variables["params"]["Dense_0"]["kernel"][4] = 0
  small = deploy.compact(Model().apply, variables, tokens)
  assert small.params["params"]["Embed_0"]["embedding"].shape == (7, 3)
  tokens = jnp.array([[0, 6]])
  wanted = Model().apply(variables, tokens)
  check_same(wanted, small.apply(small.params, tokens))


def test_weights_that_are_used_twice_serve_both_uses():
  def apply(params, x):
    h = jnp.tanh(x @ params["in"])
    h = jnp.tanh(h @ params["w"] + params["b"])
    return jnp.tanh(h @ params["w"] + params["b"]) @ params["out"]

  rng = np.random.default_rng(0)
  shapes = {"in": (4, 6), "w": (6, 6), "b": (6,), "out": (6, 2)}
  params = {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}
  params["in"][:, :3] = 0
  params["w"][:, :2] = 0
  params["b"][0] = 0
  small = deploy.compact(apply, params, X)
  # 0 is zero, 1 is constant in one use alone, 2 is in use.
  assert small.params["w"].shape == (5, 5)
  check_same(apply(params, X + 1), small.apply(small.params, X + 1))


def test_an_nnx_model_takes_its_smaller_state():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(2, 6, (3, 3), padding="VALID", rngs=rngs)
      self.norm = nnx.BatchNorm(6, rngs=rngs)
      self.drop = nnx.Dropout(0.5, rngs=rngs)
      self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
      return self.out(self.drop(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))

  model = Net(nnx.Rngs(0))
  model.eval()
  dead = model.conv.kernel[...].at[..., :2].set(0)
  model.conv.kernel[...] = dead
  graphdef, state = nnx.split(model)
  wanted = model(IMAGES)
  small = deploy.compact(lambda s, x: nnx.merge(graphdef, s)(x), state, IMAGES)
  check_same(wanted, small.apply(small.params, IMAGES))
  nnx.update(model, small.params)
  assert model.conv.kernel.shape == (3, 3, 2, 4)
  check_same(wanted, model(IMAGES))


@pytest.mark.slow
def test_a_resnet_with_padded_shortcuts_is_cut():
  model = MODELS["resnet20"](classes=10, width=4)
  images = jax.random.normal(KEY, (1, 16, 16, 3))
  small, _ = shrink(model, images, seed=3)
  before, after = np.sum(
    [[np.prod(s) for s in shapes] for shapes in small.shapes.values()], axis=0
  )
  assert after < 0.7 * before


# Any architecture.


@st.composite
def networks(draw):
  sizes = st.integers(1, 6)
  if draw(st.booleans()):
    return MLP(tuple(draw(st.lists(sizes, min_size=1, max_size=3)))), X
  layers = draw(
    st.lists(
      st.tuples(
        st.sampled_from(["conv", "block", "grouped", "norm", "pool"]),
        st.sampled_from([nn.relu, nn.tanh, nn.gelu]),
        st.sampled_from(["SAME", "VALID"]),
        st.booleans(),
      ),
      min_size=1,
      max_size=4,
    )
  )

  class Random(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(6, (1, 1))(x)
      for kind, activation, padding, flag in layers:
        if kind == "conv":
          x = nn.Conv(6, (2, 2), padding=padding, use_bias=flag)(x)
        elif kind == "grouped":
          groups = 2 if flag else 6
          x = nn.Conv(6, (2, 2), padding=padding, feature_group_count=groups)(x)
        elif kind == "block":
          y = activation(nn.Conv(5, (3, 3), use_bias=flag)(x))
          x = x + nn.Conv(6, (3, 3))(y)
        elif kind == "norm":
          x = nn.BatchNorm(use_running_average=True, use_scale=flag)(x)
        elif kind == "pool":
          pool = nn.max_pool if flag else nn.avg_pool
          x = pool(x, (2, 2), padding=padding)
        x = activation(x)
      x = x.mean((1, 2)) if layers[0][3] else x.reshape(len(x), -1)
      return nn.Dense(2)(activation(nn.Dense(5)(x)))

  return Random(), IMAGES


@pytest.mark.slow
def test_what_stays_for_the_form_alone_has_its_value_where_it_is_read():
  class Constant(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(3, (1, 1), name="first")(x)
      # Padded and without a bias, which could take constants.
      x = nn.tanh(nn.Conv(3, (2, 2), use_bias=False, name="second")(x))
      x = nn.gelu(x + nn.Conv(3, (3, 3), name="third")(x))
      return nn.Dense(2, name="last")(x.reshape(len(x), -1))

  def edit(params):
    params["first"]["kernel"][:] = 0
    params["first"]["bias"][:] = [0.5, 0.7, -0.8]

  shrink(Constant(), IMAGES, edit)


@pytest.mark.slow
@settings(max_examples=60)
@given(networks(), st.integers(0, 1000))
def test_any_network_keeps_its_outputs_and_is_cut_once_for_all(network, seed):
  small, x = shrink(*network, seed=seed)
  again = deploy.compact(small.apply, small.params, x)
  assert "Nothing to remove" in str(again)


@pytest.mark.parametrize("seed", range(5))
def test_an_mlp_is_cut_as_far_as_dead_neurons_go(seed):
  x = jnp.ones((1, 4))
  model = MLP((12, 12))
  params = sparsify(model.init(KEY, x)["params"], seed, density=0.15)
  small = deploy.compact(model.apply, {"params": params}, x)
  # By hand: what varies going up, and what is read going down.
  kernels = [params[f"Dense_{i}"]["kernel"] != 0 for i in range(3)]
  varies = [np.ones(4, bool)]
  for kernel in kernels[:2]:
    varies.append((varies[-1] @ kernel) > 0)
  read = [np.ones(3, bool)]
  for kernel in kernels[:0:-1]:
    read.insert(0, (kernel @ read[0]) > 0)
  found = list(widths(small).values())[:2]
  # A neuron that varies may be ReLU's zero all the same: that is not looked at.
  wanted = [max(1, (v & r).sum()) for v, r in zip(varies[1:], read)]
  assert found == wanted


# What is refused.


def test_a_model_without_dead_units_stays_as_it_is_and_says_so():
  small, _ = shrink(MLP(), X)
  assert str(small).endswith("Nothing to remove: every unit has an effect.")
  jax.tree.map(np.testing.assert_array_equal, small.params, MLP().init(KEY, X))


def test_an_operation_that_cannot_be_followed_is_named_with_its_module():
  class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.RNN(nn.SimpleCell(3), name="memory")(x)

  x = jnp.ones((1, 2, 4))
  variables = Recurrent().init(KEY, x)
  with pytest.raises(
    ValueError, match="cannot be followed through scan in .*m"
  ):
    deploy.compact(Recurrent().apply, variables, x)


def test_what_happens_to_inputs_alone_need_not_be_followed():
  def apply(params, x):
    x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sort(x, -1) + 1, x)
    return x @ params["w"] @ params["out"]

  params = {"w": np.ones((4, 3)), "out": np.ones((3, 2))}
  params["w"][:, 0] = 0
  small = deploy.compact(apply, params, X)
  assert small.params["w"].shape == (4, 2)
  check_same(apply(params, X), small.apply(small.params, X))


def test_latents_are_refused():
  spred = rewa_jax.baselines.spred()
  latents = spred.to_latents(MLP().init(KEY, X))
  with pytest.raises(
    ValueError, match="Dense_0/kernel holds latents, not weig"
  ):
    deploy.compact(MLP().apply, latents, X)
  model = rewa_jax.linen.Reparameterized(MLP(), rewa_jax.Rewa(k=3))
  variables = model.init(KEY, X)
  with pytest.raises(
    ValueError, match="stores latents. Pass model.module.appl"
  ):
    deploy.compact(model.apply, variables, X)


def test_weights_that_are_not_numbers_are_refused():
  variables = MLP().init(KEY, X)
  broken = jax.tree.map(lambda x: x.at[0].set(jnp.nan), variables)
  with pytest.raises(ValueError, match="params/Dense_0/bias holds NaN"):
    deploy.compact(MLP().apply, broken, X)
  with pytest.raises(TypeError, match="activation must be an array, got <"):
    deploy.compact(lambda p, x: x, {"activation": nn.relu}, X)


def test_inputs_for_which_the_model_is_another_are_refused():
  def apply(params, x):
    h = x @ params["w"]
    return h @ params["out"] if len(x) < 3 else h.max(-1)

  params = {"w": np.ones((4, 3)), "out": np.ones((3, 2))}
  params["out"][0] = 0
  small = deploy.compact(apply, params, X)
  check_same(apply(params, X[:1]), small.apply(small.params, X[:1]))
  with pytest.raises(ValueError, match="uses units that are gone"):
    small.apply(small.params, jnp.ones((3, 4)))


class Positions(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    places = jnp.arange(tokens.shape[1])
    x = nn.Embed(11, 6, name="token")(tokens)
    x += nn.Embed(32, 6, name="place")(places)
    return nn.Dense(2, name="out")(x)


def test_what_depends_on_places_is_no_constant():
  def edit(params):
    params["token"]["embedding"][:, :3] = 0
    params["place"]["embedding"][:, 2] = 0
    # Zero at the first place, the only one that the example has.
    params["place"]["embedding"][0, 1] = 0

  model, tokens = Positions(), jnp.zeros((1, 1), int)
  small, _ = shrink(model, tokens, edit)
  assert small.params["params"]["token"]["embedding"].shape == (11, 5)


@pytest.mark.parametrize("length", [1, 4, 7])
def test_more_places_than_the_example_has_are_the_same_model(length):
  def edit(params):
    params["token"]["embedding"][:, :3] = 0
    params["place"]["embedding"][:, 2] = 0

  model = Positions()
  variables = edited(model, jnp.zeros((1, 1), int), edit)
  small = deploy.compact(model.apply, variables, jnp.zeros((1, 1), int))
  tokens = jax.random.randint(KEY, (2, length), 0, 11)
  wanted = model.apply(variables, tokens)
  check_same(wanted, small.apply(small.params, tokens))


class Pooled(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(6, (1, 1))(x))
    x = nn.avg_pool(x, (2, 2), (2, 2), padding="SAME")
    return nn.Conv(3, (1, 1))(x)


class PerPlace(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.gelu(nn.Conv(6, (1, 1))(x))
    return nn.Conv(3, (1, 1))(x)


@pytest.mark.parametrize("model", [Pooled(), PerPlace()])
def test_images_of_another_size_are_right_or_refused(model):
  def edit(params):
    params["Conv_0"]["kernel"][..., :3] = 0
    params["Conv_0"]["bias"][:] = 1

  images = jax.random.normal(KEY, (2, 4, 4, 2))
  variables = edited(model, images, edit)
  small = deploy.compact(model.apply, variables, images[:1])
  assert small.params["params"]["Conv_0"]["kernel"].shape == (1, 1, 2, 3)
  check_same(model.apply(variables, images), small.apply(small.params, images))
  larger = jax.random.normal(KEY, (2, 5, 5, 2))
  if isinstance(model, PerPlace):
    wanted = model.apply(variables, larger)
    check_same(wanted, small.apply(small.params, larger))
  else:
    # Where the last window is padded, a constant has another mean.
    with pytest.raises(ValueError, match="was constant, and may have another"):
      small.apply(small.params, larger)


def test_a_table_that_the_function_brings_along_is_that_of_the_example():
  def apply(params, x):
    places = np.sin(np.arange(x.shape[1]), dtype=np.float32)
    return (x @ params["in"] + places[:, None]) @ params["out"] + params["b"]

  params = {"in": np.zeros((4, 3)), "out": np.ones((3, 2)), "b": np.zeros(2)}
  params["in"][:, 0] = 1
  small = deploy.compact(apply, params, jnp.ones((1, 1, 4)))
  check_same(
    apply(params, jnp.ones((3, 1, 4))),
    small.apply(small.params, jnp.ones((3, 1, 4))),
  )
  with pytest.raises(ValueError, match="table of positions"):
    small.apply(small.params, jnp.ones((1, 2, 4)))


def test_an_array_that_is_the_same_for_every_example_may_be_brought_along():
  def apply(params, x):
    start = np.full((len(x), 3), 2, np.float32)
    return (x @ params["in"] + start) @ params["out"]

  params = {"in": np.ones((4, 3)), "out": np.ones((3, 2))}
  params["out"][0] = 0
  small = deploy.compact(apply, params, X[:2])
  assert small.params["in"].shape == (4, 2)
  check_same(apply(params, X), small.apply(small.params, X))
  assert small.apply(small.params, X[:0]).shape == (0, 2)


def test_an_empty_leaf_is_no_error():
  params = {"w": jnp.ones((4, 3)), "unused": jnp.zeros((0, 3))}
  small = deploy.compact(lambda p, x: x @ p["w"], params, X)
  assert small.shapes["unused"][1][0] == 0
  check_same(X @ params["w"], small.apply(small.params, X))


def test_a_function_that_is_not_the_same_in_every_call_is_refused():
  def apply(params, x):
    return jnp.exp(1000 * (x @ params["w"]))

  with pytest.raises(ValueError, match="differs by (nan|inf)"):
    deploy.compact(apply, {"w": np.ones((4, 3))}, X * 0 + 5)
