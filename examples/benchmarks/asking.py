"""Times what decay by rank adds to a step.

Weights are ranked every 50 updates, so two steps of the optimizer are timed
beside the plain one of `rewa_jax.sgd`, in turns: one that does not rank, and
one that does. Their mean, 49 of the one and one of the other, is what a step
costs; what it has more than the plain one is set beside a whole training step,
which is timed too. Prints a table and writes a JSON.

  python -m examples.benchmarks.asking --tree resnet18
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import rewa_jax

from .. import kit
from .optimizer_step import ROUNDS, Row, compiled
from .timing import add_options, take_turns
from .training_step import Way, problem, training_step
from .trees import TREES, shapes

REWA = rewa_jax.Rewa(k=9, m=2)
RATE, DECAY, MOMENTUM = 1e-3, 1e-4, 0.9
STEPS, EVERY = 100_000, 50
COLUMNS = (
  *("tree", "weights", "plain, ms", "not ranking", "ranking", "mean"),
  *("training step, ms", "times the plain one"),
)
# Of the training steps: images of 32 x 32, or texts of 1,024 tokens.
BATCH_SIZES = {"transformer": 1}
TRAINING_TURNS = 3


def solvers() -> dict[str, optax.GradientTransformation]:
  """Returns the plain optimizer, and two whose decay goes by rank."""

  def by_rank(begin, every):
    decay = rewa_jax.decay_by_rank(
      REWA, 0.99, RATE, STEPS, low=DECAY, begin=begin, every=every
    )
    return optax.chain(
      rewa_jax.scale_by_method(REWA),
      optax.trace(MOMENTUM),
      decay,
      optax.scale_by_learning_rate(RATE),
    )

  return {
    "plain": rewa_jax.sgd(RATE, REWA, weight_decay=DECAY, momentum=MOMENTUM),
    # Long before the first ranking, and at every step one.
    "not ranking": by_rank(STEPS // 2, EVERY),
    "ranking": by_rank(0, 1),
  }


def measure(tree: str, turns: int, repeat: int = 1) -> dict[str, float]:
  """Returns milliseconds of the plain step, and ratios to it."""
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(random.standard_normal(x.shape, np.float32)),
    shapes(tree),
  )
  programs = {
    name: compiled(Row(name, solver, REWA), params, repeat)
    for name, solver in solvers().items()
  }
  rounds = []
  with tqdm(total=ROUNDS * (turns + 2), desc=tree, unit="turn") as bar:
    for _ in range(ROUNDS):
      steps = {
        name: functools.partial(step, params)
        for name, (step, _) in programs.items()
      }
      carries = {name: start(params) for name, (_, start) in programs.items()}
      taken = take_turns(steps, carries, turns, progress=bar.update)
      rounds.append({name: value / repeat for name, value in taken.items()})
  ratios = {
    name: float(np.median([r[name] / r["plain"] for r in rounds]))
    for name in ("not ranking", "ranking")
  }
  mean = ratios["not ranking"] * (EVERY - 1) / EVERY + ratios["ranking"] / EVERY
  plain = float(np.median([1e3 * r["plain"] for r in rounds]))
  training = training_milliseconds(tree)
  return {
    "weights": sum(x.size for x in jax.tree.leaves(params)),
    "plain": plain,
    **ratios,
    "mean": mean,
    "training": training,
    "training_ratio": 1 + (mean - 1) * plain / training,
  }


def training_milliseconds(tree: str) -> float:
  """Returns what a training step of ReWA takes, with plain decay."""
  settings = argparse.Namespace(
    model=tree,
    batch_size=BATCH_SIZES.get(tree, 128),
    resolution=32,
    classes=10,
    stem="cifar",
    dtype="float32",
  )
  model, arguments, batch = problem(settings)
  way = Way(solvers()["plain"], method=REWA)
  step, start = training_step(way, model, arguments)
  carry = jax.jit(start)(jax.random.key(0), batch[0])
  program = jax.jit(step, donate_argnums=0).lower(carry, batch).compile()
  with tqdm(total=TRAINING_TURNS + 2, desc="training", unit="step") as bar:
    seconds = take_turns(
      {tree: lambda carry: program(carry, batch)},
      {tree: carry},
      TRAINING_TURNS,
      progress=bar.update,
    )
  return 1e3 * seconds[tree]


def main(argv) -> None:
  parser = kit.parser(__doc__, "results/benchmarks")
  parser.add_argument("--tree", choices=tuple(TREES), action="append")
  add_options(parser, 15, "timed programs of each round")
  args = parser.parse_args(argv)
  trees = args.tree or ["resnet18"]
  made = kit.provenance("examples.benchmarks.asking", argv)
  rows = {tree: measure(tree, args.turns, args.repeat) for tree in trees}
  kit.write_json(args.out / "asking.json", made | {"trees": rows})
  lines = [
    (tree, *list(row.values())[:-1], f"{row['training_ratio']:.4f}")
    for tree, row in rows.items()
  ]
  print(f"\n{kit.markdown(COLUMNS, lines)}{kit.made_by(made)}")


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
