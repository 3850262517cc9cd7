import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rewa_jax
from tests import reference

REWA = rewa_jax.Rewa(k=3, m=1)
_rng = np.random.default_rng(0)
INPUTS = jnp.asarray(_rng.normal(size=(12, 4)), jnp.float32)
TARGETS = jnp.asarray(_rng.normal(size=(12, 3)), jnp.float32)
LATENTS = {
  "kernel": jnp.asarray(_rng.normal(size=(4, 3)), jnp.float32),
  "bias": jnp.zeros(3),
}


def loss(latents, k=3, inputs=INPUTS, targets=TARGETS):
  weights = rewa_jax.Rewa(k).to_weights(latents)
  outputs = inputs @ weights["kernel"] + weights["bias"]
  return jnp.mean((outputs - targets) ** 2)


def train(optimizer, steps=20, k=3):
  latents, state = LATENTS, optimizer.init(LATENTS)
  update = jax.jit(optimizer.update)
  for _ in range(steps):
    grads = jax.grad(loss)(latents, k)
    updates, state = update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
  return latents


def assert_same(one, other, rtol=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7),
    one,
    other,
  )


# What it does.


@pytest.mark.parametrize("k", [3, 5, 9])
def test_adaptive_step_leaves_the_saddle_that_holds_the_plain_gradient(k):
  """Example 3.2: f(x) = (x - 1)^2 from y = -1."""
  rate, steps = 0.01, 3000
  adaptive = optax.chain(rewa_jax.scale_by_rewa(k), optax.sgd(rate))

  def descend(optimizer, power):
    def f(y):
      return (power(y) - 1) ** 2

    def step(carry, _):
      y, state = carry
      updates, state = optimizer.update(jax.grad(f)(y), state, y)
      y = optax.apply_updates(y, updates)
      return (y, state), y

    start = jnp.float32(-1)
    return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[1]

  y = descend(adaptive, rewa_jax.Rewa(k, mask=None).to_weights)
  bound = 2 * (1 - 2 * rate / (k - 1)) ** np.arange(1, steps + 1)
  assert (jnp.abs(y - 1) <= bound + 1e-6).all()
  assert abs(y[-1] - 1) < 1e-6

  plain = descend(optax.sgd(rate), lambda y: rewa_jax.power(y, k))
  assert ((plain >= -1) & (plain <= 0)).all()


def test_eps_zero_is_exactly_the_power_m_also_at_zero():
  y, g = jnp.array([0.0, 1e-30, 0.5]), jnp.full(3, 2.0)
  for m, scale in [(0, [1, 1, 1]), (1, y), (2, y * y)]:
    transform = rewa_jax.scale_by_rewa(9, m)
    updates, _ = transform.update(g, transform.init(y), y)
    assert jnp.array_equal(updates, 2 * jnp.asarray(scale))


def test_zeros_stay_for_m_above_zero_and_may_leave_for_m_zero():
  y, g = jnp.zeros(2), jnp.ones(2)
  for eps in (0.0, 1e-3):
    stays = rewa_jax.scale_by_rewa(3, 0.5, eps)
    assert not stays.update(g, stays.init(y), y)[0].any()
  leaves = rewa_jax.scale_by_rewa(3)
  assert leaves.update(g, leaves.init(y), y)[0].all()


def test_no_convention_overflows_where_the_update_does_not():
  """|y|^m times k |y|^(k-1) g is beyond float32, |y|^m g is not."""
  k, m, y, g = 8, 6, jnp.array([-9e4]), jnp.array([0.3])
  latent = rewa_jax.scale_by_rewa(k, m, 1e-3, gradient="latent")
  weight = rewa_jax.scale_by_rewa(k, m, 1e-3)
  chain_rule = k * jnp.abs(y) ** (k - 1) * g
  state = optax.EmptyState()
  for updates, _ in (
    latent.update(chain_rule, state, y),
    weight.update(g, state, y),
  ):
    np.testing.assert_allclose(updates, [0.3 * 9e4**6], rtol=1e-5)
  steep = rewa_jax.scale_by_rewa(9, eps=1.0)
  y, g = jnp.array([1e6, 1e-4]), jnp.full(2, 3e38)
  updates, _ = steep.update(g, state, y)
  np.testing.assert_allclose(updates, [3e38, 3e6], rtol=1e-5)


