"""Times a grid of 32 settings against the same 32 runs one after another.

The digits network, 64-128-10, trains 1,000 steps in every cell. Everything is
compiled beforehand; grid and sequence take turns, the median of --repeats
counts. Prints the ratio of the grid's time to the sequence's and writes
speed.json.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from tqdm import tqdm

import rewa_jax

STEPS, BATCH_SIZE, K = 1000, 128, 9


def train(images, labels, key, weight_decay, learning_rate):
  model = rewa_jax.linen.Reparameterized(
    nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)]), K
  )
  schedule = optax.cosine_decay_schedule(1.0, STEPS)
  solver = rewa_jax.rewa_sgd(
    lambda count: learning_rate * schedule(count),
    K,
    2,
    weight_decay=weight_decay,
    momentum=0.9,
  )

  def loss(latents, batch):
    logits = model.apply(latents, images[batch])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels[batch]
    ).mean()

  def step(carry, count):
    latents, state = carry
    batch_key = jax.random.fold_in(key, count)
    batch = jax.random.randint(batch_key, (BATCH_SIZE,), 0, len(labels))
    grads = jax.grad(loss)(latents, batch)
    updates, state = solver.update(grads, state, latents)
    return (optax.apply_updates(latents, updates), state), None

  latents = model.init(key, images[:1])
  carry = latents, solver.init(latents)
  (latents, _), _ = jax.lax.scan(step, carry, jnp.arange(STEPS))
  return loss(latents, jnp.arange(len(labels)))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument(
    "--out", type=pathlib.Path, default="results/hyperparameter_grid"
  )
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  images, labels = load_digits(return_X_y=True)
  images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
  decays, rates = map(
    jnp.ravel,
    jnp.meshgrid(jnp.geomspace(1e-3, 3e-2, 8), jnp.geomspace(0.02, 0.1, 4)),
  )
  keys = jax.random.split(jax.random.key(0), len(decays))

  single = jax.jit(train).lower(images, labels, keys[0], decays[0], rates[0])
  single = single.compile()
  together = jax.jit(jax.vmap(train, (None, None, 0, 0, 0)))
  together = together.lower(images, labels, keys, decays, rates).compile()

  def in_sequence():
    cells = zip(keys, decays, rates)
    return jnp.stack([single(images, labels, *cell) for cell in cells])

  def at_once():
    return together(images, labels, keys, decays, rates)

  def seconds(fn):
    begin = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - begin

  np.testing.assert_allclose(at_once(), in_sequence(), rtol=0.05)
  pairs = [
    (seconds(at_once), seconds(in_sequence))
    for _ in tqdm(range(args.repeats), "pairs")
  ]
  ratio = statistics.median(one / other for one, other in pairs)
  results = {
    "command": "python examples/hyperparameter_grid/speed.py",
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
    "versions": {"jax": jax.__version__, "optax": optax.__version__},
    "settings": len(decays),
    "seconds of grid and sequence": pairs,
    "median ratio": ratio,
  }
  (args.out / "speed.json").write_text(json.dumps(results, indent=2) + "\n")
  print(f"grid / sequence, {len(decays)} settings: {ratio:.2f}")


if __name__ == "__main__":
  main()
