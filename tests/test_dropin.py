import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rewa_jax
from rewa_jax import baselines
from tests.extras import needs

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (16, 4))
TARGETS = jnp.sin(INPUTS[:, :2])
REWA = rewa_jax.Rewa(k=3, m=1)


def mean_squared_error(outputs):
  return jnp.mean((outputs - TARGETS) ** 2)


def drop_in(rate=0.05, decay=0.0):
  inner = optax.chain(
    optax.trace(0.9),
    optax.add_decayed_weights(decay, mask=rewa_jax.kernels),
    optax.scale(-rate),
  )
  return rewa_jax.reparameterize(inner, REWA)


def linen_setup():
  model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(2)])
  return model.init(KEY, INPUTS), lambda variables: model.apply(
    variables, INPUTS
  )


def haiku_setup():
  hk = needs("haiku")
  model = hk.transform(lambda x: hk.nets.MLP([8, 2], activation=jnp.tanh)(x))
  return model.init(KEY, INPUTS), lambda params: model.apply(
    params, None, INPUTS
  )


def equinox_setup():
  eqx = needs("equinox")
  model = eqx.nn.MLP(4, 2, 8, 1, jnp.tanh, key=KEY)
  params, static = eqx.partition(model, eqx.is_inexact_array)
  return params, lambda params: jax.vmap(eqx.combine(params, static))(INPUTS)


def bare_setup():
  params = [{"w": jax.random.normal(KEY, (4, 2)), "b": jnp.zeros(2)}]
  return params, lambda params: INPUTS @ params[0]["w"] + params[0]["b"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
  "setup", [linen_setup, haiku_setup, equinox_setup, bare_setup]
)
def test_weights_of_any_library_follow_training_on_latents(setup):
  params, apply = setup()
  latents = REWA.to_latents(params)

  def train(solver, params, loss):
    state = solver.init(params)

    @jax.jit
    def step(params, state):
      updates, state = solver.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    for _ in range(30):
      params, state = step(params, state)
    return params

  weights = train(
    drop_in(decay=0.1), params, lambda p: mean_squared_error(apply(p))
  )
  by_latents = train(
    rewa_jax.sgd(0.05, REWA, weight_decay=0.1, momentum=0.9),
    latents,
    lambda y: mean_squared_error(apply(REWA.to_weights(y))),
  )
  wanted = REWA.to_weights(by_latents)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    weights,
    wanted,
  )
  assert mean_squared_error(apply(weights)) < mean_squared_error(apply(params))


def test_equinox_with_its_own_loop():
  eqx = needs("equinox")
  model = eqx.nn.MLP(4, 2, 8, 1, jnp.tanh, key=KEY)
  solver = drop_in()
  state = solver.init(eqx.filter(model, eqx.is_inexact_array))

  @eqx.filter_jit
  def step(model, state):
    loss, grads = eqx.filter_value_and_grad(
      lambda model: mean_squared_error(jax.vmap(model)(INPUTS))
    )(model)
    updates, state = solver.update(
      grads, state, eqx.filter(model, eqx.is_inexact_array)
    )
    return eqx.apply_updates(model, updates), state, loss

  model, state, first = step(model, state)
  for _ in range(20):
    model, state, loss = step(model, state)
  assert loss < first


