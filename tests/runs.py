"""A small run in every way in, for tests of what runs have in common.

Each function returns the start of a run and its step, a function of the carry
and of inputs, to jit; `wrap` goes around the optimizer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import rewa_jax

REWA = rewa_jax.Rewa(k=3, m=1)
INPUTS = jax.random.normal(jax.random.key(0), (16, 4))
TARGETS = jnp.sin(INPUTS[:, :2])
BARE = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(2)])


def _as_it_is(solver):
  return solver


def _functional(model, solver):
  """A run whose carry is (params, state)."""
  params = model.init(jax.random.key(1), INPUTS)

  def step(carry, inputs=INPUTS):
    params, state = carry
    grads = jax.grad(
      lambda params: jnp.mean((model.apply(params, inputs) - TARGETS) ** 2)
    )(params)
    updates, state = solver.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return (params, solver.init(params)), step


def by_linen(wrap=_as_it_is):
  rewa = rewa_jax.Rewa(k=3, eps=1e-3)
  solver = rewa_jax.adamw(1e-2, rewa, weight_decay=0.1)
  return _functional(rewa_jax.linen.Reparameterized(BARE, rewa), wrap(solver))


def by_injection(wrap=_as_it_is):
  solver = optax.inject_hyperparams(rewa_jax.rewa_sgd)(
    optax.linear_schedule(0.1, 0.0, 20), 3, 1, weight_decay=0.1, momentum=0.9
  )
  return _functional(rewa_jax.linen.Reparameterized(BARE, REWA), wrap(solver))


def by_drop_in(wrap=_as_it_is):
  solver = rewa_jax.reparameterize(optax.adamw(1e-2), REWA)
  return _functional(BARE, wrap(solver))


class Network(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(4, 8, rngs=rngs)
    self.dropout = nnx.Dropout(0.2, rngs=rngs)
    self.out = nnx.Linear(8, 2, rngs=rngs)

  def __call__(self, x):
    return self.out(self.dropout(nnx.tanh(self.hidden(x))))


def _nnx(model, solver):
  """A run whose carry is the state of (model, optimizer)."""
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  graphdef, state = nnx.split((model, optimizer))

  def step(state, inputs=INPUTS):
    model, optimizer = nnx.merge(graphdef, state)
    grads = nnx.grad(lambda m: jnp.mean((m(inputs) - TARGETS) ** 2))(model)
    optimizer.update(model, grads)
    return nnx.state((model, optimizer))

  return state, step


def by_nnx(wrap=_as_it_is):
  model = rewa_jax.nnx.reparameterize(Network(nnx.Rngs(0)), REWA)
  solver = rewa_jax.sgd(0.1, REWA, weight_decay=0.1, momentum=0.9)
  return _nnx(model, wrap(solver))


def by_nnx_drop_in(wrap=_as_it_is):
  solver = rewa_jax.reparameterize(optax.adamw(1e-2), REWA)
  return _nnx(Network(nnx.Rngs(0)), wrap(solver))


WAYS_IN = (by_linen, by_injection, by_drop_in, by_nnx, by_nnx_drop_in)
