"""Eight devices train as one does."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rewa_jax

REWA = rewa_jax.Rewa(k=3, m=1)
DEVICES = 8
INPUTS = jax.random.normal(jax.random.key(0), (64, 16))
TARGETS = jnp.sin(INPUTS[:, :8])
BARE = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(8)])


def latent_way():
  model = rewa_jax.linen.Reparameterized(BARE, REWA)
  solver = rewa_jax.sgd(0.1, REWA, weight_decay=1e-2, momentum=0.9)
  return model, solver


def drop_in_way():
  inner = optax.adamw(1e-2, weight_decay=1e-2)
  return BARE, rewa_jax.reparameterize(inner, rewa_jax.Rewa(k=3, eps=1e-3))


def step_of(model, solver, axis=None):
  def step(params, state, inputs, targets):
    def loss(params):
      return jnp.mean((model.apply(params, inputs) - targets) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    if axis:
      value, grads = jax.lax.pmean((value, grads), axis)
    updates, state = solver.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  return step


def run(step, params, state, inputs, targets):
  losses = []
  for _ in range(10):
    params, state, loss = step(params, state, inputs, targets)
    losses.append(np.asarray(loss).mean())
  return losses


def mesh_of_devices(axis_type):
  return jax.make_mesh((DEVICES,), ("devices",), axis_types=(axis_type,))


@pytest.fixture(params=[latent_way, drop_in_way])
def way(request):
  model, solver = request.param()
  params = model.init(jax.random.key(1), INPUTS)
  one_device = run(
    jax.jit(step_of(model, solver)),
    params,
    solver.init(params),
    INPUTS,
    TARGETS,
  )
  assert one_device[-1] < one_device[0]
  return model, solver, params, one_device


def test_pmap(way):
  model, solver, params, one_device = way
  assert jax.device_count() == DEVICES
  carry = jax.tree.map(
    lambda x: jnp.stack([x] * DEVICES), (params, solver.init(params))
  )
  batch = jax.tree.map(
    lambda x: x.reshape(DEVICES, -1, x.shape[-1]), (INPUTS, TARGETS)
  )
  step = jax.pmap(step_of(model, solver, "devices"), "devices")
  np.testing.assert_allclose(run(step, *carry, *batch), one_device, rtol=1e-5)


@pytest.mark.parametrize("sharded", ["data", "params"])
def test_sharded_jit(way, sharded):
  model, solver, params, one_device = way
  mesh = mesh_of_devices(AxisType.Auto)

  def spread(x):
    """Fully sharded where the first axis allows it."""
    by_rows = x.ndim and x.shape[0] % DEVICES == 0 and sharded == "params"
    spec = P("devices") if by_rows else P()
    return jax.device_put(x, NamedSharding(mesh, spec))

  carry = jax.tree.map(spread, (params, solver.init(params)))
  batch = jax.device_put((INPUTS, TARGETS), NamedSharding(mesh, P("devices")))
  step = functools.partial(jax.jit, donate_argnums=(0, 1))(
    step_of(model, solver)
  )
  losses = run(step, *carry, *batch)
  np.testing.assert_allclose(losses, one_device, rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_state_is_sharded_as_params_are(way, axis_type):
  _, solver, _, _ = way
  mesh = mesh_of_devices(axis_type)
  sharding = NamedSharding(mesh, P("devices"))
  with jax.set_mesh(mesh):
    params = jax.device_put({"kernel": jnp.ones((16, 8))}, sharding)
    updates, state = jax.jit(solver.update)(
      params, jax.jit(solver.init)(params), params
    )
  like_params = [x for x in jax.tree.leaves((updates, state)) if x.ndim == 2]
  assert len(like_params) >= 2
  for leaf in like_params:
    assert leaf.sharding.is_equivalent_to(sharding, 2)
