import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from flax.training.train_state import TrainState

import rewa_jax
from rewa_jax import baselines

KEY = jax.random.key(0)
INPUTS = jax.random.normal(KEY, (6, 5))
SEQUENCES = jax.random.normal(KEY, (2, 4, 5))
RNGS = {"params": KEY, "dropout": jax.random.key(1)}
REWA = rewa_jax.Rewa(k=3, m=1)
METHODS = [
  REWA,
  baselines.spred(),
  baselines.Gated("output"),
  baselines.SoftThreshold(),
]
all_methods = pytest.mark.parametrize(
  "method", METHODS, ids=lambda method: type(method).__name__
)


class Network(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(8)(x)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    self.sow("intermediates", "hidden", x)
    return nn.remat(nn.Dense)(2)(self.perturb("hidden", x))


class AutoEncoder(nn.Module):
  def setup(self):
    self.encoder = nn.Dense(3)
    self.decoder = nn.Dense(5)

  def __call__(self, x):
    return self.decode(self.encode(x))

  def encode(self, x):
    return nn.tanh(self.encoder(x))

  def decode(self, z, scale=1.0):
    return scale * self.decoder(z)


def assert_close(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
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


def test_methods_take_keywords():
  bare, weights, model, latents = setup(AutoEncoder())
  wanted = bare.apply(weights, INPUTS[:, :3], scale=2.0, method="decode")
  result = model.apply(latents, INPUTS[:, :3], scale=2.0, method="decode")
  assert_close(result, wanted)


@pytest.mark.parametrize(
  "method",
  [METHODS[0], *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS[1:])],
  ids=lambda method: type(method).__name__,
)
def test_a_wrapped_cell_goes_into_an_rnn(method):
  bare = nn.RNN(nn.LSTMCell(3))
  cell = rewa_jax.linen.Reparameterized(nn.LSTMCell(3), method)
  model = nn.RNN(cell)
  weights = bare.init(KEY, SEQUENCES)["params"]
  latents = {"params": {"cell": method.to_latents(weights["cell"])}}
  outputs, variables = model.init_with_output(KEY, SEQUENCES)
  wanted = bare.apply({"params": weights}, SEQUENCES)
  assert_close(variables, latents)
  assert_close(outputs, wanted)
  assert_close(model.apply(latents, SEQUENCES), wanted)


def test_a_cell_outside_of_a_model_has_its_properties_and_fields():
  cell = rewa_jax.linen.Reparameterized(nn.LSTMCell(3), REWA)
  assert cell.features == 3 and cell.num_feature_axes == 1
  carry = cell.initialize_carry(KEY, (2, 5))
  assert_close(carry, nn.LSTMCell(3).initialize_carry(KEY, (2, 5)))


class Tied(nn.Module):
  """What reads the kernel without being an ordinary method."""

  rate: float = 2.0

  def setup(self):
    self.dense = nn.Dense(5)
    self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (5, 5))

  def __call__(self, x):
    return self.dense(x @ self.kernel)

  @property
  def norm(self):
    return jnp.linalg.norm(self.kernel)

  @nn.nowrap
  def product(self, x):
    return x @ self.variables["params"]["kernel"]

  @staticmethod
  def double(x):
    return 2 * x


def test_whatever_is_read_of_a_bound_module_are_weights():
  bare, weights, model, latents = setup(Tied())
  bare, model = bare.bind(weights), model.bind(latents)
  for read in [
    lambda model: model.norm,
    lambda model: model.kernel,
    lambda model: model.product(INPUTS),
    lambda model: model.double(model.rate),
  ]:
    assert_close(read(model), read(bare))
  with pytest.raises(Exception, match="method dense cannot return Modules"):
    model.dense  # noqa: B018 It would compute with latents.


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


class Halving(nn.Module):
  """Changes some of its params wherever they are mutable."""

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    kernel = self.variable("params", "kernel", init, KEY, (5, 2))
    bias = self.param("bias", nn.initializers.ones, (2,))
    y = nn.remat(nn.Dense)(2, name="dense")(x) + x @ kernel.value + bias
    if self.is_mutable_collection("params") and not self.is_initializing():
      kernel.value = kernel.value / 2
      self.put_variable("params", "bias", bias / 2)
    return y


@all_methods
def test_a_call_that_changes_params_leaves_their_latents(method):
  bare, _, model, latents = setup(Halving(), method)
  # Not those that to_latents would give.
  latents = jax.tree.map(lambda y: 1.25 * y, latents)
  weights = model.to_weights(latents)
  outputs, changed = model.apply(latents, INPUTS, mutable=["params"])
  wanted, left = bare.apply(weights, INPUTS, mutable=["params"])
  assert_close(outputs, wanted)
  assert_close(model.to_weights(changed), left)
  assert_close(changed["params"]["bias"], latents["params"]["bias"] / 2)
  for name in ("kernel", "bias"):
    jax.tree.map(
      np.testing.assert_array_equal,
      changed["params"]["dense"][name],
      latents["params"]["dense"][name],
    )


