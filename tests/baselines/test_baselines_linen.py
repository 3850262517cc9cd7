import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec as P

from rewa_jax import baselines
from rewa_jax.baselines import Factors

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (6, 5))
METHODS = [
  baselines.spred(),
  baselines.Gated("output", depth=3),
  baselines.SoftThreshold(),
]


class Network(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (2,))(x[..., None]).reshape(len(x), -1)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return nn.remat(nn.Dense)(2)(x)


class AutoEncoder(nn.Module):
  def setup(self):
    self.encoder = nn.Dense(3)
    self.decoder = nn.Dense(5)

  def __call__(self, x):
    return self.decode(self.encode(x))

  def encode(self, x):
    return nn.tanh(self.encoder(x))

  def decode(self, z):
    return self.decoder(z)


def assert_close(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    one,
    other,
  )


def setup(bare, method, **more):
  """A module's weights, and its wrapper with their latents."""
  model = baselines.linen.Reparameterized(bare, method, **more)
  weights = bare.init(KEY, INPUTS)
  return weights, model, model.to_latents(weights)


@pytest.mark.parametrize("method", METHODS)
def test_init_stores_factors_of_the_ordinary_initialization(method):
  weights, model, latents = setup(Network(), method)
  variables = model.init(KEY, INPUTS)
  assert_close(variables, latents)
  kernel = variables["params"]["Conv_0"]["kernel"]
  assert isinstance(kernel, Factors) and len(kernel.values) > 1
  assert_close(model.to_weights(variables), weights)


@pytest.mark.parametrize("method", METHODS)
def test_training_mode_computes_with_weights(method):
  bare = Network()
  weights, model, latents = setup(bare, method)

  def train(model, variables):
    return model.apply(
      variables, INPUTS, True, mutable=True, rngs={"dropout": KEY}
    )

  outputs, changed = train(model, latents)
  wanted, wanted_changed = train(bare, weights)
  assert_close(outputs, wanted)
  assert_close(changed["batch_stats"], wanted_changed["batch_stats"])
  jax.tree.map(
    np.testing.assert_array_equal, changed["params"], latents["params"]
  )
  frozen = model.apply(freeze(latents), INPUTS)
  assert_close(frozen, model.apply(latents, INPUTS))


def test_methods_of_the_module():
  bare = AutoEncoder()
  weights, model, latents = setup(bare, METHODS[0])
  wanted = bare.apply(weights, INPUTS, method="encode")
  for method in ("encode", AutoEncoder.encode):
    assert_close(model.apply(latents, INPUTS, method=method), wanted)
  assert set(model.init(KEY, INPUTS, method="encode")["params"]) == {"encoder"}


class Parent(nn.Module):
  """Wraps a part of itself, and calls it twice."""

  method: baselines.Reparameterization

  @nn.compact
  def __call__(self, x):
    part = baselines.linen.Reparameterized(
      AutoEncoder(name="part"), self.method
    )
    return nn.Dense(2, name="head")(part.decode(part.encode(part(x))))


@pytest.mark.parametrize("method", METHODS)
def test_a_part_of_a_larger_module(method):
  parent = Parent(method)
  variables = parent.init(KEY, INPUTS)
  part = variables["params"]["part"]
  _, once, latents = setup(AutoEncoder(), method)
  assert jax.tree.map(jnp.shape, part) == jax.tree.map(
    jnp.shape, latents["params"]
  )
  assert not isinstance(variables["params"]["head"]["kernel"], Factors)
  x = INPUTS
  for name in ("__call__", "encode", "decode"):
    x = once.apply({"params": part}, x, method=name)
  head = {"params": variables["params"]["head"]}
  assert_close(parent.apply(variables, INPUTS), nn.Dense(2).apply(head, x))


class Layer(nn.Module):
  method: baselines.Reparameterization

  @nn.compact
  def __call__(self, x, _):
    dense = nn.Dense(5, name="dense")
    return baselines.linen.Reparameterized(dense, self.method)(x), None


