"""Trains a ResNet for CIFAR in Flax NNX, with ReWA or dense.

The network is the one of He et al. (2015, arXiv 1512.03385, section 4.2): three
stages of 16, 32 and 64 channels, and no parameter on a shortcut. Without --data
it learns scikit-learn's digits, about a minute on two cores, and no download.

ReWA takes three lines here: `REWA` says what it is, `rewa_jax.sgd` and
`rewa_jax.nnx.reparameterize` in `prepare` take it. Its weight decay follows
from --budget: without a gradient a weight shrinks by exp(-budget) from the
first step to the last.

Prints how accurate and how small the network is when weights up to a threshold
are cut off, and writes results.json.
"""

import argparse
import functools
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import rewa_jax

from .. import kit
from . import data
from .augment import random_crop, random_flip
from .models import relu

REWA = rewa_jax.Rewa(k=9, m=2)
MOMENTUM = 0.9
CLIP = 1.0
# Chosen on digits held back. At this rate ReWA needs the clipping.
DEFAULTS = {
  "rewa": {"learning_rate": 1.0, "budget": 15.0},
  "dense": {"learning_rate": 0.1, "weight_decay": 5e-4},
}
# Small ones: batch normalization lets decay shrink the weights in use, too.
THRESHOLDS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
TABLE_THRESHOLD = 1e-5

Rows = list[dict[str, float]]

conv = functools.partial(
  nnx.Conv,
  kernel_size=(3, 3),
  padding=1,
  use_bias=False,
  kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
)
norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


