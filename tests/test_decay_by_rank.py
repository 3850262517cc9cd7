import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rewa_jax
from rewa_jax import baselines
from tests import loops

STEPS = 400
RATE = optax.warmup_cosine_decay_schedule(0.0, 0.2, STEPS // 10, STEPS)
REWA = rewa_jax.Rewa(k=3, m=1)
KEY = jax.random.key(0)

# Six of the 24 weights have somewhere to go.
TARGETS = {
  "a": {"kernel": np.zeros((4, 4), np.float32), "bias": np.ones(4, np.float32)},
  "b": {"kernel": np.zeros((4, 2), np.float32)},
}
TARGETS["a"]["kernel"][[0, 1, 2, 3], [3, 0, 2, 1]] = 2.0, -1.5, 1.0, -1.0
TARGETS["b"]["kernel"][[1, 3], [0, 1]] = -1.2, 0.9
NEEDED = jax.tree.map(lambda x: x != 0, TARGETS)
START = jax.tree.map(
  lambda x: np.where(x == 0, 0.5, 0.6 * np.sign(x)).astype(x.dtype), TARGETS
)


def loss(weights):
  # What is not needed is welcome, but less so.
  return sum(
    0.5 * jnp.sum(jnp.where(t == 0, 0.1 * (x - 0.6) ** 2, (x - t) ** 2))
    for x, t in zip(jax.tree.leaves(weights), jax.tree.leaves(TARGETS))
  )


def train(solver, method=REWA, start=START, steps=STEPS):
  """Trains latents in one compiled scan; returns them and the state."""
  latents = method.to_latents(jax.tree.map(jnp.asarray, start))

  def step(carry, _):
    latents, state = carry
    grads = jax.grad(lambda latents: loss(method.to_weights(latents)))(latents)
    updates, state = solver.update(grads, state, latents)
    return (optax.apply_updates(latents, updates), state), None

  run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
  return run((latents, solver.init(latents)))


def kernels_of(tree):
  return np.concatenate([np.ravel(tree[name]["kernel"]) for name in "ab"])


# What it is for.


def test_a_network_ends_at_the_sparsity_asked_for():
  solver = rewa_jax.sgd(RATE, REWA, sparsity=0.75, steps=STEPS)
  latents, state = train(solver)
  weights, cut = rewa_jax.finalize(latents, 0.75, method=REWA)
  assert cut.sparsity.total_nonzero == 6
  np.testing.assert_array_equal(kernels_of(weights) != 0, kernels_of(NEEDED))
  # Nothing in use was cut.
  assert cut.largest_cut < 1e-3 < 0.5 < cut.smallest_kept
  before = loss(REWA.to_weights(latents))
  np.testing.assert_allclose(loss(weights), before, rtol=1e-3)
  # What there is to log says so too.
  assert optax.tree.get(state, "scheduled") == 0.75
  assert optax.tree.get(state, "vanished") == 0.75


@pytest.mark.parametrize(
  "method",
  [
    rewa_jax.Rewa(9, 2),
    baselines.spred(),
    *(
      pytest.param(method, marks=pytest.mark.slow)
      for method in (
        rewa_jax.Rewa(4, eps=1e-3, gradient="latent"),
        baselines.deep_weight_factorization(3),
        baselines.HadamardDifference(2),
        baselines.PowerPropagation(2.0),
      )
    ),
  ],
  ids=str,
)
def test_every_method_whose_strength_is_a_weight_decay_takes_a_sparsity(method):
  latents, _ = train(
    rewa_jax.sgd(RATE, method, sparsity=0.75, steps=STEPS), method
  )
  weights, cut = rewa_jax.finalize(latents, 0.75, method=method)
  np.testing.assert_array_equal(kernels_of(weights) != 0, kernels_of(NEEDED))
  assert cut.largest_cut < 1e-2 < cut.smallest_kept


def test_adam_takes_a_sparsity():
  rewa = rewa_jax.Rewa(3, eps=1e-3)
  rate = optax.cosine_decay_schedule(0.02, STEPS)
  solver = rewa_jax.adamw(rate, rewa, sparsity=0.75, steps=STEPS)
  latents, _ = train(solver, rewa)
  weights, cut = rewa_jax.finalize(latents, 0.75, method=rewa)
  np.testing.assert_array_equal(kernels_of(weights) != 0, kernels_of(NEEDED))
  # Adam holds what has a steady gradient at a latent of 1 / high, here 0.2.
  assert cut.largest_cut < 0.05 < 0.5 < cut.smallest_kept


@pytest.mark.parametrize(
  "solver, sparsity, expected",
  [
    (rewa_jax.sgd, 0.75, 0.0058 / (3 * 0.5)),
    (functools.partial(rewa_jax.sgd, momentum=0.9), 0.75, 0.00058 / (3 * 0.5)),
    (rewa_jax.adamw, 0.75, 0.14 / (3 * 0.05**0.5)),
    (rewa_jax.adamw, 0.95, 0.14 / (3 * 0.05**0.5)),
    (rewa_jax.adamw, 0.99, 0.14 / (3 * 0.1)),
  ],
)
def test_the_mild_decay_is_by_default_as_documented(solver, sparsity, expected):
  latents = {"kernel": jnp.ones((2, 2))}
  solver = solver(0.1, REWA, sparsity=sparsity, steps=1000)
  # Long before the first ranking.
  updates, _ = solver.update(
    {"kernel": jnp.zeros((2, 2))}, solver.init(latents), latents
  )
  np.testing.assert_allclose(updates["kernel"], -0.1 * expected, rtol=1e-5)


def test_the_drop_in_takes_it_in_the_place_of_its_decay():
  inner = optax.chain(
    optax.trace(0.0),
    rewa_jax.decay_by_rank(REWA, 0.75, RATE, STEPS, low=7e-3),
    optax.scale_by_learning_rate(RATE),
  )
  solver = rewa_jax.reparameterize(inner, REWA)
  params = jax.tree.map(jnp.asarray, START)

  @jax.jit
  def run(params, state):
    def step(carry, _):
      params, state = carry
      updates, state = solver.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), length=STEPS)[0]

  params, _ = run(params, solver.init(params))
  latents, _ = train(
    rewa_jax.sgd(RATE, REWA, sparsity=0.75, steps=STEPS, weight_decay=7e-3)
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5),
    params,
    REWA.to_weights(latents),
  )


