"""Orbax in the middle of a run: it continues bit for bit, in every way in."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import rewa_jax

K = 3
INPUTS = jax.random.normal(jax.random.key(0), (16, 4))
TARGETS = jnp.sin(INPUTS[:, :2])
BARE = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(2)])


def functional(model, solver):
  """Start and step of a run whose carry is (params, state)."""
  params = model.init(jax.random.key(1), INPUTS)

  @jax.jit
  def step(carry):
    params, state = carry
    grads = jax.grad(
      lambda params: jnp.mean((model.apply(params, INPUTS) - TARGETS) ** 2)
    )(params)
    updates, state = solver.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return (params, solver.init(params)), step


def by_linen():
  return functional(
    rewa_jax.linen.Reparameterized(BARE, K),
    rewa_jax.rewa_adamw(1e-2, K, eps=1e-3, weight_decay=0.1),
  )


def by_injection():
  solver = optax.inject_hyperparams(rewa_jax.rewa_sgd)(
    optax.linear_schedule(0.1, 0.0, 20), K, 1, weight_decay=0.1, momentum=0.9
  )
  return functional(rewa_jax.linen.Reparameterized(BARE, K), solver)


def by_drop_in():
  return functional(BARE, rewa_jax.reparameterize(optax.adamw(1e-2), K, 1))


class Network(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(4, 8, rngs=rngs)
    self.dropout = nnx.Dropout(0.2, rngs=rngs)
    self.out = nnx.Linear(8, 2, rngs=rngs)

  def __call__(self, x):
    return self.out(self.dropout(nnx.tanh(self.hidden(x))))


def nnx_run(model, solver):
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  graphdef, state = nnx.split((model, optimizer))

  @jax.jit
  def step(state):
    model, optimizer = nnx.merge(graphdef, state)
    grads = nnx.grad(lambda m: jnp.mean((m(INPUTS) - TARGETS) ** 2))(model)
    optimizer.update(model, grads)
    return nnx.state((model, optimizer))

  return state, step


def by_nnx():
  model = rewa_jax.nnx.reparameterize(Network(nnx.Rngs(0)), K)
  return nnx_run(
    model, rewa_jax.rewa_sgd(0.1, K, 1, weight_decay=0.1, momentum=0.9)
  )


def by_nnx_drop_in():
  return nnx_run(
    Network(nnx.Rngs(0)), rewa_jax.reparameterize(optax.adamw(1e-2), K, 1)
  )


@pytest.mark.parametrize(
  "way", [by_linen, by_injection, by_drop_in, by_nnx, by_nnx_drop_in]
)
def test_a_restored_run_continues_bit_for_bit(way, tmp_path):
  start, step = way()
  carry = start
  for _ in range(5):
    carry = step(carry)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "run", carry)
    checkpointer.wait_until_finished()
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, start)
    restored = checkpointer.restore(tmp_path / "run", abstract)
  for _ in range(5):
    carry, restored = step(carry), step(restored)
  assert jax.tree.structure(carry) == jax.tree.structure(restored)
  for one, other in zip(jax.tree.leaves(carry), jax.tree.leaves(restored)):
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
      one, other = jax.random.key_data(one), jax.random.key_data(other)
    np.testing.assert_array_equal(one, other)
