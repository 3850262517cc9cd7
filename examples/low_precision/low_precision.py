"""Trains one sparse network in eight number formats, and compares them.

LeNet-300-100 on MNIST with --data FOLDER, its unpacked IDX files; without it a
smaller network on scikit-learn's digits, in under a minute. ReWA with k = 9 and
m = 2 by SGD, clipped gradients. The formats differ in what they compute with
and in what they store: float32, bfloat16 or float16; latents in params, or
behind weights in the state of the drop-in; rounded to nearest or
stochastically; with loss scaling or without.

Every format gets the same initial weights, in float32 before they are cast, and
the same batches. All seeds of a format train as one jax.vmap. After training,
weights of at most --threshold become zero; accuracy is that of what is left,
computed in the format of training.

Writes table.md and results.json.
"""

import argparse
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.dynamic_scale import DynamicScale
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import rewa_jax

from .. import idx, kit

REWA = rewa_jax.Rewa(k=9, m=2)
LEARNING_RATE = 0.2
MOMENTUM = 0.9
CLIP = 1.0
BATCH_SIZE = 128


class Task(NamedTuple):
  """What is trained, and for how long.

  Attributes:
    widths: of the hidden layers.
    weight_decay: for the epochs of `decay_epochs`; of fewer epochs it is more,
      so that the decay budget stays.
    decay_epochs: see weight_decay.
    epochs: the default.
  """

  widths: tuple[int, ...]
  weight_decay: float
  decay_epochs: int
  epochs: int


MNIST = Task((300, 100), weight_decay=9e-4, decay_epochs=60, epochs=20)
DIGITS = Task((64, 32), weight_decay=1.5e-2, decay_epochs=100, epochs=100)


class Format(NamedTuple):
  """The numbers of a run.

  Attributes:
    compute: dtype of activations and matrix products; weights are cast to it
      when they are used.
    stored: dtype of kernels in params and, but for the drop-in, of their
      momentum; biases are float32 always.
    drop_in: whether params are weights, and latents, in float32, are in the
      optimizer's state; otherwise params are latents.
    stochastic: whether new params are rounded stochastically.
    loss_scaling: whether the loss is scaled, so that gradients fit float16.
  """

  compute: str = "float32"
  stored: str = "float32"
  drop_in: bool = False
  stochastic: bool = False
  loss_scaling: bool = False


FORMATS = {
  "float32": Format(),
  "bfloat16 compute": Format("bfloat16"),
  "float16 compute": Format("float16"),
  "float16 compute, loss scaling": Format("float16", loss_scaling=True),
  "bfloat16 weights, drop-in": Format("bfloat16", "bfloat16", drop_in=True),
  "bfloat16 latents": Format("bfloat16", "bfloat16"),
  "bfloat16 latents, stochastic rounding": Format(
    "bfloat16", "bfloat16", stochastic=True
  ),
  "float16 latents, stochastic rounding, loss scaling": Format(
    "float16", "float16", stochastic=True, loss_scaling=True
  ),
}


class Data(NamedTuple):
  """Flat images in [0, 1] and labels, to train on and to test with."""

  images: jax.Array
  labels: jax.Array
  test_images: jax.Array
  test_labels: jax.Array


class State(NamedTuple):
  """What training changes; scale is None without loss scaling."""

  params: Any
  opt_state: optax.OptState
  scale: DynamicScale | None
  skipped: jax.Array


class MLP(nn.Module):
  """Dense layers with ReLUs between; params are float32 when initialized."""

  widths: tuple[int, ...]
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for width in self.widths:
      x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
    return nn.Dense(10, dtype=self.dtype)(x)