def test_linen_and_nnx_take_it():
  inputs = jax.random.normal(jax.random.key(0), (8, 8))
  steps, rate = 20, 0.05
  linen = rewa_jax.linen.Reparameterized(nn.Dense(4), REWA)
  variables = linen.init(jax.random.key(1), inputs)
  solver = rewa_jax.sgd(rate, REWA, sparsity=0.5, steps=steps)
  state = solver.init(variables)
  bare = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
  # The same start.
  bare.kernel[...] = REWA.to_weights(variables)["params"]["kernel"]
  model = rewa_jax.nnx.reparameterize(bare, REWA)
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)

  @jax.jit
  def step(variables, state):
    grads = jax.grad(lambda v: jnp.mean(linen.apply(v, inputs) ** 2))(variables)
    updates, state = solver.update(grads, state, variables)
    return optax.apply_updates(variables, updates), state

  @nnx.jit
  def nnx_step(model, optimizer):
    grads = nnx.grad(lambda model: jnp.mean(model(inputs) ** 2))(model)
    optimizer.update(model, grads)

  for _ in range(steps):
    variables, state = step(variables, state)
    nnx_step(model, optimizer)
  weights = REWA.to_weights(variables)["params"]["kernel"]
  np.testing.assert_allclose(weights, model.weights().kernel[...], rtol=1e-4)
  strong = optax.tree.get(state, "strong")["params"]["kernel"]
  assert strong.sum() == 16


# What it does, step by step.


