"""Random NNX models, and what may be done to one between its calls."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

WIDTH = 3
INPUTS = jax.random.normal(jax.random.key(0), (4, WIDTH))


class Dense(nnx.Module):
  """What the layers below have in common: a kernel and a bias."""

  def __init__(self, rngs):
    self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

  def __call__(self, x):
    return self.dense(x)


class Sows(Dense):
  def __call__(self, x):
    x = self.dense(x)
    self.sow(nnx.Intermediate, "seen", x)
    return x


class Perturbs(Dense):
  def __call__(self, x):
    return self.perturb("change", self.dense(x))


class Counts(Dense):
  """Changes a Variable."""

  def __init__(self, rngs):
    super().__init__(rngs)
    self.calls = nnx.Variable(jnp.zeros(()))

  def __call__(self, x):
    self.calls[...] += 1
    return self.dense(x) + self.calls


class Reassigns(Dense):
  """Puts another Variable in the place of one, and adds one."""

  def __init__(self, rngs):
    super().__init__(rngs)
    self.carry = nnx.Variable(jnp.zeros(WIDTH))

  def __call__(self, x):
    x = self.dense(x) + self.carry
    self.carry, self.last = nnx.Variable(x.mean(0)), nnx.Intermediate(x)
    return x


class Flips(Dense):
  """Changes a Python value."""

  def __init__(self, rngs):
    super().__init__(rngs)
    self.sign = 1

  def __call__(self, x):
    self.sign = -self.sign
    return self.sign * self.dense(x)


class Clips(Dense):
  """Assigns its own weights."""

  def __call__(self, x):
    self.dense.kernel[...] = jnp.clip(self.dense.kernel, -0.3, 0.3)
    return self.dense(x)


class Ties(Dense):
  def __init__(self, rngs):
    super().__init__(rngs)
    self.again = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.again.kernel = self.dense.kernel

  def __call__(self, x):
    return self.again(self.dense(x))


class Jits(Dense):
  """Has a transform of its own."""

  @nnx.jit
  def __call__(self, x):
    return self.dense(x)


class Draws(Dense):
  """Has a stream of random numbers."""

  def __init__(self, rngs):
    super().__init__(rngs)
    self.rngs = nnx.Rngs(noise=rngs.params())

  def __call__(self, x):
    return self.dense(x) + jax.random.normal(self.rngs.noise(), x.shape)


class Drops(Dense):
  def __init__(self, rngs):
    super().__init__(rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return self.dropout(self.dense(x))


class Normalizes(Dense):
  def __init__(self, rngs):
    super().__init__(rngs)
    # In small batches of like examples the default amplifies rounding.
    self.norm = nnx.BatchNorm(WIDTH, epsilon=0.1, rngs=rngs)

  def __call__(self, x):
    return self.norm(self.dense(x))


class Attends(nnx.Module):
  """Has a cache of the calls before."""

  def __init__(self, rngs):
    self.attention = nnx.MultiHeadAttention(1, WIDTH, decode=True, rngs=rngs)
    self.attention.init_cache((len(INPUTS), 20, WIDTH))

  def __call__(self, x):
    return self.attention(x[:, None])[:, 0]


class Recurs(nnx.Module):
  def __init__(self, rngs):
    cell = nnx.SimpleCell(WIDTH, WIDTH, rngs=rngs)
    self.rnn = nnx.RNN(cell, rngs=rngs)

  def __call__(self, x):
    return self.rnn(x[:, None])[:, 0]


class Statistics(nn.Module):
  @nn.compact
  def __call__(self, x):
    norm = nn.BatchNorm(use_running_average=False, epsilon=0.1)
    return norm(nn.Dense(WIDTH)(x))


class Bridges(nnx.Module):
  """Has statistics of linen."""

  def __init__(self, rngs):
    self.linen = nnx.bridge.ToNNX(Statistics(), rngs=rngs).lazy_init(INPUTS)

  def __call__(self, x):
    return self.linen(x, mutable=["batch_stats"])


LAYERS = (
  *(Dense, Sows, Perturbs, Counts, Reassigns, Flips, Clips, Ties, Jits),
  *(Draws, Drops, Normalizes, Attends, Recurs, Bridges),
)


class Model(nnx.Module):
  """A random number of random layers, or of models like this in their place."""

  def __init__(self, random, rngs, depth=1):
    nested = depth and random.random() < 0.3
    self.layers = nnx.List(
      LAYERS[random.integers(len(LAYERS))](rngs)
      for _ in range(random.integers(1, 4))
    )
    self.nested = Model(random, rngs, depth - 1) if nested else None
    self.gain = 1.0

  def __call__(self, x):
    for layer in self.layers:
      x = jnp.tanh(layer(x))
    return self.gain * (self.nested(x) if self.nested else x)

  def first(self, x):
    return self.layers[0](x)

  @property
  def count(self):
    return len(self.layers)

  def set_gain(self, gain):
    self.gain = gain
    return self.count


# Functions of a model and inputs to the model, or another, and outputs.


def call(model, x):
  return model, model(x)


def call_a_method(model, x):
  return model, model.first(x)


def call_compiled(model, x):
  return model, nnx.jit(lambda model, x: model(x))(model, x)


def differentiate(model, x):
  def loss(model):
    outputs = model(x)
    return jnp.sum(outputs**2), outputs

  return model, nnx.grad(loss, has_aux=True)(model)[1]


def set_values(model, x):
  del x
  count = model.set_gain(0.5)
  model.note = count
  return model, (count, model.gain, model.note)


def evaluate(model, x):
  model.eval()
  outputs = model(x)
  model.train()
  return model, outputs


def set_attributes(model, x):
  model.set_attributes(gain=2.0)
  return model, model(x)


def pop(model, x):
  del x
  return model, jax.tree.leaves(nnx.pop(model, nnx.Intermediate))


def split_and_merge(model, x):
  return nnx.merge(*nnx.split(model)), x


def copy(model, x):
  return nnx.clone(model), x


ACTIONS = (
  *(call, call, call_a_method, call_compiled, differentiate, set_values),
  *(evaluate, set_attributes, pop, split_and_merge, copy),
)
