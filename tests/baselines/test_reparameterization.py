"""What all reparameterizations have in common, and their optimizers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rewa_jax import baselines

METHODS = [
  baselines.spred(),
  baselines.deep_weight_factorization(4),
  baselines.untied_power(3),
  baselines.HadamardDifference(2),
  baselines.HadamardDifference(3),
  baselines.Gated("output"),
  baselines.Gated("input", depth=3),
  baselines.PowerPropagation(2.5),
  baselines.Rewa(k=9, m=2),
  baselines.GroupedRewa(3, "rows", m=2),
  baselines.SoftThreshold(-2.0),
]
all_methods = pytest.mark.parametrize("method", METHODS, ids=str)
in_float64 = settings(
  suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50
)

PARAMS = {
  "dense": {
    "kernel": jnp.array([[1.0, -0.5], [0.0, 2.0], [-3.0, 0.25]]),
    "bias": jnp.array([1.0, -1.0]),
  }
}


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
def test_only_selected_leaves_become_factors(method):
  latents = method.to_latents(PARAMS)
  node = latents["dense"]["kernel"]
  assert isinstance(node, baselines.Factors)
  assert len(node.values) == method.parts
  assert latents["dense"]["bias"] is PARAMS["dense"]["bias"]
  plain = method.to_latents(PARAMS, mask={"dense": False})
  jax.tree.map(np.testing.assert_array_equal, plain, PARAMS)
  jax.tree.map(np.testing.assert_array_equal, method.to_weights(PARAMS), PARAMS)


@all_methods
def test_methods_are_hashable_and_latents_go_through_transformations(method):
  assert hash(method) == hash(dataclasses.replace(method))

  @functools.partial(jax.jit, static_argnums=0)
  def run(method, params):
    return method.to_weights(method.to_latents(params))

  batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), PARAMS)
  both = jax.vmap(functools.partial(run, method))(batch)
  for i in range(2):
    one = run(method, jax.tree.map(lambda x, i=i: x[i], batch))
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6),
      both,
      one,
    )


@pytest.mark.parametrize(
  "make",
  [
    lambda value: baselines.spred(offset=value),
    lambda value: baselines.HadamardDifference(2, offset=value),
    lambda value: baselines.Gated("output", offset=value),
    baselines.PowerPropagation,
    lambda value: baselines.Rewa(value, m=value - 1, eps=value),
    lambda value: baselines.GroupedRewa(value, "output", value - 1, value),
    baselines.SoftThreshold,
  ],
)
def test_hyperparameters_may_be_traced(make):
  def run(value):
    method = make(value)
    latents = method.to_latents(PARAMS)
    return latents, method.to_weights(latents)

  grid = jnp.array([1.5, 3.0])
  together = jax.jit(jax.vmap(run))(grid)
  for i, value in enumerate([1.5, 3.0]):
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(
        a[i], b, rtol=1e-5, atol=1e-6
      ),
      together,
      run(value),
    )


def test_the_path_tells_groups_where_they_are():
  seen = []

  def groups(path, leaf):
    seen.append((path, leaf.shape))
    return (0,)

  baselines.Gated(groups).to_latents(PARAMS)
  assert seen == [("dense/kernel", (3, 2))]


def test_to_latents_names_the_leaf_that_has_none():
  params = {"kernel": jnp.ones((2, 2)), "steps": jnp.arange(3)}
  with pytest.raises(TypeError, match="steps is of type int32"):
    baselines.spred().to_latents(params, mask=None)
  with pytest.raises(ValueError, match="nothing would be reparameterized"):
    baselines.spred().to_latents({"scale": jnp.ones(3)})


def test_factors_that_do_not_fit_are_named():
  latents = baselines.deep_weight_factorization(3).to_latents(PARAMS)
  message = (
    r"dense/kernel holds 3 factors, but FactorProduct\(depth=2,.*\) has 2"
  )
  with pytest.raises(ValueError, match=message):
    baselines.spred().to_weights(latents)
  with pytest.raises(ValueError, match=message):
    baselines.sgd(0.1, baselines.spred(), strength=0.1).init(latents)
  ragged = {"w": baselines.Factors((jnp.ones((3, 2)), jnp.ones(3)))}
  message = r"w holds factors whose shapes do not go together: \(3, 2\), \(3,\)"
  with pytest.raises(ValueError, match=message):
    baselines.spred().to_weights(ragged)


# The law: the penalty on weights is the least penalty on what is stored.

MINIMAL = [
  method
  for method in METHODS
  if isinstance(method, (baselines.FactorProduct, baselines.Gated))
  or isinstance(method, baselines.HadamardDifference)
]


@functools.cache
def penalties(method):
  """Of balanced factors, and of a copy rescaled or shifted to the same x."""
  balanced = dataclasses.replace(method, offset=0.0)

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
      method.smooth_penalty(*values),
      method.smooth_penalty(*others),
      method.join(*others),
    )

  return run


@pytest.mark.parametrize("method", MINIMAL, ids=str)
@given(
  x=hnp.arrays(np.float64, (3, 4), elements=st.floats(-10, 10)),
  shifts=hnp.arrays(np.float64, (3, 3, 4), elements=st.floats(-2, 2)),
)
@in_float64
def test_the_penalty_on_weights_is_that_of_the_best_factors(
  method, x, shifts, x64
):
  implicit, balanced, other, product = penalties(method)(x, shifts)
  np.testing.assert_allclose(product, x, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(balanced, implicit, rtol=1e-9, atol=1e-60)
  assert other >= implicit * (1 - 1e-9) - 1e-60


# The penalty as a transformation.

GRADS = jax.tree.map(lambda x: x + 0.5, PARAMS)


def latents_and_grads(method, dtype=jnp.float32):
  params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
  latents = method.to_latents(params)
  grads = jax.tree.map(lambda x: jnp.sin(3 * x + 1).astype(dtype), latents)
  return latents, grads


def assert_close(one, other, rtol=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7),
    one,
    other,
  )


# By hand: the gradient of S with respect to every stored array.
SLOPES = {
  baselines.spred(): lambda u, v: (u, v),
  baselines.deep_weight_factorization(4): lambda *w: tuple(x / 2 for x in w),
  baselines.untied_power(3): lambda *w: w,
  baselines.HadamardDifference(3): lambda u, v: (2 * u, 2 * v),
  baselines.Gated("input", depth=3): lambda *w: tuple(2 / 3 * x for x in w),
  baselines.PowerPropagation(2.5): lambda y: (0 * y,),
  baselines.Rewa(k=9, m=2): lambda y: (y,),
  baselines.GroupedRewa(3, "rows", m=2): lambda z, u: (z, 0 * u),
  baselines.SoftThreshold(-2.0): lambda w, s: (w, s),
}
with_slopes = pytest.mark.parametrize("method", SLOPES, ids=str)


@with_slopes
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_add_penalty_adds_the_gradient_of_the_penalty(method, dtype):
  latents, grads = latents_and_grads(method, dtype)
  solver = baselines.add_penalty(method, 0.25)
  updates, _ = solver.update(grads, solver.init(latents), latents)
  slopes = SLOPES[method](*latents["dense"]["kernel"].values)
  expected = [
    g.astype(jnp.float32) + 0.25 * slope.astype(jnp.float32)
    for g, slope in zip(grads["dense"]["kernel"].values, slopes, strict=True)
  ]
  for update, by_hand in zip(
    updates["dense"]["kernel"].values, expected, strict=True
  ):
    assert update.dtype == dtype
    assert_close(
      update.astype(jnp.float32), by_hand, 3 * float(jnp.finfo(dtype).eps)
    )
  assert updates["dense"]["bias"] is grads["dense"]["bias"]


@pytest.mark.parametrize(
  "method,nesterov",
  [
    (baselines.spred(), False),
    (baselines.spred(), True),
    (baselines.Gated("input", depth=3), False),
    (baselines.SoftThreshold(-2.0), True),
  ],
  ids=str,
)
def test_sgd_keeps_the_penalty_outside_the_momentum(method, nesterov):
  latents, grads = latents_and_grads(method)
  solver = baselines.sgd(
    0.1, method, strength=0.3, momentum=0.9, nesterov=nesterov
  )
  state, buffer, expected = solver.init(latents), None, latents
  for _ in range(3):
    updates, state = solver.update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
    buffer = (
      grads
      if buffer is None
      else jax.tree.map(lambda g, b: g + 0.9 * b, grads, buffer)
    )
    step = (
      jax.tree.map(lambda g, b: g + 0.9 * b, grads, buffer)
      if nesterov
      else buffer
    )
    slopes = SLOPES[method](*expected["dense"]["kernel"].values)
    expected = jax.tree.map(lambda w, s: w - 0.1 * s, expected, step)
    expected["dense"]["kernel"] = baselines.Factors(
      tuple(
        w - 0.1 * 0.3 * slope
        for w, slope in zip(expected["dense"]["kernel"].values, slopes)
      )
    )
  assert_close(latents, expected)


def test_adamw_keeps_the_penalty_outside_the_moments():
  method = baselines.spred()
  latents, grads = latents_and_grads(method)
  solver = baselines.adamw(0.1, method, strength=0.3, b1=0.8, b2=0.9, eps=1e-3)
  adam = optax.adam(0.1, b1=0.8, b2=0.9, eps=1e-3)
  updates, _ = solver.update(grads, solver.init(latents), latents)
  expected, _ = adam.update(grads, adam.init(latents), latents)
  expected["dense"]["kernel"] = jax.tree.map(
    lambda update, w: update - 0.1 * 0.3 * w,
    expected["dense"]["kernel"],
    latents["dense"]["kernel"],
  )
  assert_close(updates, expected)


def step_by(solver, latents, grads, steps=1):
  state = solver.init(latents)
  for _ in range(steps):
    updates, state = solver.update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
  return latents


@pytest.mark.parametrize("make", [baselines.sgd, baselines.adamw])
def test_strength_may_be_traced_scheduled_or_injected(make):
  method = baselines.spred()
  latents, grads = latents_and_grads(method)

  def run(strength):
    return step_by(make(0.1, method, strength=strength), latents, grads)

  grid = jnp.array([0.0, 0.5])
  together = jax.jit(jax.vmap(run))(grid)
  for i, strength in enumerate([0.0, 0.5]):
    assert_close(jax.tree.map(lambda x, i=i: x[i], together), run(strength))
  scheduled = make(0.1, method, strength=lambda count: 0.25 * count)
  once = step_by(scheduled, latents, grads)
  assert_close(once, run(0.0))
  injected = optax.inject_hyperparams(make)(
    learning_rate=0.1, method=method, strength=0.5
  )
  assert_close(step_by(injected, latents, grads), run(0.5), rtol=1e-5)
  state = injected.init(latents)
  state.hyperparams["strength"] = jnp.asarray(0.0)
  updates, _ = injected.update(grads, state, latents)
  assert_close(optax.apply_updates(latents, updates), run(0.0), rtol=1e-5)
  optax.tree.map_params(injected, lambda leaf: leaf, state)


def test_a_schedule_is_evaluated_at_every_step():
  method = baselines.spred()
  latents, _ = latents_and_grads(method)
  zero = jax.tree.map(jnp.zeros_like, latents)
  solver = baselines.sgd(0.1, method, strength=lambda count: 1.0 * count)
  after = step_by(solver, latents, zero, steps=3)
  # The steps shrink by 1 - 0.1 * 0, 1 - 0.1 * 1, 1 - 0.1 * 2.
  assert_close(
    after["dense"]["kernel"],
    jax.tree.map(lambda w: 0.9 * 0.8 * w, latents["dense"]["kernel"]),
  )


@all_methods
def test_a_compiled_step_may_reuse_the_memory_of_latents(method):
  latents, grads = latents_and_grads(method)
  solver = baselines.sgd(0.1, method, strength=0.1, momentum=0.9)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(latents, state):
    updates, state = solver.update(grads, state, latents)
    return optax.apply_updates(latents, updates), state

  expected = step_by(solver, latents, grads, steps=2)
  state = solver.init(latents)
  latents, state = step(*jax.tree.map(jnp.copy, (latents, state)))
  assert_close(step(latents, state)[0], expected)


def test_leaves_without_gradient_are_left_alone():
  method = baselines.spred()
  latents, grads = latents_and_grads(method)
  grads["dense"]["bias"] = None
  solver = baselines.add_penalty(method, 0.1)
  updates, _ = solver.update(grads, solver.init(latents), latents)
  assert updates["dense"]["bias"] is None
  grads["dense"]["kernel"] = baselines.Factors((None, None))
  updates, _ = solver.update(grads, solver.init(latents), latents)
  assert updates["dense"]["kernel"].values == (None, None)


def test_bad_use_is_named():
  method = baselines.spred()
  latents, grads = latents_and_grads(method)
  for make in (baselines.sgd, baselines.adamw):
    with pytest.raises(ValueError, match="strength must be .* >= 0, got -1"):
      make(0.1, method, strength=-1)
    with pytest.raises(ValueError, match="hold no Factors.*dense/bias"):
      make(0.1, method, strength=0.1).init(PARAMS)
  solver = baselines.add_penalty(method, 0.1)
  state = solver.init(latents)
  with pytest.raises(ValueError, match="params"):
    solver.update(grads, state)
  with pytest.raises(ValueError, match="different trees"):
    solver.update(PARAMS, state, latents)
  grads["dense"]["kernel"] = baselines.Factors((jnp.ones(3), jnp.ones(3)))
  with pytest.raises(ValueError, match="differ at dense/kernel/values/0"):
    solver.update(grads, state, latents)


def test_extra_arguments_are_passed_on():
  method = baselines.spred()
  latents, grads = latents_and_grads(method)
  solver = baselines.sgd(0.1, method, strength=0.1)
  updates, _ = solver.update(grads, solver.init(latents), latents, value=1.0)
  expected, _ = solver.update(grads, solver.init(latents), latents)
  assert_close(updates, expected)