def test_it_is_the_formula(x64):
  """Beside a few lines of NumPy that sort."""
  del x64
  low, high, begin, end, every, sparsity = 0.1, 2.0, 3, 20, 4, 0.6
  rng = np.random.default_rng(0)
  ys = [rng.normal(size=(4, 3)), rng.normal(size=9)]
  latents = {"a": {"kernel": ys[0]}, "b": {"kernel": ys[1], "bias": np.ones(2)}}
  latents = jax.tree.map(jnp.asarray, latents)
  solver = optax.chain(
    rewa_jax.decay_by_rank(
      *(REWA, sparsity, 0.1, 30),
      **{"low": low, "high": high, "begin": begin, "end": end, "every": every},
    ),
    optax.scale(-0.1),
  )
  state, update = solver.init(latents), jax.jit(solver.update)
  strong = [np.zeros(y.shape, bool) for y in ys]
  for t in range(30):
    grads = [rng.normal(size=y.shape) for y in ys]
    if t >= begin and ((t - begin) % every == 0 or t == end):
      u = np.clip((t - begin) / (end - begin), 0, 1)
      gone = 21 - round(21 * (1 - sparsity * (1 - (1 - u) ** 3)))
      order = np.sort(np.abs(np.concatenate([y.ravel() for y in ys])))
      cut = order[gone - 1] if gone else -1.0
      strong = [np.abs(y) <= cut for y in ys]
    ys = [
      y - 0.1 * (g + np.where(s, high, low) * y)
      for y, g, s in zip(ys, grads, strong)
    ]
    grads = {
      "a": {"kernel": grads[0]},
      "b": {"kernel": grads[1], "bias": np.zeros(2)},
    }
    updates, state = update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
    for name, y in zip("ab", ys):
      np.testing.assert_allclose(latents[name]["kernel"], y, rtol=1e-12)
  np.testing.assert_array_equal(latents["b"]["bias"], np.ones(2))


@pytest.mark.slow
@settings(max_examples=30)
@given(
  sparsity=st.floats(0, 0.99),
  every=st.integers(1, 7),
  count=st.integers(0, 100),
)
def test_as_many_decay_strongly_as_the_schedule_says(sparsity, every, count):
  solver = rewa_jax.decay_by_rank(
    REWA, sparsity, 0.1, 100, low=0.0, every=every
  )
  latents = {"kernel": jnp.linspace(-1, 1, 37)}
  state = solver.init(latents)._replace(count=jnp.int32(count))
  _, after = solver.update(latents, state, latents)
  since = count - 10
  expected = 0
  if since >= 0 and (since % every == 0 or count == 70):
    u = min(since / 60, 1)
    expected = 37 - round(37 * (1 - sparsity * (1 - (1 - u) ** 3)))
  assert abs(int(after.strong["kernel"].sum()) - expected) <= (
    # Float32's product may round a half the other way.
    0 if expected == 0 else 1
  )


