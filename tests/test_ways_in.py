"""Every way in computes Algorithms 1 and 2: against NumPy, over 200 steps.

And all ways in train every other method alike.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

import rewa_jax
from rewa_jax import baselines
from tests import reference

STEPS = 200
RATES = np.linspace(0.05, 0.01, STEPS)

# A fixed small regression problem, and a network of two layers for it.
_rng = np.random.default_rng(0)
INPUTS = _rng.normal(size=(16, 4))
TARGETS = np.tanh(INPUTS @ _rng.normal(size=(4, 2)))
PARAMS = {
  "hidden/kernel": _rng.normal(size=(4, 5)) / 2,
  "hidden/bias": _rng.normal(size=5) / 2,
  "out/kernel": _rng.normal(size=(5, 2)) / 2,
  "out/bias": _rng.normal(size=2) / 2,
}

# Eigenvalues between 1 and 3.
_basis = np.linalg.qr(_rng.normal(size=(6, 6)))[0]
HESSIAN = _basis @ np.diag(np.linspace(1, 3, 6)) @ _basis.T
MINIMUM = np.array([1.0, -0.7, 0.5, 0.4, -0.3, 0.8])
# Of MINIMUM's signs: at k = 9, crossing zero multiplies float32's rounding.
START = np.array([0.6, -0.4, 0.3, 0.5, -0.2, 0.7])


class Network(nn.Module):
  @nn.compact
  def __call__(self, inputs):
    hidden = nn.tanh(
      nn.Dense(5, name="hidden", param_dtype=inputs.dtype)(inputs)
    )
    return nn.Dense(2, name="out", param_dtype=inputs.dtype)(hidden)


class NnxNetwork(nnx.Module):
  def __init__(self, dtype):
    rngs = nnx.Rngs(0)
    self.hidden = nnx.Linear(4, 5, param_dtype=dtype, rngs=rngs)
    self.out = nnx.Linear(5, 2, param_dtype=dtype, rngs=rngs)

  def __call__(self, inputs):
    return self.out(nnx.tanh(self.hidden(inputs)))


def network_gradient(params):
  """Backpropagation by hand, of half the mean squared error."""
  hidden = np.tanh(INPUTS @ params["hidden/kernel"] + params["hidden/bias"])
  error = hidden @ params["out/kernel"] + params["out/bias"] - TARGETS
  error = error / error.size
  back = (error @ params["out/kernel"].T) * (1 - hidden**2)
  return {
    "hidden/kernel": INPUTS.T @ back,
    "hidden/bias": back.sum(0),
    "out/kernel": hidden.T @ error,
    "out/bias": error.sum(0),
  }


def network_loss(params, model=None):
  inputs = inputs_like(params)
  return mean_squared_error(
    (model or Network()).apply({"params": params}, inputs)
  )


def inputs_like(params):
  return jnp.asarray(INPUTS, jax.tree.leaves(params)[0].dtype)


def mean_squared_error(outputs):
  return 0.5 * jnp.mean((outputs - TARGETS.astype(outputs.dtype)) ** 2)


def quadratic_loss(w):
  offset = w - jnp.asarray(MINIMUM, w.dtype)
  return 0.5 * offset @ jnp.asarray(HESSIAN, w.dtype) @ offset


def nested(params, dtype):
  return jax.tree.map(
    lambda x: jnp.asarray(x, dtype),
    traverse_util.unflatten_dict(params, sep="/"),
  )


def flat(params):
  return traverse_util.flatten_dict(params, sep="/")


def schedule(count):
  return jnp.asarray(RATES)[count]


def latent_optimizer(rewa, decay, momentum, adam):
  if adam:
    return rewa_jax.adamw(schedule, rewa, weight_decay=decay)
  return rewa_jax.sgd(schedule, rewa, weight_decay=decay, momentum=momentum)


def base_optimizer(decay, momentum, adam, mask=rewa_jax.kernels):
  """What sgd and adamw are without a method, from optax alone."""
  return optax.chain(
    optax.scale_by_adam() if adam else optax.trace(momentum),
    optax.add_decayed_weights(decay, mask=mask),
    optax.scale_by_learning_rate(schedule),
  )


def descend(loss, optimizer, params):
  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.lax.scan(
    step, (params, optimizer.init(params)), length=STEPS
  )
  return params


# The ways in. Each trains on a loss of weights and returns the weights.


def by_latents(loss, params, rewa, *hyper):
  return on_latents(loss, params, rewa, latent_optimizer(rewa, *hyper))


def by_numbers(loss, params, rewa, decay, momentum, adam):
  numbers = rewa.k, rewa.m, rewa.eps
  common = dict(weight_decay=decay, gradient=rewa.gradient)
  if adam:
    optimizer = rewa_jax.rewa_adamw(schedule, *numbers, **common)
  else:
    optimizer = rewa_jax.rewa_sgd(
      schedule, *numbers, momentum=momentum, **common
    )
  return on_latents(loss, params, rewa, optimizer)


def by_hand(loss, params, rewa, *hyper):
  scale = rewa_jax.scale_by_rewa(
    *(rewa.k, rewa.m, rewa.eps),
    mask=rewa_jax.kernels,
    gradient=rewa.gradient,
  )
  optimizer = optax.chain(scale, base_optimizer(*hyper))
  return on_latents(loss, params, rewa, optimizer)


def on_latents(loss, params, rewa, optimizer):
  latents = descend(
    lambda latents: loss(rewa.to_weights(latents)),
    optimizer,
    rewa.to_latents(params),
  )
  return rewa.to_weights(latents)


def by_drop_in(loss, params, rewa, *hyper):
  inner = base_optimizer(*hyper, mask=rewa.decaying)
  optimizer = rewa_jax.reparameterize(inner, rewa)
  return descend(loss, optimizer, params)


def by_linen(loss, params, rewa, *hyper):
  del loss  # The model computes it.
  model = rewa_jax.linen.Reparameterized(Network(), rewa)
  variables = descend(
    lambda variables: network_loss(variables["params"], model),
    latent_optimizer(rewa, *hyper),
    model.to_latents({"params": params}),
  )
  return model.to_weights(variables)["params"]


def by_nnx(loss, params, rewa, *hyper):
  del loss  # The model computes it.
  bare = NnxNetwork(params["out"]["bias"].dtype)
  nnx.update(bare, params)
  static = rewa
  if isinstance(rewa, rewa_jax.Rewa):
    # A model is static, and the m and eps of all rows are traced.
    static = dataclasses.replace(rewa, m=0.0, eps=0.0)
  model = rewa_jax.nnx.reparameterize(bare, static)
  optimizer = latent_optimizer(rewa, *hyper)
  optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
  graphdef, state = nnx.split((model, optimizer))

  def step(state, _):
    model, optimizer = nnx.merge(graphdef, state)
    grads = nnx.grad(
      lambda model: mean_squared_error(model(inputs_like(params)))
    )(model)
    optimizer.update(model, grads)
    return nnx.state((model, optimizer)), None

  state, _ = jax.lax.scan(step, state, length=STEPS)
  model, _ = nnx.merge(graphdef, state)
  return nnx.to_pure_dict(nnx.state(model.weights(), nnx.Param))


# By name, with the convention of the gradient.
WAYS_IN = {
  "latents": (by_latents, "weight"),
  "latents, latent gradient": (by_latents, "latent"),
  "by numbers": (by_numbers, "weight"),
  "by hand": (by_hand, "weight"),
  "by hand, latent gradient": (by_hand, "latent"),
  "drop-in": (by_drop_in, "weight"),
  "linen": (by_linen, "weight"),
  "linen, latent gradient": (by_linen, "latent"),
  "nnx": (by_nnx, "weight"),
  "nnx, latent gradient": (by_nnx, "latent"),
}


def settings(k):
  """All legal (m, eps, weight_decay, momentum), a row each."""
  powers = sorted({m for m in (0, 0.5, 1, 2, k - 1) if m <= k - 1})
  return np.array(
    [
      (m, eps, decay, momentum)
      for m in powers
      for eps in (0, 1e-6, 1e-3)
      for decay in (0, 0.1)
      for momentum in (0, 0.9)
    ]
  )


class Problem(NamedTuple):
  """A loss of params, and its gradient in NumPy."""

  params: dict[str, np.ndarray]
  is_kernel: dict[str, bool]
  gradient: Callable
  loss: Callable


NETWORK = Problem(
  params=PARAMS,
  is_kernel={name: name.endswith("kernel") for name in PARAMS},
  gradient=network_gradient,
  loss=network_loss,
)

QUADRATIC = Problem(
  params={"w": START},
  is_kernel={"w": True},
  gradient=lambda params: {"w": HESSIAN @ (params["w"] - MINIMUM)},
  loss=lambda params: quadratic_loss(params["w"]),
)


@functools.cache
def expected(problem, k, adam):
  """The reference's weights after training, for every row of settings(k)."""
  problem = {"network": NETWORK, "quadratic": QUADRATIC}[problem]
  results = [
    reference.train(
      problem.params,
      problem.is_kernel,
      problem.gradient,
      k=k,
      m=m,
      eps=eps,
      weight_decay=decay,
      momentum=momentum,
      adam=adam,
      learning_rates=RATES,
    )
    for m, eps, decay, momentum in settings(k)
  ]
  return {name: np.stack([r[name] for r in results]) for name in problem.params}


