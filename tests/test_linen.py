import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.train_state import TrainState

import rewa_jax
from rewa_jax import baselines

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (6, 5))
REWA = rewa_jax.Rewa(k=3, m=1)


class Network(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(8)(x)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return nn.remat(nn.Dense)(2)(x)


class AutoEncoder(nn.Module):
  def setup(self):
    self.encoder = nn.Dense(3)
    self.decoder = nn.Dense(5)

  def __call__(self, x):
    return self.decode(self.encode(x))

  def encode(self, x):
    return nn.tanh(self.encoder(x))

  def decode(self, z):
    return self.decoder(z)


def assert_close(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    one,
    other,
  )


def setup(bare=None, method=REWA):
  """A bare module with weights, and its wrapper with their latents."""
  bare = bare or Network()
  model = rewa_jax.linen.Reparameterized(bare, method)
  weights = bare.init(KEY, INPUTS)
  return bare, weights, model, model.to_latents(weights)


@pytest.mark.parametrize("bare", [Network(), AutoEncoder()])
def test_init_stores_roots_of_the_ordinary_initialization(bare):
  _, weights, model, latents = setup(bare)
  variables = model.init(KEY, INPUTS)
  assert jax.tree.structure(variables) == jax.tree.structure(weights)
  jax.tree.map(np.testing.assert_array_equal, variables, latents)
  assert_close(model.to_weights(variables), weights)


def test_apply_computes_with_weights():
  bare, weights, model, latents = setup()
  assert_close(model.apply(latents, INPUTS), bare.apply(weights, INPUTS))


@pytest.mark.parametrize("mutable", ["batch_stats", ["batch_stats"], True])
def test_statistics_and_dropout_are_those_of_the_bare_module(mutable):
  bare, weights, model, latents = setup()

  def train(model, variables):
    return model.apply(
      variables, INPUTS, True, mutable=mutable, rngs={"dropout": KEY}
    )

  outputs, changed = train(model, latents)
  wanted, wanted_changed = train(bare, weights)
  assert_close(outputs, wanted)
  assert_close(changed["batch_stats"], wanted_changed["batch_stats"])
  if mutable is True:
    jax.tree.map(
      np.testing.assert_array_equal, changed["params"], latents["params"]
    )


def test_gradient_conventions():
  bare, weights, _, latents = setup()

  def gradient(model, variables):
    return jax.grad(lambda v: model.apply(v, INPUTS).sum())(variables)["params"]

  wanted = gradient(bare, weights)
  _, _, by_weight, _ = setup()
  _, _, by_latent, _ = setup(method=rewa_jax.Rewa(k=3, gradient="latent"))
  assert_close(gradient(by_weight, latents), wanted)
  y = latents["params"]["Dense_0"]["kernel"]
  assert_close(
    gradient(by_latent, latents)["Dense_0"]["kernel"],
    3 * y**2 * wanted["Dense_0"]["kernel"],
  )
  assert_close(
    gradient(by_latent, latents)["Dense_0"]["bias"], wanted["Dense_0"]["bias"]
  )


@pytest.mark.parametrize(
  "method",
  [
    "encode",
    AutoEncoder.encode,
    AutoEncoder().encode,
    lambda m, x: m.encode(x),
  ],
)
def test_methods_of_the_module(method):
  bare, weights, model, latents = setup(AutoEncoder())
  wanted = bare.apply(weights, INPUTS, method="encode")
  assert_close(model.apply(latents, INPUTS, method=method), wanted)
  assert_close(model.bind(latents).encode(INPUTS), wanted)
  partial = model.init(KEY, INPUTS, method=method)
  assert set(partial["params"]) == {"encoder"}


def test_a_method_that_does_not_exist():
  _, _, model, latents = setup(AutoEncoder())
  with pytest.raises(AttributeError, match="has no attribute"):
    model.apply(latents, INPUTS, method="generate")


class Parent(nn.Module):
  """Wraps a part of itself, and calls it twice."""

  @nn.compact
  def __call__(self, x):
    part = rewa_jax.linen.Reparameterized(AutoEncoder(name="part"), REWA)
    return nn.Dense(2, name="head")(part.decode(part.encode(part(x))))


def test_a_part_of_a_larger_module():
  variables = Parent().init(KEY, INPUTS)
  assert set(variables["params"]["part"]) == {"encoder", "decoder"}
  part = variables["params"]["part"]
  once = rewa_jax.linen.Reparameterized(AutoEncoder(), REWA)
  assert jax.tree.map(jnp.shape, part) == jax.tree.map(
    jnp.shape, once.init(KEY, INPUTS)["params"]
  )
  # Latents of weights below 1: calling a part twice takes no second root.
  weights = once.to_weights({"params": part})["params"]
  assert jnp.abs(weights["encoder"]["kernel"]).mean() < 0.6
  assert Parent().apply(variables, INPUTS).shape == (6, 2)


def test_remat_of_the_whole():
  bare, _, model, latents = setup()
  rematted = nn.remat(rewa_jax.linen.Reparameterized)(bare, REWA)
  wanted = jax.grad(lambda v: model.apply(v, INPUTS).sum())(latents)
  result = jax.grad(lambda v: rematted.apply(v, INPUTS).sum())(latents)
  assert_close(result["params"], wanted["params"])


def test_tabulate_shows_the_tree_of_the_bare_module():
  show = nn.tabulate(setup()[2], KEY, console_kwargs={"width": 200})
  table = show(INPUTS)
  assert "Dense_0" in table and "BatchNorm_0" in table


def test_train_state():
  _, _, model, latents = setup()
  state = TrainState.create(
    apply_fn=model.apply,
    params=latents["params"],
    tx=rewa_jax.sgd(0.05, REWA, weight_decay=1e-3, momentum=0.9),
  )
  stats = latents["batch_stats"]

  @jax.jit
  def step(state):
    def loss(params):
      variables = {"params": params, "batch_stats": stats}
      return jnp.mean((state.apply_fn(variables, INPUTS) - 1) ** 2)

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value

  state, first = step(state)
  for _ in range(20):
    state, value = step(state)
  assert value < first


def test_boxed_params_keep_their_boxes():
  init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
  bare, weights, model, latents = setup(nn.Dense(4, kernel_init=init))
  kernel = model.init(KEY, INPUTS)["params"]["kernel"]
  assert isinstance(kernel, nn.Partitioned) and kernel.names == (None, "model")
  assert nn.get_partition_spec(latents) == nn.get_partition_spec(weights)
  assert_close(model.apply(latents, INPUTS), bare.apply(weights, INPUTS))
  solver = rewa_jax.sgd(0.1, REWA, weight_decay=0.1, momentum=0.9)
  updates, _ = solver.update(latents, solver.init(latents), latents)
  assert isinstance(updates["params"]["kernel"], nn.Partitioned)


def test_an_own_mask_and_hashing():
  bare, weights, model, latents = setup(
    nn.Dense(4), rewa_jax.Rewa(k=3, mask={"kernel": False, "bias": True})
  )
  assert jnp.array_equal(
    latents["params"]["kernel"], weights["params"]["kernel"]
  )
  assert_close(model.apply(latents, INPUTS), bare.apply(weights, INPUTS))
  jax.tree.map(np.testing.assert_array_equal, model.init(KEY, INPUTS), latents)
  assert isinstance(hash(model), int)


def test_capturing_intermediates():
  _, _, model, latents = setup()
  _, captured = model.apply(latents, INPUTS, capture_intermediates=True)
  assert captured["intermediates"]["Dense_0"]["__call__"][0].shape == (6, 8)


def test_a_module_without_params():
  model = rewa_jax.linen.Reparameterized(
    nn.Dropout(0.5, deterministic=True), REWA
  )
  assert jnp.array_equal(model.apply({}, INPUTS), INPUTS)


def test_bad_input_is_refused():
  bare = nn.Dense(2)
  weights = bare.init(KEY, INPUTS)
  half = rewa_jax.Rewa(k=3, mask={"kernel": True})
  model = rewa_jax.linen.Reparameterized(bare, half)
  for use in (model.init, lambda key, x: model.apply(weights, x)):
    with pytest.raises(ValueError, match="mask must have the structure"):
      use(KEY, INPUTS)
  spred = rewa_jax.linen.Reparameterized(bare, baselines.spred())
  for latents in (weights, REWA.to_latents(weights)):
    with pytest.raises(ValueError, match="kernel holds one array, but Factor"):
      spred.apply(latents, INPUTS)
  _, _, model, _ = setup(bare)
  with pytest.raises(ValueError, match="kernel holds 2 arrays for one, but Re"):
    model.apply(spred.to_latents(weights), INPUTS)
