import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rewa_jax
from rewa_jax import round_stochastically

DTYPES = ["bfloat16", "float16"]
KEY = jax.random.key(0)
_rng = np.random.default_rng(0)


@jax.jit
def rounded(p, u, key=KEY):
  """Returns new params and the updates that led to them."""
  solver = round_stochastically(key)
  updates, _ = solver.update(u, solver.init(p), p)
  return optax.apply_updates(p, updates), updates


def neighbours(p, u, dtype):
  """Returns the numbers of dtype around p + u, by NumPy."""
  total = np.float32(p) + np.float32(u)
  nearest = total.astype(dtype)
  up = np.nextafter(nearest, np.array(np.inf, dtype))
  down = np.nextafter(nearest, np.array(-np.inf, dtype))
  wide = nearest.astype(np.float32)
  return (
    np.where(wide > total, down, nearest).astype(np.float64),
    np.where(wide < total, up, nearest).astype(np.float64),
    total.astype(np.float64),
  )


def numpy_dtype(name):
  return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def pairs(dtype, count=200):
  """Params of many sizes, and updates of at most half of them."""
  lowest = {"bfloat16": -60, "float16": -20}[dtype.name]
  sizes = 2.0 ** _rng.uniform(lowest, 4, count)
  p = (sizes * _rng.choice([-1, 1], count)).astype(dtype)
  p[:3] = [1, -1, 0]
  u = np.float32(p) * 2.0 ** _rng.uniform(-14, -1, count)
  u = np.float32(u * _rng.choice([-1, 1], count))
  u[:3] = [-1e-4, -1e-3, 1e-5]
  return jnp.asarray(p), jnp.asarray(u)


# What it does.


@pytest.mark.parametrize("name", DTYPES)
def test_the_mean_is_the_sum_and_only_its_two_neighbours_appear(name):
  dtype, count = numpy_dtype(name), 4000
  p, u = pairs(dtype)
  keys = jax.random.split(KEY, count)
  new, _ = jax.vmap(rounded, (None, None, 0))(p, u, keys)
  assert new.dtype == dtype
  new = np.float64(np.asarray(new))
  low, high, total = neighbours(np.asarray(p), np.asarray(u), dtype)
  assert ((new == low) | (new == high)).all()
  gap = np.where(high > low, high - low, 1)
  chance = (total - low) / gap
  # Five standard errors of a mean of coin tosses, and half a toss.
  error = 5 * np.sqrt(chance * (1 - chance) / count) + 0.5 / count
  assert (np.abs(((new - low) / gap).mean(0) - chance) <= error).all()


def test_subnormal_numbers_of_float16_are_rounded_too():
  p = jnp.array([3e-7, -3e-7, 6.104e-5, 0.0], jnp.float16)
  u = jnp.array([1e-8, 1e-8, -1e-8, 2e-8], jnp.float32)
  keys = jax.random.split(KEY, 20_000)
  new = np.float64(jax.vmap(rounded, (None, None, 0))(p, u, keys)[0])
  assert np.unique(new[:, 3]).tolist() == [0, 2**-24]
  # Five standard errors of a mean of coin tosses.
  error = 5 * 2**-24 / np.sqrt(4 * len(keys))
  np.testing.assert_allclose(
    new.mean(0), np.float64(p) + np.float64(u), rtol=0, atol=error
  )


@pytest.mark.parametrize("name", DTYPES)
def test_a_sum_that_needs_no_rounding_is_exact(name):
  p = jnp.array([1.0, 0.0, -0.5, 1.0], name)
  u = jnp.array([0.0, 0.0, 0.25, -1.0], name)
  new, updates = rounded(p, u)
  assert new.tolist() == [1.0, 0.0, -0.25, 0.0]
  assert updates.tolist() == u.tolist()