def test_plain_leaves_get_the_base_optimizer_without_decay():
  rewa = rewa_jax.Rewa(k=3, m=1, eps=1e-3)
  sgd = rewa_jax.sgd(0.1, rewa, weight_decay=0.5, momentum=0.9)
  adamw = rewa_jax.adamw(0.1, rewa, weight_decay=0.5)
  for ours, base in [(sgd, optax.sgd(0.1, 0.9)), (adamw, optax.adam(0.1))]:
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    state, base_state = ours.init(params), base.init(params)
    for g in (1.0, -0.3, 0.7):
      grads = {"kernel": jnp.full(2, g), "bias": jnp.full(2, g)}
      updates, state = ours.update(grads, state, params)
      wanted, base_state = base.update(grads, base_state, params)
      assert jnp.array_equal(updates["bias"], wanted["bias"])
      assert not jnp.array_equal(updates["kernel"], wanted["kernel"])


def test_power_one_is_the_base_optimizer():
  base = optax.chain(
    optax.trace(0.9),
    optax.add_decayed_weights(0.1, mask=rewa_jax.kernels),
    optax.scale(-0.05),
  )
  ours = rewa_jax.sgd(0.05, rewa_jax.Rewa(1), weight_decay=0.1, momentum=0.9)
  assert_same(train(ours, k=1), train(base, k=1))


def test_nesterov_follows_the_paper(x64):
  start = np.array([0.9, -0.4])
  result = reference.train(
    {"w": start},
    {"w": True},
    lambda params: {"w": params["w"] - 1},
    k=3,
    m=1,
    eps=1e-3,
    weight_decay=0.1,
    learning_rates=[0.05] * 50,
    momentum=0.9,
    nesterov=True,
  )
  rewa = rewa_jax.Rewa(k=3, m=1, eps=1e-3)
  solver = rewa_jax.sgd(
    0.05, rewa, weight_decay=0.1, momentum=0.9, nesterov=True
  )
  latents = rewa.to_latents({"w": jnp.asarray(start)})
  state = solver.init(latents)
  for _ in range(50):
    grads = {"w": rewa.to_weights(latents)["w"] - 1}
    updates, state = solver.update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
  np.testing.assert_allclose(
    rewa.to_weights(latents)["w"], result["w"], rtol=1e-12
  )


# How it composes.


def test_all_hyperparameters_can_be_injected():
  numbers = dict(learning_rate=0.05, k=3, m=1.0, eps=1e-3, weight_decay=0.1)
  for factory, more in [
    (rewa_jax.rewa_sgd, dict(momentum=0.9)),
    (rewa_jax.rewa_adamw, dict(b1=0.8, b2=0.99, adam_eps=1e-6)),
  ]:
    injected = optax.inject_hyperparams(factory)(**numbers, **more)
    hyperparams = injected.init(LATENTS).hyperparams
    assert set(numbers) | set(more) <= set(hyperparams)
    assert_same(train(injected), train(factory(**numbers, **more)), rtol=2e-5)


def test_injected_hyperparameters_can_be_changed_and_scheduled():
  injected = optax.inject_hyperparams(rewa_jax.rewa_sgd)(
    learning_rate=optax.linear_schedule(0.1, 0.0, 20),
    k=3,
    m=optax.linear_schedule(0.0, 2.0, 20),
    weight_decay=0.1,
  )
  state = injected.init(LATENTS)
  grads = jax.grad(loss)(LATENTS)
  before, state = injected.update(grads, state, LATENTS)
  state.hyperparams["weight_decay"] = jnp.float32(10.0)
  after, state = injected.update(grads, state, LATENTS)
  assert float(state.hyperparams["m"]) == pytest.approx(0.1)
  assert jnp.linalg.norm(after["kernel"]) > jnp.linalg.norm(before["kernel"])


def test_an_own_mask_is_static_when_injecting():
  injected = optax.inject_hyperparams(rewa_jax.rewa_sgd, static_args="mask")(
    0.05,
    3,
    weight_decay=0.1,
    mask=lambda params: {"kernel": True, "bias": False},
  )
  rewa = rewa_jax.Rewa(k=3)
  wanted = train(rewa_jax.sgd(0.05, rewa, weight_decay=0.1))
  assert_same(train(injected), wanted)


def test_all_that_is_no_method_can_be_injected():
  rewa = rewa_jax.Rewa(k=3, m=1, mask={"kernel": True, "bias": False})
  for factory, more in [
    (rewa_jax.sgd, dict(momentum=0.9)),
    (rewa_jax.adamw, dict(b1=0.8, b2=0.99, adam_eps=1e-6)),
  ]:
    numbers = dict(learning_rate=0.05, weight_decay=0.1) | more
    injected = optax.inject_hyperparams(factory)(method=rewa, **numbers)
    hyperparams = injected.init(LATENTS).hyperparams
    assert set(numbers) <= set(hyperparams)
    assert_same(train(injected), train(factory(method=rewa, **numbers)), 2e-5)


