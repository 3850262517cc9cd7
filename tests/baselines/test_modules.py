"""Flax modules that store several arrays for one."""

import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import rewa_jax
from rewa_jax import baselines

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (6, 5))
# Quick are those whose arrays differ in shape, by axes or altogether.
METHODS = [
  pytest.param(baselines.spred(), marks=pytest.mark.slow),
  baselines.Gated("output", depth=3),
  pytest.param(baselines.GroupedRewa(3, "input", 1), marks=pytest.mark.slow),
  baselines.SoftThreshold(),
]
all_methods = pytest.mark.parametrize(
  "method", METHODS, ids=lambda method: type(method).__name__
)


def assert_close(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    one,
    other,
  )


# Linen.


class Network(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (2,))(x[..., None]).reshape(len(x), -1)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return nn.remat(nn.Dense)(2)(x)


def setup(bare, method):
  """A module's weights, and its wrapper with their latents."""
  model = rewa_jax.linen.Reparameterized(bare, method)
  weights = bare.init(KEY, INPUTS)
  return weights, model, model.to_latents(weights)


@all_methods
def test_linen_stores_latents_and_computes_with_weights(method):
  bare = Network()
  weights, model, latents = setup(bare, method)
  variables = model.init(KEY, INPUTS)
  assert_close(variables, latents)
  assert len(variables["params"]["Conv_0"]["kernel"]) > 1
  assert_close(model.to_weights(variables), weights)

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
  assert_close(frozen, bare.apply(weights, INPUTS))


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


class Parent(nn.Module):
  """Wraps a part of itself, and calls it three times."""

  method: rewa_jax.Method

  @nn.compact
  def __call__(self, x):
    part = rewa_jax.linen.Reparameterized(AutoEncoder(name="part"), self.method)
    return nn.Dense(2, name="head")(part.decode(part.encode(part(x))))


@all_methods
def test_a_part_of_a_larger_module_may_be_called_again_and_again(method):
  parent = Parent(method)
  outputs, variables = parent.init_with_output(KEY, INPUTS)
  params = variables["params"]
  _, once, latents = setup(AutoEncoder(), method)
  assert jax.tree.map(jnp.shape, params["part"]) == jax.tree.map(
    jnp.shape, latents["params"]
  )
  x = INPUTS
  for name in ("__call__", "encode", "decode"):
    x = once.apply({"params": params["part"]}, x, method=name)
  wanted = nn.Dense(2).apply({"params": params["head"]}, x)
  assert_close(outputs, wanted)
  assert_close(parent.apply(variables, INPUTS), wanted)


class Layer(nn.Module):
  method: rewa_jax.Method

  @nn.compact
  def __call__(self, x, _):
    dense = nn.Dense(5, name="dense")
    return rewa_jax.linen.Reparameterized(dense, self.method)(x), None


@all_methods
def test_under_scan_each_layer_has_its_own_latents(method):
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


@all_methods
def test_boxes_stay_at_latents_of_the_shape_of_weights(method):
  init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
  bare = nn.Dense(4, kernel_init=init, bias_init=nn.initializers.ones)
  weights, model, latents = setup(bare, method)
  assert_close(model.init(KEY, INPUTS), latents)
  boxed = [
    isinstance(value, nn.Partitioned)
    for value in latents["params"]["kernel"].values()
  ]
  unboxed = nn.meta.unbox(latents)
  kernel = jax.tree.leaves(unboxed["params"]["kernel"])
  assert boxed == [value.shape == (5, 4) for value in kernel]
  specs = nn.get_partition_spec(latents)["params"]["kernel"]
  assert P(None, "model") in specs.values()
  assert_close(model.to_weights(latents), weights)
  assert_close(model.apply(latents, INPUTS), bare.apply(weights, INPUTS))
  solver = rewa_jax.sgd(0.1, method, weight_decay=0.1, momentum=0.9)
  grads = jax.grad(lambda y: model.apply(y, INPUTS).sum())(latents)
  updates, _ = solver.update(grads, solver.init(latents), latents)
  moved = optax.apply_updates(latents, updates)
  updates, _ = solver.update(
    nn.meta.unbox(grads), solver.init(unboxed), unboxed
  )
  assert_close(nn.meta.unbox(moved), optax.apply_updates(unboxed, updates))


# NNX.


class NnxNetwork(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(5, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(8, 2, rngs=rngs)])

  def __call__(self, x):
    x = self.norm(nnx.relu(self.hidden(x)))
    return self.layers[0](self.dropout(x))


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@all_methods
def test_nnx_stores_latents_and_computes_with_weights(method):
  bare = NnxNetwork(nnx.Rngs(0))
  model = rewa_jax.nnx.reparameterize(bare, method)
  latents = method.to_latents(params_of(bare))
  for stored, wanted in [
    (model.rewa_latents["hidden"], latents["hidden"]),
    (model.rewa_latents["layers"][0], latents["layers"][0]),
  ]:
    assert stored["kernel"].keys() == wanted["kernel"].keys()
    for name, param in stored["kernel"].items():
      assert type(param) is rewa_jax.nnx.Latent
      np.testing.assert_array_equal(param, wanted["kernel"][name])
  assert_close(params_of(model.weights()), params_of(bare))
  for _ in range(3):  # Statistics and dropout streams propagate.
    assert_close(model(INPUTS), bare(INPUTS))
  assert_close(model.model.norm.var[...], bare.norm.var[...])


def test_a_restored_run_of_nnx_continues_bit_for_bit(tmp_path):
  method = baselines.Gated("output", depth=3)
  model = rewa_jax.nnx.reparameterize(NnxNetwork(nnx.Rngs(0)), method)
  solver = rewa_jax.adamw(1e-2, method, weight_decay=0.1)
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  graphdef, start = nnx.split((model, optimizer))

  @jax.jit
  def step(state):
    model, optimizer = nnx.merge(graphdef, state)
    grads = nnx.grad(lambda model: jnp.mean(model(INPUTS) ** 2))(model)
    optimizer.update(model, grads)
    return nnx.state((model, optimizer))

  middle = step(start)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "run", middle)
    checkpointer.wait_until_finished()
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, start)
    restored = checkpointer.restore(tmp_path / "run", abstract)
  one, other = (
    nnx.to_pure_dict(nnx.state(nnx.merge(graphdef, step(state))[0], nnx.Param))
    for state in (restored, middle)
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)


@all_methods
def test_names_of_sharded_axes_stay_at_latents_of_the_shape_of_weights(method):
  mesh = jax.make_mesh(
    (2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2
  )
  init = nnx.with_partitioning(
    nnx.initializers.lecun_normal(), ("data", "model")
  )
  with jax.set_mesh(mesh):
    bare = nnx.Linear(4, 8, kernel_init=init, rngs=nnx.Rngs(0))
    model = rewa_jax.nnx.reparameterize(bare, method)
    for latent in model.rewa_latents["kernel"].values():
      names = latent.get_metadata().get("out_sharding")
      assert names == (("data", "model") if latent.shape == (4, 8) else None)
    weights = model.weights()
  assert weights.kernel[...].sharding.spec == P("data", "model")
  assert_close(weights.kernel[...], bare.kernel[...])
