"""Trains sparse networks on digits, MNIST, CIFAR or ImageNet.

Without arguments, LeNet-300-100 with ReWA on scikit-learn's digits, in half a
minute and without a download:

  pip install -e '.[images]'
  python -m examples.image_classification.train

The run is written to a folder: config.json, metrics.jsonl, TensorBoard's files,
checkpoints, and results.json at the end. Stopped, by Ctrl-C, SIGTERM or worse,
and started again with the same command, it goes on as if nothing had been.
compress.py tells what the trained network is worth when it is pruned.
"""

import argparse
import contextlib
import functools
import math
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

import rewa_jax

from .. import kit, settings
from ..metrics import Metrics
from ..parallel import make_parallel
from . import checkpoints as ckpt
from .config import PRESETS, Config, from_arguments
from .pipeline import open_data
from .state import (
  Setup,
  count,
  differentiate,
  init_state,
  make_network,
  make_schedule,
  make_setup,
  update,
)

PROGRAM = "examples.image_classification.train"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program, and returns its exit status."""
  argv = sys.argv[1:] if argv is None else argv
  args = parse(argv)
  if args.processes:
    jax.distributed.initialize(args.coordinator, args.processes, args.process)
  run = pathlib.Path(args.out or f"results/{args.preset}")
  try:
    return train(from_arguments(args), run, argv)
  except (ValueError, OSError, FloatingPointError) as error:
    sys.exit(f"train.py: {error}")
  except KeyboardInterrupt:
    print("\nInterrupted; nothing is written yet.", file=sys.stderr)
    return 130


def advice(config: Config, budget: float) -> str:
  """Says whether the weight decay of a run will do, and else what would."""
  return kit.describe_budgets(
    [budget],
    lambda factor: (
      f"--weight-decay {factor * config.weight_decay:.2g} or"
      f" --epochs {math.ceil(factor * config.epochs)}"
    ),
  )


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--out", help="folder of the run (default: results/PRESET)"
  )
  settings.add_arguments(parser, Config, PRESETS, "digits")
  several = parser.add_argument_group("several processes, on one or many hosts")
  several.add_argument("--processes", type=int, default=0, help="how many")
  several.add_argument("--process", type=int, help="which of them this one is")
  several.add_argument("--coordinator", help="HOST:PORT of process 0")
  return parser.parse_args(argv)


def train(config: Config, run: pathlib.Path, argv: Sequence[str]) -> int:
  """Trains a run from its start or from its newest checkpoint.

  Args:
    config: its settings.
    run: its folder.
    argv: what results.json says it was made by.

  Returns:
    The exit status: 0, or 128 plus the signal that stopped it.

  Raises:
    ValueError: if settings or data are wrong.
    OSError: if a file is missing.
    FloatingPointError: if the loss is not finite.
  """
  if config.batch_size % jax.device_count():
    raise ValueError(
      f"batch_size must be a multiple of the {jax.device_count()} devices, got"
      f" {config.batch_size}."
    )
  source = open_data(config)
  parallel = make_parallel(config.parallelism)
  schedule = make_schedule(config, source.steps_per_epoch)
  network = parallel.network(make_network(config, source.classes))
  setup = make_setup(config, network, source.steps_per_epoch)
  start = ckpt.load(pathlib.Path(config.start))[1:] if config.start else None
  # What is wrong with the data should not stay in the folder.
  if jax.process_index() == 0:
    settings.write(run, config)
  state = parallel.init(
    functools.partial(init_state, config, setup),
    jax.random.key(config.seed),
    jnp.zeros(source.shape),
    start,
  )
  train_on = parallel.train(
    jax.random.key(config.seed),
    differentiate(config, setup, source.to_images),
    update(config, setup),
  )
  test_on = parallel.test(count(setup, source.to_images))
  arrays = {
    split: parallel.copies(split_arrays)
    for split, split_arrays in source.arrays.items()
  }
  look = jax.jit(functools.partial(look_at, setup, config.threshold))

  def test(evaluated: Any, split: str) -> dict[str, float]:
    totals = {"loss": 0.0, "correct": 0.0, "count": 0.0}
    for batch in source.test_batches(split):
      skipped = batch.pop("skipped", 0)
      if skipped:
        metrics.warn(step, f"{skipped} broken images of {split} do not count.")
      counts = test_on(evaluated, parallel.batch(batch), arrays[split])
      totals = jax.tree.map(jnp.add, totals, counts)
    totals = jax.tree.map(float, totals)
    return {
      "loss": totals["loss"] / totals["count"],
      "accuracy": totals["correct"] / totals["count"],
    }

  steps = config.epochs * source.steps_per_epoch
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(ckpt.open_checkpoints(run, config.keep))
    state = ckpt.restore(checkpoints, state, config)
    begin = step = int(state.step)
    metrics = Metrics(run, begin, steps, "images", config.batch_size, schedule)
    stack.callback(metrics.close)
    by_itself = not (config.prune or config.sparsity)
    if config.method.startswith("rewa") and by_itself and not begin:
      budget = rewa_jax.measure_decay_budget(
        setup.optimizer, state.params, steps, method=setup.method
      )
      say = metrics.warn if budget < kit.LEAST_BUDGET else metrics.say
      say(0, advice(config, budget))
    was_stopped = stack.enter_context(signals())
    batches = source.train_batches(begin)
    stack.callback(batches.close)  # Ends worker processes, if there are any.
    dead: set[str] = set()
    started = time.perf_counter()
    for step in range(begin + 1, steps + 1):
      batch = next(batches)
      skipped = batch.pop("skipped", 0)
      if skipped:
        metrics.warn(step, f"{skipped} broken images were replaced by others.")
      state, values = train_on(state, parallel.batch(batch), arrays["train"])
      metrics.step(step, values)
      epoch, rest = divmod(step, source.steps_per_epoch)
      number = was_stopped(step)
      if not rest:
        compression, largest = look(state.evaluated[0])
        split = source.splits[0]
        metrics.result(
          step,
          split,
          **test(state.evaluated, split),
          compression=float(compression),
          sparsity=float(1 - 1 / compression),
        )
        for name in set(_below(largest, config.threshold)) - dead:
          dead.add(name)
          metrics.warn(
            step,
            f"every weight of {name} is below {config.threshold:g}: the layer"
            " is dead. Less --weight-decay or --learning-rate, or more"
            " --warmup-epochs, may keep it alive.",
          )
      if (not rest and epoch % config.checkpoint_epochs == 0) or (
        number or step == steps
      ):
        ckpt.save(checkpoints, state, config)
      if number:
        metrics.warn(step, "stopped; the same command continues.")
        return 128 + number
    seconds = time.perf_counter() - started
    evaluated, cut = state.evaluated, {}
    if config.sparsity:
      before = {split: test(evaluated, split) for split in source.splits}
      finish = jax.jit(functools.partial(cut_down, config, setup))
      params, report = finish(evaluated[0])
      evaluated = params, evaluated[1]
      cut = {"cut": {"before": before, **described(report)}}
    compression, _ = look(evaluated[0])
    results = {
      **kit.provenance(PROGRAM, argv, "flax", "orbax-checkpoint"),
      "devices": jax.device_count(),
      "steps": steps,
      "resumed_at": begin,
      "seconds": round(seconds, 1),
      **metrics.speed,
      **{split: test(evaluated, split) for split in source.splits},
      "compression_at": {f"{config.threshold:g}": float(compression)},
      **cut,
    }
  path = run / "results.json"
  if jax.process_index() == 0:
    if begin < steps or not path.exists():
      kit.write_json(path, results)
    print(path.read_text(), end="")
  return 0


def look_at(
  setup: Setup, threshold: float, params: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the compression, and the largest weight of every layer."""
  weights = setup.to_weights(params)
  kernels = rewa_jax.kernels(weights)
  leaves = jax.tree_util.tree_leaves_with_path(weights)
  largest = {
    jax.tree_util.keystr(path, simple=True, separator="/"): jnp.abs(leaf).max()
    for chosen, (path, leaf) in zip(jax.tree.leaves(kernels), leaves)
    if chosen
  }
  report = rewa_jax.sparsity(weights, threshold)
  # An empty network counts as one weight: JSON has no infinity.
  return report.total_size / jnp.maximum(report.total_nonzero, 1), largest