def test_schedules_of_learning_rate_and_weight_decay():
  rate = optax.linear_schedule(0.1, 0.01, 5)
  decay = optax.linear_schedule(0.0, 0.5, 5)
  solver = rewa_jax.sgd(rate, REWA, weight_decay=decay)
  latents, state = LATENTS, solver.init(LATENTS)
  for step in range(5):
    grads = jax.grad(loss)(latents)
    updates, state = solver.update(grads, state, latents)
    constant = rewa_jax.sgd(rate(step), REWA, weight_decay=decay(step))
    wanted, _ = constant.update(grads, constant.init(latents), latents)
    assert_same(updates, wanted)
    latents = optax.apply_updates(latents, updates)


def make(rewa=REWA):
  return rewa_jax.sgd(0.05, rewa, weight_decay=0.1, momentum=0.9)


def test_masked_and_partition_split_the_tree():
  labels = {"kernel": "sparse", "bias": "plain"}
  split = optax.partition(
    {"sparse": make(), "plain": optax.sgd(0.05, 0.9)}, labels
  )
  masks = {"kernel": True, "bias": False}, {"kernel": False, "bias": True}
  masked = optax.chain(
    optax.masked(make(dataclasses.replace(REWA, mask=None)), masks[0]),
    optax.masked(optax.sgd(0.05, 0.9), masks[1]),
  )
  assert_same(train(split), train(make()))
  assert_same(train(masked), train(make()))


def test_multi_steps_averages_gradients():
  solver, accumulating = make(), optax.MultiSteps(make(), 2)
  state, slow_state = solver.init(LATENTS), accumulating.init(LATENTS)
  halves = [
    jax.grad(loss)(LATENTS, 3, INPUTS[part], TARGETS[part])
    for part in (slice(0, 6), slice(6, 12))
  ]
  nothing, slow_state = accumulating.update(halves[0], slow_state, LATENTS)
  updates, slow_state = accumulating.update(halves[1], slow_state, LATENTS)
  wanted, state = solver.update(jax.grad(loss)(LATENTS), state, LATENTS)
  assert not any(leaf.any() for leaf in jax.tree.leaves(nothing))
  assert_same(updates, wanted, rtol=1e-5)


def test_apply_if_finite_skips_a_step_with_nan_gradients():
  solver = optax.apply_if_finite(make(), max_consecutive_errors=3)
  state = solver.init(LATENTS)
  broken = jax.tree.map(lambda y: jnp.full_like(y, jnp.nan), LATENTS)
  updates, state = solver.update(broken, state, LATENTS)
  assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
  updates, state = solver.update(jax.grad(loss)(LATENTS), state, LATENTS)
  wanted, _ = make().update(
    jax.grad(loss)(LATENTS), make().init(LATENTS), LATENTS
  )
  assert_same(updates, wanted)


def test_clipping_before_it_clips_gradients_of_weights():
  solver = optax.chain(optax.clip_by_global_norm(0.1), make())
  grads = jax.grad(loss)(LATENTS)
  scaled = jax.tree.map(lambda g: 0.1 * g / optax.tree.norm(grads), grads)
  updates, _ = solver.update(grads, solver.init(LATENTS), LATENTS)
  wanted, _ = make().update(scaled, make().init(LATENTS), LATENTS)
  assert_same(updates, wanted)


@pytest.mark.slow
def test_schedule_free_takes_it_for_its_base_optimizer():
  def schedule_free(base):
    return optax.contrib.schedule_free(base, learning_rate=0.05, b1=0.9)

  by_hand = optax.chain(
    rewa_jax.scale_by_rewa(3, 1, mask=rewa_jax.kernels),
    optax.add_decayed_weights(0.1, mask=rewa_jax.kernels),
    optax.sgd(0.05),
  )
  solver = schedule_free(rewa_jax.sgd(0.05, REWA, weight_decay=0.1))
  latents = train(solver, steps=100)
  assert_same(latents, train(schedule_free(by_hand), steps=100), rtol=1e-5)
  assert loss(latents) < 0.8 * loss(LATENTS)


def test_state_can_be_mapped_over_its_params():
  solver = rewa_jax.adamw(0.1, REWA, weight_decay=0.1)
  state = solver.init(LATENTS)
  doubled = optax.tree.map_params(solver, lambda leaf: leaf + 1, state)
  assert jnp.array_equal(doubled[1].mu["kernel"], jnp.ones((4, 3)))


