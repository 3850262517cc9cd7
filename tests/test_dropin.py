import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rewa_jax

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (16, 4))
TARGETS = jnp.sin(INPUTS[:, :2])
K = 3


def mean_squared_error(outputs):
  return jnp.mean((outputs - TARGETS) ** 2)


def drop_in(rate=0.05, decay=0.0):
  inner = optax.chain(
    optax.trace(0.9),
    optax.add_decayed_weights(decay, mask=rewa_jax.kernels),
    optax.scale(-rate),
  )
  return rewa_jax.reparameterize(inner, K, 1)


def linen_setup():
  model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(2)])
  return model.init(KEY, INPUTS), lambda variables: model.apply(
    variables, INPUTS
  )


def haiku_setup():
  model = hk.transform(lambda x: hk.nets.MLP([8, 2], activation=jnp.tanh)(x))
  return model.init(KEY, INPUTS), lambda params: model.apply(
    params, None, INPUTS
  )


def equinox_setup():
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
  latents = rewa_jax.to_latents(params, K)

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
    rewa_jax.rewa_sgd(0.05, K, 1, weight_decay=0.1, momentum=0.9),
    latents,
    lambda y: mean_squared_error(
      apply(rewa_jax.to_weights(y, K, gradient="weight"))
    ),
  )
  wanted = rewa_jax.to_weights(by_latents, K)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    weights,
    wanted,
  )
  assert mean_squared_error(apply(weights)) < mean_squared_error(apply(params))


def test_equinox_with_its_own_loop():
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
    rewa_jax.power(latents["out"]["kernel"], K),
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
  exact = rewa_jax.power(state.latents["w"], K)
  np.testing.assert_allclose(
    params["w"].astype(jnp.float32), exact, rtol=float(jnp.finfo(dtype).eps)
  )


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
      solver = rewa_jax.reparameterize(optax.sgd(0.1, 0.9), 1)
    start = jax.tree.map(jnp.copy, params)
    carry = start, solver.init(start)
    for _ in range(3):
      carry = step(*carry)
    assert jax.tree.all(jax.tree.map(lambda x: x.is_deleted(), start))


def test_scan_and_vmap_over_hyperparameters():
  params, apply = bare_setup()

  def loss(params):
    return mean_squared_error(apply(params))

  def run(k, m, eps, decay):
    inner = optax.adamw(0.01, weight_decay=decay)
    solver = rewa_jax.reparameterize(inner, k, m, eps)

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
  solver = rewa_jax.reparameterize(optax.adamw(0.1, weight_decay=0.5), K)
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
      rewa_jax.reparameterize(optax.sgd(0.1, 0.9), K, mask=None), mask
    ),
    optax.masked(optax.sgd(0.1, 0.9), [{"w": False, "b": True}]),
  )
  plain = optax.chain(
    optax.clip_by_global_norm(0.1),
    rewa_jax.reparameterize(optax.sgd(0.1, 0.9), K),
  )
  updates, _ = solver.update(grads, solver.init(params), params)
  wanted, _ = plain.update(grads, plain.init(params), params)
  jax.tree.map(np.testing.assert_array_equal, updates, wanted)
  state = optax.tree.map_params(plain, lambda x: x + 1, plain.init(params))
  assert (state[1].inner_state[0].trace[0]["w"] == 1).all()
  adopted = rewa_jax.adopt_weights(solver.init(params), params, K)
  jax.tree.map(np.testing.assert_array_equal, adopted, solver.init(params))


def test_injected_hyperparameters():
  params, apply = bare_setup()
  grads = jax.grad(lambda p: mean_squared_error(apply(p)))(params)
  make = optax.inject_hyperparams(rewa_jax.reparameterize)
  injected = make(optax.sgd(0.1), k=3, m=1.0, eps=1e-3)
  plain = rewa_jax.reparameterize(optax.sgd(0.1), 3, 1.0, 1e-3)
  updates, state = injected.update(grads, injected.init(params), params)
  wanted, _ = plain.update(grads, plain.init(params), params)
  assert set(state.hyperparams) >= {"k", "m", "eps"}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, wanted
  )


def test_adopted_weights_are_where_training_continues():
  params, apply = linen_setup()
  solver = drop_in(rate=1e-4)
  state = solver.init(params)
  pruned, masks = rewa_jax.prune(params, sparsity=0.5)
  adopted = rewa_jax.adopt_weights(state, pruned, K)
  grads = jax.grad(lambda p: mean_squared_error(apply(p)))(pruned)

  def stepped(state):
    updates, _ = solver.update(grads, state, pruned)
    return optax.apply_updates(pruned, updates)

  jax.tree.map(
    lambda x, keep: np.testing.assert_array_equal(x[~keep], 0),
    stepped(adopted),
    masks,
  )
  forgotten = rewa_jax.sparsity(stepped(state))
  assert forgotten.total_nonzero == forgotten.total_size


def test_adopted_weights_under_nnx():
  model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, drop_in(), wrt=nnx.Param)
  pruned, _ = rewa_jax.prune(nnx.state(model, nnx.Param), sparsity=0.5)
  nnx.update(model, pruned)
  state = rewa_jax.adopt_weights(optimizer.opt_state, pruned, K)
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
    rewa_jax.adopt_weights(optax.sgd(0.1, 0.9).init(params), params, K)
  wrong = jax.tree.map(lambda x: x[:1], params)
  with pytest.raises(ValueError, match="params and the latents .* at params/"):
    rewa_jax.adopt_weights(state, wrong, K)
  with pytest.raises(ValueError, match="params has the leaves w, the latents"):
    rewa_jax.adopt_weights(state, {"w": jnp.ones(2)}, K)
  with pytest.raises(ValueError, match="k must be"):
    rewa_jax.adopt_weights(state, params, 0)


def test_a_weight_that_should_vanish_becomes_an_exact_zero():
  solver = rewa_jax.reparameterize(
    optax.chain(optax.add_decayed_weights(0.1), optax.scale(-0.1)), 9, 2
  )
  params = {"w": jnp.array([0.3, 1.0])}
  state, update = solver.init(params), jax.jit(solver.update)
  for _ in range(1000):
    grads = {"w": jnp.array([0.0, 0.5]) * (params["w"] - 1)}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  assert params["w"][0] == 0 and params["w"][1] > 0.5