def test_nnx_optimizer_with_the_model_as_it_is():
  class Network(nnx.Module):
    def __init__(self, rngs):
      self.hidden = nnx.Linear(4, 8, rngs=rngs)
      self.norm = nnx.BatchNorm(8, rngs=rngs)
      self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
      return self.out(nnx.tanh(self.norm(self.hidden(x))))

  model = Network(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, drop_in(), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer):
    loss, grads = nnx.value_and_grad(
      lambda model: mean_squared_error(model(INPUTS))
    )(model)
    optimizer.update(model, grads)
    return loss

  losses = [step(model, optimizer) for _ in range(20)]
  assert losses[-1] < losses[0]
  latents = nnx.to_pure_dict(nnx.state(optimizer))["opt_state"]["latents"]
  np.testing.assert_allclose(
    rewa_jax.power(latents["out"]["kernel"], 3),
    model.out.kernel[...],
    rtol=1e-5,
    atol=1e-7,
  )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_latents_are_float32_and_updates_keep_the_dtype(dtype):
  params = {"w": jnp.array([0.5, -0.25], dtype), "b": jnp.ones(1, dtype)}
  solver = drop_in(decay=0.1)
  state = solver.init(params)
  assert state.latents["w"].dtype == jnp.float32
  for _ in range(3):
    updates, state = solver.update(params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {
      jnp.dtype(dtype)
    }
    params = optax.apply_updates(params, updates)
  exact = rewa_jax.power(state.latents["w"], 3)
  np.testing.assert_allclose(
    params["w"].astype(jnp.float32), exact, rtol=float(jnp.finfo(dtype).eps)
  )


@pytest.mark.parametrize(
  "method",
  [REWA, rewa_jax.Rewa(5, eps=1e-2), baselines.spred()],
  ids=str,
)
def test_a_training_has_a_derivative_by_its_learning_rate(method, x64):
  def end(rate):
    solver = rewa_jax.reparameterize(optax.sgd(rate), method)
    params = {"kernel": jnp.array([[0.2, -0.3], [0.4, 0.1]])}
    state = solver.init(params)
    for _ in range(3):
      grads = jax.tree.map(lambda x: 2 * (x - 0.5), params)
      updates, state = solver.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return jnp.sum(jnp.square(params["kernel"] - 0.5))

  end = jax.jit(end)
  ahead, behind = end(0.05 + 1e-6), end(0.05 - 1e-6)
  found, expected = jax.grad(end)(0.05), (ahead - behind) / 2e-6
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_latents_are_float64_where_params_are(x64):
  assert drop_in().init({"w": jnp.ones(2)}).latents["w"].dtype == jnp.float64


def test_params_and_state_can_both_be_donated():
  params, apply = linen_setup()
  solver = drop_in()

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state):
    grads = jax.grad(lambda p: mean_squared_error(apply(p)))(params)
    updates, state = solver.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for k_one in (False, True):
    if k_one:
      solver = rewa_jax.reparameterize(optax.sgd(0.1, 0.9), rewa_jax.Rewa(1))
    start = jax.tree.map(jnp.copy, params)
    carry = start, solver.init(start)
    for _ in range(3):
      carry = step(*carry)
    assert jax.tree.all(jax.tree.map(lambda x: x.is_deleted(), start))


@pytest.mark.parametrize(
  ("platform", "waits"), [("cpu", True), ("cuda", False), ("tpu", False)]
)
def test_only_a_cpu_waits_for_whether_weights_were_changed(platform, waits):
  # Elsewhere a branch costs a copy of all latents, and a GPU's host must wait.
  params = {"kernel": jnp.ones((2, 3))}
  solver = drop_in()
  traced = jax.jit(solver.update).trace(params, solver.init(params), params)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert ("applies stablehlo.or" in text) == waits


def test_scan_and_vmap_over_hyperparameters():
  params, apply = bare_setup()

  def loss(params):
    return mean_squared_error(apply(params))

  def run(k, m, eps, decay):
    inner = optax.adamw(0.01, weight_decay=decay)
    solver = rewa_jax.reparameterize(inner, rewa_jax.Rewa(k, m, eps))

    def step(carry, _):
      params, state = carry
      updates, state = solver.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), loss(params)

    return jax.lax.scan(step, (params, solver.init(params)), length=20)[1]

  settings = [(1, 0, 0, 0.1), (3, 1, 0, 0.1), (2.25, 0, 1e-3, 0), (9, 2, 0, 1)]
  together = jax.jit(jax.vmap(run))(*map(jnp.array, zip(*settings)))
  for setting, losses in zip(settings, together):
    np.testing.assert_allclose(run(*setting), losses, rtol=1e-4)