def test_extra_arguments_are_passed_on():
  scale = optax.with_extra_args_support(rewa_jax.scale_by_rewa(3))
  assert_same(
    scale.update(LATENTS, scale.init(LATENTS), LATENTS, value=1.0)[0],
    scale.update(LATENTS, scale.init(LATENTS), LATENTS)[0],
  )


@pytest.mark.slow
def test_one_vmap_over_24_settings_equals_24_runs():
  settings = [
    (k, m, eps, decay, rate)
    for (k, m), eps, (decay, rate) in itertools.product(
      [(2, 0.5), (2.25, 1.25), (3, 2), (9, 2)],
      [0, 1e-6, 1e-3],
      [(0, 0.05), (0.1, 0.02)],
    )
  ]
  assert len(settings) == 24

  def run(k, m, eps, decay, rate):
    solver = rewa_jax.rewa_sgd(
      rate, k, m, eps, weight_decay=decay, momentum=0.9
    )

    def step(carry, _):
      latents, state = carry
      grads = jax.grad(loss)(latents, k)
      updates, state = solver.update(grads, state, latents)
      return (optax.apply_updates(latents, updates), state), loss(latents, k)

    return jax.lax.scan(step, (LATENTS, solver.init(LATENTS)), length=30)[1]

  together = jax.jit(jax.vmap(run))(*map(jnp.array, zip(*settings)))
  for setting, losses in zip(settings, together):
    np.testing.assert_allclose(run(*setting), losses, rtol=1e-4)


def test_the_second_call_of_a_jitted_step_compiles_nothing():
  solver, traces = make(), []

  @jax.jit
  def step(latents, state):
    traces.append(None)
    grads = jax.grad(loss)(latents)
    updates, state = solver.update(grads, state, latents)
    return optax.apply_updates(latents, updates), state

  carry = LATENTS, solver.init(LATENTS)
  for _ in range(3):
    carry = step(*carry)
  assert len(traces) == 1 and step._cache_size() == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("gradient", ["weight", "latent"])
def test_updates_keep_the_dtype_of_params(dtype, gradient):
  latents = {"w": jnp.full(3, 0.5, dtype)}
  grads = {"w": jnp.full(3, 0.25, jnp.float32)}
  rewa = rewa_jax.Rewa(3, 1, 1e-3, gradient=gradient)
  scale = rewa_jax.scale_by_method(rewa)
  rate, decay = optax.constant_schedule(0.1), optax.constant_schedule(0.01)
  adamw = rewa_jax.adamw(rate, rewa, weight_decay=0.1)
  scheduled = rewa_jax.sgd(rate, rewa, weight_decay=decay)
  for solver in (scale, adamw, scheduled):
    updates, _ = solver.update(grads, solver.init(latents), latents)
    assert updates["w"].dtype == dtype


@pytest.mark.parametrize("gradient", ["weight", "latent"])
@pytest.mark.parametrize("k, m", [(1, 0), (2, 1), (3, 0.5), (9, 8), (9, 2)])
@pytest.mark.parametrize("eps", [0, 1e-45, 1e-3, 1e38])
def test_no_finite_input_gives_nan(k, m, eps, gradient):
  edges = np.array(
    [0, -0.0, 1e-45, 1e-38, -1e-38, 1e-3, 1, 1e38, -1e38], np.float32
  )
  y, g = map(jnp.asarray, np.meshgrid(edges, edges))
  for hyper in [(k, m, eps), tuple(map(jnp.float32, (k, m, eps)))]:
    scale = rewa_jax.scale_by_rewa(*hyper, gradient=gradient)
    assert not jnp.isnan(scale.update(g, scale.init(y), y)[0]).any()


@pytest.mark.parametrize(
  "solver",
  [
    make(),
    rewa_jax.adamw(0.1, REWA, weight_decay=0.1),
    rewa_jax.reparameterize(optax.adamw(0.1), REWA),
  ],
)
def test_scalars_empty_leaves_and_abstract_trees(solver):
  params = {"w": jnp.float32(0.5), "empty": {"kernel": jnp.zeros((0, 3))}}
  updates, _ = solver.update(params, solver.init(params), params)
  assert updates["w"] < 0 and updates["empty"]["kernel"].shape == (0, 3)
  numbers = {"w": 0.5}
  updates, _ = solver.update(numbers, solver.init(numbers), numbers)
  assert updates["w"] < 0
  abstract = jax.eval_shape(lambda: params)
  assert jax.tree.structure(
    jax.eval_shape(solver.init, abstract)
  ) == jax.tree.structure(solver.init(params))


