"""What holds for every method, whatever its map is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rewa_jax
from rewa_jax import baselines

# And what weight decay reaches of what they store.
DECAYS = {
  rewa_jax.Rewa(k=9, m=2): (True,),
  baselines.PowerPropagation(2.5): (True,),
  baselines.spred(): (True, True),
  baselines.deep_weight_factorization(4): (True,) * 4,
  baselines.HadamardDifference(2): (True, True),
  baselines.HadamardDifference(3): (True, True),
  baselines.Gated("output"): (True, True),
  baselines.Gated("input", depth=3): (True,) * 3,
  baselines.GroupedRewa(3, "rows", m=2): (True, False),
  baselines.SoftThreshold(-2.0): (True, True),
}
all_methods = pytest.mark.parametrize("method", DECAYS, ids=str)

PARAMS = {
  "dense": {
    "kernel": jnp.array([[1.0, -0.5], [0.0, 2.0], [-3.0, 0.25]]),
    "bias": jnp.array([1.0, -1.0]),
  }
}


def assert_close(one, other, rtol=1e-6):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7),
    one,
    other,
  )


# Latents and weights.


@functools.cache
def round_trip(method):
  @jax.jit
  def run(x, offset):
    varied = method
    if hasattr(method, "offset"):
      varied = dataclasses.replace(method, offset=offset)
    latents = varied.to_latents({"kernel": x})
    return latents, varied.to_weights(latents)["kernel"]

  return run


@all_methods
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@given(
  mantissas=hnp.arrays(np.float64, (3, 4), elements=st.floats(1, 10)),
  exponents=hnp.arrays(np.int64, (3, 4), elements=st.integers(-12, 10)),
  signs=hnp.arrays(np.int64, (3, 4), elements=st.integers(-1, 1)),
  offset=st.sampled_from([0.0, 1e-12, 0.1, 5.0]),
)
@settings(max_examples=20)
def test_latents_of_weights_give_the_weights(
  method, dtype, mantissas, exponents, signs, offset
):
  info = jnp.finfo(dtype)
  x = jnp.asarray(signs * mantissas * 10.0 ** (3 * exponents), dtype)
  latents, weights = round_trip(method)(x, offset)
  assert {leaf.dtype for leaf in jax.tree.leaves(latents)} == {jnp.dtype(dtype)}
  assert weights.dtype == dtype
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(latents))
  # What is lost: the rounding of what is stored, and beside an offset or a
  # threshold that of their size; whatever underflows beside larger weights.
  x = np.asarray(x, np.float64)
  rounding = 100 * float(info.eps)
  size = offset + np.abs(x).max()
  lost = 30 * float(info.smallest_normal) * (1 + size)
  if isinstance(method, baselines.HadamardDifference):
    lost += rounding * offset
  if isinstance(method, baselines.SoftThreshold):
    lost += rounding
  weights = np.asarray(weights, np.float64)
  assert (np.abs(weights - x) <= rounding * np.abs(x) + lost).all()


@all_methods
def test_only_selected_leaves_have_latents(method):
  latents = method.to_latents(PARAMS)
  assert latents["dense"]["bias"] is PARAMS["dense"]["bias"]
  if len(method.decays) > 1:
    names = [f"latent_{i}" for i in range(len(method.decays))]
    assert list(latents["dense"]["kernel"]) == names
  plain = dataclasses.replace(method, mask={"dense": False})
  for same in (plain.to_latents, plain.to_weights):
    jax.tree.map(np.testing.assert_array_equal, same(PARAMS), PARAMS)


@all_methods
def test_one_vmap_over_methods_and_params_is_a_loop(method):
  other = jax.tree.map(lambda number: number + 1, method)
  methods, trees = [method, other], [PARAMS, jax.tree.map(jnp.sin, PARAMS)]

  def run(method, params):
    latents = method.to_latents(params)
    return latents, method.to_weights(latents)

  stacked = [
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    for pair in (methods, trees)
  ]
  together = jax.jit(jax.vmap(run))(*stacked)
  for i, one in enumerate(zip(methods, trees)):
    result = jax.tree.map(lambda x, i=i: x[i], together)
    assert_close(result, run(*one), rtol=1e-5)


# The penalty on weights is the least decay on what is stored.

MINIMAL = [
  method
  for method in DECAYS
  if isinstance(
    method,
    (baselines.FactorProduct, baselines.Gated, baselines.HadamardDifference),
  )
]


@functools.cache
def penalties(method):
  """Of balanced latents, and of a copy rescaled or shifted to the same x."""
  balanced = dataclasses.replace(method, offset=0.0)

  def decay_of(values):
    return sum(jnp.sum(value**2) for value in values) / 2

  @jax.jit
  def run(x, shifts):
    values = balanced.split("kernel", x)
    if isinstance(method, baselines.HadamardDifference):
      u, v = (value**method.k + jnp.abs(shifts[0]) for value in values)
      others = u ** (1 / method.k), v ** (1 / method.k)
    else:
      # One number for each group, or for each weight.
      scales = jnp.exp(shifts)[:, : values[-1].shape[0], : values[-1].shape[1]]
      scales = scales[: method.depth - 1]
      scales = [*scales, 1 / jnp.prod(scales, axis=0)]
      others = tuple(w * scale for w, scale in zip(values, scales))
    return (
      method.implicit_penalty(x),
      decay_of(values),
      decay_of(others),
      method.join(*others),
    )

  return run


@pytest.mark.parametrize("method", MINIMAL, ids=str)
@given(
  x=hnp.arrays(np.float64, (3, 4), elements=st.floats(-10, 10)),
  shifts=hnp.arrays(np.float64, (3, 3, 4), elements=st.floats(-2, 2)),
)
@settings(max_examples=50)
def test_the_penalty_on_weights_is_the_least_decay_of_latents(
  method, x, shifts, x64
):
  implicit, balanced, other, product = penalties(method)(x, shifts)
  np.testing.assert_allclose(product, x, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(balanced, implicit, rtol=1e-9, atol=1e-60)
  assert other >= implicit * (1 - 1e-9) - 1e-60


# Training.


def steps_of(solver, latents, gradient_of, steps):
  state = solver.init(latents)
  for _ in range(steps):
    updates, state = solver.update(gradient_of(latents), state, latents)
    latents = optax.apply_updates(latents, updates)
  return latents


@all_methods
@pytest.mark.parametrize("factory", [rewa_jax.sgd, rewa_jax.adamw])
def test_decay_alone_shrinks_what_decays_and_nothing_else(method, factory):
  """Outside momentum and moments; the optimizer's numbers are injected."""
  more = dict(momentum=0.9) if factory is rewa_jax.sgd else {}
  solver = optax.inject_hyperparams(factory)(
    0.5, method=method, weight_decay=0.25, **more
  )
  start = method.to_latents(PARAMS)
  end = steps_of(
    solver, start, lambda y: jax.tree.map(jnp.zeros_like, y), steps=2
  )
  kernel = jax.tree.leaves(start["dense"]["kernel"])
  wanted = [
    (1 - 0.5 * 0.25) ** 2 * value if decays else value
    for decays, value in zip(DECAYS[method], kernel, strict=True)
  ]
  assert_close(jax.tree.leaves(end["dense"]["kernel"]), wanted)
  np.testing.assert_array_equal(end["dense"]["bias"], PARAMS["dense"]["bias"])


