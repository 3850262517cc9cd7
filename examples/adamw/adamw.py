"""What learning rate and weight decay do to ReWA with AdamW, on two tasks.

Trains a network of digits and a character-level transformer, the text being
Python's own help topics, over a grid of learning rates and weight decays.
Nothing is downloaded:

  python -m examples.adamw.adamw [--task digits] [--fast]

Every run is pruned at 1e-3, and judged by images or text that nothing was
trained or chosen on. It prints a table with the decay budget of every run, and
writes digits.json, text.json and a plot of each. It takes half an hour on two
cores, --fast a minute.
"""

import functools
import itertools
import math
import pydoc_data.topics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from tqdm import tqdm

import rewa_jax

from .. import kit

REWA = rewa_jax.Rewa(k=9, eps=1e-3)
RATES = (0.001, 0.003, 0.01, 0.03)
DECAYS = (0.05, 0.1, 0.2, 0.4, 0.8)
THRESHOLD = 1e-3
COLUMNS = (
  *("learning rate", "weight decay", "budget", "loss", "pruned", "sparsity"),
  "dead kernels",
)


class Task(NamedTuple):
  """A network and its data.

  Attributes:
    model: the network, of int or float inputs to logits.
    train: inputs and labels.
    test: the same, unseen.
    batch_size: examples a step.
    steps: of a whole run.
  """

  model: nn.Module
  train: tuple[jax.Array, jax.Array]
  test: tuple[jax.Array, jax.Array]
  batch_size: int
  steps: int


class Perceptron(nn.Module):
  @nn.compact
  def __call__(self, x):
    for width in (300, 100):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(10)(x)


class Transformer(nn.Module):
  """A decoder of 104,000 kernel weights."""

  vocabulary: int
  width: int = 64
  layers: int = 2

  @nn.compact
  def __call__(self, tokens):
    mask = nn.make_causal_mask(tokens)
    x = nn.Embed(self.vocabulary, self.width)(tokens)
    x += nn.Embed(tokens.shape[-1], self.width)(jnp.arange(tokens.shape[-1]))
    for _ in range(self.layers):
      y = nn.LayerNorm()(x)
      x += nn.MultiHeadDotProductAttention(num_heads=4)(y, mask=mask)
      y = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
      x += nn.Dense(self.width)(nn.gelu(y))
    return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


def digits() -> Task:
  images, labels = load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(labels))
  images = jnp.asarray(images[order] / 16, jnp.float32)
  labels = jnp.asarray(labels[order], jnp.int32)
  parts = [
    (images[part], labels[part]) for part in (np.s_[:1400], np.s_[1400:])
  ]
  return Task(Perceptron(), *parts, batch_size=64, steps=3000)


def text() -> Task:
  topics = pydoc_data.topics.topics
  # By name, and in ASCII, so that only the version of Python matters.
  letters = "".join(topics[name] for name in sorted(topics)).encode(
    "ascii", "ignore"
  )
  alphabet, codes = np.unique(
    np.frombuffer(letters, np.uint8), return_inverse=True
  )
  size = 65
  windows = (
    codes[: len(codes) // size * size].reshape(-1, size).astype(np.int32)
  )
  # The last tenth of the text, so that no sentence lies in both.
  cut = len(windows) * 9 // 10
  parts = [
    (jnp.asarray(each[:, :-1]), jnp.asarray(each[:, 1:]))
    for each in (windows[:cut], windows[cut:][:200])
  ]
  return Task(Transformer(len(alphabet)), *parts, batch_size=16, steps=1500)


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "text": text}


def loss_of(task, params, batch):
  inputs, labels = batch
  logits = task.model.apply(params, inputs)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def solver_of(rate, decay, steps):
  schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    rewa_jax.adamw(
      lambda count: rate * schedule(count), REWA, weight_decay=decay
    ),
  )


def train(task: Task, rate: float, decays: jax.Array, steps: int) -> Any:
  """Trains one network for each weight decay; returns their weights."""
  solver = functools.partial(solver_of, rate, steps=steps)

  def start(decay):
    weights = task.model.init(jax.random.key(0), task.train[0][:1])
    latents = REWA.to_latents(weights)
    return latents, solver(decay).init(latents)

  def step(decay, carry, key):
    latents, state = carry
    rows = jax.random.randint(key, (task.batch_size,), 0, len(task.train[0]))
    batch = jax.tree.map(lambda x: x[rows], task.train)
    grads = jax.grad(lambda y: loss_of(task, REWA.to_weights(y), batch))(
      latents
    )
    updates, state = solver(decay).update(grads, state, latents)
    return optax.apply_updates(latents, updates), state

  @functools.partial(jax.jit, donate_argnums=0)
  def run(carries, keys):
    def scanned(carries, key):
      stepped = jax.vmap(step, (0, 0, None))(decays, carries, key)
      return stepped, None

    return jax.lax.scan(scanned, carries, keys)[0]

  carries = jax.jit(jax.vmap(start))(decays)
  chunk = min(steps, 50)
  keys = jax.random.split(jax.random.key(1), steps)
  with tqdm(total=steps, desc=f"rate {rate}", unit="step") as bar:
    for begin in range(0, steps, chunk):
      carries = jax.block_until_ready(run(carries, keys[begin : begin + chunk]))
      bar.update(chunk)
  return jax.vmap(REWA.to_weights)(carries[0])