def test_gradients_that_are_none_stay_none():
  scale = rewa_jax.scale_by_rewa(3)
  params = {"a": jnp.ones(2), "b": jnp.ones(2)}
  updates, _ = scale.update(
    {"a": jnp.ones(2), "b": None}, scale.init(params), params
  )
  assert updates["b"] is None and updates["a"].shape == (2,)


# What it refuses.


@pytest.mark.parametrize(
  ("numbers", "error", "message"),
  [
    (dict(k=0.5), ValueError, r"k must be .* >= 1, got 0\.5"),
    (dict(k=float("nan")), ValueError, "k must be .* >= 1, got nan"),
    (dict(m=-1), ValueError, "m must be .* >= 0, got -1"),
    (
      dict(m=2.5),
      ValueError,
      r"m must be at most k - 1 = 2\.0, got 2\.5",
    ),
    (dict(m=float("nan")), ValueError, "m must be .*, got nan"),
    (dict(eps=-1e-6), ValueError, "eps must be .* >= 0, got -1e-06"),
    (dict(eps="small"), TypeError, "eps must be .*, got 'small' of type str"),
    (dict(eps=jnp.array(True)), TypeError, "eps must be .* of dtype bool"),
    (dict(k=jnp.array(3.0), m=jnp.array(4.0)), ValueError, "at most k - 1"),
  ],
)
def test_hyperparameters_out_of_range(numbers, error, message):
  numbers = dict(k=3) | numbers
  for use in (
    lambda: rewa_jax.scale_by_rewa(**numbers),
    lambda: rewa_jax.rewa_sgd(0.1, **numbers, weight_decay=0.1),
    lambda: rewa_jax.rewa_adamw(0.1, **numbers, weight_decay=0.1),
    lambda: rewa_jax.Rewa(**numbers),
    lambda: rewa_jax.Penalty(**numbers),
  ):
    with pytest.raises(error, match=message):
      use()


def test_hyperparameters_at_the_edge_of_the_range_are_taken():
  for k, m in [(1, 0), (4.1, 3.1), (jnp.float32(4.1), jnp.float32(3.1))]:
    solver, one = rewa_jax.scale_by_rewa(k, m), jnp.ones(1)
    # |y|^m |y|^(k-1) / (|y|^(k-1) + eps) is 1 where y is 1 and eps 0.
    updates, _ = solver.update(one, solver.init(one), one)
    np.testing.assert_allclose(updates, one, rtol=1e-6)


@pytest.mark.parametrize(
  "made", [rewa_jax.rewa_sgd, rewa_jax.rewa_adamw, rewa_jax.Rewa, rewa_jax.sgd]
)
def test_help_opens_with_a_signature_that_a_person_can_read(made):
  signature = str(inspect.signature(made)).partition(" -> ")[0]
  assert "Union[" not in signature and len(signature) < 450


def test_a_negative_weight_decay_is_refused():
  for factory in (rewa_jax.sgd, rewa_jax.adamw):
    with pytest.raises(ValueError, match=r"weight_decay must be .*, got -0\.1"):
      factory(0.1, REWA, weight_decay=-0.1)


def test_missing_params_are_named():
  drop_in = rewa_jax.reparameterize(optax.sgd(0.1), REWA)
  for solver in (rewa_jax.scale_by_rewa(3), make(), drop_in):
    with pytest.raises(ValueError, match=r"params are missing: call update\("):
      solver.update(LATENTS, solver.init(LATENTS))


def test_gradients_of_another_shape_or_tree_are_refused_by_path():
  scale, state = rewa_jax.scale_by_rewa(3), optax.EmptyState()
  wrong_shape = LATENTS | {"kernel": jnp.ones((4, 1))}
  with pytest.raises(ValueError, match=r"at kernel: .*\(4, 1\), .*\(4, 3\)"):
    scale.update(wrong_shape, state, LATENTS)
  with pytest.raises(ValueError, match="updates has the leaves bias, w"):
    scale.update({"w": jnp.ones(3), "bias": jnp.ones(3)}, state, LATENTS)
  with pytest.raises(ValueError, match="at kernel: .* shape a subtree"):
    scale.update(LATENTS | {"kernel": {"a": jnp.ones(3)}}, state, LATENTS)


def test_params_of_another_model_are_refused_by_path():
  wider = LATENTS | {"kernel": jnp.ones((4, 1))}
  for solver in (make(), rewa_jax.adamw(0.1, REWA, weight_decay=0.1)):
    with pytest.raises(ValueError, match=r"at kernel: .*\(4, 3\), .*\(4, 1\)"):
      solver.update(LATENTS, solver.init(LATENTS), wider)