def cut_down(
  config: Config, setup: Setup, params: Any
) -> tuple[Any, rewa_jax.Cut]:
  """Returns params with the zeros that were asked for, and what was cut."""
  weights, cut = rewa_jax.finalize(setup.to_weights(params), config.sparsity)
  return setup.to_params(weights), cut


def described(cut: rewa_jax.Cut) -> dict[str, Any]:
  """Returns what results.json says of a cut."""
  return {
    "nonzero": int(cut.sparsity.total_nonzero),
    "of": cut.sparsity.total_size,
    "largest_cut": float(cut.largest_cut),
    "smallest_kept": float(cut.smallest_kept),
  }


def _below(largest, threshold):
  largest = jax.device_get(largest)
  return [name for name, size in largest.items() if size <= threshold]


@contextlib.contextmanager
def signals() -> Iterator[Callable[[int], int]]:
  """Catches Ctrl-C and SIGTERM; what it yields tells which, or 0.

  A second one acts at once. Of several processes all stop at the same step.
  """
  caught = [0]

  def catch(number, frame):
    del frame
    caught[0] = number
    signal.signal(number, signal.default_int_handler)

  if jax.process_count() > 1:
    # JAX catches SIGTERM itself, to agree on a step.
    yield (
      lambda step: (
        signal.SIGTERM
        if multihost_utils.reached_preemption_sync_point(step)
        else 0
      )
    )
    return
  numbers = signal.SIGINT, signal.SIGTERM
  before = [signal.signal(number, catch) for number in numbers]
  try:
    yield lambda step: caught[0]
  finally:
    for number, handler in zip(numbers, before):
      signal.signal(number, handler)


if __name__ == "__main__":
  sys.exit(main())
