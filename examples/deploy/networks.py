"""Networks to make smaller: trained by ReWA here, or a run that is there."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import rewa_jax
from rewa_jax import baselines, deploy

from .. import idx
from ..image_classification.models import MODELS

LEARNING_RATE = 0.4
MOMENTUM = 0.9
CLIP = 1.0
BATCH_SIZE = 128
# By the end decay alone has shrunk weights by exp(-15).
DECAY_BUDGET = 15
METHODS = {
  "single weights": rewa_jax.Rewa(k=9, m=2),
  "whole units": baselines.GroupedRewa(9, "output", m=2),
}
# Too large to train here, with the images that they take.
UNTRAINED = {"wide_mlp": (8, 64, 64, 1), "resnet20": (8, 32, 32, 3)}


class Data(NamedTuple):
  """Images (n, size, size, 1) in [0, 1], to train on and to test with."""

  images: jax.Array
  labels: jax.Array
  test_images: jax.Array
  test_labels: jax.Array


class Network(NamedTuple):
  """A model of logits, its weights, and images to test it with.

  Attributes:
    name: what it is.
    sparse_in: what vanished together.
    model: a linen module.
    variables: weights, and statistics if it has them.
    images: what it is tested on.
    labels: theirs; None where it was not trained.
  """

  name: str
  sparse_in: str
  model: nn.Module
  variables: Any
  images: jax.Array
  labels: jax.Array | None

  @property
  def stem(self) -> str:
    """What the names of its files begin with."""
    return f"{self.name}_{self.sparse_in}".replace(" ", "_")

  def accuracy(self, apply: Callable[..., Any], variables: Any) -> float | None:
    """Returns the accuracy on test images of a function and its variables."""
    if self.labels is None:
      return None
    return float(
      (apply(variables, self.images).argmax(-1) == self.labels).mean()
    )


class ConvNet(nn.Module):
  """As LeNet-5, for images of 8x8."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for filters in (20, 50):
      x = nn.relu(nn.Conv(filters, (3, 3))(x))
      # A 2x2 max pool that exporters know, and faster on a CPU.
      n, height, width, channels = x.shape
      x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
    x = nn.relu(nn.Dense(500)(x.reshape(len(x), -1)))
    return nn.Dense(10)(x)


class WideMLP(nn.Module):
  """Three layers of one width."""

  width: int = 4096

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.reshape(len(x), -1)
    for _ in range(2):
      x = nn.relu(nn.Dense(self.width)(x))
    return nn.Dense(self.width)(x)


def make(name: str) -> nn.Module:
  """Returns a model by its name, of ten classes."""
  own = {"convnet": ConvNet, "wide_mlp": WideMLP}
  return own[name]() if name in own else MODELS[name](classes=10)


def load_data(folder: pathlib.Path | None) -> Data:
  """Returns MNIST from its IDX files, or digits, 400 of them for the test.

  Raises:
    OSError: if a file is missing.
    ValueError: if a file is no IDX file.
  """
  if folder is not None:
    images, labels, test_images, test_labels = idx.load(folder)
  else:
    images, labels = load_digits(return_X_y=True)
    images, test_images, labels, test_labels = train_test_split(
      np.float32(images.reshape(-1, 8, 8) / 16),
      labels.astype(np.int32),
      test_size=400,
      random_state=0,
      stratify=labels,
    )
  arrays = images[..., None], labels, test_images[..., None], test_labels
  return Data(*map(jnp.asarray, arrays))


def train(name: str, sparse_in: str, data: Data, steps: int) -> Network:
  """Trains a network by ReWA, and returns its weights."""
  method, model = METHODS[sparse_in], make(name)
  schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
  decay = rewa_jax.weight_decay_for(DECAY_BUDGET, method.k, schedule, steps)
  solver = optax.chain(
    optax.clip_by_global_norm(CLIP),
    rewa_jax.sgd(schedule, method, weight_decay=decay, momentum=MOMENTUM),
  )

  def loss(latents, images, labels):
    logits = model.apply(method.to_weights(latents), images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()

  # Not a scan: inside one, convolutions keep to one core.
  @jax.jit
  def step(latents, state, key):
    batch = jax.random.randint(key, (BATCH_SIZE,), 0, len(data.labels))
    grads = jax.grad(loss)(latents, data.images[batch], data.labels[batch])
    updates, state = solver.update(grads, state, latents)
    return optax.apply_updates(latents, updates), state

  init_key, key = jax.random.split(jax.random.key(0))
  latents = method.to_latents(model.init(init_key, data.images[:1]))
  state = solver.init(latents)
  for number in range(steps):
    latents, state = step(latents, state, jax.random.fold_in(key, number))
  weights = method.to_weights(latents)
  return Network(
    name, sparse_in, model, weights, data.test_images, data.test_labels
  )


def reread(
  name: str, sparse_in: str, data: Data, folder: pathlib.Path
) -> Network:
  """Returns a network that was trained, from the folder of results.

  Raises:
    OSError, ValueError: if its file is not there, or damaged.
  """
  network = Network(
    name, sparse_in, make(name), None, data.test_images, data.test_labels
  )
  variables = deploy.load(folder / f"{network.stem}.safetensors")
  return network._replace(variables=variables)


def draw(name: str, sparse_in: str) -> Network:
  """Returns a network as it is initialized, for networks too large to train.

  Pruned, it is sparse at random: single weights, or units whose kernels shrink
  by one random number each.
  """
  model = make(name)
  images = jax.random.normal(jax.random.key(1), UNTRAINED[name])
  variables = model.init(jax.random.key(0), images)
  if sparse_in == "whole units":
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
      lambda leaf: (
        leaf * np.float32(10.0 ** -rng.uniform(0, 9, leaf.shape[-1]))
        if leaf.ndim > 1
        else leaf
      ),
      variables,
    )
  return Network(name, sparse_in, model, variables, images, None)


def read(run: pathlib.Path) -> Network:
  """Returns the network of a run of image_classification.

  Raises:
    OSError, ValueError: if the folder holds no run, or a damaged one.
  """
  # They need more than the rest of this.
  from ..image_classification import checkpoints, pipeline, state

  config, weights, statistics = checkpoints.load(run)
  source = pipeline.open_data(config)
  model = state.make_network(config, source.classes)
  batches = source.test_batches("test")
  parts = [
    source.to_images(None, batch, source.arrays["test"]) for batch in batches
  ]
  images, labels = (jnp.concatenate(part) for part in zip(*parts))
  variables = {"params": weights}
  if jax.tree.leaves(statistics):
    variables["batch_stats"] = statistics
  kept = labels >= 0
  return Network(
    config.model, config.method, model, variables, images[kept], labels[kept]
  )
