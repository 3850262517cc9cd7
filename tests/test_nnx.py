import threading

import flax.errors
import flax.linen as nn
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


class Sows(nnx.Module):
  """Has a loss of its own, as a mixture of experts has."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    return self.encode(x)

  def encode(self, x):
    x = self.hidden(x)
    self.sow(nnx.Intermediate, "balance", jnp.mean(x**2))
    return x


class Perturbs(Sows):
  def __call__(self, x):
    return self.perturb("change", self.hidden(x))


class Reassigns(Sows):
  """Adds an attribute, and puts another Variable in the place of one."""

  def __init__(self, rngs):
    super().__init__(rngs)
    self.carry = nnx.Variable(jnp.zeros(3))

  def __call__(self, x):
    x = self.hidden(x) + self.carry
    self.carry, self.last = nnx.Variable(x.mean(0)), nnx.Intermediate(x)
    return x


class Flags(Sows):
  """Has methods that set Python values, one of them by a name of NNX."""

  def __init__(self, rngs):
    super().__init__(rngs)
    self.scale, self.train = 1.0, True

  def eval(self):
    self.train = False

  def set_scale(self, scale):
    self.scale = scale
    return self

  def __call__(self, x):
    return self.scale * self.hidden(x) + self.train


class Statistics(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))


def call_twice(model, x):
  return model(x), model(2 * x)


def decode(model, x):
  model.init_cache((1, 2, 5))
  return model(x[None, :1]), model(x[None, 1:2])


def set_flags(model, x):
  model.eval()
  before = model(x)
  model.train = not model.train
  return before, model.set_scale(2.0)(x), model.scale


def set_attributes(model, x):
  model.set_attributes(nnx.Dropout, rate=0.25)
  model.train()
  return model(x), model.encode(x)


def update_statistics(model, x):
  return model(x, mutable=["batch_stats"])


def make_bridge(rngs):
  return nnx.bridge.ToNNX(Statistics(), rngs=rngs).lazy_init(INPUTS)


def make_attention(rngs):
  return nnx.MultiHeadAttention(1, 5, 4, decode=True, rngs=rngs)


KEEPING = {
  "sown values": (Sows, call_twice),
  "perturbations": (Perturbs, call_twice),
  "reassigned Variables": (Reassigns, call_twice),
  "statistics and random streams": (Network, call_twice),
  "attributes of submodules": (Network, set_attributes),
  "Python values": (Flags, set_flags),
  "a cache": (make_attention, decode),
  "statistics of linen": (make_bridge, update_statistics),
  "a recurrent network": (
    lambda rngs: nnx.RNN(nnx.LSTMCell(5, 2, rngs=rngs), rngs=rngs),
    call_twice,
  ),
}

# They compile for seconds.
SLOW = "a cache", "a recurrent network"


def plainly(fn):
  return fn


def differentiated(fn):
  def with_loss(model, x):
    outputs = fn(model, x)
    return sum(map(jnp.sum, jax.tree.leaves(outputs))), outputs

  def call(model, x):
    (_, outputs), _ = nnx.value_and_grad(with_loss, has_aux=True)(model, x)
    return outputs

  return call


@pytest.mark.filterwarnings("ignore:(?s).*nnx.capture:DeprecationWarning")
@pytest.mark.parametrize(
  "method, through",
  [
    (rewa_jax.Rewa(k=1), plainly),
    pytest.param(
      *(rewa_jax.Rewa(k=1), lambda fn: nnx.jit(differentiated(fn))),
      marks=pytest.mark.slow,
    ),
    (baselines.spred(), differentiated),
  ],
  ids=["plainly", "jit-grad", "spred-grad"],
)
@pytest.mark.parametrize(
  "what",
  [
    pytest.param(what, marks=pytest.mark.slow if what in SLOW else ())
    for what in KEEPING
  ],
)
def test_what_a_bare_model_keeps_the_wrapped_one_keeps(what, method, through):
  make, fn = KEEPING[what]
  bare = make(nnx.Rngs(0))
  model = rewa_jax.nnx.reparameterize(bare, method)
  assert_close(through(fn)(model, INPUTS), through(fn)(bare, INPUTS))
  split = [nnx.split(m, nnx.RngKey, ...) for m in (model.weights(), bare)]
  (graphdef, _, state), (wanted_graphdef, _, wanted_state) = split
  assert graphdef == wanted_graphdef
  assert_close(nnx.to_pure_dict(state), nnx.to_pure_dict(wanted_state))


def test_a_recurrent_network_of_wrapped_cells():
  cell = nnx.LSTMCell(5, 2, rngs=nnx.Rngs(0))
  wrapped = rewa_jax.nnx.reparameterize(cell, REWA)
  assert wrapped.num_feature_axes == 1
  inputs = INPUTS[None]

  def loss(network):
    return network(inputs).sum()

  networks = [nnx.RNN(cell, rngs=nnx.Rngs(1)) for cell in (wrapped, cell)]
  assert_close(networks[0](inputs), networks[1](inputs))
  grads, wanted = map(nnx.grad(loss), networks)
  assert_close(
    nnx.to_pure_dict(grads)["cell"]["rewa_latents"]["hf"]["kernel"],
    nnx.to_pure_dict(wanted)["cell"]["hf"]["kernel"],
  )


class Parts(nnx.Module):
  """Has what a model may hand out."""

  factor = 2

  def __init__(self, rngs):
    self.first = nnx.Linear(5, 5, rngs=rngs)
    self.last = nnx.Linear(5, 5, rngs=rngs)
    self.norm = nnx.LayerNorm(5, rngs=rngs)
    self.activation = nnx.relu

  @property
  def norm_of_kernel(self):
    return jnp.sum(self.first.kernel**2)

  @property
  def encoder(self):
    return self.first

  def part(self, name):
    return getattr(self, name)

  @nnx.jit
  def jitted(self, x):
    return self.last(self.first(x))

  def __call__(self, x, inside=lambda: None):
    x = self.first(x)
    inside()
    return self.last(x)

  def swap(self):
    self.first, self.last = self.last, self.first

  def clip(self):
    self.first.kernel[...] = jnp.clip(self.first.kernel, -0.1, 0.1)

  def replace(self):
    self.last.kernel = nnx.Param(self.last.kernel[...])


def setup_parts(method=REWA):
  bare = Parts(nnx.Rngs(0))
  return bare, rewa_jax.nnx.reparameterize(bare, method)


def test_attributes_are_those_of_the_model():
  bare, model = setup_parts()
  assert_close(model.norm_of_kernel, bare.norm_of_kernel)
  assert model.factor == 2 and model.activation is nnx.relu
  assert model.norm is model.model.norm and model.part("norm") is model.norm
  model.activation = model.note = nnx.tanh
  assert model.model.activation is model.model.note is nnx.tanh
  assert not hasattr(model, "other") and not hasattr(model, "_private")
  bare._depth = 2
  model = rewa_jax.nnx.reparameterize(bare, REWA)
  model._depth += 1
  assert model._depth == model.model._depth == 3
  del model.activation, model._depth
  assert not hasattr(model.model, "activation")
  assert not hasattr(model.model, "_depth")


class Doubled(nnx.Param):
  """Hands out twice what it holds."""

  def get_value(self, **kwargs):
    return 2 * super().get_value(**kwargs)


def test_a_param_may_hand_out_something_else_than_it_holds():
  bare = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
  bare.kernel = Doubled(bare.kernel[...])
  bare.bias = Doubled(jnp.ones(3))
  model = rewa_jax.nnx.reparameterize(bare, REWA)
  assert_close(model(INPUTS), bare(INPUTS))
  assert_close(model.weights()(INPUTS), bare(INPUTS))


@pytest.mark.parametrize(
  "take",
  [
    lambda model: model.first,
    lambda model: model.encoder,
    lambda model: model.part("first"),
  ],
)
def test_params_that_are_empty_outside_of_calls_are_not_handed_out(take):
  _, model = setup_parts()
  with pytest.raises(AttributeError, match=r"holds the Param .* weights\(\)"):
    take(model)


def test_a_generator_is_refused_since_it_runs_outside_of_the_call():
  class Stream(nnx.Module):
    def __init__(self):
      self.layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    def stream(self, x):
      for _ in range(2):
        x = self.layer(x)
        yield x

  model = rewa_jax.nnx.reparameterize(Stream(), rewa_jax.Rewa(k=3))
  with pytest.raises(AttributeError, match="stream of Stream returns a gen"):
    model.stream(jnp.ones((1, 2)))
  assert len(list(model.weights().stream(jnp.ones((1, 2))))) == 2


def test_sown_values_of_a_method_are_captured():
  bare = Sows(nnx.Rngs(0))
  model = rewa_jax.nnx.reparameterize(bare, REWA)
  for captured, wanted in zip(
    nnx.capture(model.encode, nnx.Intermediate)(INPUTS),
    nnx.capture(bare.encode, nnx.Intermediate)(INPUTS),
  ):
    assert_close(jax.tree.leaves(captured), jax.tree.leaves(wanted))


@pytest.mark.parametrize("through", [plainly, nnx.jit])
@pytest.mark.parametrize("method", [rewa_jax.Rewa(k=9), baselines.spred()])
def test_weights_that_a_call_assigns_become_latents(method, through):
  bare, model = setup_parts(method)
  bare.clip()
  through(lambda model: model.clip())(model)
  assert_close(model.weights().first.kernel[...], bare.first.kernel[...])


def test_a_transform_within_a_call_leaves_latents_as_they_are():
  bare, model = setup_parts()
  assert_close(model.jitted(INPUTS), bare.jitted(INPUTS))
  kernel = model.rewa_latents["first"]["kernel"]
  kernel[...] = before = 1e-20 * kernel  # Too small for weights to tell.
  model.jitted(INPUTS)
  assert jnp.array_equal(kernel[...], before)


def test_params_may_move_within_the_model():
  bare, model = setup_parts()
  bare.swap(), model.swap()
  assert_close(model(INPUTS), bare(INPUTS))


def test_another_param_in_the_place_of_one_with_latents_is_refused():
  _, model = setup_parts()
  with pytest.raises(ValueError, match="began as last/kernel is no longer in"):
    model.replace()


def test_an_error_within_a_call_leaves_the_model_as_it_was():
  bare, model = setup_parts()
  with pytest.raises(ZeroDivisionError):
    model(INPUTS, lambda: 1 / 0)
  assert model.model.last.kernel.get_value() is None
  assert_close(model(INPUTS), bare(INPUTS))


def test_a_call_within_a_call():
  bare, model = setup_parts()
  outputs = []
  assert_close(
    model(INPUTS, lambda: outputs.append(model(INPUTS))), bare(INPUTS)
  )
  assert_close(outputs, [bare(INPUTS)])


def test_threads_take_turns():
  bare, model = setup_parts()
  outputs, entered, left = [], threading.Event(), threading.Event()

  def enter():
    entered.set()
    left.wait(10)

  other = threading.Thread(
    target=lambda: outputs.append(model(INPUTS, inside=enter))
  )

  def while_another_tries():
    other.start()
    entered.wait(0.2)  # It cannot, so this is how long it tries.

  outputs.append(model(INPUTS, inside=while_another_tries))
  left.set()
  other.join()
  assert_close(outputs, [bare(INPUTS)] * 2)


def test_what_cannot_be_kept_is_an_error():
  model = rewa_jax.nnx.reparameterize(Flags(nnx.Rngs(0)), REWA)
  with pytest.raises(flax.errors.TraceContextError):
    jax.jit(lambda: model.set_scale(2.0) and 0)()
  assert model.scale == 1.0


def test_vmap_over_models_and_eval_shape():
  keys = jax.random.split(jax.random.key(0), 2)

  def make(wrap):
    return nnx.vmap(lambda key: wrap(Reassigns(nnx.Rngs(key))))(keys)

  def call(model):
    return nnx.vmap(call_twice, in_axes=(0, None))(model, INPUTS)

  bare = make(plainly)
  model = make(lambda bare: rewa_jax.nnx.reparameterize(bare, REWA))
  assert_close(call(model), call(bare))
  assert_close(model.last[...], bare.last[...])
  shape, _ = nnx.eval_shape(call, model)
  assert shape.shape == (2, 6, 3)


def test_two_methods_on_one_model():
  bare = Network(nnx.Rngs(0))
  bare.eval()
  once = rewa_jax.nnx.reparameterize(bare, REWA)
  mask = {"model": True, "rewa_latents": False}
  twice = rewa_jax.nnx.reparameterize(once, rewa_jax.Rewa(k=5, mask=mask))
  for model in (once, twice, twice.weights(), twice.weights().weights()):
    assert_close(model(INPUTS), bare(INPUTS))
    assert_close(model.encode(INPUTS), bare.encode(INPUTS))


def test_latents_are_not_taken_for_weights():
  _, model = setup()
  with pytest.raises(ValueError, match=r"kernel holds latents of .* already"):
    rewa_jax.nnx.reparameterize(model, REWA)
  with pytest.raises(ValueError, match=r"kernel holds latents of .* already"):
    REWA.to_latents(nnx.state(model, nnx.Param))


def test_split_and_merge():
  _, model = setup()
  train(model, 2)
  merged = nnx.merge(*nnx.split(model))
  model.eval(), merged.eval()
  assert jnp.array_equal(merged(INPUTS), model(INPUTS))
  as_pytree = jax.jit(lambda model, x: model(x))
  assert_close(as_pytree(model, INPUTS), model(INPUTS))


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


def test_an_optimizer_may_step_as_another_rewa_with_the_same_weights():
  _, model = setup()
  rewa = rewa_jax.Rewa(k=3, eps=1e-3)
  solver = rewa_jax.adamw(0.1, rewa, weight_decay=0.1)
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  optimizer.update(model, nnx.grad(lambda model: model(INPUTS).sum())(model))
  after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  moved = jax.tree.map(lambda a, b: (a != b).any(), before, after)
  assert all(jax.tree.leaves(moved))


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match="mask must have the structure"):
    setup(rewa_jax.Rewa(k=3, mask={"hidden": True}))
  with pytest.raises(ValueError, match="The leaves are bias, scale"):
    norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
    rewa_jax.nnx.reparameterize(norm, REWA)
  with pytest.raises(ValueError, match="model has no Params"):
    rewa_jax.nnx.reparameterize(nnx.bridge.ToNNX(Statistics()), REWA)


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
