"""Trains a language model, dense or sparse, by one of several methods.

Without arguments, a transformer of a million attention and feed-forward weights
on Python's own help topics, byte by byte and without a download:

  pip install -e '.[language]'
  python -m examples.language_model.train
  python -m examples.language_model.train --method rewa --sparsity 0.9 \\
      --learning-rate 1e-2 --out results/rewa
  python -m examples.language_model.sample results/rewa

The run is written to a folder: config.json, metrics.jsonl, TensorBoard's files,
checkpoints, and results.json at the end. Stopped, by Ctrl-C or kill -9, and
started again with the same command, it goes on from its last checkpoint as if
nothing had been. compare.py compares the methods.
"""

import argparse
import contextlib
import functools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import optax

import rewa_jax

from .. import kit, settings
from ..metrics import Metrics
from ..parallel import Jit
from . import checkpoints as ckpt
from .config import NEEDS, PRESETS, Config, check, check_start, from_arguments
from .data import Source, batch, open_source
from .evaluate import cut, make_judge
from .model import kernels
from .state import (
  Setup,
  differentiate,
  init_state,
  make_schedule,
  make_setup,
  update,
)

PROGRAM = "examples.language_model.train"


def main(argv: Sequence[str]) -> None:
  """Runs the program."""
  args = parse(argv)
  run = args.out or pathlib.Path(f"results/language_{args.preset}")
  try:
    config = from_arguments(args)
    settings.check_used(settings.given(args, Config), config, NEEDS)
    results = train(config, run, argv)
  except (ValueError, OSError, FloatingPointError) as error:
    sys.exit(f"train.py: {error}")
  for name in ("validation", "test", "other"):
    if name in results:
      print(name, *(f"{k} {v:.4f}" for k, v in results[name].items()))
  print(f"Written to {run}.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--out",
    type=kit.folder,
    help="folder of the run (default: results/language_PRESET)",
  )
  settings.add_arguments(parser, Config, PRESETS, "tiny")
  return parser.parse_args(argv)


def train(
  config: Config,
  run: pathlib.Path,
  argv: Sequence[str],
  source: Source | None = None,
) -> dict[str, Any]:
  """Trains a run from its start or from its newest checkpoint.

  Args:
    config: its settings.
    run: its folder.
    argv: what results.json says it was made by.
    source: the text, if it is open already.

  Returns:
    What results.json says: losses of the finished weights on every part and,
    if a sparsity was asked for, before the last cut.

  Raises:
    ValueError: if settings or data are wrong.
    OSError: if a file is missing.
    FloatingPointError: if the loss is not finite.
  """
  check(config)
  if config.batch_size // config.accumulate % jax.device_count():
    raise ValueError(
      "batch_size / accumulate must be a multiple of the"
      f" {jax.device_count()} devices, got {config.batch_size} /"
      f" {config.accumulate}."
    )
  start = pathlib.Path(config.start) if config.start else None
  if start:
    check_start(config, settings.read(start, Config))
  source = source or open_source(config, start or run)
  # What is wrong with the data should not stay in the folder.
  settings.write(run, config)
  source.save_tokenizer(run)
  path = run / "results.json"
  if path.exists():
    return kit.read_json(path, {})
  setup, parallel, state = begin_with(config, source)
  judge = make_judge(config, setup, source, parallel)
  to_weights = jax.jit(setup.to_weights)
  train_on = parallel.train(
    jax.random.key(config.seed),
    differentiate(config, setup),
    update(setup),
  )
  key = jax.random.key(config.seed)
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(ckpt.open_checkpoints(run))
    state = ckpt.restore(checkpoints, state)
    begin = int(state.step)
    metrics = Metrics(
      run,
      begin,
      config.steps,
      "tokens",
      config.batch_size * config.context,
      make_schedule(config),
    )
    stack.callback(metrics.close)
    started = time.perf_counter()
    for step in range(begin + 1, config.steps + 1):
      rows = batch(
        source.parts["train"], key, step, config.batch_size, config.context
      )
      state, values = train_on(state, parallel.batch(rows), None)
      metrics.step(step, values)
      last = step == config.steps
      if step % config.evaluate_steps == 0 or last:
        losses = judge(to_weights(state.params), "validation")
        metrics.result(step, "validation", **losses, **_shares(state))
      if step % config.checkpoint_steps == 0 or last:
        ckpt.save(checkpoints, state)
    seconds = time.perf_counter() - started
    weights, results = finished(config, to_weights(state.params), judge)
    results |= {part: judge(weights, part) for part in source.parts}
    metrics.result(config.steps, "test", **results["test"])
    results = {
      **kit.provenance(PROGRAM, argv, "flax", "orbax-checkpoint"),
      "devices": jax.device_count(),
      "resumed_at": begin,
      "seconds": round(seconds, 1),
      **metrics.speed,
      **results,
    }
  kit.write_json(path, results)
  return results


def begin_with(config: Config, source: Source) -> tuple[Setup, Jit, Any]:
  """Returns model and method, how they are spread, and the first state."""
  vocabulary = len(source.vocabulary.bytes_of)
  setup = make_setup(config, vocabulary)
  parallel = Jit(shard_params=config.mesh == "fsdp")
  start = None
  if config.start:
    start = load(pathlib.Path(config.start), source)
  state = parallel.init(
    functools.partial(init_state, config, setup, vocabulary),
    jax.random.key(config.seed),
    start,
  )
  return setup, parallel, state


def finished(config: Config, weights: Any, judge) -> tuple[Any, dict[str, Any]]:
  """Returns the weights that a run ends with, and how sparse they are."""
  results = {}
  if config.sparsity:
    results["before_the_cut"] = judge(weights, "validation")
    weights, report = cut(weights, config.sparsity, config.groups)
    results["cut"] = str(report)
  counts = rewa_jax.sparsity(weights, mask=kernels)
  return weights, results | {
    "sparsity": float(counts.sparsity),
    "kernel_weights": counts.total_size,
    "other_weights": counts.uncounted,
  }


def load(run: pathlib.Path, source: Source) -> Any:
  """Returns the weights that a run ended with, or has come to.

  Raises:
    FileNotFoundError: if the folder holds no run, or one without checkpoint.
    ValueError: if the checkpoint cannot be read.
  """
  config = settings.read(run, Config)
  if not (run / "checkpoints").is_dir():
    raise FileNotFoundError(f"{run} holds no checkpoint.")
  vocabulary = len(source.vocabulary.bytes_of)
  setup = make_setup(config, vocabulary)
  one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device),
    jax.eval_shape(
      functools.partial(init_state, config, setup, vocabulary),
      jax.random.key(0),
    ),
  )
  with ckpt.open_checkpoints(run) as checkpoints:
    if checkpoints.latest_step() is None:
      raise FileNotFoundError(f"{run} holds no checkpoint.")
    state = ckpt.restore(checkpoints, like)
  weights = setup.to_weights(state.params)
  if config.sparsity and int(state.step) == config.steps:
    weights, _ = cut(weights, config.sparsity, config.groups)
  # On the host, to go onto however many devices.
  return jax.device_get(weights)


def _shares(state):
  """Returns the shares that decay by rank has come to, if it is used."""
  found = {
    name: optax.tree.get(state.opt_state, name)
    for name in ("scheduled", "vanished")
  }
  return {name: float(x) for name, x in found.items() if x is not None}


if __name__ == "__main__":
  # Devices for the cores: elementwise work of one device keeps to one core.
  jax.config.update("jax_num_cpu_devices", kit.cpu_devices(16))
  kit.leave_on_ctrl_c("the same command goes on from the last checkpoint.")
  main(sys.argv[1:])