@all_methods
def test_apply_initializes_params_that_are_missing(method):
  bare, _, model, _ = setup(method=method)
  outputs, variables = model.apply(
    {}, INPUTS, mutable=["params", "batch_stats"], rngs=RNGS
  )
  assert_close(
    variables, model.init(RNGS, INPUTS, mutable=["params", "batch_stats"])
  )
  assert_close(outputs, bare.apply(model.to_weights(variables), INPUTS))


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
  _, _, model, _ = setup(bare)
  for method in METHODS[1:]:
    other = rewa_jax.linen.Reparameterized(bare, method)
    for latents in (weights, REWA.to_latents(weights)):
      with pytest.raises(ValueError, match="kernel holds one array, but"):
        other.apply(latents, INPUTS)
    with pytest.raises(ValueError, match="2 arrays for one, but Rewa"):
      model.apply(other.to_latents(weights), INPUTS)


@pytest.mark.parametrize("freeze_mask", [dict, freeze])
@pytest.mark.parametrize("freeze_params", [dict, freeze])
def test_masks_and_params_may_be_frozen_or_not(freeze_mask, freeze_params):
  mask = freeze_mask(
    {"encoder": {"kernel": True, "bias": False}, "decoder": False}
  )
  bare = AutoEncoder()
  weights = freeze_params(bare.init(KEY, INPUTS)["params"])
  for method in (
    rewa_jax.Rewa(k=3, mask=mask),
    baselines.spred(mask=mask),
  ):
    model = rewa_jax.linen.Reparameterized(bare, method)
    latents = method.to_latents(weights)
    assert_close(freeze_params(model.init(KEY, INPUTS)["params"]), latents)
    assert_close(
      model.apply({"params": latents}, INPUTS),
      bare.apply({"params": weights}, INPUTS),
    )
    report = rewa_jax.sparsity(latents, method=method)
    assert report.size == {"encoder/kernel": 15}
    for solver in (
      rewa_jax.sgd(0.1, method, weight_decay=0.1, momentum=0.9),
      rewa_jax.adamw(0.1, method, weight_decay=0.1),
    ):
      updates, _ = solver.update(latents, solver.init(latents), latents)
      assert jax.tree.structure(updates) == jax.tree.structure(latents)
    solver = rewa_jax.reparameterize(optax.sgd(0.1), method)
    updates, _ = solver.update(weights, solver.init(weights), weights)
    assert jax.tree.structure(updates) == jax.tree.structure(weights)
  assert rewa_jax.sparsity(weights, mask=mask).size == {"encoder/kernel": 15}
  pruned, _ = rewa_jax.prune(weights, sparsity=0.8, mask=mask)
  assert_close(pruned["decoder"], weights["decoder"])
  assert int(jnp.sum(pruned["encoder"]["kernel"] != 0)) == 3


# At k = 1 the wrapped module is the bare one: a case makes a module with
# `wrap` around it or around parts of it.


class Calls(nn.Module):
  """A field of the same name as the wrapper's."""

  module: nn.Module
  times: int = 2

  def __call__(self, x):
    for _ in range(self.times):
      x = self.module(x)
    return x


class Counter(nn.Module):
  @nn.compact
  def __call__(self, x):
    count = self.variable("cache", "count", jnp.zeros, ())
    count.value += 1
    return nn.Dropout(0.5, deterministic=False)(count.value * nn.Dense(5)(x))


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    return nn.Dense(5, kernel_init=init)(x), None


class LowRank(nn.Module):
  base: nn.Module

  def setup(self):
    nn.share_scope(self, self.base)

  @nn.compact
  def __call__(self, x):
    y = self.base(x)
    return y + x @ self.param("a", nn.initializers.normal(), (5, 5))


class Compact(nn.Module):
  make: Callable[[], nn.Module]
  lift: Callable = lambda fn: fn

  @nn.compact
  def __call__(self, x):
    part = self.make()
    call = self.lift(lambda part, x: part(x))
    return nn.Dense(5)(x), call(part, x), call(part, x)


class Setup(nn.Module):
  make: Callable[[], nn.Module]

  def setup(self):
    self.parts = [self.make(), self.make()]

  def __call__(self, x):
    return self.parts[1].decode(self.parts[0].encode(x), scale=2.0)


class Unrolled(nn.Module):
  make: Callable[[], nn.Module]

  @nn.compact
  def __call__(self, x):
    cell = self.make()
    carry = cell.initialize_carry(KEY, x[:, 0].shape)
    return [cell(carry, x[:, t]) for t in range(2)], cell.features


def sequential():
  return nn.Sequential([nn.Dense(5), nn.LayerNorm(), nn.Dense(5)])