class Block(nnx.Module):
  """Two convolutions and a shortcut, whose new channels are zero."""

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
    self.stride = outputs // inputs
    self.conv1 = conv(inputs, outputs, strides=self.stride, rngs=rngs)
    self.norm1 = norm(outputs, rngs=rngs)
    self.conv2 = conv(outputs, outputs, rngs=rngs)
    self.norm2 = norm(outputs, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    x = x[:, :: self.stride, :: self.stride]
    new = (y.shape[-1] - x.shape[-1]) // 2
    return relu(y + jnp.pad(x, ((0, 0),) * 3 + ((new, new),)))


class ResNet(nnx.Module):
  """From bytes (n, height, width, channels) of a data set to its logits."""

  def __init__(self, depth: int, dataset: data.Dataset, rngs: nnx.Rngs):
    self.mean = nnx.Variable(dataset.mean)
    self.std = nnx.Variable(dataset.std)
    self.stem = conv(len(dataset.mean), 16, rngs=rngs)
    self.stem_norm = norm(16, rngs=rngs)
    widths = np.repeat((16, 32, 64), (depth - 2) // 6).tolist()
    self.blocks = nnx.Sequential(
      *(Block(*pair, rngs) for pair in zip((16, *widths), widths))
    )
    self.head = nnx.Linear(64, dataset.classes, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    x = (images / 255 - self.mean[...]) / self.std[...]
    x = relu(self.stem_norm(self.stem(x)))
    return self.head(self.blocks(x).mean((1, 2)))


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
  crop_key, flip_key = jax.random.split(key)
  images = random_crop(crop_key, images, images.shape[1] // 8)
  # In color they are photographs; a mirrored digit is none.
  return random_flip(flip_key, images) if images.shape[-1] == 3 else images


@nnx.jit(donate_argnums=(0, 1, 2))
def train_step(model, optimizer, metrics, key, images, labels):
  """Updates model, optimizer and metrics with one batch."""
  images = augment(key, images)

  def loss_of(model):
    logits = model(images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), logits

  (loss, logits), grads = nnx.value_and_grad(loss_of, has_aux=True)(model)
  optimizer.update(model, grads)
  metrics.update(loss=loss, logits=logits, labels=labels)


@nnx.jit
def count_hits(model, images, labels):
  return jnp.sum(model(images).argmax(-1) == labels)


def prepare(args, dataset: data.Dataset, steps: int) -> tuple[Any, Any, float]:
  """Returns the model, its optimizer and the weight decay."""
  model = ResNet(args.depth, dataset, nnx.Rngs(args.seed))
  peak, warmup = args.learning_rate, max(steps // 20, 1)
  schedule = optax.warmup_cosine_decay_schedule(
    peak / warmup, peak, warmup, max(steps, 2)
  )
  if args.method == "rewa":
    decay = float(
      rewa_jax.weight_decay_for(args.budget, REWA.k, schedule, steps)
    )
    solver = rewa_jax.sgd(schedule, REWA, weight_decay=decay, momentum=MOMENTUM)
    model = rewa_jax.nnx.reparameterize(model, REWA)
  else:
    decay = args.weight_decay
    solver = optax.chain(
      optax.add_decayed_weights(decay, mask=rewa_jax.kernels),
      optax.sgd(schedule, MOMENTUM, nesterov=True),
    )
  solver = optax.chain(optax.clip_by_global_norm(CLIP), solver)
  return model, nnx.Optimizer(model, solver, wrt=nnx.Param), decay


def train(model, optimizer, split: data.Split, args) -> Rows:
  """Trains the model and returns loss and accuracy of every epoch."""
  # A view shares all Variables with its model.
  model = nnx.view(model, use_running_average=False)
  metrics = nnx.MultiMetric(
    loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy()
  )
  random = np.random.default_rng(args.seed)
  keys = nnx.Rngs(int(random.integers(2**31)))
  steps = len(split.labels) // args.batch_size
  history = []
  with tqdm(total=args.epochs * steps, desc=args.method, unit="step") as bar:
    for _ in range(args.epochs):
      order = random.permutation(len(split.labels))
      for batch in order[: steps * args.batch_size].reshape(steps, -1):
        images, labels = split.images[batch], split.labels[batch]
        train_step(model, optimizer, metrics, keys(), images, labels)
        bar.update()
      history.append({k: float(v) for k, v in metrics.compute().items()})
      metrics.reset()
      bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items()})
  return history


def prune_and_test(model: nnx.Module, split: data.Split) -> Rows:
  """Cuts a bare model off at every threshold, and leaves it as it is."""
  model = nnx.view(model, use_running_average=True)
  graph, weights, rest = nnx.split(model, nnx.Param, ...)
  rows = []
  for threshold in THRESHOLDS:
    pruned, _ = rewa_jax.prune(weights, threshold=threshold)
    model = nnx.merge(graph, pruned, rest)
    hits = 0
    for i in range(0, len(split.labels), 1000):
      part = slice(i, i + 1000)
      hits += int(count_hits(model, split.images[part], split.labels[part]))
    report = rewa_jax.sparsity(pruned)
    nonzero = int(report.total_nonzero)
    rows.append(
      {
        "threshold": threshold,
        "test_accuracy": hits / len(split.labels),
        "nonzero": nonzero,
        # An empty network counts as one weight: JSON has no infinity.
        "compression": report.total_size / max(nonzero, 1),
      }
    )
  return rows


def to_table(rows: Rows) -> str:
  lines = ["threshold  test accuracy  nonzero  compression"]
  for row in rows:
    lines.append(
      f"{row['threshold']:>9g}  {row['test_accuracy']:>13.1%}"
      f"  {row['nonzero']:>7,}  {row['compression']:>10.1f}x"
    )
  return "\n".join(lines)


def parse(argv: list[str]) -> tuple[argparse.Namespace, data.Dataset]:
  parser = kit.parser(__doc__, "results/train_nnx")
  add = parser.add_argument
  add("--data", type=pathlib.Path, help="folder of CIFAR-10, binary version")
  add("--method", choices=DEFAULTS, default="rewa", help="default: rewa")
  depths = {"choices": (8, 14, 20, 32, 44, 56, 110), "help": "default: 20"}
  add("--depth", type=int, default=20, **depths)
  add("--epochs", type=int, default=40, help="default: 40")
  add("--batch-size", type=int, default=128, help="default: 128")
  add("--learning-rate", type=float, help="its peak; default: 1, of dense 0.1")
  add("--budget", type=float, help="of ReWA's decay; default: 15")
  add("--weight-decay", type=float, help="of dense; default: 5e-4")
  add("--seed", type=int, default=0, help="default: 0")
  args = parser.parse_args(argv)
  for name in ("learning_rate", "budget", "weight_decay"):
    default = DEFAULTS[args.method].get(name)
    if getattr(args, name) is None:
      setattr(args, name, default)
    elif default is None:
      flag = name.replace("_", "-")
      parser.error(f"--{flag} is not an option of --method {args.method}")
  try:
    dataset = data.load(args.data)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  for name, least, most in (
    ("epochs", 1, np.inf),
    ("batch_size", 1, len(dataset.train.labels)),
    ("learning_rate", 1e-9, np.inf),
    ("budget", 0, np.inf),
    ("weight_decay", 0, np.inf),
    ("seed", 0, np.inf),
  ):
    value = getattr(args, name)
    if value is not None and not least <= value <= most:
      flag = name.replace("_", "-")
      parser.error(f"--{flag} must be {least} to {most}, got {value}")
  return args, dataset


def main(argv: list[str]) -> None:
  args, dataset = parse(argv)
  steps = args.epochs * (len(dataset.train.labels) // args.batch_size)
  model, optimizer, decay = prepare(args, dataset, steps)
  print(f"{args.method}: {steps} steps, weight decay {decay:.3g}", flush=True)
  if args.method == "rewa":
    params = nnx.state(model, nnx.Param)
    budget = rewa_jax.measure_decay_budget(
      optimizer.tx, params, steps, method=REWA
    )
    text = kit.describe_budgets(
      [budget],
      lambda factor: (
        f"--budget {factor * args.budget:.2g}, a weight decay of"
        f" {factor * decay:.2g},"
      ),
    )
    print(text, flush=True)
  begin = time.perf_counter()
  history = train(model, optimizer, dataset.train, args)
  seconds = time.perf_counter() - begin
  bare = model.weights() if args.method == "rewa" else model
  rows = prune_and_test(bare, dataset.test)
  report = rewa_jax.sparsity(nnx.state(bare, nnx.Param), TABLE_THRESHOLD)
  print(f"\nWeights above {TABLE_THRESHOLD:g}:\n{report}\n\n{to_table(rows)}")
  program = "examples.image_classification.train_nnx"
  paths = ("data", "out")
  results = {
    **kit.provenance(program, argv, "flax", "scikit-learn"),
    "settings": {
      **{k: v for k, v in vars(args).items() if k not in paths},
      **{"steps": steps, "weight_decay": decay},
      **{"k": REWA.k, "m": REWA.m, "momentum": MOMENTUM, "clip": CLIP},
    },
    "seconds": seconds,
    "history": history,
    "thresholds": rows,
  }
  kit.write_json(args.out / "results.json", results)
  print(f"\nWritten to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