def test_a_weight_that_its_gradient_holds_leaves_the_smallest_again():
  # Small at first, but needed: it has the largest target of all.
  start = jax.tree.map(np.copy, START)
  start["a"]["kernel"][0, 3] = 0.1
  solver = rewa_jax.sgd(
    RATE, rewa_jax.Rewa(3), sparsity=0.75, steps=STEPS, weight_decay=1e-3
  )
  first = train(solver, rewa_jax.Rewa(3), start, steps=STEPS // 10 + 1)
  _, state = first
  latents, last = train(solver, rewa_jax.Rewa(3), start)
  strong = [optax.tree.get(s, "strong")["a"]["kernel"] for s in (state, last)]
  assert not strong[1][0, 3]
  assert rewa_jax.power(latents["a"]["kernel"][0, 3], 3) > 1.5


def test_the_strong_decay_has_its_budget_after_the_last_new_target():
  params = {"kernel": jnp.ones((2, 2))}
  solver = rewa_jax.decay_by_rank(REWA, 0.75, RATE, STEPS, low=0.0, end=240)
  # A long one: its ranking at 240 is the next to come.
  state = solver.init(params)._replace(count=jnp.int32(240))
  updates, _ = solver.update({"kernel": jnp.zeros((2, 2))}, state, params)
  # Of equal ones the first decay strongly.
  assert updates["kernel"].ravel()[-1] == 0
  decay, rates = updates["kernel"][0, 0], map(RATE, range(240, STEPS))
  np.testing.assert_allclose(3 * decay * sum(rates), 10.0, rtol=1e-4)


# What sparsity is a share of.


def strong_of(sparsity, latents, method=REWA, **options):
  solver = rewa_jax.decay_by_rank(
    method, sparsity, 0.1, 100, low=0.0, begin=0, end=1, **options
  )
  state = solver.init(latents)._replace(count=jnp.int32(50))
  _, state = solver.update(latents, state, latents)
  return state.strong


RANDOM = {
  "a": {"kernel": jax.random.normal(jax.random.key(0), (8, 6))},
  "b": {"kernel": 0.01 * jax.random.normal(jax.random.key(1), (4, 8))},
}


def test_a_scope_of_leaves_and_a_tree_of_shares():
  each = strong_of(0.25, RANDOM, scope="leaf")
  assert [each[name]["kernel"].sum() for name in "ab"] == [12, 8]
  shares = strong_of({"a": 0.5, "b": 0.75}, RANDOM, scope="leaf")
  assert [shares[name]["kernel"].sum() for name in "ab"] == [24, 24]
  # Nearly all of b is smaller than nearly all of a.
  together = strong_of(0.4, RANDOM)
  assert [together[name]["kernel"].sum() for name in "ab"] == [1, 31]


def test_of_every_four_inputs_two_decay_strongly():
  strong = strong_of(0.5, RANDOM, scope="2:4")
  for name in "ab":
    size = np.abs(RANDOM[name]["kernel"])
    blocks = size.reshape(-1, 4, size.shape[1])
    expected = np.argsort(np.argsort(blocks, axis=1), axis=1) < 2
    np.testing.assert_array_equal(
      strong[name]["kernel"], expected.reshape(size.shape)
    )


def test_groups_decay_together():
  strong = strong_of(0.5, RANDOM, groups="output")
  for name in "ab":
    columns = strong[name]["kernel"]
    np.testing.assert_array_equal(columns.any(0), columns.all(0))
  # Of 14 columns 7; b's eight are the smaller.
  assert strong["b"]["kernel"].all(0).sum() == 7
  latents = baselines.Gated("output").to_latents(RANDOM)
  gated = strong_of(0.5, latents, baselines.Gated("output"), groups="output")
  jax.tree.map(np.testing.assert_array_equal, gated, strong_of_weights(0.5))


def strong_of_weights(sparsity):
  return strong_of(sparsity, RANDOM, rewa_jax.Rewa(1), groups="output")


@pytest.mark.parametrize("make", [rewa_jax.sgd, rewa_jax.adamw])
def test_in_a_long_run_the_smallest_still_decay_most(make):
  solver = make(0.1, REWA, sparsity=0.5, steps=100_000)
  latents = {"kernel": jnp.ones(2)}
  strong = {"kernel": jnp.array([True, False])}
  state = optax.tree.set(solver.init(latents), strong=strong)
  updates, _ = solver.update({"kernel": jnp.zeros(2)}, state, latents)
  most, least = updates["kernel"]
  np.testing.assert_allclose(most / least, 10, rtol=1e-5)


def test_in_a_long_run_not_many_more_vanish_than_were_asked_for():
  """By itself the mild decay would bring half of them to zero."""
  steps, targets = 2000, jnp.geomspace(0.02, 2.0, 100)
  rate = optax.warmup_cosine_decay_schedule(0.0, 0.2, 200, steps)
  options = {"weight_decay": 0.2, "sparsity": 0.1, "steps": steps}
  solver = rewa_jax.sgd(rate, REWA, **options)

  def loss(latents):
    return 0.5 * jnp.sum((REWA.to_weights(latents)["w"] - targets) ** 2)

  def step(carry, _):
    latents, state = carry
    updates, state = solver.update(jax.grad(loss)(latents), state, latents)
    return (optax.apply_updates(latents, updates), state), None

  latents = REWA.to_latents({"w": targets})
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
  latents, state = run((latents, solver.init(latents)))
  assert 0.1 <= optax.tree.get(state, "vanished") <= 0.4
  small = jnp.abs(REWA.to_weights(latents)["w"]) < 1e-3
  assert 0.1 <= small.mean() <= 0.4


@pytest.mark.parametrize("vanished, rests", [(0.64, False), (0.66, True)])
def test_the_mild_decay_rests_while_too_few_weights_are_left(vanished, rests):
  solver = rewa_jax.sgd(0.1, REWA, weight_decay=0.1, sparsity=0.5, steps=STEPS)
  latents = {"kernel": jnp.ones(2)}
  state = optax.tree.set(
    solver.init(latents),
    count=jnp.int32(STEPS - 1),
    strong={"kernel": jnp.array([True, False])},
    scheduled=jnp.float32(0.5),
    vanished=jnp.float32(vanished),
  )
  updates, _ = solver.update({"kernel": jnp.zeros(2)}, state, latents)
  strongly, mildly = updates["kernel"]
  assert strongly < -0.01
  assert (mildly == 0) == rests


def test_groups_are_those_of_the_bare_model():
  def groups(path, leaf):
    return {"kernel": (1,)}[path]

  model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
  model = rewa_jax.nnx.reparameterize(model, REWA)
  solver = rewa_jax.decay_by_rank(REWA, 0.5, 0.1, 100, low=0, groups=groups)
  assert solver.init(nnx.state(model, nnx.Param)).count == 0


# As a transformation.


def test_one_vmap_trains_a_grid_of_targets():
  @jax.jit
  def end(sparsity):
    solver = rewa_jax.sgd(RATE, REWA, sparsity=sparsity, steps=STEPS)
    latents, _ = train(solver)
    return rewa_jax.finalize(latents, sparsity, method=REWA)

  weights, cut = jax.vmap(end)(jnp.array([0.5, 0.75]))
  assert cut.sparsity.total_nonzero.tolist() == [12, 6]
  one, _ = end(0.75)
  np.testing.assert_allclose(weights["a"]["kernel"][1], one["a"]["kernel"])


@pytest.mark.slow
def test_states_under_vmap_are_as_each_alone_and_ranked_when_due_alone():
  solver = rewa_jax.sgd(0.1, REWA, sparsity=0.5, steps=100)
  latents = REWA.to_latents({"kernel": jax.random.normal(KEY, (3, 50, 40))})

  def step(_, carry):
    latents, state = carry
    updates, state = solver.update(latents, state, latents)
    return optax.apply_updates(latents, updates), state

  # Out of step: each is ranked at updates of its own.
  state = jax.vmap(solver.init)(latents)
  counts = jnp.array([0, 30, 57])
  start = latents, optax.tree.set(state, count=counts)
  many = jax.jit(jax.vmap(step, in_axes=(None, 0)))
  ends = jax.lax.fori_loop(0, 20, many, start)
  alone = jax.jit(step)
  for i in range(3):
    one = jax.tree.map(lambda x, i=i: x[i], start)
    for _ in range(20):
      one = alone(0, one)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6),
      jax.tree.map(lambda x, i=i: x[i], ends),
      one,
    )
  # Where nothing is due it should cost nothing: the search is a loop in a loop.
  depths = loops.depths(many, 0, start)
  assert depths.count(0) == 1 and max(depths) > 0


