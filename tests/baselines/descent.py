"""Full-batch training on a small smooth problem, for several tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rewa_jax

_rng = np.random.default_rng(0)
INPUTS = _rng.normal(size=(80, 6))
# Whole columns and rows are zero, so that groups vanish.
_TRUE = np.zeros((6, 5))
_TRUE[:4, :3] = _rng.choice([-1, 1], (4, 3)) * _rng.uniform(1, 3, (4, 3))
LABELS = _rng.uniform(size=(80, 5)) < 1 / (1 + np.exp(-INPUTS @ _TRUE))
START = {"kernel": 0.5 * _rng.normal(size=(6, 5)), "bias": np.zeros(5)}


def descend(solver, loss, latents, steps):
  """Returns the latents after so many steps of an optimizer."""

  def step(carry, _):
    latents, state = carry
    updates, state = solver.update(jax.grad(loss)(latents), state, latents)
    return (optax.apply_updates(latents, updates), state), None

  start = latents, solver.init(latents)
  return jax.lax.scan(step, start, length=steps)[0][0]


def logistic(weights):
  logits = INPUTS @ weights["kernel"] + weights["bias"]
  return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, LABELS)) * 5


def logistic_gradient(weights):
  """The gradient of `logistic` by hand, in NumPy."""
  logits = INPUTS @ weights["kernel"] + weights["bias"]
  errors = (1 / (1 + np.exp(-logits)) - LABELS) / len(INPUTS)
  return {"kernel": INPUTS.T @ errors, "bias": errors.sum(0)}


def train(method, weight_decay, *, rate=0.2, steps=10000, **options):
  """Returns the latents that SGD ends at and their weights, in NumPy."""
  solver = rewa_jax.sgd(rate, method, weight_decay=weight_decay, **options)

  @jax.jit
  def run(latents):
    def loss(latents):
      return logistic(method.to_weights(latents))

    return descend(solver, loss, latents, steps)

  latents = run(method.to_latents(jax.tree.map(jnp.asarray, START)))
  to_numpy = functools.partial(jax.tree.map, np.asarray)
  return to_numpy(latents), to_numpy(method.to_weights(latents))


def assert_stationary(weights, weight_decay, slope, alive):
  """The gradient of the loss is -weight_decay times slope where alive.

  slope is the gradient of the penalty at the kernel; the bias has none.
  """
  gradient = logistic_gradient(weights)
  np.testing.assert_allclose(gradient["bias"], 0, atol=1e-9)
  alive = np.broadcast_to(alive, slope.shape)
  np.testing.assert_allclose(
    gradient["kernel"][alive], -weight_decay * slope[alive], rtol=0, atol=1e-9
  )
  assert np.abs(slope[alive]).max() * weight_decay > 1e-3
