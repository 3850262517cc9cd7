"""What went wrong without a word in 0.1 is an error now, or cannot be said."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rewa_jax

INPUTS = jax.random.normal(jax.random.key(0), (32, 6))
TARGETS = INPUTS[:, :1] - 2 * INPUTS[:, 1:2]
BARE = nn.Dense(1)
REWA = rewa_jax.Rewa(k=9, m=2)


def loss_of(outputs):
  return jnp.mean((outputs - TARGETS) ** 2)


def train(loss, solver, params, steps=300):
  @jax.jit
  def step(params, state):
    updates, state = solver.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = solver.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params, state


class Network(nnx.Module):
  def __init__(self):
    self.emb = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    self.out = nnx.Linear(4, 1, rngs=nnx.Rngs(1))

  def __call__(self, inputs):
    return self.out(self.emb(inputs))


@pytest.mark.parametrize("rate", [0.2, 0.02])
@pytest.mark.parametrize("optimizer", [rewa_jax.sgd, rewa_jax.adamw])
def test_the_gradient_of_the_default_is_the_one_that_optimizers_expect(
  optimizer, rate
):
  by_chain_rule = rewa_jax.Rewa(k=9, m=2, gradient="latent")
  params = BARE.init(jax.random.key(1), INPUTS)
  found = [
    method.to_weights(
      train(
        lambda y, method=method: loss_of(
          BARE.apply(method.to_weights(y), INPUTS)
        ),
        optimizer(rate, method, weight_decay=0.01),
        method.to_latents(params),
        steps=20,
      )[0]
    )["params"]["kernel"]
    for method in (REWA, by_chain_rule)
  ]
  assert jnp.isfinite(found[0]).all()
  # The two conventions, each chosen once, are the same training.
  np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-6)


def test_an_optimizer_of_another_k_refuses_the_latents_of_nnx():
  model = rewa_jax.nnx.reparameterize(Network(), REWA)
  other = rewa_jax.sgd(0.1, rewa_jax.Rewa(k=5, m=2), weight_decay=0.1)
  with pytest.raises(ValueError, match=r"Rewa\(k=9.*optimizer is of Rewa\(k=5"):
    nnx.Optimizer(model, other, wrt=nnx.Param)
  nnx.Optimizer(model, rewa_jax.sgd(0.1, REWA, weight_decay=0.1), wrt=nnx.Param)


def test_linen_takes_k_from_nowhere_but_the_method():
  takes = inspect.signature(rewa_jax.linen.Reparameterized).parameters
  assert {"module", "method"} <= takes.keys()
  assert not {"k", "m", "eps", "mask", "gradient"} & takes.keys()


def test_weights_are_adopted_with_the_k_of_the_optimizer():
  solver = rewa_jax.reparameterize(optax.sgd(0.01), REWA)
  params, state = train(
    lambda params: loss_of(BARE.apply(params, INPUTS)),
    solver,
    BARE.init(jax.random.key(1), INPUTS),
  )
  params, _ = rewa_jax.prune(params, threshold=1e-3)
  state = rewa_jax.adopt_weights(state, params)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = solver.update(zero, state, params)
  after = optax.apply_updates(params, updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, params
  )


def test_two_drop_ins_adopt_weights_by_their_own_k():
  params = {"a": {"kernel": jnp.ones(1)}, "b": {"kernel": jnp.ones(1)}}
  solver = optax.partition(
    {
      k: rewa_jax.reparameterize(optax.sgd(0.1), rewa_jax.Rewa(k, mask=None))
      for k in (3, 9)
    },
    {"a": 3, "b": 9},
  )
  state = solver.init(params)
  loaded = jax.tree.map(lambda x: 512 * x, params)
  state = rewa_jax.adopt_weights(state, loaded)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = solver.update(zero, state, loaded)
  for x in jax.tree.leaves(optax.apply_updates(loaded, updates)):
    np.testing.assert_allclose(x, 512, rtol=1e-5)


def test_one_mask_tree_serves_the_model_and_its_optimizer():
  mask = {
    "emb": {"kernel": True, "bias": False},
    "out": {"kernel": False, "bias": False},
  }
  rewa = rewa_jax.Rewa(k=3, mask=mask)
  bare = Network()
  model = rewa_jax.nnx.reparameterize(bare, rewa)
  solver = rewa_jax.sgd(0.1, rewa, weight_decay=0.5)
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  zero = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
  optimizer.update(model, zero)
  weights = model.weights()
  np.testing.assert_allclose(
    weights.emb.kernel, 0.95**3 * bare.emb.kernel[...], rtol=1e-5
  )
  np.testing.assert_array_equal(weights.out.kernel, bare.out.kernel[...])


@pytest.mark.parametrize(
  "mask",
  [
    {"layers_0": True, "layers_1": False},
    {"params": {"layers_0": True, "layers_1": False}},
    lambda params: {"layers_0": True, "layers_1": "layers_1" not in params},
  ],
)
def test_one_mask_serves_linen_whether_variables_or_params_are_trained(mask):
  rewa = rewa_jax.Rewa(k=3, mask=mask)
  bare = nn.Sequential([nn.Dense(4, use_bias=False), nn.Dense(2)])
  model = rewa_jax.linen.Reparameterized(bare, rewa)
  latents = model.init(jax.random.key(0), INPUTS)
  solver = rewa_jax.sgd(0.1, rewa, weight_decay=0.5)
  for params in (latents, latents["params"]):
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = solver.update(zero, solver.init(params), params)
    updates = updates.get("params", updates)
    assert updates["layers_0"]["kernel"].all()
    assert not updates["layers_1"]["kernel"].any()
    pruned, _ = rewa_jax.finalize(params, 1, method=rewa)
    pruned = pruned.get("params", pruned)
    assert not pruned["layers_0"]["kernel"].any()
    assert pruned["layers_1"]["kernel"].any()


def test_what_nnx_trains_is_finalized():
  bare = Network()
  model = rewa_jax.nnx.reparameterize(bare, REWA)
  state = nnx.state(model, nnx.Param)
  wanted, report = rewa_jax.finalize(nnx.state(bare, nnx.Param), 0.5)
  for latents in (state, nnx.to_pure_dict(state)):
    weights, cut = rewa_jax.finalize(latents, 0.5, method=REWA)
    assert cut.sparsity.total_nonzero == report.sparsity.total_nonzero
    np.testing.assert_allclose(
      jnp.asarray(weights["rewa_latents"]["emb"]["kernel"]),
      wanted["emb"]["kernel"][...],
      rtol=1e-5,
    )


def test_weights_in_the_place_of_nnx_latents_are_refused():
  model = rewa_jax.nnx.reparameterize(Network(), REWA)
  state = nnx.state(model, nnx.Param)
  weights, cut = rewa_jax.finalize(state, 0.5, method=REWA)
  # As weights they count, and are pruned further.
  report = rewa_jax.sparsity(weights)
  assert report.total_nonzero == cut.sparsity.total_nonzero
  rewa_jax.prune(weights, sparsity=0.75)
  with pytest.raises(ValueError, match="holds weights in the place of latents"):
    rewa_jax.sparsity(weights, method=REWA)
  before = model.weights()
  nnx.update(model, weights)
  for call in (model.weights, lambda: model(INPUTS)):
    with pytest.raises(ValueError, match="kernel holds weights in the"):
      call()
  nnx.update(model, REWA.to_latents(weights))
  kernel = before.emb.kernel[...]
  after = model.weights().emb.kernel[...]
  np.testing.assert_allclose(after, jnp.where(after == 0, 0, kernel), rtol=1e-5)


def test_the_drop_in_takes_no_nnx_latents():
  model = rewa_jax.nnx.reparameterize(Network(), REWA)
  solver = rewa_jax.reparameterize(optax.adamw(0.1), REWA)
  for refuse in (
    lambda: nnx.Optimizer(model, solver, wrt=nnx.Param),
    lambda: solver.init(nnx.state(model, nnx.Param)),
  ):
    with pytest.raises(
      ValueError, match="kernel holds latents of an NNX model"
    ):
      refuse()


def test_a_bare_nnx_model_takes_no_latents():
  bare = Network()
  model = rewa_jax.nnx.reparameterize(bare, REWA)
  latents = nnx.state(model, nnx.Param)
  with pytest.raises(ValueError):
    nnx.update(bare, latents)
  with pytest.raises(ValueError, match="not available in state"):
    nnx.replace_by_pure_dict(nnx.state(bare), nnx.to_pure_dict(latents))
  kinds = {type(leaf) for leaf in jax.tree.leaves(latents, is_leaf=is_variable)}
  assert rewa_jax.nnx.Latent in kinds


def test_a_bare_linen_model_takes_no_latents_of_several_arrays():
  spred = rewa_jax.baselines.spred()
  latents = rewa_jax.linen.Reparameterized(BARE, spred).init(
    jax.random.key(0), INPUTS
  )
  with pytest.raises((TypeError, ValueError)):
    BARE.apply(latents, INPUTS)


def test_the_sparsity_of_latents_is_that_of_their_weights():
  weights = {"kernel": jnp.array([1.0, 1e-5])}
  latents = REWA.to_latents(weights)
  assert rewa_jax.sparsity(weights, 1e-3).sparsity == 0.5
  assert rewa_jax.sparsity(latents, 1e-3, method=REWA).sparsity == 0.5
  with pytest.raises(ValueError, match="kernel holds latents, not weights"):
    rewa_jax.sparsity(rewa_jax.baselines.spred().to_latents(weights), 1e-3)
  model = rewa_jax.nnx.reparameterize(Network(), REWA)
  for state in (nnx.state(model), nnx.to_pure_dict(nnx.state(model))):
    with pytest.raises(ValueError, match="emb/kernel holds latents"):
      rewa_jax.sparsity(state, 1e-3)
    with pytest.raises(ValueError, match="emb/kernel holds latents"):
      rewa_jax.prune(state, threshold=1e-3)


def test_a_mask_function_is_no_schedule():
  def mask(params):
    return jax.tree.map(lambda x: x.ndim == 2, params)

  latents = {"first": jnp.ones((2, 2)), "second": jnp.ones(2)}
  zero = jax.tree.map(jnp.zeros_like, latents)
  inject = optax.inject_hyperparams
  with pytest.raises(TypeError, match="mask must be .* static_args"):
    inject(rewa_jax.rewa_sgd)(0.1, 9, weight_decay=0.1, mask=mask).init(latents)
  for solver in (
    inject(rewa_jax.sgd)(0.1, rewa_jax.Rewa(9, mask=mask), weight_decay=0.1),
    inject(rewa_jax.rewa_sgd, static_args="mask")(
      0.1, 9, weight_decay=0.1, mask=mask
    ),
  ):
    updates, _ = solver.update(zero, solver.init(latents), latents)
    np.testing.assert_allclose(updates["first"], -0.01, rtol=1e-6)
    assert not updates["second"].any()
  adamw = inject(optax.adamw)(0.1, mask=REWA.decaying)
  with pytest.raises(TypeError, match="with a step .* static_args"):
    rewa_jax.reparameterize(adamw, REWA).init({"kernel": jnp.ones(2)})


def is_variable(node):
  return isinstance(node, nnx.Variable)


@pytest.mark.parametrize("method", [9, rewa_jax.Rewa, optax.sgd(0.1)])
@pytest.mark.parametrize(
  "use",
  [
    lambda method: rewa_jax.sgd(0.1, method, weight_decay=0.1),
    lambda method: rewa_jax.adamw(0.1, method, sparsity=0.5, steps=100),
    lambda method: rewa_jax.scale_by_method(method),
    lambda method: rewa_jax.reparameterize(optax.sgd(0.1), method),
    lambda method: rewa_jax.decay_by_rank(method, 0.5, 0.1, 100, low=0.1),
    lambda method: rewa_jax.keep_zeros(method=method),
    lambda method: rewa_jax.sparsity({"kernel": jnp.ones(2)}, method=method),
    lambda method: rewa_jax.linen.Reparameterized(BARE, method),
    lambda method: rewa_jax.nnx.reparameterize(Network(), method),
  ],
)
def test_what_is_no_method_is_said(use, method):
  with pytest.raises(TypeError, match="method must be a rewa_jax.Method, such"):
    use(method)