@pytest.mark.slow
def test_an_update_has_derivatives():
  latents = REWA.to_latents({"kernel": jax.random.normal(KEY, (5, 4))})

  def squares(low):
    solver = rewa_jax.decay_by_rank(
      REWA, 0.5, 0.1, 100, low=low, high=1.0, begin=0, end=1
    )
    state = solver.init(latents)._replace(count=jnp.int32(50))
    updates, _ = solver.update(latents, state, latents)
    return 0.5 * jnp.sum(updates["kernel"] ** 2)

  y = latents["kernel"]
  kept = jnp.abs(y) > jnp.sort(jnp.abs(y).ravel())[9]
  expected = jnp.sum(jnp.where(kept, 1.25 * y**2, 0))
  np.testing.assert_allclose(jax.grad(squares)(0.25), expected, rtol=1e-5)


def test_it_is_made_within_jit():
  def strong(rate):
    solver = rewa_jax.decay_by_rank(
      REWA, 0.5, optax.constant_schedule(rate), 100, low=0.1, high=2.0, begin=0
    )
    latents = {"kernel": jnp.arange(4.0)}
    updates, _ = solver.update(latents, solver.init(latents), latents)
    return updates["kernel"]

  rates = jnp.array([0.1, 0.2])
  expected = [strong(0.1), strong(0.2)]
  np.testing.assert_allclose(jax.jit(jax.vmap(strong))(rates), expected)