def test_decay_of_the_inner_optimizer_reaches_latents():
  solver = rewa_jax.reparameterize(optax.adamw(0.1, weight_decay=0.5), REWA)
  params = {"w": jnp.array([8.0])}
  state = solver.init(params)
  updates, _ = solver.update({"w": jnp.zeros(1)}, state, params)
  shrunk = optax.apply_updates(params, updates)["w"]
  np.testing.assert_allclose(shrunk, 8 * (1 - 0.05) ** 3, rtol=1e-6)


def test_it_wraps_and_is_wrapped():
  params, apply = bare_setup()
  grads = jax.grad(lambda p: mean_squared_error(apply(p)))(params)
  mask = [{"w": True, "b": False}]
  solver = optax.chain(
    optax.clip_by_global_norm(0.1),
    optax.masked(
      rewa_jax.reparameterize(
        optax.sgd(0.1, 0.9), dataclasses.replace(REWA, mask=None)
      ),
      mask,
    ),
    optax.masked(optax.sgd(0.1, 0.9), [{"w": False, "b": True}]),
  )
  plain = optax.chain(
    optax.clip_by_global_norm(0.1),
    rewa_jax.reparameterize(optax.sgd(0.1, 0.9), REWA),
  )
  updates, _ = solver.update(grads, solver.init(params), params)
  wanted, _ = plain.update(grads, plain.init(params), params)
  jax.tree.map(np.testing.assert_array_equal, updates, wanted)
  state = optax.tree.map_params(plain, lambda x: x + 1, plain.init(params))
  assert (state[1].inner_state[0].trace[0]["w"] == 1).all()
  adopted = rewa_jax.adopt_weights(solver.init(params), params)
  jax.tree.map(np.testing.assert_array_equal, adopted, solver.init(params))


def test_injected_hyperparameters():
  params, apply = bare_setup()
  grads = jax.grad(lambda p: mean_squared_error(apply(p)))(params)

  def make(k, m, eps):
    return rewa_jax.reparameterize(optax.sgd(0.1), rewa_jax.Rewa(k, m, eps))

  injected = optax.inject_hyperparams(make)(k=3, m=1.0, eps=1e-3)
  plain = make(3, 1.0, 1e-3)
  updates, state = injected.update(grads, injected.init(params), params)
  wanted, _ = plain.update(grads, plain.init(params), params)
  assert set(state.hyperparams) >= {"k", "m", "eps"}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, wanted
  )


# Params that something else moved.

AIM = {"w": jnp.array([1.0, -0.5, 0.1]), "b": jnp.array([0.3])}
START = {"w": jnp.array([0.3, 0.4, -2.0]), "b": jnp.array([1.0])}
BASE = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))


def half_squares(params):
  return optax.tree.norm(optax.tree.sub(params, AIM), squared=True) / 2


def descend(solver, params, steps=20, with_value=False):
  def step(carry, _):
    params, state = carry
    # Of lookahead's pair, gradients are those of the fast one.
    at = getattr(params, "fast", params)
    value, grads = jax.value_and_grad(half_squares)(at)
    more = {"value": value} if with_value else {}
    updates, state = solver.update(grads, state, params, **more)
    return (optax.apply_updates(params, updates), state), None

  carry = params, solver.init(params)
  return jax.lax.scan(step, carry, length=steps)[0][0]


def quick_jit(fn):
  """Compiles soon and runs slowly."""
  return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def assert_close(ours, others):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    ours,
    others,
  )


def then(*later):
  return lambda solver: optax.chain(solver, *later)