def decay(solver, latents, steps):
  """Returns latents after steps without a gradient."""
  grads = jax.tree.map(jnp.zeros_like, latents)

  def step(carry, _):
    latents, state = carry
    updates, state = solver.update(grads, state, latents)
    return (optax.apply_updates(latents, updates), state), None

  carry = latents, solver.init(latents)
  return jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])(
    carry
  )[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", DTYPES)
def test_it_keeps_the_weight_decay_that_rounding_to_nearest_loses(name):
  """20,000 steps of eta lambda = 1e-4 shrink a latent by exp(-2)."""
  rewa = rewa_jax.Rewa(k=9, m=2)
  sgd = rewa_jax.sgd(0.1, rewa, weight_decay=1e-3, momentum=0.9)
  latents = {"w": jnp.ones(400, name)}
  assert (decay(sgd, latents, 20_000)["w"] == 1).all()
  key = jax.random.key(1, impl="rbg")
  chain = optax.chain(sgd, round_stochastically(key))
  mean = np.float32(decay(chain, latents, 20_000)["w"]).mean()
  assert mean == pytest.approx(np.exp(-2), rel=0.03)


def test_wide_and_integer_leaves_and_none_pass_and_draw_nothing():
  params = {
    "wide": jnp.ones(2),
    "count": jnp.ones(2, int),
    "absent": jnp.ones(2, jnp.bfloat16),
    "number": 0.5,
  }
  updates = {
    "wide": jnp.full(2, 1e-9),
    "count": jnp.ones(2, int),
    "absent": None,
    "number": 0.1,
  }
  solver = round_stochastically(KEY)
  state = solver.init(params)
  passed, after = solver.update(updates, state, params)
  assert passed is updates and after is state


def test_wide_leaves_pass_beside_narrow_ones():
  params = {"kernel": jnp.ones(3, jnp.bfloat16), "bias": jnp.ones(3)}
  updates = {"kernel": jnp.full(3, 1e-3), "bias": jnp.full(3, 1e-9)}
  solver = round_stochastically(KEY)
  passed, after = solver.update(updates, solver.init(params), params)
  assert passed["bias"] is updates["bias"]
  assert passed["kernel"].dtype == jnp.bfloat16
  assert not jnp.array_equal(
    jax.random.key_data(after.key), jax.random.key_data(KEY)
  )


@pytest.mark.parametrize("name", DTYPES)
def test_no_finite_input_gives_nan_or_infinity(name):
  info = jnp.finfo(name)
  edges = [0, info.smallest_subnormal, info.tiny, 1, info.max]
  edges = jnp.array([*edges, *(-edge for edge in edges)], name)
  p, u = map(jnp.ravel, jnp.meshgrid(edges, edges))
  huge = jnp.full(p.shape, 3e38, jnp.float32)
  for update in (u, u.astype(jnp.float32), huge, -huge):
    new, updates = rounded(p, update)
    assert jnp.isfinite(updates).all() and jnp.isfinite(new).all()


def test_what_is_too_large_becomes_the_largest_number():
  new, _ = rounded(jnp.full(2, 6e4, jnp.float16), jnp.array([1e4, 1e6]))
  assert (new == jnp.finfo(jnp.float16).max).all()


def test_nan_and_infinity_pass():
  p = jnp.ones(3, jnp.bfloat16)
  u = jnp.array([jnp.nan, jnp.inf, -jnp.inf])
  np.testing.assert_array_equal(np.float32(rounded(p, u)[1]), u)


# How it composes.


LATENTS = {
  "kernel": jnp.asarray(_rng.normal(size=(16, 8)), jnp.bfloat16),
  "bias": jnp.zeros(8, jnp.float32),
}
GRADS = jax.tree.map(
  lambda y: jnp.asarray(_rng.normal(size=y.shape), y.dtype), LATENTS
)


def make(key=KEY):
  rewa = rewa_jax.Rewa(k=3, m=1)
  sgd = rewa_jax.sgd(0.05, rewa, weight_decay=0.1, momentum=0.9)
  return optax.chain(sgd, round_stochastically(key))


def step(carry):
  latents, state = carry
  updates, state = make().update(GRADS, state, latents)
  return optax.apply_updates(latents, updates), state


@jax.jit
def run(key):
  """Returns latents after one step."""
  return step((LATENTS, make(key).init(LATENTS)))[0]


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_scan_is_the_loop_and_keeps_dtypes():
  carry = LATENTS, make().init(LATENTS)
  scanned = jax.lax.scan(lambda c, _: (step(c), None), carry, length=5)[0]
  looped, one_step = carry, jax.jit(step)
  for _ in range(5):
    looped = one_step(looped)
  assert_same(scanned[0], looped[0])
  assert scanned[1][-1].key == looped[1][-1].key
  dtypes, before = (
    jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (scanned, carry)
  )
  assert dtypes == before
  assert dtypes[1][0][1].trace["kernel"] == jnp.bfloat16


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_typed_or_raw_and_outlive_a_donated_state(impl):
  donating, keeping = jax.jit(step, donate_argnums=0), jax.jit(step)
  with jax.default_prng_impl(impl):
    raw = jax.random.PRNGKey(3)
    state = make(jax.random.key(3)).init(LATENTS)
    wanted, _ = keeping((LATENTS, state))
    for key in (jax.random.key(3), raw, np.asarray(raw)):
      for _ in range(2):
        state = make(key).init(LATENTS)
        latents, _ = donating((jax.tree.map(jnp.copy, LATENTS), state))
        assert_same(latents, wanted)


def test_runs_of_several_keys_in_one_vmap_equal_runs_alone():
  keys = jax.random.split(KEY, 3)
  together = jax.vmap(run)(keys)["kernel"]
  for key, latents in zip(keys, together):
    assert_same(latents, run(key)["kernel"])


def test_runs_of_rbg_keys_in_one_vmap_differ():
  keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
  one, other = jax.vmap(run)(keys)["kernel"]
  assert not jnp.array_equal(one, other)


def test_leaves_and_steps_draw_different_numbers():
  params = {"a": jnp.ones(200, jnp.bfloat16), "b": jnp.ones(200, jnp.bfloat16)}
  solver = round_stochastically(KEY)
  state, u = solver.init(params), jax.tree.map(lambda p: p * 2e-3, params)
  first, state = solver.update(u, state, params)
  second, _ = solver.update(u, state, params)
  for one, other in [(first["a"], first["b"]), (first["a"], second["a"])]:
    assert 50 < (one != other).sum() < 150


def test_sharded_params_get_what_whole_ones_get():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec("data"))
  p, u = LATENTS["kernel"], GRADS["kernel"]
  new, _ = rounded(jax.device_put(p, split), jax.device_put(u, split))
  assert new.sharding.is_equivalent_to(split, 2)
  assert_same(new, rounded(p, u)[0])