def assert_close(result, reference_result, tolerance):
  for name, wanted in reference_result.items():
    error = np.abs(np.asarray(result[name], np.float64) - wanted)
    axes = tuple(range(1, wanted.ndim))
    relative = error.max(axes) / np.abs(wanted).max(axes)
    assert relative.max() < tolerance, (name, relative.argmax(), relative.max())


CASES = [
  (name, problem, k, adam)
  for problem, ways in [
    ("network", list(WAYS_IN)),
    ("quadratic", ["latents", "latents, latent gradient", "drop-in"]),
  ]
  for name in ways
  for k in (1, 2, 2.25, 3, 5, 9)
  for adam in (False, True)
]


def train_all(way, problem, k, adam, dtype):
  """Trains every row of settings(k) in one compiled vmap."""
  problem = {"network": NETWORK, "quadratic": QUADRATIC}[problem]
  params = nested(problem.params, dtype)

  by_way, gradient = WAYS_IN[way]

  def train(row):
    m, eps, decay, momentum = row
    rewa = rewa_jax.Rewa(k, m, eps, gradient=gradient)
    return flat(by_way(problem.loss, params, rewa, decay, momentum, adam))

  # Most of the time is compilation; one k is compiled as users compile it.
  options = {} if k == 9 else {"xla_backend_optimization_level": 0}
  train_rows = jax.jit(jax.vmap(train), compiler_options=options)
  return train_rows(jnp.asarray(settings(k), dtype))


