import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rewa_jax
from rewa_jax import baselines
from tests import loops

_rng = np.random.default_rng(0)
PARAMS = {
  "first": {
    "kernel": jnp.asarray(_rng.normal(size=(7, 11)), jnp.float32),
    "bias": jnp.asarray(_rng.normal(size=11), jnp.float32),
  },
  "second": {"kernel": jnp.asarray(3 * _rng.normal(size=50), jnp.float32)},
}
TARGETS = jax.tree.map(lambda x: jnp.sin(7 * x) + 0.3, PARAMS)
SIZE = 7 * 11 + 50


def gradient(params):
  return jax.tree.map(jnp.subtract, params, TARGETS)


def kernels_of(params):
  """All kernels as one vector, or one for each step."""
  first, second = (params[name]["kernel"] for name in ("first", "second"))
  flat = first.reshape(*first.shape[:-2], -1), second
  return np.concatenate(flat, axis=-1)


def zeros(params):
  return list(np.sum(np.atleast_2d(kernels_of(params)) == 0, axis=-1))


def trajectory(solver, steps):
  """Params after every step, in one compiled scan."""

  def step(carry, _):
    params, state = carry
    updates, state = solver.update(gradient(params), state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  run = jax.jit(lambda start: jax.lax.scan(step, start, length=steps)[1])
  return run((PARAMS, solver.init(PARAMS)))


def end_of(solver, steps):
  return jax.tree.map(lambda x: x[-1], trajectory(solver, steps))


def cubic(t, sparsity, begin, end):
  """Zhu and Gupta's formula."""
  return sparsity * (1 - (1 - (t - begin) / (end - begin)) ** 3)


# The schedule.


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("begin,end", [(0, 40), (5, 33)])
def test_the_share_of_zeros_follows_the_cubic_formula(begin, end, every):
  solver = optax.chain(
    optax.sgd(0.05, momentum=0.9),
    baselines.gradual_pruning(0.9, begin=begin, end=end, every=every),
  )
  expected, now = [], 0
  for t in range(60):
    if begin <= t <= end and ((t - begin) % every == 0 or t == end):
      now = SIZE - round((1 - cubic(t, 0.9, begin, end)) * SIZE)
    expected.append(now)
  found = zeros(trajectory(solver, 60))
  assert found == expected
  assert found[-1] == round(0.9 * SIZE)


def by_hand(steps, rate, momentum, begin, end, every, sparsity):
  """SGD and pruning in NumPy, over all kernels as one vector."""
  flat = jax.flatten_util.ravel_pytree
  x, unravel = flat(PARAMS)
  x, target = np.asarray(x, float), np.asarray(flat(TARGETS)[0], float)
  prunable = np.asarray(
    flat(
      jax.tree.map(
        lambda x, s: jnp.full(x.shape, float(s)),
        PARAMS,
        rewa_jax.kernels(PARAMS),
      )
    )[0]
  ).astype(bool)
  pruned, buffer = np.zeros(x.size, bool), 0
  for t in range(steps):
    buffer = momentum * buffer + (x - target)
    x = np.where(pruned, 0, x - rate * buffer)
    if begin <= t <= end and ((t - begin) % every == 0 or t == end):
      kept = round((1 - cubic(t, sparsity, begin, end)) * prunable.sum())
      size = np.where(prunable, np.abs(x), np.inf)
      pruned = np.zeros(x.size, bool)
      pruned[np.argsort(size, kind="stable")[: prunable.sum() - kept]] = True
      x = np.where(pruned, 0, x)
  return unravel(jnp.asarray(x, jnp.float32))


def test_the_smallest_weights_go_and_the_others_train_on():
  begin, end, every = 3, 50, 4
  solver = optax.chain(
    optax.sgd(0.05, momentum=0.8),
    baselines.gradual_pruning(0.7, begin=begin, end=end, every=every),
  )
  expected = by_hand(80, 0.05, 0.8, begin, end, every, 0.7)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    end_of(solver, 80),
    expected,
  )


@pytest.mark.parametrize(
  "optimizer", [optax.sgd(0.05, momentum=0.95), optax.adamw(0.05)]
)
def test_pruned_weights_stay_zero_whatever_the_momentum(optimizer):
  solver = optax.chain(
    optimizer, baselines.gradual_pruning(0.8, begin=2, end=30, every=5)
  )
  history = kernels_of(trajectory(solver, 60))
  assert (history[1:][history[:-1] == 0] == 0).all()
  assert np.sum(history[-1] == 0) == round(0.8 * SIZE)


