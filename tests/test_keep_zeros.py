import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rewa_jax
from rewa_jax import baselines

REWA = rewa_jax.Rewa(k=3)
PRUNED = {
  "a": {"kernel": jnp.array([[0.0, 2.0], [-1.5, 0.0]]), "bias": jnp.zeros(2)},
  "b": {"kernel": jnp.array([[0.7, 0.0], [0.0, 0.4]]), "bias": jnp.ones(2)},
}


def loss(weights):
  x = jnp.tanh(jnp.ones((4, 2)) @ weights["a"]["kernel"] + weights["a"]["bias"])
  y = x @ weights["b"]["kernel"] + weights["b"]["bias"]
  return jnp.sum((y - 1.0) ** 2)


def train(solver, params, loss=loss, steps=5):
  @jax.jit
  def step(params, state):
    updates, state = solver.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = solver.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params


def assert_fine_tuned(weights):
  """Zeros of the kernels are kept, and everything else has moved."""
  for name, layer in PRUNED.items():
    new, old = weights[name]["kernel"], layer["kernel"]
    np.testing.assert_array_equal(new == 0, old == 0)
    assert (new != old)[old != 0].all()
    assert (weights[name]["bias"] != layer["bias"]).all()


DROP_INS = {
  "inside": rewa_jax.reparameterize(
    optax.chain(optax.adamw(0.05, weight_decay=0.1), rewa_jax.keep_zeros()),
    REWA,
  ),
  "after": optax.chain(
    rewa_jax.reparameterize(optax.adamw(0.05, weight_decay=0.1), REWA),
    rewa_jax.keep_zeros(),
  ),
  "beside no drop-in": optax.chain(
    optax.sgd(0.05, momentum=0.9), rewa_jax.keep_zeros()
  ),
}


@pytest.mark.parametrize("where", DROP_INS)
def test_weights_stay_zero_in_a_chain_of_their_own_or_a_drop_in(where):
  assert_fine_tuned(train(DROP_INS[where], PRUNED))


METHODS = [
  REWA,
  baselines.PowerPropagation(2),
  baselines.spred(),
  baselines.spred(offset=0),
  baselines.HadamardDifference(2),
  baselines.deep_weight_factorization(3),
  baselines.GroupedRewa(3, "output"),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_latents_stay_where_their_weights_are_zero(method):
  solver = optax.chain(
    rewa_jax.sgd(0.05, method, weight_decay=0.1, momentum=0.9),
    rewa_jax.keep_zeros(method=method),
  )
  latents = train(
    solver,
    method.to_latents(PRUNED),
    lambda latents: loss(method.to_weights(latents)),
  )
  assert_fine_tuned(method.to_weights(latents))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_latents_inside_the_drop_in_stay(method):
  inner = optax.chain(
    optax.adamw(0.05, weight_decay=0.1, mask=method.decaying),
    rewa_jax.keep_zeros(method=method),
  )
  assert_fine_tuned(train(rewa_jax.reparameterize(inner, method), PRUNED))


def test_an_array_that_many_weights_share_stays_where_all_of_them_are_zero():
  method = baselines.GroupedRewa(3, "output")
  params = {"kernel": jnp.array([[0.0, 2.0], [0.0, 0.0]])}
  latents = method.to_latents(params)
  masks = rewa_jax.keep_zeros(method=method).init(latents).masks["kernel"]
  shared = [m for m in jax.tree.leaves(masks) if m.shape != (2, 2)]
  np.testing.assert_array_equal(jnp.concatenate(shared), [[False, True]])


def test_latents_of_several_arrays_need_their_method():
  latents = baselines.spred().to_latents(PRUNED)
  with pytest.raises(ValueError, match="a/kernel holds latents, several arr"):
    rewa_jax.keep_zeros().init(latents)
  with pytest.raises(ValueError, match="mask and method both"):
    rewa_jax.keep_zeros(mask=None, method=REWA)


@pytest.mark.parametrize("method", [REWA, baselines.HadamardDifference(2)])
def test_latents_of_nnx_stay_zero(method):
  bare = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
  bare.kernel[...] = PRUNED["a"]["kernel"]
  model = rewa_jax.nnx.reparameterize(bare, method)
  solver = optax.chain(
    rewa_jax.sgd(0.1, method, weight_decay=0.1, momentum=0.9),
    rewa_jax.keep_zeros(method=method),
  )
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  for _ in range(3):
    grads = nnx.grad(lambda model: model(jnp.ones((1, 2))).sum())(model)
    optimizer.update(model, grads)
  np.testing.assert_array_equal(
    model.weights().kernel[...] == 0, PRUNED["a"]["kernel"] == 0
  )
  assert (model.weights().bias[...] != 0).all()


def test_a_gradient_that_is_nan_reaches_no_zero():
  solver = optax.chain(optax.sgd(0.1), rewa_jax.keep_zeros())
  nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), PRUNED)
  updates, _ = solver.update(nan, solver.init(PRUNED), PRUNED)
  kernel = PRUNED["a"]["kernel"]
  np.testing.assert_array_equal(
    updates["a"]["kernel"], jnp.where(kernel == 0, 0, jnp.nan)
  )


def test_masks_choose_whose_zeros_are_kept():
  every = train(
    optax.chain(optax.sgd(0.1), rewa_jax.keep_zeros(mask=None)), PRUNED
  )
  assert (every["a"]["bias"] == 0).all()
  one = train(
    optax.chain(
      optax.sgd(0.1), rewa_jax.keep_zeros(mask={"a": False, "b": True})
    ),
    PRUNED,
  )
  assert (one["a"]["kernel"] != 0).all()
  assert one["b"]["kernel"][0, 1] == 0


def test_the_state_is_the_masks_and_updates_keep_their_dtype():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PRUNED)
  solver = rewa_jax.keep_zeros()
  state = solver.init(params)
  assert [x.dtype for x in jax.tree.leaves(state)] == [bool, bool]
  updates, same = solver.update(params, state, params)
  assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
  assert same is state


def test_updates_need_params_of_their_shapes():
  solver = rewa_jax.keep_zeros()
  state = solver.init(PRUNED)
  with pytest.raises(ValueError, match="params are missing"):
    solver.update(PRUNED, state)
  with pytest.raises(ValueError, match="different trees"):
    solver.update({"a": PRUNED["a"]}, state, PRUNED)
  with pytest.raises(ValueError, match="No leaf is named kernel"):
    solver.init({"alpha": jnp.ones(2)})
