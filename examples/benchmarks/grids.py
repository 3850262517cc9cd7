"""Times a vmapped grid of settings against the same runs one after another.

The digits network, 64-128-10, trains by ReWA with 32 settings of weight decay
and learning rate. Everything is compiled beforehand; grid and sequence take
turns. Prints a table and writes a JSON.

  python -m examples.benchmarks.grids
"""

import sys
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from tqdm import tqdm

import rewa_jax

from .. import kit
from .timing import take_turns

REWA = rewa_jax.Rewa(k=9, m=2)
BATCH_SIZE = 128


def train(images, labels, steps, key, weight_decay, learning_rate):
  """Returns the loss after training with one setting."""
  bare = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])
  model = rewa_jax.linen.Reparameterized(bare, REWA)
  schedule = optax.cosine_decay_schedule(1.0, steps)
  solver = rewa_jax.sgd(
    lambda count: learning_rate * schedule(count),
    REWA,
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
  (latents, _), _ = jax.lax.scan(step, carry, jnp.arange(steps))
  return loss(latents, jnp.arange(len(labels)))


def measure(steps: int, turns: int) -> dict[str, dict[str, float]]:
  """Returns seconds and settings a second of the grid and of the sequence."""
  images, labels = load_digits(return_X_y=True)
  images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
  decays, rates = map(
    jnp.ravel,
    jnp.meshgrid(jnp.geomspace(1e-3, 3e-2, 8), jnp.geomspace(0.02, 0.1, 4)),
  )
  cells = jax.random.split(jax.random.key(0), len(decays)), decays, rates

  def one(*cell):
    return train(images, labels, steps, *cell)

  single = jax.jit(one).lower(*(column[0] for column in cells)).compile()
  together = jax.jit(jax.vmap(one)).lower(*cells).compile()
  ways = {
    "grid": lambda _: together(*cells),
    "sequence": lambda _: jnp.stack([single(*cell) for cell in zip(*cells)]),
  }
  # The same losses, but for the order of sums.
  np.testing.assert_allclose(*(way(None) for way in ways.values()), rtol=0.05)
  with tqdm(total=turns + 2, desc="grids", unit="turn") as progress:
    seconds = take_turns(
      ways, dict.fromkeys(ways), turns, progress=progress.update
    )
  return {
    way: {
      "seconds": round(seconds[way], 3),
      "settings_per_second": round(len(decays) / seconds[way], 3),
      "ratio": round(seconds[way] / seconds["sequence"], 4),
    }
    for way in ways
  }


def main(argv: Sequence[str]) -> None:
  parser = kit.parser(__doc__, "results/benchmarks")
  add = parser.add_argument
  add(
    "--steps", type=kit.at_least(1), default=1000, help="of each of the 32 runs"
  )
  add(
    "--turns", type=kit.at_least(1), default=3, help="timed grids and sequences"
  )
  args = parser.parse_args(argv)
  rows = measure(args.steps, args.turns)
  columns = ("way", "seconds", "settings a second", "times sequence")
  print(
    kit.markdown(columns, [(way, *row.values()) for way, row in rows.items()])
  )
  made = kit.provenance("examples.benchmarks.grids", argv, "flax")
  results = {"steps": args.steps, "ways": rows}
  kit.write_json(args.out / "grids.json", made | results)


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
