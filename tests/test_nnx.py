import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

import rewa_jax
from rewa_jax import baselines

INPUTS = jax.random.normal(jax.random.key(0), (6, 5))
REWA = rewa_jax.Rewa(k=3, m=1)


class Network(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(5, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(8, 2, rngs=rngs)])

  def __call__(self, x):
    return self.layers[0](self.dropout(self.norm(self.encode(x))))

  def encode(self, x):
    return nnx.relu(self.hidden(x))


def setup(method=REWA, **more):
  bare = Network(nnx.Rngs(0))
  return bare, rewa_jax.nnx.reparameterize(bare, method, **more)


def params_of(model):
  """Returns Params by their paths in the bare model."""
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  return {
    path[1:] if path[0] in ("model", "rewa_latents") else path: leaf
    for path, leaf in traverse_util.flatten_dict(params).items()
    if leaf is not None
  }


def assert_close(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    one,
    other,
  )


def test_params_are_latents_and_calls_compute_with_weights():
  bare, model = setup()
  latents = REWA.to_latents(nnx.to_pure_dict(nnx.state(bare, nnx.Param)))
  jax.tree.map(
    np.testing.assert_array_equal,
    params_of(model),
    traverse_util.flatten_dict(latents),
  )
  assert type(model.rewa_latents["hidden"]["kernel"]) is rewa_jax.nnx.Latent
  assert model.model.hidden.kernel.get_value() is None
  bare.eval(), model.eval()
  assert_close(model(INPUTS), bare(INPUTS))
  assert_close(model.encode(INPUTS), bare.encode(INPUTS))


def test_the_given_model_is_left_as_it_is():
  bare, model = setup()
  before = jax.tree.map(jnp.copy, params_of(bare))
  optimizer = nnx.Optimizer(
    model, rewa_jax.sgd(0.1, REWA, weight_decay=0.1), wrt=nnx.Param
  )
  optimizer.update(model, nnx.grad(lambda m: m(INPUTS).sum())(model))
  jax.tree.map(np.testing.assert_array_equal, params_of(bare), before)
  assert not bare.norm.mean[...].any() and model.model.norm.mean[...].any()


def test_statistics_and_dropout_streams_propagate():
  bare, model = setup()
  for _ in range(3):
    assert_close(model(INPUTS), bare(INPUTS))
  assert_close(model.model.norm.var[...], bare.norm.var[...])
  assert model.model.dropout.rngs.count[...] == bare.dropout.rngs.count[...] > 1


def train(model, steps=20):
  optimizer = nnx.Optimizer(
    model,
    rewa_jax.sgd(0.05, REWA, weight_decay=1e-3, momentum=0.9),
    wrt=nnx.Param,
  )

  @nnx.jit
  def step(model, optimizer):
    loss, grads = nnx.value_and_grad(
      lambda model: jnp.mean((model(INPUTS) - 1) ** 2)
    )(model)
    optimizer.update(model, grads)
    return loss

  return [step(model, optimizer) for _ in range(steps)]


def test_training_with_nnx_optimizer_and_nnx_jit():
  _, model = setup()
  losses = train(model)
  assert losses[-1] < losses[0]
  assert model.model.norm.mean[...].any()


def test_split_and_merge():
  _, model = setup()
  train(model, 2)
  merged = nnx.merge(*nnx.split(model))
  model.eval(), merged.eval()
  assert jnp.array_equal(merged(INPUTS), model(INPUTS))


def test_weights_give_the_bare_model_again():
  _, model = setup()
  train(model, 3)
  model.eval()
  weights = model.weights()
  assert isinstance(weights, Network)
  assert_close(weights(INPUTS), model(INPUTS))
  weights.hidden.bias[...] += 1
  assert not jnp.array_equal(weights.hidden.bias, model.model.hidden.bias)