def test_apply_if_finite_skips_a_step_with_nan_gradients():
  solver = optax.apply_if_finite(round_stochastically(KEY), 3)
  state = solver.init(LATENTS)
  broken = jax.tree.map(lambda g: g * jnp.nan, GRADS)
  updates, state = solver.update(broken, state, LATENTS)
  assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
  updates, state = solver.update(GRADS, state, LATENTS)
  assert int(state.total_notfinite) == 1
  assert_same(updates, rounded(LATENTS, GRADS)[1])


@pytest.mark.parametrize("key", [KEY, jax.random.key_data(KEY)])
def test_multi_steps_rounds_once(key):
  solver = optax.MultiSteps(round_stochastically(key), 2)
  state = solver.init(LATENTS)
  nothing, state = solver.update(GRADS, state, LATENTS)
  assert not any(leaf.any() for leaf in jax.tree.leaves(nothing))
  updates, state = solver.update(GRADS, state, LATENTS)
  assert_same(updates, rounded(LATENTS, GRADS)[1])


def test_it_follows_injected_hyperparameters():
  injected = optax.inject_hyperparams(rewa_jax.rewa_sgd)(
    learning_rate=0.05, k=3, m=1.0, weight_decay=0.1, momentum=0.9
  )
  solver = optax.chain(injected, round_stochastically(KEY))
  updates, state = solver.update(GRADS, solver.init(LATENTS), LATENTS)
  assert updates["kernel"].dtype == jnp.bfloat16
  assert updates["kernel"].any()
  state[0].hyperparams["learning_rate"] = jnp.float32(0)
  updates, _ = solver.update(GRADS, state, LATENTS)
  assert not updates["kernel"].any()


def test_state_can_be_made_of_shapes_and_mapped_over():
  abstract = jax.eval_shape(lambda: LATENTS)
  shapes = jax.eval_shape(make().init, abstract)
  assert jax.tree.structure(shapes) == jax.tree.structure(make().init(LATENTS))
  state = make().init(LATENTS)
  doubled = optax.tree.map_params(make(), lambda leaf: leaf + 1, state)
  assert (doubled[0][1].trace["kernel"] == 1).all()


def test_nnx_optimizers_take_it():
  layer = nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(layer, make(), wrt=nnx.Param)

  @nnx.jit
  def train_step(layer, optimizer):
    grads = nnx.grad(lambda layer: layer(jnp.ones((2, 4))).sum())(layer)
    optimizer.update(layer, grads)

  before = nnx.state(layer)["kernel"][...]
  train_step(layer, optimizer)
  after = nnx.state(layer)["kernel"][...]
  assert after.dtype == jnp.bfloat16 and not jnp.array_equal(before, after)


def test_the_drop_in_trains_bfloat16_params_on_float32_latents():
  sgd = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1))
  solver = rewa_jax.reparameterize(sgd, rewa_jax.Rewa(k=9, m=2))
  params = {"w": jnp.full(4, 0.5, jnp.bfloat16)}
  carry = params, solver.init(params)
  zeros = jax.tree.map(jnp.zeros_like, params)

  def advance(carry, _):
    params, state = carry
    updates, state = solver.update(zeros, state, params)
    return (optax.apply_updates(params, updates), state), None

  (params, state), _ = jax.lax.scan(advance, carry, length=1000)
  assert params["w"].dtype == jnp.bfloat16
  assert state.latents["w"].dtype == jnp.float32
  # x shrinks by k times what y does.
  np.testing.assert_allclose(
    np.float32(params["w"]), 0.5 * (1 - 1e-4) ** 9000, rtol=2**-8
  )


# What it refuses.


@pytest.mark.parametrize(
  ("key", "error", "message"),
  [
    (0, TypeError, "must be a JAX PRNG key, .* got 0 of type int"),
    (jnp.ones(2), TypeError, "got an array of dtype float32"),
    (jax.random.split(KEY), ValueError, r"got an array of shape \(2,\)"),
    (jnp.zeros((3, 2), "uint32"), ValueError, r"of shape \(3, 2\)"),
  ],
)
def test_a_key_that_is_none_is_refused(key, error, message):
  with pytest.raises(error, match=message):
    round_stochastically(key)


def test_missing_params_are_named():
  solver = round_stochastically(KEY)
  with pytest.raises(ValueError, match=r"params are missing: call update\("):
    solver.update(GRADS, solver.init(LATENTS))


def test_updates_of_another_shape_are_refused_by_path():
  solver = round_stochastically(KEY)
  wrong = GRADS | {"kernel": jnp.ones((4, 1))}
  with pytest.raises(ValueError, match=r"at kernel: .*\(4, 1\), .*\(16, 8\)"):
    solver.update(wrong, solver.init(LATENTS), LATENTS)
