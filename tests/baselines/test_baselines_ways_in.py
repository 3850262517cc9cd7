"""Bare trees, linen and NNX train every method alike."""

import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rewa_jax
from rewa_jax import baselines

INPUTS = jax.random.normal(jax.random.key(0), (32, 8))
TARGETS = jnp.sin(INPUTS)
K, M = 3, 1
METHODS = {
  "spred": baselines.spred(),
  "DWF": baselines.deep_weight_factorization(3),
  "difference": baselines.HadamardDifference(2),
  "gated": baselines.Gated("output", depth=3),
  "PowerPropagation": baselines.PowerPropagation(2),
  "ReWA": baselines.Rewa(K, M),
  "ReWA in groups": baselines.GroupedRewa(K, "input", M),
  "STR": baselines.SoftThreshold(start=-3.0),
}


class Network(nn.Module):
  @nn.compact
  def __call__(self, inputs):
    return nn.tanh(nn.Dense(8, name="hidden")(inputs))


class NnxNetwork(nnx.Module):
  def __init__(self):
    self.hidden = nnx.Linear(8, 8, rngs=nnx.Rngs(0))

  def __call__(self, inputs):
    return nnx.tanh(self.hidden(inputs))


PARAMS = nnx.to_pure_dict(nnx.state(NnxNetwork(), nnx.Param))


def mean_squared_error(outputs):
  return jnp.mean((outputs - TARGETS) ** 2)


# The ways in. Each returns a carry, a step, and the weights of a carry.


def functional(outputs_of, latents, solver):
  def step(carry):
    latents, state = carry
    grads = jax.grad(lambda y: mean_squared_error(outputs_of(y)))(latents)
    updates, state = solver.update(grads, state, latents)
    return optax.apply_updates(latents, updates), state

  return (latents, solver.init(latents)), step


def by_trees(method, solver):
  def outputs_of(latents):
    return Network().apply({"params": method.to_weights(latents)}, INPUTS)

  latents = method.to_latents(PARAMS)
  return *functional(
    outputs_of, latents, solver
  ), lambda carry: method.to_weights(carry[0])


def linen_run(model, solver):
  variables = model.to_latents({"params": PARAMS})
  return *functional(
    lambda variables: model.apply(variables, INPUTS), variables, solver
  ), lambda carry: model.to_weights(carry[0])["params"]


def by_linen(method, solver):
  return linen_run(baselines.linen.Reparameterized(Network(), method), solver)


def nnx_run(model, solver):
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  graphdef, state = nnx.split((model, optimizer))

  def step(state):
    model, optimizer = nnx.merge(graphdef, state)
    grads = nnx.grad(lambda model: mean_squared_error(model(INPUTS)))(model)
    optimizer.update(model, grads)
    return nnx.state((model, optimizer))

  def weights_of(state):
    model, _ = nnx.merge(graphdef, state)
    return nnx.to_pure_dict(nnx.state(model.weights(), nnx.Param))

  return state, step, weights_of


def by_nnx(method, solver):
  return nnx_run(baselines.nnx.reparameterize(NnxNetwork(), method), solver)


WAYS_IN = {"trees": by_trees, "linen": by_linen, "NNX": by_nnx}


def train(run, steps=10):
  carry, step, weights_of = run
  carry, _ = jax.lax.scan(
    lambda carry, _: (step(carry), None), carry, length=steps
  )
  return weights_of(carry)


def assert_trees(compare, one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(compare, one, other)


@pytest.mark.parametrize("name", METHODS)
def test_every_way_in_trains_every_method_to_the_same_weights(name):
  method = METHODS[name]
  strengths = jnp.array([0.0, 0.1])

  def grid_of(way):
    def train_at(strength):
      solver = baselines.sgd(0.1, method, strength=strength, momentum=0.9)
      return train(way(method, solver))

    return jax.jit(jax.vmap(train_at))(strengths)

  wanted = grid_of(by_trees)
  kernel = wanted["hidden"]["kernel"]
  assert abs(kernel[0] - PARAMS["hidden"]["kernel"]).max() > 1e-2
  # PowerPropagation has no penalty.
  moved = abs(kernel[1] - kernel[0]).max() > 1e-3
  assert moved == (name != "PowerPropagation")
  for way in (by_linen, by_nnx):
    assert_trees(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      grid_of(way),
      wanted,
    )


def bare_rewa(gradient_solver):
  latents = rewa_jax.to_latents(PARAMS, K)

  def outputs_of(latents):
    weights = rewa_jax.to_weights(latents, K, gradient="weight")
    return Network().apply({"params": weights}, INPUTS)

  return *functional(
    outputs_of, latents, gradient_solver
  ), lambda carry: rewa_jax.to_weights(carry[0], K)


REWA = {
  "trees": bare_rewa,
  "linen": lambda solver: linen_run(
    rewa_jax.linen.Reparameterized(Network(), K), solver
  ),
  "NNX": lambda solver: nnx_run(
    rewa_jax.nnx.reparameterize(NnxNetwork(), K), solver
  ),
}


@pytest.mark.parametrize("name", WAYS_IN)
def test_rewa_is_the_one_of_rewa_jax_bit_for_bit(name):
  method = METHODS["ReWA"]
  ours = baselines.sgd(0.1, method, strength=0.1, momentum=0.9)
  wanted = rewa_jax.rewa_sgd(0.1, K, M, weight_decay=0.1, momentum=0.9)
  assert_trees(
    np.testing.assert_array_equal,
    jax.jit(lambda: train(WAYS_IN[name](method, ours)))(),
    jax.jit(lambda: train(REWA[name](wanted)))(),
  )


@pytest.mark.parametrize("way", WAYS_IN)
def test_hyperparameters_of_methods_may_be_traced(way):
  def train_at(alpha):
    method = baselines.PowerPropagation(alpha)
    solver = baselines.sgd(0.1, method, strength=0)
    return train(WAYS_IN[way](method, solver), steps=2)

  grid = jax.vmap(train_at)(jnp.array([1.5, 2.0]))
  for i, alpha in enumerate([1.5, 2.0]):
    assert_trees(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      jax.tree.map(operator.itemgetter(i), grid),
      train_at(alpha),
    )


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_restored_run_continues_bit_for_bit(way, tmp_path):
  method = METHODS["gated"]
  solver = baselines.adamw(1e-2, method, strength=0.1)
  start, step, _ = WAYS_IN[way](method, solver)
  step = jax.jit(step)
  carry = step(step(start))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "run", carry)
    checkpointer.wait_until_finished()
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, start)
    restored = checkpointer.restore(tmp_path / "run", abstract)
  assert_trees(np.testing.assert_array_equal, step(restored), step(carry))


@pytest.mark.parametrize("way", WAYS_IN)
def test_sharded_latents_train_as_on_one_device(way):
  method = METHODS["gated"]
  solver = baselines.sgd(0.1, method, strength=0.1, momentum=0.9)
  carry, step, weights_of = WAYS_IN[way](method, solver)
  mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))

  def spread(x):
    """Fully sharded where the first axis allows it."""
    by_rows = x.ndim == 2 and x.shape[0] % 8 == 0
    return jax.device_put(
      x, NamedSharding(mesh, P("devices") if by_rows else P())
    )

  sharded = jax.tree.map(spread, carry)
  assert any(
    not x.sharding.is_fully_replicated for x in jax.tree.leaves(sharded)
  )
  step = jax.jit(step)
  for _ in range(3):
    carry, sharded = step(carry), step(sharded)
  assert_trees(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    weights_of(sharded),
    weights_of(carry),
  )