def test_hyperparameters_are_injected():
  solver = optax.inject_hyperparams(
    rewa_jax.rewa_sgd, static_args=("steps", "mask")
  )(RATE, k=3, m=1, sparsity=0.75, steps=STEPS)
  latents, state = train(solver)
  _, cut = rewa_jax.finalize(latents, 0.75, method=REWA)
  assert cut.largest_cut < 1e-3
  assert state.hyperparams["sparsity"] == 0.75
  solver = optax.inject_hyperparams(rewa_jax.rewa_sgd)(
    RATE, k=3, m=1, sparsity=0.75, steps=STEPS
  )
  with pytest.raises(TypeError, match="name steps in its static_args"):
    train(solver)


def test_of_an_injected_run_the_strong_decay_is_that_of_the_schedule():
  ask = {"k": 3, "m": 1, "sparsity": 0.75, "steps": STEPS}
  static = ("learning_rate", "steps", "mask")
  inject = optax.inject_hyperparams(rewa_jax.rewa_sgd, static_args=static)
  injected, _ = train(inject(RATE, **ask))
  plain, _ = train(rewa_jax.rewa_sgd(RATE, **ask))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4), injected, plain
  )


def test_a_state_is_plain_arrays_that_are_saved_and_restored():
  solver = rewa_jax.sgd(RATE, REWA, sparsity=0.75, steps=STEPS)
  _, state = train(solver, steps=60)
  saved = serialization.msgpack_restore(serialization.to_bytes(state))
  restored = serialization.from_state_dict(state, saved)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  optax.tree.map_params(solver, lambda leaf: leaf, state)


def test_state_and_params_are_donated():
  solver = rewa_jax.sgd(0.1, REWA, sparsity=0.5, steps=100)
  latents = REWA.to_latents(jax.tree.map(jnp.asarray, START))
  state = solver.init(latents)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(latents, state):
    updates, state = solver.update(latents, state, latents)
    return optax.apply_updates(latents, updates), state

  for _ in range(61):
    latents, state = step(latents, state)
  assert optax.tree.get(state, "scheduled") > 0.4


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_weights_spread_over_devices_are_ranked_as_on_one(axis_type):
  mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(axis_type,) * 2)
  latents = {"kernel": jax.random.normal(KEY, (8, 16))}
  spread = jax.device_put(latents, NamedSharding(mesh, P("x", "y")))
  solver = rewa_jax.decay_by_rank(REWA, 0.9, 0.1, 100, low=0.0, begin=0, end=1)

  def step(latents):
    state = solver.init(latents)._replace(count=jnp.int32(50))
    return solver.update(latents, state, latents)

  updates, state = jax.jit(step)(latents)
  spread_updates, spread_state = jax.jit(step)(spread)
  np.testing.assert_array_equal(
    state.strong["kernel"], spread_state.strong["kernel"]
  )
  np.testing.assert_allclose(
    updates["kernel"], spread_updates["kernel"], rtol=1e-6
  )
  assert not spread_state.strong["kernel"].sharding.is_fully_replicated


def test_a_state_lies_as_its_latents_do_on_an_explicit_mesh():
  mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
  latents = {"kernel": jax.random.normal(KEY, (8, 16))}
  solver = rewa_jax.sgd(0.1, REWA, sparsity=0.5, steps=100)
  with jax.set_mesh(mesh):
    spread = jax.device_put(latents, NamedSharding(mesh, P("x", "y")))
    state = solver.init(spread)
    updates, state = jax.jit(solver.update)(spread, state, spread)
  assert optax.tree.get(state, "strong")["kernel"].sharding == (
    spread["kernel"].sharding
  )
  alone, _ = solver.update(latents, solver.init(latents), latents)
  np.testing.assert_allclose(updates["kernel"], alone["kernel"], rtol=1e-6)


def test_updates_keep_the_dtype_of_params():
  latents = {"kernel": jnp.ones((4, 4), jnp.bfloat16)}
  solver = rewa_jax.sgd(RATE, REWA, sparsity=0.5, steps=STEPS)
  updates, _ = solver.update(latents, solver.init(latents), latents)
  assert updates["kernel"].dtype == jnp.bfloat16