def judge(task: Task, weights: Any) -> dict[str, float]:
  """Returns test loss and accuracy, before and after pruning."""
  pruned, _ = rewa_jax.prune(weights, threshold=THRESHOLD)
  report = rewa_jax.sparsity(pruned)

  @jax.jit
  def measure(params):
    logits = task.model.apply(params, task.test[0])
    hits = (logits.argmax(-1) == task.test[1]).mean()
    return loss_of(task, params, task.test), hits

  return {
    "loss": float(measure(weights)[0]),
    "pruned_loss": float(measure(pruned)[0]),
    "pruned_accuracy": float(measure(pruned)[1]),
    "sparsity": float(report.sparsity),
    "dead_kernels": sum(int(n) == 0 for n in report.nonzero.values()),
    "kernels": len(report.nonzero),
  }


def study(task: Task, rates, decays, steps: int) -> list[dict[str, float]]:
  """Trains and judges a grid."""
  bare = jax.eval_shape(task.model.init, jax.random.key(0), task.train[0][:1])
  latents = jax.eval_shape(REWA.to_latents, bare)
  budgets = {
    (rate, decay): rewa_jax.measure_decay_budget(
      solver_of(rate, decay, steps), latents, steps, method=REWA
    )
    for rate, decay in itertools.product(rates, decays)
  }
  text = kit.describe_budgets(
    list(budgets.values()),
    lambda factor: (
      f"{math.ceil(factor * steps)} steps or, at a higher loss, a weight decay"
      f" of {factor * max(decays):.2g}"
    ),
  )
  print(text, flush=True)
  rows = []
  for rate in rates:
    every = train(task, rate, jnp.asarray(decays), steps)
    for decay, *leaves in zip(decays, *jax.tree.leaves(every)):
      rows.append(
        {
          "learning_rate": rate,
          "weight_decay": decay,
          "budget": budgets[rate, decay],
          **judge(task, jax.tree.unflatten(jax.tree.structure(every), leaves)),
        }
      )
  return rows


def table(rows) -> str:
  return kit.markdown(
    COLUMNS,
    [
      (
        f"{row['learning_rate']:g}",
        f"{row['weight_decay']:g}",
        f"{row['budget']:.1f}",
        f"{row['loss']:.3f}",
        f"{row['pruned_loss']:.3f}",
        f"{row['sparsity']:.1%}",
        f"{row['dead_kernels']} of {row['kernels']}",
      )
      for row in rows
    ],
  )


def plot(name: str, rows) -> plt.Figure:
  figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
  for rate in sorted({row["learning_rate"] for row in rows}):
    line = [row for row in rows if row["learning_rate"] == rate]
    points = [(1 / (1 - row["sparsity"]), row["pruned_loss"]) for row in line]
    axis.plot(*zip(*points), "o-", label=f"learning rate {rate:g}")
    for row, point in zip(line, points):
      axis.annotate(
        f"{row['weight_decay']:g}",
        point,
        textcoords="offset points",
        xytext=(5, -9),
        fontsize=7,
      )
  axis.set_xscale("log")
  axis.set_xlabel(f"compression of kernels, pruned at {THRESHOLD:g}")
  axis.set_ylabel("test loss, pruned")
  axis.set_title(f"{name}: ReWA with AdamW, weight decay beside the points")
  axis.legend(loc="best")
  return figure


def main(argv) -> None:
  parser = kit.parser(__doc__, "results/adamw")
  parser.add_argument("--task", choices=TASKS, help="only this one")
  parser.add_argument("--fast", action="store_true", help="a small grid")
  args = parser.parse_args(argv)
  rates, decays = (RATES[2:3], DECAYS[1:3]) if args.fast else (RATES, DECAYS)
  for name in [args.task] if args.task else TASKS:
    task, begin = TASKS[name](), time.perf_counter()
    steps = 100 if args.fast else task.steps
    rows = study(task, rates, decays, steps)
    options = ["--task", name, *(["--fast"] if args.fast else [])]
    results = {
      **kit.provenance("examples.adamw.adamw", options, "flax"),
      "settings": {
        **{"k": REWA.k, "m": REWA.m, "eps": REWA.eps, "steps": steps},
        **{"batch_size": task.batch_size, "threshold": THRESHOLD},
      },
      "seconds": time.perf_counter() - begin,
      "rows": rows,
    }
    kit.write_json(args.out / f"{name}.json", results)
    kit.write_figure(args.out / f"{name}.png", plot(name, rows))
    print(f"{name}\n{table(rows)}")
  print(f"Written to {args.out}")


if __name__ == "__main__":
  kit.leave_on_ctrl_c("nothing is written of the task at work.")
  main(sys.argv[1:])