def schedule_of(steps: int) -> optax.Schedule:
  """Linear warm-up for a tenth of the steps, then a cosine."""
  return optax.warmup_cosine_decay_schedule(
    0.0, LEARNING_RATE, max(steps // 10, 1), max(steps, 2)
  )


def optimizer_of(
  chosen: Format, schedule: optax.Schedule, weight_decay: float, key: jax.Array
) -> optax.GradientTransformation:
  """Clips gradients, steps by ReWA, and rounds new params if that is chosen."""
  if chosen.drop_in:
    sgd = optax.chain(
      optax.trace(MOMENTUM),
      optax.add_decayed_weights(weight_decay, mask=REWA.decaying),
      optax.scale_by_learning_rate(schedule),
    )
    rewa = rewa_jax.reparameterize(sgd, REWA)
  else:
    rewa = rewa_jax.sgd(
      schedule, REWA, weight_decay=weight_decay, momentum=MOMENTUM
    )
  steps = [optax.clip_by_global_norm(CLIP), rewa]
  if chosen.stochastic:
    steps.append(rewa_jax.round_stochastically(key))
  return optax.chain(*steps)


def weights_of(chosen: Format, params: Any) -> Any:
  return params if chosen.drop_in else REWA.to_weights(params)


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw_weights(seeds: jax.Array, widths: tuple[int, ...], inputs: int) -> Any:
  """Returns initial weights with a leading axis of seeds."""

  def draw(seed):
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return MLP(widths, "float32").init(key, jnp.zeros((1, inputs)))

  return jax.vmap(draw)(seeds)


@functools.partial(jax.jit, static_argnums=2)
def draw_batches(seeds: jax.Array, epoch: int, count: int) -> jax.Array:
  """Returns indices of images, (seeds, batches, images of a batch)."""

  def draw(seed):
    key = jax.random.fold_in(jax.random.key(seed), 2 + epoch)
    order = jax.random.permutation(key, count)
    return order[: count // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)

  return jax.vmap(draw)(seeds)


def start(
  chosen: Format, optimizer: optax.GradientTransformation, weights: Any
) -> State:
  """Makes latents of weights, or none, and casts what is to be stored."""
  params = weights if chosen.drop_in else REWA.to_latents(weights)
  params = jax.tree.map(
    lambda is_kernel, leaf: leaf.astype(chosen.stored) if is_kernel else leaf,
    rewa_jax.kernels(params),
    params,
  )
  scale = None
  if chosen.loss_scaling:
    scale = jax.tree.map(jnp.asarray, DynamicScale())
  return State(params, optimizer.init(params), scale, jnp.zeros((), int))


def step(
  chosen: Format,
  network: nn.Module,
  optimizer: optax.GradientTransformation,
  state: State,
  images: jax.Array,
  labels: jax.Array,
) -> State:
  """Takes one step, or with loss scaling none if gradients are not finite."""

  def loss(params):
    logits = network.apply(weights_of(chosen, params), images)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits.astype(jnp.float32), labels
    ).mean()

  if state.scale is None:
    scale, finite, grads = None, True, jax.grad(loss)(state.params)
  else:
    # Unscaled, and in float32: clipping and ReWA see true gradients.
    value_and_grad = state.scale.value_and_grad(loss)
    scale, finite, _, grads = value_and_grad(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  if scale is not None:
    params, opt_state = jax.tree.map(
      functools.partial(jnp.where, finite),
      (params, opt_state),
      (state.params, state.opt_state),
    )
  return State(params, opt_state, scale, state.skipped + (1 - finite))


def train(
  chosen: Format,
  task: Task,
  data: Data,
  *,
  epochs: int,
  seeds: int,
  threshold: float,
  advance: Callable[[], Any],
) -> dict[str, Any]:
  """Trains a format from all seeds at once, and measures what came of it.

  Args:
    chosen: the format.
    task: what to train.
    data: what to train on.
    epochs: passes over the training data.
    seeds: how many runs, of seeds 0, 1, ...
    threshold: weights up to this size are pruned.
    advance: called after each epoch.

  Returns:
    Accuracies, compressions and skipped steps, a value for each seed, and the
    bytes that params and optimizer hold for each of the params.
  """
  network = MLP(task.widths, chosen.compute)
  count = len(data.labels)
  schedule = schedule_of(epochs * (count // BATCH_SIZE))
  weight_decay = task.weight_decay * task.decay_epochs / epochs

  def optimizer_of_seed(seed):
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return optimizer_of(chosen, schedule, weight_decay, key)

  def start_run(seed, weights):
    return start(chosen, optimizer_of_seed(seed), weights)

  def train_epoch(state, seed, batches, images, labels):
    optimizer = optimizer_of_seed(seed)

    def body(state, batch):
      batch = images[batch], labels[batch]
      return step(chosen, network, optimizer, state, *batch), None

    return jax.lax.scan(body, state, batches)[0]

  def measure(params, images, labels):
    weights = weights_of(chosen, params)
    pruned, _ = rewa_jax.prune(weights, threshold=threshold)
    hits = network.apply(pruned, images).argmax(-1) == labels
    report = rewa_jax.sparsity(pruned)
    # An empty network counts as one weight: JSON has no infinity.
    compression = report.total_size / jnp.maximum(report.total_nonzero, 1)
    return hits.mean(), compression

  all_seeds = jnp.arange(seeds)
  weights = draw_weights(all_seeds, task.widths, data.images.shape[1])
  begin = time.perf_counter()
  state = jax.jit(jax.vmap(start_run))(all_seeds, weights)
  advance_all = jax.jit(
    jax.vmap(train_epoch, (0, 0, 0, None, None)), donate_argnums=0
  )
  for epoch in range(epochs):
    batches = draw_batches(all_seeds, epoch, count)
    state = jax.block_until_ready(
      advance_all(state, all_seeds, batches, data.images, data.labels)
    )
    advance()
  seconds = time.perf_counter() - begin
  measure_all = jax.jit(jax.vmap(measure, (0, None, None)))
  accuracy, compression = measure_all(
    state.params, data.test_images, data.test_labels
  )
  stored = jax.tree.leaves((state.params, state.opt_state))
  size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  return {
    **chosen._asdict(),
    "test_accuracy": accuracy.tolist(),
    "compression": compression.tolist(),
    "skipped_steps": state.skipped.tolist(),
    "bytes_per_weight": sum(leaf.nbytes for leaf in stored) / size,
    "seconds": seconds,
  }


def load_data(folder: pathlib.Path | None) -> Data:
  """Returns MNIST from its IDX files, or digits, 400 of them for the test.

  Raises:
    OSError: if a file is missing.
    ValueError: if a file is no IDX file, or images do not fill a batch.
  """
  if folder is None:
    images, labels = load_digits(return_X_y=True)
    images, test_images, labels, test_labels = train_test_split(
      np.float32(images / 16),
      labels.astype(np.int32),
      test_size=400,
      random_state=0,
      stratify=labels,
    )
  else:
    images, labels, test_images, test_labels = idx.load(folder)
    if len(labels) < BATCH_SIZE:
      raise ValueError(
        f"{folder} has {len(labels)} train images, a batch needs at least"
        f" {BATCH_SIZE}."
      )
  arrays = (
    images.reshape(len(images), -1),
    labels,
    test_images.reshape(len(test_images), -1),
    test_labels,
  )
  return Data(*map(jnp.asarray, arrays))


def to_markdown(rows: dict[str, dict[str, Any]]) -> str:
  """Returns a table of means and standard deviations over seeds."""

  def describe(values, digits, unit=""):
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if values[1:] else ""
    return f"{np.mean(values):.{digits}f}{spread}{unit}"

  first = rows["float32"]
  cells = []
  for name, row in rows.items():
    accuracy = [100 * value for value in row["test_accuracy"]]
    points = np.mean(accuracy) - 100 * np.mean(first["test_accuracy"])
    points = round(points, 2) + 0.0  # No -0.00.
    ratio = np.mean(row["compression"]) / np.mean(first["compression"])
    skipped = "-"
    if row["loss_scaling"]:
      skipped = f"{np.mean(row['skipped_steps']):.1f}"
    cells.append(
      (
        *(name, describe(accuracy, 2, " %"), f"{points:+.2f}"),
        *(describe(row["compression"], 1, "x"), f"{ratio:.2f}"),
        *(f"{row['bytes_per_weight']:.1f}", skipped),
      )
    )
  columns = (
    *("format", "test accuracy", "points from float32", "compression"),
    *("of float32's", "bytes per weight", "skipped steps"),
  )
  return kit.markdown(columns, cells)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/low_precision")
  add = parser.add_argument
  add("--data", type=pathlib.Path, help="folder of IDX files (default: digits)")
  add(
    "--epochs",
    type=kit.at_least(1),
    help="passes over the training images; the fewer, the stronger the weight"
    f" decay (default: {MNIST.epochs}; over digits {DIGITS.epochs})",
  )
  text = "runs of each format (default: %(default)s)"
  add("--seeds", type=kit.at_least(1), default=3, help=text)
  add(
    "--threshold",
    type=kit.at_least(0.0),
    default=1e-3,
    help="size up to which weights are pruned (default: %(default)s)",
  )
  args = parser.parse_args(argv)
  args.task = MNIST if args.data else DIGITS
  if args.epochs is None:
    args.epochs = args.task.epochs
  return args


def main(argv: Sequence[str]) -> None:
  args = parse(argv)
  try:
    data = load_data(args.data)
  except (OSError, ValueError) as error:
    sys.exit(f"low_precision.py: {error}")
  steps = args.epochs * (len(data.labels) // BATCH_SIZE)
  decay = args.task.weight_decay * args.task.decay_epochs / args.epochs
  budget = rewa_jax.decay_budget(REWA.k, decay, schedule_of(steps), steps)
  text = kit.describe_budgets(
    [budget], lambda factor: f"a weight decay of {factor * decay:.2g}"
  )
  print(text, flush=True)
  rows = {}
  with tqdm(total=len(FORMATS) * args.epochs, unit="epoch") as bar:
    for name, chosen in FORMATS.items():
      bar.set_description(name)
      rows[name] = train(
        chosen,
        args.task,
        data,
        epochs=args.epochs,
        seeds=args.seeds,
        threshold=args.threshold,
        advance=bar.update,
      )
  module = "examples.low_precision.low_precision"
  results = {
    **kit.provenance(module, argv, "flax", "numpy"),
    "settings": {
      **{"widths": args.task.widths, "epochs": args.epochs, "steps": steps},
      **{"seeds": args.seeds, "threshold": args.threshold},
      **{"k": REWA.k, "m": REWA.m},
      **{"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "clip": CLIP},
      **{"batch_size": BATCH_SIZE, "weight_decay": decay},
      "decay_budget": float(budget),
    },
    "rows": rows,
  }
  table = to_markdown(rows) + kit.made_by(results)
  kit.write(args.out / "table.md", table)
  kit.write_json(args.out / "results.json", results)
  print(f"{table}Written to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