ADVERSARY = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
WRAPPERS = {
  "scale": then(optax.scale(0.5)),
  "scale_by_schedule": then(optax.scale_by_schedule(lambda t: 1 / (t + 1))),
  "ema": then(optax.ema(0.5)),
  "trace": then(optax.trace(0.5)),
  "clip": then(optax.clip(0.05)),
  "add_decayed_weights": then(optax.add_decayed_weights(-0.01)),
  "apply_every": then(optax.apply_every(3), optax.scale(0.1)),
  "keep_params_nonnegative": then(optax.keep_params_nonnegative()),
  "add_noise": then(optax.add_noise(0.1, 0.5, KEY)),
  "schedule_free": lambda solver: optax.contrib.schedule_free(solver, 0.1),
  "mechanize": optax.contrib.mechanize,
  "lookahead": lambda solver: optax.lookahead(solver, 3, 0.5),
  "sam": lambda solver: optax.contrib.sam(solver, ADVERSARY),
  "MultiSteps": lambda solver: optax.MultiSteps(solver, 3),
  "apply_if_finite": lambda solver: optax.apply_if_finite(solver, 3),
  "masked": lambda solver: optax.masked(solver, {"w": True, "b": False}),
  "inject_hyperparams": lambda solver: optax.inject_hyperparams(
    lambda rate: optax.chain(solver, optax.scale(rate))
  )(0.5),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_at_k_one_it_is_the_bare_optimizer_inside_any_wrapper(name):
  wrap, start = WRAPPERS[name], START
  if name == "lookahead":
    start = optax.LookaheadParams.init_synced(start)
  drop_in = rewa_jax.reparameterize(BASE, rewa_jax.Rewa(1, mask=None))

  @quick_jit
  def both(start):
    return [descend(wrap(solver), start) for solver in (drop_in, BASE)]

  assert_close(*both(start))


def test_a_later_part_of_a_chain_scales_the_way_that_weights_go():
  inner = optax.chain(optax.add_decayed_weights(0.1), optax.scale(-0.1))
  drop_in = rewa_jax.reparameterize(inner, rewa_jax.Rewa(3, 1, mask=None))
  params = descend(optax.chain(drop_in, optax.scale(0.5)), START)
  wanted = {}
  for name, x in START.items():
    x, aim = np.float64(x), np.float64(AIM[name])
    for _ in range(20):
      y = np.cbrt(x)
      y = y - 0.1 * (np.abs(y) * (x - aim) + 0.1 * y)
      x = x + 0.5 * (y**3 - x)
    wanted[name] = x
  assert_close(params, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_params_never_drift_from_latents_nor_latents_from_the_truth(dtype):
  rewa = rewa_jax.Rewa(k=3)
  sgd = optax.chain(optax.add_decayed_weights(0.1), optax.scale(-0.01))
  drop_in = rewa_jax.reparameterize(sgd, rewa)
  # On noise, params are not needed to train latents.
  alone = rewa_jax.sgd(0.01, rewa, weight_decay=0.1)
  precision = jnp.finfo(dtype)

  def step(carry, key):
    params, state, latents, other = carry
    grads = {"w": jax.random.normal(key, (8,)).astype(dtype)}
    updates, state = drop_in.update(grads, state, params)
    after = optax.apply_updates(params, updates)
    updates, other = alone.update(grads, other, latents)
    latents = optax.apply_updates(latents, updates)
    x, exact = params["w"].astype("float32"), rewa.to_weights(latents)["w"]
    off = jnp.abs(after["w"] - exact)
    ulp = precision.eps * jnp.maximum(jnp.abs(x), jnp.abs(exact))
    is_close = off <= 2 * ulp + precision.smallest_subnormal
    return (after, state, latents, other), (is_close, x * exact < 0)

  @quick_jit
  def run(params):
    latents = rewa.to_latents(optax.tree.cast(params, "float32"))
    carry = params, drop_in.init(params), latents, alone.init(latents)
    return jax.lax.scan(step, carry, jax.random.split(KEY, 10_000))

  params = {"w": jax.random.normal(KEY, (8,)).astype(dtype)}
  (_, state, latents, _), (is_close, crossed) = run(params)
  np.testing.assert_allclose(state.latents["w"], latents["w"], rtol=1e-4)
  assert is_close.all() and crossed.sum() > 500


def test_pruned_weights_are_where_training_continues():
  solver = rewa_jax.reparameterize(optax.sgd(0.1), REWA)
  params = {"w": jnp.array([8.0, 1.0, -1.0])}
  state = solver.init(params)
  pruned, _ = rewa_jax.prune(params, threshold=2.0)
  for known in (state, rewa_jax.adopt_weights(state, pruned)):
    updates, _ = solver.update(params, known, pruned)
    after = optax.apply_updates(pruned, updates)["w"]
    # The step at 2 is 0.1 * 2 * 8.
    np.testing.assert_allclose(after, [0.4**3, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("through", [lambda fn: fn, jax.jit])
def test_entries_that_nothing_moved_keep_their_latents(through):
  solver = rewa_jax.reparameterize(optax.scale(0.0), rewa_jax.Rewa(k=9))
  params = {"w": jnp.array([0.5, 0.5, 0.0], jnp.bfloat16)}
  # What the params are too coarse for, and what underflows in them.
  latents = {"w": jnp.array([0.926, 0.926, 1e-6])}
  state = solver.init(params)._replace(latents=latents)
  params = {"w": params["w"].at[0].set(-1.0)}
  _, state = through(solver.update)(params, state, params)
  np.testing.assert_array_equal(
    state.latents["w"], jnp.array([-1.0, 0.926, 1e-6])
  )


def test_weights_that_share_latents_keep_their_digits_too():
  method = baselines.GroupedRewa(3, "output")
  solver = rewa_jax.reparameterize(optax.scale(0.0), method)
  params = {"kernel": jnp.array([[3.0, 0.5], [4.0, 0.5]], jnp.bfloat16)}
  state = solver.init(params)
  fine = {"kernel": jnp.array([[3.001, 0.501], [4.001, 0.501]])}
  state = state._replace(latents=method.to_latents(fine))
  moved = {"kernel": params["kernel"].at[0, 1].set(-2.0)}
  _, state = jax.jit(solver.update)(moved, state, moved)
  np.testing.assert_allclose(
    method.to_weights(state.latents)["kernel"],
    [[3.001, -2.0], [4.001, 0.501]],
    rtol=1e-5,
  )


# Optimizers that ask for more than gradients.

LINE_SEARCHES = {
  "backtracking": lambda: optax.scale_by_backtracking_linesearch(
    20, store_grad=True
  ),
  "zoom": lambda: optax.scale_by_zoom_linesearch(20),
}


@pytest.mark.parametrize(
  "inner",
  [optax.chain(optax.sgd(1.0), new()) for new in LINE_SEARCHES.values()]
  + [optax.lbfgs()],
)
def test_a_line_search_inside_is_refused(inner):
  solver = rewa_jax.reparameterize(inner, rewa_jax.Rewa(3, mask=None))
  more = {"value": 1.0, "grad": START, "value_fn": half_squares}
  with pytest.raises(ValueError, match=r"calls value_fn, .* search behind: o"):
    jax.eval_shape(
      lambda: solver.update(START, solver.init(START), START, **more)
    )


@pytest.mark.parametrize("search", LINE_SEARCHES)
def test_a_line_search_may_follow_and_finds_true_slopes(search):
  value_and_grad = optax.value_and_grad_from_state(half_squares)

  def run(optimizer):
    solver = optax.chain(optimizer, LINE_SEARCHES[search]())

    def step(carry, _):
      params, state = carry
      value, grad = value_and_grad(params, state=state)
      more = {"value": value, "grad": grad, "value_fn": half_squares}
      updates, state = solver.update(grad, state, params, **more)
      return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (START, solver.init(START)), length=30)

  def drop_in(k):
    rewa = rewa_jax.Rewa(k, mask=None)
    return rewa_jax.reparameterize(optax.sgd(1.0), rewa)

  @quick_jit
  def runs():
    return run(drop_in(1))[1], run(optax.sgd(1.0))[1], run(drop_in(3))[1]

  at_one, bare, values = runs()
  assert_close(at_one, bare)
  assert (np.diff(values) <= 1e-6).all() and values[-1] < 1e-3


def test_the_value_of_the_loss_is_passed_on():
  def drop_in(k):
    rewa = rewa_jax.Rewa(k, mask=None)
    return rewa_jax.reparameterize(optax.polyak_sgd(), rewa)

  at_one, bare, at_three = (
    descend(solver, START, with_value=True)
    for solver in (drop_in(1), optax.polyak_sgd(), drop_in(3))
  )
  assert_close(at_one, bare)
  assert half_squares(at_three) < 1e-3


@pytest.mark.parametrize(
  "inner",
  [
    rewa_jax.sgd(0.1, REWA, weight_decay=0.1),
    rewa_jax.adamw(0.1, REWA, weight_decay=0.1),
    optax.inject_hyperparams(rewa_jax.rewa_sgd)(0.1, 3, weight_decay=0.1),
    optax.chain(rewa_jax.scale_by_rewa(3), optax.sgd(0.1)),
    optax.masked(rewa_jax.scale_by_rewa(3), {"w": True, "b": False}),
  ],
)
def test_gradients_are_not_scaled_twice(inner):
  solver = rewa_jax.reparameterize(inner, REWA)
  with pytest.raises(ValueError, match="scales gradients by a method, as rewa"):
    solver.init(START)


def under(mask):
  """Three drop-ins, each of its own method, for the parts of a model."""
  methods = {
    "k=3": rewa_jax.Rewa(k=3, mask=mask),
    "k=9": rewa_jax.Rewa(k=9, mask=mask),
    "spred": baselines.spred(mask=mask),
  }
  return {
    name: rewa_jax.reparameterize(optax.sgd(0.1, 0.9), method)
    for name, method in methods.items()
  }


PARTS = {
  name: {"kernel": jnp.array([8.0, -1.0]), "bias": jnp.array([8.0])}
  for name in ("a", "b", "c")
}
LABELS = {"a": "k=3", "b": "k=9", "c": "spred"}
IN_FULL = jax.tree.map(
  lambda label, part: jax.tree.map(lambda _: label, part), LABELS, PARTS
)


@pytest.mark.parametrize("labels", [LABELS, IN_FULL, lambda params: LABELS])
@pytest.mark.parametrize(
  "mask",
  [
    rewa_jax.kernels,
    None,
    {"a": True, "b": False, "c": True},
    {part: {"kernel": True, "bias": False} for part in LABELS},
  ],
)
def test_several_drop_ins_adopt_weights_each_by_its_own_method(labels, mask):
  solver = optax.chain(
    optax.clip_by_global_norm(1.0), optax.partition(under(mask), labels)
  )
  loaded = jax.tree.map(lambda x: x / 512, PARTS)
  adopted = rewa_jax.adopt_weights(solver.init(PARTS), loaded)
  jax.tree.map(np.testing.assert_array_equal, adopted, solver.init(loaded))
  zero = jax.tree.map(jnp.zeros_like, PARTS)
  updates, _ = solver.update(zero, adopted, loaded)
  for update in jax.tree.leaves(updates):
    np.testing.assert_allclose(update, 0, atol=1e-7)


@pytest.mark.parametrize("through", [lambda f: f, jax.jit])
def test_a_state_of_another_k_leads_to_the_same_weights(through):
  params = {"w": jnp.array([8.0, -1.0, 0.5, 0.0])}
  zeros = {"w": jnp.zeros(4)}
  state = rewa_jax.reparameterize(optax.sgd(0.1), rewa_jax.Rewa(k=3)).init(
    params
  )
  solver = rewa_jax.reparameterize(optax.sgd(0.1), rewa_jax.Rewa(k=9))
  updates, state = through(solver.update)(zeros, state, params)
  np.testing.assert_allclose(updates["w"], 0, atol=1e-5)
  latents = np.float64([8, -1, 0.5, 0])
  latents = np.sign(latents) * np.abs(latents) ** (1 / 9)
  np.testing.assert_allclose(state.latents["w"], latents, rtol=1e-6)


def test_a_k_that_is_scheduled_moves_no_weights():
  solver = optax.inject_hyperparams(
    lambda k: rewa_jax.reparameterize(optax.sgd(0.1), rewa_jax.Rewa(k=k))
  )(k=optax.linear_schedule(3, 4, 10))
  params = {"w": jnp.array([8.0, -1.0, 0.5])}
  state = solver.init(params)
  for _ in range(10):
    updates, state = solver.update({"w": jnp.zeros(3)}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["w"], [8, -1, 0.5], rtol=1e-5)


def test_a_state_of_another_method_is_refused():
  params = {"w": jnp.array([8.0, 1.0])}
  spred = rewa_jax.reparameterize(optax.sgd(0.1), rewa_jax.baselines.spred())
  other = rewa_jax.baselines.HadamardDifference(2)
  solver = rewa_jax.reparameterize(optax.sgd(0.1), other)
  with pytest.raises(ValueError, match="latents of Factor.* is of Hadamard"):
    solver.update(params, spred.init(params), params)


def test_adoption_takes_the_k_of_the_last_update():
  inner = optax.sgd(0.1)
  injected = optax.inject_hyperparams(
    lambda k: rewa_jax.reparameterize(inner, rewa_jax.Rewa(k))
  )(k=3)
  params = {"w": jnp.array([8.0])}
  state = injected.init(params)
  np.testing.assert_allclose(
    rewa_jax.adopt_weights(state, params).inner_state.latents["w"], 2, rtol=1e-6
  )
  state.hyperparams["k"] = jnp.float32(9)
  _, state = injected.update(params, state, params)
  np.testing.assert_allclose(
    rewa_jax.adopt_weights(
      state, {"w": jnp.array([512.0])}
    ).inner_state.latents["w"],
    2,
    rtol=1e-6,
  )


def test_adopted_weights_under_nnx():
  model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, drop_in(), wrt=nnx.Param)
  pruned, _ = rewa_jax.prune(nnx.state(model, nnx.Param), sparsity=0.5)
  nnx.update(model, pruned)
  state = rewa_jax.adopt_weights(optimizer.opt_state, pruned)
  nnx.update(optimizer.opt_state, nnx.state(state))
  zero = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
  before = model.kernel[...]
  optimizer.update(model, zero)
  np.testing.assert_allclose(model.kernel[...], before, rtol=1e-5)
  assert int(rewa_jax.sparsity(nnx.state(model)).total_nonzero) == 4


def test_bad_input_to_adoption_is_refused():
  params, _ = linen_setup()
  state = drop_in().init(params)
  with pytest.raises(ValueError, match="no state of rewa_jax.reparameterize"):
    rewa_jax.adopt_weights(optax.sgd(0.1, 0.9).init(params), params)
  wrong = jax.tree.map(lambda x: x[:1], params)
  with pytest.raises(ValueError, match="params and the latents .* at params/"):
    rewa_jax.adopt_weights(state, wrong)
  with pytest.raises(ValueError, match="no leaf params/.* Their leaves are w"):
    rewa_jax.adopt_weights(state, {"w": jnp.ones(2)})


def test_what_does_not_go_with_the_latents_is_refused_by_path():
  params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
  wider = params | {"kernel": jnp.ones((4, 1))}
  deeper = params | {"w": jnp.ones(3)}
  solver = drop_in()
  state = solver.init(params)
  ours = "the latents in the state"
  names = "has the leaves bias, kernel, w"
  for grads, weights, message in [
    (params, wider, rf"params and {ours} .* kernel: .*\(4, 1\), .*\(4, 3\)"),
    (wider, params, r"updates and params .* kernel: .*\(4, 1\), .*\(4, 3\)"),
    (
      params,
      deeper,
      f"params and {ours} are .* {names}",
    ),
    (
      deeper,
      params,
      f"updates and {ours} are .* {names}",
    ),
  ]:
    with pytest.raises(ValueError, match=message):
      solver.update(grads, state, weights)


def test_a_weight_that_should_vanish_becomes_an_exact_zero():
  solver = rewa_jax.reparameterize(
    optax.chain(optax.add_decayed_weights(0.1), optax.scale(-0.1)),
    rewa_jax.Rewa(k=9, m=2),
  )
  params = {"w": jnp.array([0.3, 1.0])}
  state, update = solver.init(params), jax.jit(solver.update)
  for _ in range(1000):
    grads = {"w": jnp.array([0.0, 0.5]) * (params["w"] - 1)}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  assert params["w"][0] == 0 and params["w"][1] > 0.5