per_layer = dict(
  variable_axes={"params": 0, "intermediates": 0, "cache": 0},
  split_rngs={"params": True, "dropout": True},
)
named = dict(metadata_params={nn.PARTITION_NAME: "layers"})


def scanned(part, x):
  layers = nn.scan(lambda part, x, _: part(x), length=3, **per_layer, **named)
  return layers(part, x, None)


CASES = {
  "compact": lambda wrap: wrap(Network()),
  "setup": lambda wrap: wrap(AutoEncoder()),
  "a name": lambda wrap: wrap(nn.Dense(3, name="dense")),
  "layers as fields": lambda wrap: wrap(sequential()),
  "a layer called twice": lambda wrap: wrap(Calls(nn.Dense(5))),
  "a cache": lambda wrap: wrap(Counter()),
  "scanned layers": lambda wrap: wrap(
    nn.scan(Layer, length=3, **per_layer, **named)()
  ),
  "mapped layers": lambda wrap: wrap(nn.vmap(nn.Dense, **per_layer)(3)),
  "a jitted layer": lambda wrap: wrap(nn.jit(nn.Dense)(3)),
  "a shared scope": lambda wrap: wrap(LowRank(nn.Dense(5))),
  "a recurrent network": lambda wrap: wrap(nn.RNN(nn.LSTMCell(3))),
  "a wrapper": lambda wrap: wrap(wrap(sequential())),
  "part called twice": lambda wrap: Calls(wrap(Counter())),
  "parts that share a layer": lambda wrap: (
    lambda layer: nn.Sequential([wrap(layer), wrap(layer)])
  )(nn.Dense(5)),
  "part in compact": lambda wrap: Compact(lambda: wrap(Counter())),
  "layers made in compact": lambda wrap: Compact(lambda: wrap(sequential())),
  "parts in setup": lambda wrap: Setup(lambda: wrap(AutoEncoder())),
  "part that shares its scope": lambda wrap: LowRank(wrap(nn.Dense(5))),
  "part under remat": lambda wrap: Compact(lambda: wrap(Counter()), nn.remat),
  "part under jit": lambda wrap: Compact(lambda: wrap(nn.Dense(5)), nn.jit),
  "part under vmap": lambda wrap: Compact(
    lambda: wrap(Counter()), functools.partial(nn.vmap, **per_layer)
  ),
  "part under scan": lambda wrap: Compact(
    lambda: wrap(Layer()), lambda _: scanned
  ),
  "cell": lambda wrap: nn.RNN(wrap(nn.GRUCell(3)), return_carry=True),
  "cell in compact": lambda wrap: Unrolled(lambda: wrap(nn.LSTMCell(3))),
  "recurrent networks": lambda wrap: nn.Bidirectional(
    wrap(nn.RNN(nn.GRUCell(3))), wrap(nn.RNN(nn.GRUCell(3)))
  ),
  "whole and its parts": lambda wrap: wrap(
    nn.Bidirectional(nn.RNN(wrap(nn.GRUCell(3))), nn.RNN(nn.GRUCell(3)))
  ),
}


# They compile for seconds.
SLOW = (
  *("a recurrent network", "recurrent networks", "whole and its parts"),
  *("cell", "cell in compact", "part under vmap", "part under scan"),
  *("part under jit", "scanned layers", "mapped layers", "a jitted layer"),
)


@pytest.mark.parametrize(
  "case",
  [
    pytest.param(case, marks=pytest.mark.slow if case in SLOW else ())
    for case in CASES
  ],
)
def test_at_k_1_the_wrapped_module_is_the_bare_one(case):
  bare = CASES[case](lambda module: module)
  model = CASES[case](
    lambda module: rewa_jax.linen.Reparameterized(module, rewa_jax.Rewa(k=1))
  )
  variables = bare.init(RNGS, SEQUENCES)
  assert_close(model.init(RNGS, SEQUENCES), variables)

  def run(model, variables):
    return model.apply(
      *(variables, SEQUENCES),
      rngs=RNGS,
      mutable=True,
      capture_intermediates=True,
    )

  assert_close(run(model, variables), run(bare, variables))
  assert_close(run(model, {}), run(bare, {}))
  # Rows of tables.
  modules = bare.module_paths(RNGS, SEQUENCES)
  assert model.module_paths(RNGS, SEQUENCES).keys() == modules.keys()


@pytest.mark.parametrize("case", ["compact", "cell", "part under remat"])
def test_no_call_but_those_of_the_bare_module_is_captured(case):
  bare = CASES[case](lambda module: module)
  model = CASES[case](
    lambda module: rewa_jax.linen.Reparameterized(module, REWA)
  )

  def captured(model):
    _, variables = model.apply(
      *({}, SEQUENCES),
      rngs=RNGS,
      mutable=True,
      capture_intermediates=lambda module, name: True,
    )
    return jax.tree.map(jnp.shape, variables["intermediates"])

  assert captured(model) == captured(bare)
