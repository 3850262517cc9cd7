"""The digits task of the programs that train a network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

LEARNING_RATE, MOMENTUM, BATCH_SIZE = 0.1, 0.9, 128
MLP = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])
Part = tuple[jax.Array, jax.Array]


def load() -> dict[str, Part]:
  """Returns the images and labels of 1,100, 297 and 400 digits."""
  images, labels = load_digits(return_X_y=True)
  images = np.float32(images / 16)
  split = {"random_state": 0, "stratify": labels}
  rest, test = train_test_split(np.arange(labels.size), test_size=400, **split)
  split["stratify"] = labels[rest]
  train, validation = train_test_split(rest, test_size=297, **split)
  parts = {"train": train, "validation": validation, "test": test}
  return {
    name: (jnp.asarray(images[part]), jnp.asarray(labels[part]))
    for name, part in parts.items()
  }


def initial_weights(seed: jax.typing.ArrayLike) -> Any:
  return MLP.init(jax.random.key(seed), jnp.zeros(64))


def mean_loss(weights: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(
    MLP.apply(weights, images), labels
  ).mean()


def accuracy(weights: Any, part: Part) -> jax.Array:
  return (MLP.apply(weights, part[0]).argmax(-1) == part[1]).mean()


def train(method, solver, part, steps, seed, watch=lambda latents: None):
  """Returns the trained weights, and what watch saw before every step."""
  images, labels = part
  key = jax.random.fold_in(jax.random.key(seed), 1)

  def step(carry, count):
    latents, state = carry
    batch = jax.random.randint(
      jax.random.fold_in(key, count), (BATCH_SIZE,), 0, labels.size
    )

    def loss(latents):
      weights = method.to_weights(latents)
      return mean_loss(weights, images[batch], labels[batch])

    updates, state = solver.update(jax.grad(loss)(latents), state, latents)
    return (optax.apply_updates(latents, updates), state), watch(latents)

  latents = method.to_latents(initial_weights(seed))
  carry = latents, solver.init(latents)
  (latents, _), seen = jax.lax.scan(step, carry, jnp.arange(steps))
  return method.to_weights(latents), seen


def schedule(name: str, steps: int) -> optax.Schedule:
  if name == "cosine":
    return optax.cosine_decay_schedule(LEARNING_RATE, steps)
  return optax.constant_schedule(LEARNING_RATE)


def pick(weights: Any, index: tuple[int, ...]) -> Any:
  return jax.tree.map(lambda w: w[index], weights)