def test_the_survivors_end_where_the_loss_is_stationary():
  solver = optax.chain(
    optax.sgd(0.1), baselines.gradual_pruning(0.5, begin=0, end=20, every=1)
  )
  end = end_of(solver, 300)
  for name in ("first", "second"):
    x, target = end[name]["kernel"], TARGETS[name]["kernel"]
    alive = np.asarray(x != 0)
    assert 0 < alive.sum() < alive.size
    np.testing.assert_allclose(x[alive], target[alive], rtol=1e-5)


def test_plain_leaves_are_untouched():
  pruning = baselines.gradual_pruning(1.0, begin=0, end=5, every=1)
  pruned = end_of(optax.chain(optax.sgd(0.1), pruning), 20)
  plain = end_of(optax.sgd(0.1), 20)
  np.testing.assert_array_equal(pruned["first"]["bias"], plain["first"]["bias"])
  assert zeros(pruned) == [SIZE]


def test_scope_and_mask_say_what_the_share_is_of():
  def end(**options):
    pruning = baselines.gradual_pruning(0.5, begin=0, end=5, every=1, **options)
    return end_of(optax.chain(optax.sgd(0.01), pruning), 6)

  # The second kernel is the larger by far.
  together = end()
  assert jnp.sum(together["first"]["kernel"] == 0) > 77 / 2 + 5
  each = end(scope="leaf")
  assert jnp.sum(each["first"]["kernel"] == 0) == 77 - round(77 / 2)
  assert jnp.sum(each["second"]["kernel"] == 0) == 25
  one = end(mask={"first": False, "second": True})
  assert jnp.sum(one["first"]["kernel"] == 0) == 0
  assert jnp.sum(one["second"]["kernel"] == 0) == 25
  none = end(mask=lambda params: jax.tree.map(lambda _: False, params))
  assert zeros(none) == [0]


def test_weights_that_start_at_zero_stay_until_the_share_needs_them():
  params = {"a": {"kernel": jnp.zeros(4)}, "b": {"kernel": jnp.arange(1.0, 5)}}
  solver = baselines.gradual_pruning(0.75, begin=0, end=2, every=1)
  updates = jax.tree.map(jnp.zeros_like, params)
  state, left = solver.init(params), []
  for _ in range(3):
    _, state = solver.update(updates, state, params)
    masks = state.masks
    left.append([int(masks[name]["kernel"].sum()) for name in ("a", "b")])
  assert left == [[4, 4], [0, 3], [0, 2]]


def test_a_layer_of_zeros_trains_after_a_warm_up_from_a_share_of_zero():
  params = {"kernel": jnp.zeros(4)}
  solver = optax.chain(
    optax.sgd(1.0),
    baselines.gradual_pruning(0.5, begin=0, end=1000, every=100),
  )
  state = solver.init(params)
  # No gradient reaches it before the second update.
  for gradient in (0.0, -1.0):
    gradients = {"kernel": jnp.full(4, gradient)}
    updates, state = solver.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_array_equal(params["kernel"], np.ones(4))


def test_what_is_pruned_counts_before_what_is_zero():
  solver = baselines.gradual_pruning(0.5, begin=0, end=8, every=1)
  params = {"w": jnp.array([3.0, 4.0, 1.0, 2.0])}
  state = solver.init(params)._replace(count=jnp.int32(7))
  # The later half is pruned; then the others pass through zero.
  for updates in (jnp.zeros(4), -params["w"]):
    _, state = solver.update({"w": updates}, state, params)
    assert state.masks["w"].tolist() == [True, True, False, False]


# As a transformation.


def test_a_step_at_a_time_is_the_same_as_a_compiled_scan():
  solver = optax.chain(
    optax.sgd(0.05), baselines.gradual_pruning(0.9, begin=2, end=9, every=3)
  )
  params, state = PARAMS, solver.init(PARAMS)
  update = jax.jit(solver.update)
  for _ in range(12):
    updates, state = update(gradient(params), state, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    params,
    end_of(solver, 12),
  )


def test_sparsity_may_be_traced():
  def end(sparsity):
    pruning = baselines.gradual_pruning(sparsity, begin=1, end=9, every=2)
    solver = optax.chain(optax.sgd(0.05), pruning)
    return end_of(solver, 12)

  grid = [0.0, 0.5, 0.97, 1.0]
  together = jax.vmap(end)(jnp.array(grid))
  for i, sparsity in enumerate(grid):
    one = end(sparsity)
    assert zeros(one) == [SIZE - round((1 - sparsity) * SIZE)]
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5),
      together,
      one,
    )