@pytest.mark.parametrize("method", METHODS)
def test_under_scan_each_layer_has_its_own_factors(method):
  stack = nn.scan(
    nn.remat(Layer),
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=3,
  )(method)
  variables = stack.init(KEY, INPUTS, None)
  latents = variables["params"]["dense"]
  assert {leaf.shape[0] for leaf in jax.tree.leaves(latents)} == {3}
  x = INPUTS
  for i in range(3):
    layer = jax.tree.map(operator.itemgetter(i), latents)
    weights = method.to_weights(layer)
    x = nn.Dense(5).apply({"params": weights}, x)
  outputs, _ = stack.apply(variables, INPUTS, None)
  assert_close(outputs, x)


def test_attention_by_heads():
  bare = nn.MultiHeadDotProductAttention(2, qkv_features=8)
  method = baselines.Gated("heads")
  weights, model, latents = setup(bare, method)
  assert latents["params"]["out"]["kernel"].values[1].shape == (2, 1, 1)
  assert latents["params"]["query"]["kernel"].values[1].shape == (1, 2, 1)
  assert_close(model.apply(latents, INPUTS), bare.apply(weights, INPUTS))


@pytest.mark.parametrize("method", METHODS)
def test_boxes_stay_at_values_of_the_shape_of_weights(method):
  init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
  bare = nn.Dense(4, kernel_init=init, bias_init=nn.initializers.ones)
  weights, model, latents = setup(bare, method)
  assert_close(model.init(KEY, INPUTS), latents)
  kernel = latents["params"]["kernel"]
  for value in kernel.values:
    shape = jnp.shape(jax.tree.leaves(value)[0])
    assert isinstance(value, nn.Partitioned) == (shape == (5, 4))
  specs = nn.get_partition_spec(latents)["params"]["kernel"]
  assert specs.values[0] == P(None, "model")
  assert_close(model.to_weights(latents), weights)
  assert_close(model.apply(latents, INPUTS), bare.apply(weights, INPUTS))
  solver = baselines.sgd(0.1, method, strength=0.1, momentum=0.9)
  grads = jax.grad(lambda y: model.apply(y, INPUTS).sum())(latents)
  updates, _ = solver.update(grads, solver.init(latents), latents)
  moved = optax.apply_updates(latents, updates)
  unboxed = nn.meta.unbox(latents)
  updates, _ = solver.update(
    nn.meta.unbox(grads), solver.init(unboxed), unboxed
  )
  assert_close(nn.meta.unbox(moved), optax.apply_updates(unboxed, updates))


def test_train_state_and_an_own_mask():
  method = METHODS[0]
  _, model, latents = setup(
    nn.Dense(4), method, mask={"kernel": False, "bias": True}
  )
  assert isinstance(latents["params"]["bias"], Factors)
  assert not isinstance(latents["params"]["kernel"], Factors)
  assert isinstance(hash(model), int)
  state = TrainState.create(
    apply_fn=model.apply,
    params=latents["params"],
    tx=baselines.adamw(0.05, method, strength=1e-3),
  )

  @jax.jit
  def step(state):
    value, grads = jax.value_and_grad(
      lambda params: jnp.mean(state.apply_fn({"params": params}, INPUTS) ** 2)
    )(state.params)
    return state.apply_gradients(grads=grads), value

  state, first = step(state)
  for _ in range(20):
    state, value = step(state)
  assert value < first


def test_tabulate_counts_all_factors():
  _, model, _ = setup(AutoEncoder(), METHODS[1])
  show = nn.tabulate(model, KEY, console_kwargs={"width": 200})
  gates = 2 * (3 + 5)
  assert f"Total Parameters: {5 * 3 + 3 + 3 * 5 + 5 + gates}" in show(INPUTS)


def test_bad_input_is_refused():
  model = baselines.linen.Reparameterized(
    nn.Dense(2), METHODS[0], mask={"kernel": True}
  )
  with pytest.raises(ValueError, match="mask must have the structure"):
    model.init(KEY, INPUTS)
