import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rewa_jax

INPUTS = jax.random.normal(jax.random.key(0), (6, 5))
K = 3


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


def setup(**more):
  bare = Network(nnx.Rngs(0))
  return bare, rewa_jax.nnx.reparameterize(bare, K, **more)


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_close(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    one,
    other,
  )


def test_params_are_latents_and_calls_compute_with_weights():
  bare, model = setup()
  latents = rewa_jax.to_latents(params_of(bare), K)
  jax.tree.map(np.testing.assert_array_equal, params_of(model.model), latents)
  bare.eval(), model.eval()
  assert_close(model(INPUTS), bare(INPUTS))
  assert_close(model.encode(INPUTS), bare.encode(INPUTS))


def test_the_given_model_is_left_as_it_is():
  bare, model = setup()
  before = jax.tree.map(jnp.copy, params_of(bare))
  optimizer = nnx.Optimizer(
    model, rewa_jax.rewa_sgd(0.1, K, weight_decay=0.1), wrt=nnx.Param
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
    rewa_jax.rewa_sgd(0.05, K, 1, weight_decay=1e-3, momentum=0.9),
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
  _, by_latent = setup(gradient="latent")

  def gradient(model):
    model.eval()
    return params_of(nnx.grad(lambda m: m(INPUTS).sum())(model))

  wanted = gradient(bare)
  assert_close(gradient(by_weight)["model"], wanted)
  latent = gradient(by_latent)["model"]
  y = by_latent.model.hidden.kernel[...]
  assert_close(
    latent["hidden"]["kernel"], K * y**2 * wanted["hidden"]["kernel"]
  )
  assert_close(latent["hidden"]["bias"], wanted["hidden"]["bias"])


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
  model = rewa_jax.nnx.reparameterize(bare, K)
  assert model.model.one.kernel is model.model.other.kernel
  assert_close(model(INPUTS), bare(INPUTS))


def test_an_own_mask():
  mask = {
    "hidden": True,
    "norm": False,
    "layers": {0: {"kernel": True, "bias": False}},
  }
  bare, model = setup(mask=mask)
  assert jnp.array_equal(
    model.model.hidden.bias, rewa_jax.root(bare.hidden.bias[...], K)
  )
  bare.eval(), model.eval()
  assert_close(model(INPUTS), bare(INPUTS))


def test_bad_input_is_refused():
  bare = Network(nnx.Rngs(0))
  for bad, message in [
    (dict(k=0.5), "k must be"),
    (dict(k=3, gradient="both"), "gradient must be"),
    (dict(k=3, mask={"hidden": True}), "mask must have the structure"),
  ]:
    with pytest.raises(ValueError, match=message):
      rewa_jax.nnx.reparameterize(bare, **bad)
  with pytest.raises(ValueError, match="The leaves are bias, scale"):
    norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
    rewa_jax.nnx.reparameterize(norm, K)
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