def test_states_under_vmap_are_ranked_when_one_is_due_alone():
  solver = baselines.gradual_pruning(0.5, begin=1, end=9, every=2)
  params = {"kernel": jax.random.normal(jax.random.key(0), (3, 50, 40))}
  state = jax.vmap(solver.init)(params)
  update = jax.jit(jax.vmap(solver.update))
  # The search is a loop within the one that may have no turn.
  depths = loops.depths(update, params, state, params)
  assert depths.count(0) == 1 and max(depths) > 0
  for count, expected in ((0, 0), (1, 0), (2, 0), (9, 1000)):
    due = state._replace(count=jnp.array([0, 0, count]))
    masks = update(params, due, params)[1].masks["kernel"]
    assert jnp.sum(~masks, axis=(1, 2)).tolist() == [0, 0, expected]


def test_the_masks_of_the_state_are_what_was_pruned():
  solver = baselines.gradual_pruning(0.5, begin=0, end=4, every=1)
  params, state = PARAMS, solver.init(PARAMS)
  for _ in range(5):
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = solver.update(zero, state, params)
    params = optax.apply_updates(params, updates)
  assert state.count == 5
  for name in ("first", "second"):
    np.testing.assert_array_equal(
      state.masks[name]["kernel"], params[name]["kernel"] != 0
    )
  assert state.masks["first"]["bias"] == optax.MaskedNode()
  optax.tree.map_params(solver, lambda leaf: leaf, state)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_keep_the_dtype_of_params(dtype):
  params = {"w": jnp.array([1.0, -2.0, 0.1], dtype)}
  solver = baselines.gradual_pruning(0.5, begin=0, end=1)
  updates, _ = solver.update(
    {"w": jnp.zeros(3, jnp.float32)}, solver.init(params), params
  )
  assert updates["w"].dtype == dtype


def test_leaves_without_update_are_pruned_too():
  params = {"w": jnp.array([1.0, -2.0, 0.1]), "bias": jnp.ones(2)}
  solver = baselines.gradual_pruning(1.0, begin=0, end=1)
  state = solver.init(params)
  for _ in range(2):
    updates, state = solver.update({"w": None, "bias": None}, state, params)
  assert updates["bias"] is None
  np.testing.assert_array_equal(updates["w"], -params["w"])


def test_all_numbers_may_be_injected():
  def end(make):
    pruning = make(sparsity=0.9, begin=2, end=9, every=3)
    return end_of(optax.chain(optax.sgd(0.05), pruning), 12)

  wanted = end(baselines.gradual_pruning)
  injected = end(optax.inject_hyperparams(baselines.gradual_pruning))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), injected, wanted
  )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_masks_and_updates_are_sharded_as_weights_are(axis_type):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
  params = {"kernel": jnp.arange(-32.0, 32).reshape(16, 4)}
  sharded = jax.device_put(params, NamedSharding(mesh, P("x")))
  solver = baselines.gradual_pruning(0.5, begin=0, end=1)

  @jax.jit
  def prune(params):
    state = solver.init(params)._replace(count=jnp.int32(1))
    return solver.update(params, state, params)

  found = prune(sharded)
  jax.tree.map(np.testing.assert_array_equal, found, prune(params))
  for leaf in (found[0]["kernel"], found[1].masks["kernel"]):
    assert leaf.sharding.is_equivalent_to(sharded["kernel"].sharding, 2)


# Bad input.


def test_bad_input_is_named():
  make = baselines.gradual_pruning
  for arguments, message in [
    (dict(sparsity=1.5, begin=0, end=1), "sparsity must be .* <= 1, got 1.5"),
    (dict(sparsity=0.5, begin=-1, end=1), "begin must be .* >= 0, got -1"),
    (dict(sparsity=0.5, begin=3, end=3), "end - begin must be .* >= 1, got 0"),
    (
      dict(sparsity=0.5, begin=0, end=3, every=0),
      "every must be .* >= 1, got 0",
    ),
    (dict(sparsity=0.5, begin=0, end=3, scope="row"), "scope must be .*'row'"),
  ]:
    with pytest.raises(ValueError, match=message):
      make(**arguments)
  solver = make(0.5, begin=0, end=1)
  state = solver.init(PARAMS)
  with pytest.raises(ValueError, match="params"):
    solver.update(PARAMS, state)
  with pytest.raises(ValueError, match="differ at second/kernel"):
    solver.update({**PARAMS, "second": {"kernel": jnp.ones(3)}}, state, PARAMS)
  with pytest.raises(ValueError, match="No leaf is named"):
    solver.init({"scale": jnp.ones(3)})
  with pytest.raises(TypeError, match="kernel is of type int32"):
    solver.init({"kernel": jnp.arange(3)})