@all_methods
def test_a_compiled_step_may_reuse_the_memory_of_latents(method):
  params = jax.tree.map(jnp.copy, PARAMS)
  solver = rewa_jax.sgd(0.1, method, weight_decay=0.1, momentum=0.9)

  def step(latents, state):
    grads = jax.tree.map(lambda y: jnp.sin(3 * y + 1), latents)
    updates, state = solver.update(grads, state, latents)
    return optax.apply_updates(latents, updates), state

  kept = donated = method.to_latents(params)
  state = solver.init(kept)
  wanted, _ = jax.jit(step)(kept, state)
  # Two latents in one buffer could not both be donated.
  result, _ = jax.jit(step, donate_argnums=(0, 1))(donated, state)
  assert_close(result, wanted)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))


def test_latents_without_a_gradient_stay_without():
  method = baselines.GroupedRewa(3, "rows", m=2)
  latents = method.to_latents(PARAMS)
  grads = {"dense": {"kernel": dict.fromkeys(latents["dense"]["kernel"])}}
  grads["dense"]["bias"] = jnp.ones(2)
  solver = rewa_jax.scale_by_method(method)
  updates, _ = solver.update(grads, solver.init(latents), latents)
  assert updates["dense"] == grads["dense"]


@pytest.mark.parametrize(
  "method",
  [baselines.Gated("output", depth=3), baselines.GroupedRewa(3, "output", 1)],
  ids=str,
)
def test_groups_spread_over_devices_train_as_on_one(method):
  mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
  solver = rewa_jax.sgd(0.1, method, weight_decay=0.1, momentum=0.9)

  def loss(latents):
    return jnp.sum(jnp.cos(method.to_weights(latents)["kernel"]))

  @jax.jit
  def run(latents):
    return steps_of(solver, latents, jax.grad(loss), steps=3)

  def spread(x):
    spec = P("devices") if x.shape[0] % 8 == 0 else P()
    return jax.device_put(x, NamedSharding(mesh, spec))

  kernel = jax.random.normal(jax.random.key(0), (16, 3))
  latents = method.to_latents({"kernel": kernel})
  sharded = jax.tree.map(spread, latents)
  assert not all(
    leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(sharded)
  )
  assert_close(run(sharded), run(latents), rtol=1e-4)