# Bad input.


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(sparsity=1.5), "sparsity must be .* >= 0 and <= 1, got 1.5"),
    (dict(sparsity=1.0), "sparsity must be below 1"),
    (dict(steps=1), "steps must be .* >= 2, got 1"),
    (dict(begin=90, end=90), "end - begin must be .* >= 1, got 0"),
    (dict(end=100), "steps - end must be .* >= 1, got 0"),
    (dict(every=0), "every must be .* >= 1, got 0"),
    (dict(scope="row"), "'global', 'leaf' or n:m .*'row'"),
    (dict(scope="2:4"), "keeps 2 of every 4, a sparsity of 0.5, got .*0.9"),
    (dict(scope="4:2", sparsity=0.5), "0 < n <= m"),
    (dict(groups="layer"), "groups must be one of .*'layer'"),
    (dict(scope="2:4", groups="rows", sparsity=0.5), "exclude each other"),
    (dict(sparsity={"a": 0.5}), "scope must be 'leaf', got 'global'"),
    (dict(sparsity={"a": 2.0}, scope="leaf"), "sparsity at a must be .*2.0"),
    (dict(low=-1.0), "low must be"),
    (dict(low=1.0, high=0.5), "high = 0.5 is below low = 1:"),
    (dict(low=optax.linear_schedule(0, 9, 100), high=8), "is below low = 8.9"),
    (dict(high=0.01), "too little for the smallest weights to vanish"),
    (dict(high=50.0), "must be below 1"),
    (dict(steps=3), "must be below 1"),
  ],
)
def test_bad_arguments_are_named(options, message):
  options = {"sparsity": 0.9, "steps": 100, "low": 0.0} | options
  with pytest.raises(ValueError, match=message):
    rewa_jax.decay_by_rank(
      REWA, options.pop("sparsity"), 0.1, options.pop("steps"), **options
    )


def test_a_schedule_that_is_over_before_the_steps_are_is_said():
  schedule = optax.cosine_decay_schedule(0.1, 100)
  with pytest.raises(ValueError, match="from end = 210 on are all 0"):
    rewa_jax.sgd(schedule, REWA, sparsity=0.5, steps=300)


@pytest.mark.parametrize("through", [lambda f: f, jax.jit])
def test_a_part_of_a_tree_without_latents_is_left_alone(through):
  asked = rewa_jax.sgd(0.1, REWA, sparsity=0.5, steps=20)
  solver = optax.partition(
    {"sparse": asked, "plain": optax.sgd(0.1)}, {"a": "plain"}
  )
  params = {"a": {"kernel": jnp.ones(3)}}
  state = solver.init(params)
  for _ in range(5):
    updates, state = through(solver.update)(params, state, params)
  np.testing.assert_allclose(updates["a"]["kernel"], -0.1, rtol=1e-6)


def test_shares_of_leaves_that_do_not_exist_are_named():
  solver = rewa_jax.decay_by_rank(
    REWA, {"a": 0.5, "c": 0.5}, 0.1, 100, low=0.0, scope="leaf"
  )
  with pytest.raises(ValueError, match="sparsity has the leaves a, c, params"):
    solver.init(RANDOM)


def test_a_leaf_that_has_no_blocks_is_named():
  solver = rewa_jax.decay_by_rank(REWA, 0.5, 0.1, 100, low=0.0, scope="2:4")
  with pytest.raises(ValueError, match="kernel of shape .* 7 inputs, .* of 4"):
    solver.init({"kernel": jnp.ones((7, 4))})


def test_a_mask_that_selects_nothing_is_an_error():
  method = rewa_jax.Rewa(3, mask={"kernel": False})
  solver = rewa_jax.decay_by_rank(method, 0.5, 0.1, 100, low=0.0)
  with pytest.raises(ValueError, match="selects nothing"):
    solver.init({"kernel": jnp.ones((7, 4))})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "Give weight_decay, or sparsity and steps"),
    ({"sparsity": 0.5}, "go together, got sparsity=0.5, steps=None"),
    ({"weight_decay": 0.1, "steps": 5}, "go together, got sparsity=None"),
    ({"sparsity": {"a": 0.5}, "steps": 5}, "must be one number .*got a tree"),
  ],
)
def test_sgd_and_adamw_say_what_belongs_together(options, message):
  for optimizer in (rewa_jax.sgd, rewa_jax.adamw):
    with pytest.raises(ValueError, match=message):
      optimizer(0.1, REWA, **options)
