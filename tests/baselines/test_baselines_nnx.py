import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from rewa_jax import baselines

INPUTS = jax.random.normal(jax.random.key(0), (6, 5))
METHODS = [
  baselines.spred(),
  baselines.Gated("output", depth=3),
  baselines.GroupedRewa(3, "input", 1),
  baselines.SoftThreshold(),
]


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


def setup(method=METHODS[0], **more):
  bare = Network(nnx.Rngs(0))
  return bare, baselines.nnx.reparameterize(bare, method, **more)


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_close(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    one,
    other,
  )


def loss_of(model):
  return jnp.mean((model(INPUTS) - 1) ** 2)


@pytest.mark.parametrize("method", METHODS)
def test_params_are_factors_and_calls_compute_with_weights(method):
  bare, model = setup(method)
  latents = method.to_latents(params_of(bare))
  for layer, wanted in [
    (model.factors["hidden"], latents["hidden"]),
    (model.factors["layers"][0], latents["layers"][0]),
  ]:
    for param, value in zip(
      layer["kernel"].values, wanted["kernel"].values, strict=True
    ):
      assert isinstance(param, nnx.Param) and jnp.array_equal(param, value)
  assert_close(params_of(model.weights()), params_of(bare))
  for _ in range(3):  # Statistics and dropout streams propagate.
    assert_close(model(INPUTS), bare(INPUTS))
  assert_close(model.model.norm.var[...], bare.norm.var[...])
  bare.eval(), model.eval()
  assert_close(model(INPUTS), bare(INPUTS))
  assert_close(model.encode(INPUTS), bare.encode(INPUTS))


@pytest.mark.parametrize("method", METHODS)
def test_training_with_nnx_optimizer_and_nnx_jit(method):
  bare, model = setup(method)
  before = jax.tree.map(jnp.copy, params_of(bare))
  solver = baselines.sgd(0.05, method, strength=1e-3, momentum=0.9)
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer):
    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss

  losses = [step(model, optimizer) for _ in range(20)]
  assert losses[-1] < losses[0]
  # The given model is left as it is.
  jax.tree.map(np.testing.assert_array_equal, params_of(bare), before)
  merged = nnx.merge(*nnx.split(model))
  model.eval(), merged.eval()
  assert jnp.array_equal(merged(INPUTS), model(INPUTS))
  weights = model.weights()
  assert isinstance(weights, Network)
  assert_close(weights(INPUTS), model(INPUTS))
  weights.hidden.bias[...] += 1
  assert not jnp.array_equal(weights.hidden.bias, model.model.hidden.bias)


def test_any_optimizer_takes_the_factors():
  _, model = setup(METHODS[1])
  solver = optax.MultiSteps(optax.adam(1e-2), 2)
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer):
    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss

  losses = [step(model, optimizer) for _ in range(20)]
  assert losses[-1] < losses[0]


def test_lists_of_params_are_no_factors():
  class Ensemble(nnx.Module):
    def __init__(self, rngs):
      self.values = nnx.List([nnx.Linear(5, 1, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
      return sum(value(x) for value in self.values)

  method = METHODS[0]
  model = baselines.nnx.reparameterize(Ensemble(nnx.Rngs(0)), method)
  solver = baselines.sgd(1.0, method, strength=1.0)
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  model.model.values[0].bias[...] += 1
  wanted = [
    0.0 * param for param in model.factors["values"][0]["kernel"].values
  ]
  grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
  optimizer.update(model, grads)
  assert_close(
    [param[...] for param in model.factors["values"][0]["kernel"].values],
    wanted,
  )
  assert jnp.array_equal(model.model.values[0].bias, jnp.ones(1))


def test_tied_params_stay_tied():
  class Tied(nnx.Module):
    def __init__(self, rngs):
      self.one = nnx.Linear(5, 5, rngs=rngs)
      self.other = nnx.Linear(5, 5, rngs=rngs)
      self.other.kernel = self.one.kernel

    def __call__(self, x):
      return self.other(self.one(x))

  bare = Tied(nnx.Rngs(0))
  model = baselines.nnx.reparameterize(bare, METHODS[0])
  assert set(model.factors) == {"one"}
  assert_close(model(INPUTS), bare(INPUTS))
  weights = model.weights()
  assert weights.one.kernel is weights.other.kernel


def test_an_own_mask():
  mask = {
    "hidden": True,
    "norm": False,
    "layers": {0: {"kernel": False, "bias": False}},
  }
  bare, model = setup(mask=mask)
  assert set(model.factors) == {"hidden"}
  assert set(model.factors["hidden"]) == {"kernel", "bias"}
  bare.eval(), model.eval()
  assert_close(model(INPUTS), bare(INPUTS))


def test_given_latents_are_where_training_starts():
  bare = Network(nnx.Rngs(0))
  method = METHODS[1]
  latents = jax.tree.map(lambda x: x + 1, method.to_latents(params_of(bare)))
  model = baselines.nnx.reparameterize(bare, method, latents=latents)
  assert_close(params_of(model.weights()), method.to_weights(latents))


@pytest.mark.parametrize("method", METHODS)
def test_names_of_sharded_axes_stay_at_values_of_the_shape_of_weights(method):
  mesh = jax.make_mesh(
    (2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2
  )
  init = nnx.with_partitioning(
    nnx.initializers.lecun_normal(), ("data", "model")
  )
  with jax.set_mesh(mesh):
    bare = nnx.Linear(4, 8, kernel_init=init, rngs=nnx.Rngs(0))
    model = baselines.nnx.reparameterize(bare, method)
    for param in model.factors["kernel"].values:
      names = param.get_metadata().get("out_sharding")
      assert names == (("data", "model") if param.shape == (4, 8) else None)
    weights = model.weights()
  assert weights.kernel[...].sharding.spec == P("data", "model")
  assert_close(weights.kernel[...], bare.kernel[...])


def test_bad_input_is_refused():
  bare = Network(nnx.Rngs(0))
  with pytest.raises(ValueError, match="mask must have the structure"):
    baselines.nnx.reparameterize(bare, METHODS[0], mask={"hidden": True})
  with pytest.raises(ValueError, match="The leaves are bias, scale"):
    norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
    baselines.nnx.reparameterize(norm, METHODS[0])
  with pytest.raises(ValueError, match="They have kernel"):
    baselines.nnx.reparameterize(
      bare, METHODS[0], latents={"kernel": jnp.ones(2)}
    )
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
