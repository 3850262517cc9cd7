"""What all methods have in common, and how a user writes one."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization

import rewa_jax
from rewa_jax import baselines

INPUTS = jax.random.normal(jax.random.key(0), (16, 4))
TARGETS = INPUTS[:, :1] - 2 * INPUTS[:, 1:2]
BARE = nn.Dense(1)
PARAMS = BARE.init(jax.random.key(1), INPUTS)
MASK = {"params": {"kernel": True, "bias": False}}
REWA = rewa_jax.Rewa(k=3, m=1)
METHODS = [
  REWA,
  baselines.spred(),
  baselines.HadamardDifference(2),
  baselines.Gated("output"),
  baselines.PowerPropagation(2.0),
  baselines.GroupedRewa(3, "output"),
  baselines.SoftThreshold(-5.0),
]
of_every_method = pytest.mark.parametrize(
  "method", METHODS, ids=lambda method: type(method).__name__
)


def mean_squared_error(params):
  return jnp.mean((BARE.apply(params, INPUTS) - TARGETS) ** 2)


def train(method, steps=10):
  """Returns weights after some steps."""
  solver = rewa_jax.sgd(0.05, method, weight_decay=0.1)

  def step(carry, _):
    latents, state = carry
    grads = jax.grad(lambda y: mean_squared_error(method.to_weights(y)))(
      latents
    )
    updates, state = solver.update(grads, state, latents)
    return (optax.apply_updates(latents, updates), state), None

  latents = method.to_latents(PARAMS)
  carry = latents, solver.init(latents)
  (latents, _), _ = jax.lax.scan(step, carry, length=steps)
  return method.to_weights(latents)


def assert_same(one, other, rtol=0.0):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol),
    one,
    other,
  )


# A pytree of its numbers.


@of_every_method
def test_a_method_is_a_tree_of_its_numbers(method):
  numbers, treedef = jax.tree.flatten(method)
  assert all(isinstance(number, (int, float)) for number in numbers)
  again = treedef.unflatten(numbers)
  assert again == method and hash(again) == hash(method)
  assert isinstance(hash(treedef), int)
  changed = jax.tree.map(lambda number: number + 1, method)
  assert type(changed) is type(method)
  assert (changed == method) == (not numbers)


@pytest.mark.parametrize("mask", [rewa_jax.kernels, None, MASK])
def test_a_method_is_an_argument_of_jit(mask):
  rewa = dataclasses.replace(REWA, mask=mask)
  traces = []

  @jax.jit
  def trained(rewa):
    traces.append(type(rewa.k))
    return train(rewa)

  for m in (0.5, 1.0):
    method = dataclasses.replace(rewa, m=m)
    assert_same(trained(method), train(method), rtol=1e-5)
  # The numbers are traced: another m compiles nothing.
  assert len(traces) == 1 and issubclass(traces[0], jax.core.Tracer)


def test_a_method_may_be_a_static_argument():
  static = jax.jit(train, static_argnums=0)
  for method in (REWA, dataclasses.replace(REWA, mask=MASK)):
    assert_same(static(method), train(method), rtol=1e-5)


def test_one_vmap_over_stacked_methods_trains_a_grid():
  grid = [
    rewa_jax.Rewa(k, m, eps, mask=MASK)
    for k, m, eps in [(1, 0, 0), (2.25, 1, 0), (3, 0, 1e-3), (9, 2, 0)]
  ]
  stacked = jax.tree.map(lambda *numbers: jnp.array(numbers), *grid)
  together = jax.jit(jax.vmap(train))(stacked)
  for i, method in enumerate(grid):
    result = jax.tree.map(lambda x, i=i: x[i], together)
    assert_same(result, train(method), rtol=1e-4)


def test_an_integer_k_that_is_closed_over_is_multiplied_out():
  latents = REWA.to_latents(PARAMS)
  inside = jax.make_jaxpr(REWA.to_weights)(latents)
  argument = jax.make_jaxpr(lambda rewa, y: rewa.to_weights(y))(REWA, latents)
  assert not re.search(r"\bpow\b", str(inside))
  assert re.search(r"\bpow\b", str(argument))


# Equality, hashes, bytes.


def test_methods_are_equal_where_their_numbers_and_masks_are():
  for one, other in [
    (REWA, rewa_jax.Rewa(k=3, m=1)),
    (rewa_jax.Rewa(k=3, mask=MASK), rewa_jax.Rewa(k=3, mask={**MASK})),
  ]:
    assert one == other and hash(one) == hash(other)
  different = [
    REWA,
    rewa_jax.Rewa(k=3),
    rewa_jax.Rewa(k=3, m=1, gradient="latent"),
    rewa_jax.Rewa(k=3, m=1, mask=None),
    rewa_jax.Rewa(k=3, m=1, mask=MASK),
    baselines.GroupedRewa(3, "output", 1),
  ]
  assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_a_dict_mask_outlives_every_tree_map():
  rewa = rewa_jax.Rewa(k=3, mask=MASK)
  mapped = jax.tree.map(lambda number: number, rewa)
  assert mapped == rewa and hash(mapped) == hash(rewa)
  assert_same(mapped.to_latents(PARAMS), rewa.to_latents(PARAMS))
  assert hash(jax.tree.structure(rewa)) == hash(jax.tree.structure(mapped))


@of_every_method
@pytest.mark.parametrize("mask", [rewa_jax.kernels, MASK])
def test_the_bytes_of_a_drop_in_say_all_but_its_type(method, mask):
  method = dataclasses.replace(method, mask=mask)
  solver = rewa_jax.reparameterize(optax.adam(0.1), method)
  state = solver.init(PARAMS)
  grads = jax.grad(mean_squared_error)(PARAMS)
  _, after = solver.update(grads, state, PARAMS)
  restored = serialization.from_bytes(state, serialization.to_bytes(after))
  assert jax.tree.structure(restored) == jax.tree.structure(after)
  assert_same(restored, after)
  assert_same(
    solver.update(grads, restored, PARAMS), solver.update(grads, after, PARAMS)
  )
  assert_same(
    rewa_jax.adopt_weights(restored, PARAMS).latents, state.latents, rtol=1e-6
  )


# What is no latents of a method.


@of_every_method
def test_what_decays_is_said_for_every_array(method):
  latents = method.to_latents(PARAMS)
  decaying = method.decaying(latents)
  assert jax.tree.structure(decaying) == jax.tree.structure(latents)
  assert decaying["params"]["bias"] is False
  kernel = jax.tree.leaves(decaying["params"]["kernel"])
  assert tuple(kernel) == method.decays and any(kernel)


def test_latents_of_another_number_of_arrays_are_refused_by_path():
  spred, rewa = baselines.spred(), REWA
  for use in (spred.to_weights, spred.decaying):
    with pytest.raises(ValueError, match="kernel holds one array, but Factor"):
      use(PARAMS)
  latents = spred.to_latents(PARAMS)
  with pytest.raises(ValueError, match="kernel holds 2 arrays for one, but Re"):
    rewa.to_weights(latents)
  with pytest.raises(ValueError, match="kernel holds 2 .* stores 3"):
    baselines.deep_weight_factorization(3).to_weights(latents)
  other = baselines.spred(mask={"params": {"kernel": False, "bias": False}})
  with pytest.raises(ValueError, match="kernel holds 2 .* made with another"):
    other.to_weights(latents)
  broken = {"w": {"latent_0": jnp.ones(2), "latent_1": jnp.ones(3)}}
  with pytest.raises(ValueError, match=r"w holds .* together: \(2,\), \(3,\)"):
    spred.to_weights(broken)


def test_layers_may_have_the_names_of_parts():
  layers = {f"latent_{i}": {"kernel": jnp.full(2, 8.0)} for i in range(2)}
  for method in (REWA, baselines.spred()):
    latents = method.to_latents(layers)
    assert_same(method.to_weights(latents), layers, rtol=1e-6)
  assert rewa_jax.sparsity(layers).total_size == 4


STRICT = [
  rewa_jax.Rewa(2.25, 1, 1e-3),
  rewa_jax.Rewa(3, 1, 1e-3, gradient="latent"),
  rewa_jax.Rewa(jnp.float32(3), jnp.float32(1)),
  baselines.spred(),
  baselines.HadamardDifference(),
  baselines.PowerPropagation(2),
  baselines.Gated("output"),
  baselines.GroupedRewa(3, "output", m=1, eps=1e-3),
  baselines.SoftThreshold(),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", STRICT, ids=repr)
def test_no_dtype_is_promoted_implicitly(method, dtype):
  weights = {"kernel": jnp.full((3, 2), 0.5, dtype)}

  def loss(latents):
    return method.to_weights(latents)["kernel"].sum()

  with jax.numpy_dtype_promotion("strict"):
    latents = method.to_latents(weights)
    solver = rewa_jax.sgd(0.1, method, weight_decay=0.1, momentum=0.9)
    updates, _ = solver.update(
      jax.grad(loss)(latents), solver.init(latents), latents
    )
    drop_in = rewa_jax.reparameterize(optax.sgd(0.1), method)
    moved, _ = drop_in.update(weights, drop_in.init(weights), weights)
  assert moved["kernel"].dtype == weights["kernel"].dtype
  assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


# How a user writes one.


@dataclasses.dataclass(frozen=True)
class Scaled(rewa_jax.Method):
  """x = rate * v * tanh(u): two arrays of which one decays, one number."""

  rate: jax.typing.ArrayLike = 2.0
  name: str = dataclasses.field(default="", metadata={"static": True})

  @property
  def decays(self):
    return (True, False)

  def split(self, path, x):
    del path
    return x / (self.rate * jnp.tanh(1.0)), jnp.ones_like(x)

  def join(self, *values):
    v, u = values
    return self.rate * v * jnp.tanh(u)

  def scale(self, gradient, value):
    return gradient * (1 + jnp.abs(value))


SCALED = Scaled(rate=0.5)


def train_drop_in():
  inner = optax.chain(
    optax.add_decayed_weights(0.1, mask=SCALED.decaying), optax.scale(-0.05)
  )
  solver = rewa_jax.reparameterize(inner, SCALED)
  params, state = PARAMS, solver.init(PARAMS)
  for _ in range(10):
    grads = jax.grad(mean_squared_error)(params)
    updates, state = solver.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


def train_linen():
  model = rewa_jax.linen.Reparameterized(BARE, SCALED)
  solver = rewa_jax.sgd(0.05, SCALED, weight_decay=0.1)
  latents = model.to_latents(PARAMS)
  state = solver.init(latents)
  for _ in range(10):
    grads = jax.grad(
      lambda y: jnp.mean((model.apply(y, INPUTS) - TARGETS) ** 2)
    )(latents)
    updates, state = solver.update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
  return model.to_weights(latents)


def train_nnx():
  bare = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
  nnx.update(bare, PARAMS["params"])
  model = rewa_jax.nnx.reparameterize(bare, SCALED)
  solver = rewa_jax.sgd(0.05, SCALED, weight_decay=0.1)
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  for _ in range(10):
    grads = nnx.grad(lambda m: jnp.mean((m(INPUTS) - TARGETS) ** 2))(model)
    optimizer.update(model, grads)
  return {"params": nnx.to_pure_dict(nnx.state(model.weights(), nnx.Param))}


def test_a_method_of_ones_own_trains_alike_in_every_way_in():
  """Against the update written out."""
  rate, (v, u) = SCALED.rate, SCALED.split("", PARAMS["params"]["kernel"])
  bias = PARAMS["params"]["bias"]
  for _ in range(10):
    weights = {"params": {"kernel": rate * v * jnp.tanh(u), "bias": bias}}
    grads = jax.grad(mean_squared_error)(weights)["params"]
    g = grads["kernel"]
    step_v = rate * jnp.tanh(u) * g * (1 + jnp.abs(v)) + 0.1 * v
    step_u = rate * v / jnp.cosh(u) ** 2 * g
    v, u = v - 0.05 * step_v, u - 0.05 * step_u
    bias = bias - 0.05 * grads["bias"]
  wanted = {"params": {"kernel": rate * v * jnp.tanh(u), "bias": bias}}
  by_latents = functools.partial(train, SCALED)
  for way in (by_latents, train_drop_in, train_linen, train_nnx):
    assert_same(way(), wanted, rtol=1e-5)


def test_a_method_of_ones_own_is_a_tree_too():
  assert jax.tree.leaves(SCALED) == [0.5]
  stacked = Scaled(rate=jnp.array([0.5, 2.0]))
  together = jax.vmap(train)(stacked)["params"]["kernel"]
  for rate, kernel in zip([0.5, 2.0], together):
    alone = train(Scaled(rate=rate))["params"]["kernel"]
    np.testing.assert_allclose(kernel, alone, rtol=1e-5)
  with pytest.raises(NotImplementedError):
    SCALED.implicit_penalty(jnp.ones(2))