# Quick is the power that magnifies rounding most.
@pytest.mark.parametrize(
  ("way", "problem", "k", "adam"),
  [
    pytest.param(*case, marks=() if case[2] == 9 else pytest.mark.slow)
    for case in CASES
  ],
)
def test_every_way_in_follows_the_paper_in_float64(way, problem, k, adam, x64):
  result = train_all(way, problem, k, adam, jnp.float64)
  assert_close(result, expected(problem, k, adam), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "problem", "k", "adam"), CASES)
def test_every_way_in_follows_the_paper_in_float32(way, problem, k, adam):
  result = train_all(way, problem, k, adam, jnp.float32)
  assert_close(result, expected(problem, k, adam), 1e-4)


# The other methods.

METHODS = [
  rewa_jax.Rewa(3, 1),
  baselines.HadamardDifference(2),
  baselines.Gated("output", depth=3),
  baselines.SoftThreshold(-3.0),
  *(
    pytest.param(method, marks=pytest.mark.slow)
    for method in (
      baselines.PowerPropagation(2.0),
      baselines.spred(),
      baselines.deep_weight_factorization(3),
      baselines.GroupedRewa(3, "input", 1),
    )
  ),
]


@pytest.mark.parametrize(
  "method", METHODS, ids=lambda method: type(method).__name__
)
def test_all_ways_in_train_every_method_alike(method):
  rows = jnp.array([[0.0, 0.0], [0.1, 0.0], [0.1, 0.9]])
  params = nested(PARAMS, jnp.float32)

  def train_rows(way):
    def train(row):
      decay, momentum = row
      return flat(way(network_loss, params, method, decay, momentum, False))

    options = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.vmap(train), compiler_options=options)(rows)

  by_trees = train_rows(by_latents)
  # Training goes somewhere, and decay and momentum elsewhere.
  ends = np.stack([PARAMS["hidden/kernel"], *by_trees["hidden/kernel"]])
  assert (np.abs(np.diff(ends, axis=0)).max((1, 2)) > 1e-2).all()
  for way in (by_drop_in, by_linen, by_nnx):
    assert_close(train_rows(way), by_trees, 1e-4)