def test_gradient_conventions():
  bare, by_weight = setup()
  _, by_latent = setup(rewa_jax.Rewa(k=3, gradient="latent"))

  def gradient(model):
    model.eval()
    return params_of(nnx.grad(lambda m: m(INPUTS).sum())(model))

  wanted = gradient(bare)
  assert_close(gradient(by_weight), wanted)
  latent = gradient(by_latent)
  y = by_latent.rewa_latents["hidden"]["kernel"][...]
  kernel, bias = ("hidden", "kernel"), ("hidden", "bias")
  assert_close(latent[kernel], 3 * y**2 * wanted[kernel])
  assert_close(latent[bias], wanted[bias])


def test_a_closure_under_jax_jit():
  _, model = setup()
  model.eval()
  outputs = jax.jit(lambda x: model(x))(INPUTS)
  assert_close(outputs, model(INPUTS))


def test_tied_params_stay_tied():
  class Tied(nnx.Module):
    def __init__(self, rngs):
      self.one = nnx.Linear(5, 5, rngs=rngs)
      self.other = nnx.Linear(5, 5, rngs=rngs)
      self.other.kernel = self.one.kernel

    def __call__(self, x):
      return self.other(self.one(x))

  bare = Tied(nnx.Rngs(0))
  model = rewa_jax.nnx.reparameterize(bare, REWA)
  assert params_of(model).keys() == params_of(bare).keys()
  weights = model.weights()
  assert weights.one.kernel is weights.other.kernel
  assert_close(model(INPUTS), bare(INPUTS))


def test_an_own_mask():
  mask = {
    "hidden": True,
    "norm": False,
    "layers": {0: {"kernel": True, "bias": False}},
  }
  bare, model = setup(rewa_jax.Rewa(k=3, mask=mask))
  assert jnp.array_equal(
    model.rewa_latents["hidden"]["bias"],
    rewa_jax.root(bare.hidden.bias[...], 3),
  )
  assert set(model.rewa_latents["layers"][0]) == {"kernel"}
  bare.eval(), model.eval()
  assert_close(model(INPUTS), bare(INPUTS))


def test_training_from_given_latents():
  bare = Network(nnx.Rngs(0))
  params = nnx.to_pure_dict(nnx.state(bare, nnx.Param))
  doubled = jax.tree.map(lambda x: 2 * x, params)
  _, model = setup(latents=REWA.to_latents(doubled))
  assert_close(params_of(model.weights()), traverse_util.flatten_dict(doubled))
  latents = REWA.to_latents(params | {"norm": {"scale": jnp.ones(8)}})
  with pytest.raises(ValueError, match="latents must .* They have hidden/bias"):
    setup(latents=latents)


@pytest.mark.parametrize(
  "other",
  [
    rewa_jax.Rewa(k=5, m=1),
    rewa_jax.Rewa(k=3, m=1, gradient="latent"),
    baselines.PowerPropagation(3.0),
  ],
)
def test_an_optimizer_of_another_method_is_refused(other):
  _, model = setup()
  solver = rewa_jax.adamw(0.1, other, weight_decay=0.1)
  with pytest.raises(ValueError, match=r"kernel holds latents of Rewa\(k=3"):
    nnx.Optimizer(model, solver, wrt=nnx.Param)


def test_an_optimizer_may_step_otherwise():
  _, model = setup()
  rewa = rewa_jax.Rewa(k=3, eps=1e-3)  # The same weights for the same latents.
  solver = rewa_jax.adamw(0.1, rewa, weight_decay=0.1)
  nnx.Optimizer(model, solver, wrt=nnx.Param)


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match="mask must have the structure"):
    setup(rewa_jax.Rewa(k=3, mask={"hidden": True}))
  with pytest.raises(ValueError, match="The leaves are bias, scale"):
    norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
    rewa_jax.nnx.reparameterize(norm, REWA)
  with pytest.raises(AttributeError, match=r"under \.model"):
    _ = setup()[1].hidden


def test_a_donated_model_takes_no_other_with_it():
  bare, model = setup()
  weights = model.weights()

  @nnx.jit(donate_argnums=0)
  def forget(model):
    nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))

  forget(model)
  for other in (bare, weights):
    other.eval()
    assert jnp.isfinite(other(INPUTS)).all()
