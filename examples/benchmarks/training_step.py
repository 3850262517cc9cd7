"""Measures what ReWA adds to a training step: time, memory and compilation.

The steps of a dense network by plain optax.sgd and of ReWA in its ways in are
compiled, in turns, and then timed, in turns: the least of the compilations and
the median of the steps count. Ratios are to dense. Prints a table and writes a
JSON.

  python -m examples.benchmarks.training_step --model resnet20
"""

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import rewa_jax

from .. import kit
from ..image_classification.models import MODELS
from .timing import add_options, repeated, take_turns
from .transformer import GPT2

REWA = rewa_jax.Rewa(k=9, m=2)
RATE, DECAY, MOMENTUM = 0.01, 1e-3, 0.9
COLUMNS = ("way", "ms", "times dense", "MB", "times dense", "s to compile")


class Way(NamedTuple):
  """A way in.

  Attributes:
    solver: the optimizer.
    wrap: what becomes of the model.
    method: what params are latents of outside the model, if they are.
  """

  solver: optax.GradientTransformation
  wrap: Callable[[Any], Any] = lambda model: model
  method: rewa_jax.Method | None = None


def ways() -> dict[str, Way]:
  """Returns the dense network's training and ReWA's, by name."""
  solver = rewa_jax.sgd(RATE, REWA, weight_decay=DECAY, momentum=MOMENTUM)
  inner = optax.chain(
    optax.trace(MOMENTUM),
    optax.add_decayed_weights(DECAY, REWA.decaying),
    optax.scale_by_learning_rate(RATE),
  )
  return {
    "dense": Way(optax.sgd(RATE, MOMENTUM)),
    "linen": Way(
      solver, wrap=lambda model: rewa_jax.linen.Reparameterized(model, REWA)
    ),
    "trees": Way(solver, method=REWA),
    "drop-in": Way(rewa_jax.reparameterize(inner, REWA)),
  }


def problem(args: argparse.Namespace) -> tuple[Any, dict[str, Any], Any]:
  """Returns the model, arguments of its call, and a batch."""
  keys = jax.random.split(jax.random.key(0))
  dtype = jnp.dtype(args.dtype)
  if args.model == "transformer":
    model = GPT2(dtype=dtype)
    shape = (args.batch_size, model.length + 1)
    tokens = jax.random.randint(keys[0], shape, 0, model.vocabulary)
    return model, {}, (tokens[:, :-1], tokens[:, 1:])
  settings = {} if args.model.startswith("lenet") else {"stem": args.stem}
  model = MODELS[args.model](classes=args.classes, dtype=dtype, **settings)
  shape = (args.batch_size, args.resolution, args.resolution, 3)
  labels = jax.random.randint(keys[1], shape[:1], 0, args.classes)
  return model, {"train": True}, (jax.random.normal(keys[0], shape), labels)


def training_step(
  way: Way, model: Any, arguments: dict[str, Any]
) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
  """Returns the step on (params, statistics, state), batch; and what starts it.

  The start is a function of a key and of inputs.
  """
  model = way.wrap(model)

  def step(carry, batch):
    params, statistics, state = carry
    inputs, labels = batch

    def loss(params):
      weights = way.method.to_weights(params) if way.method else params
      logits, updated = model.apply(
        {"params": weights, **statistics},
        inputs,
        **arguments,
        mutable=list(statistics),
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updated

    grads, statistics = jax.grad(loss, has_aux=True)(params)
    updates, state = way.solver.update(grads, state, params)
    return optax.apply_updates(params, updates), statistics, state

  def start(key, inputs):
    variables = dict(model.init(key, inputs[:1], **arguments))
    params = variables.pop("params")
    if way.method:
      params = way.method.to_latents(params)
    return params, variables, way.solver.init(params)

  return step, start


@contextlib.contextmanager
def nothing_cached() -> Iterator[None]:
  """Makes every compilation a compilation."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  yield
  jax.config.update("jax_enable_compilation_cache", before)


@nothing_cached()
def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
  """Returns milliseconds, bytes and seconds of compilation of each way."""
  model, arguments, batch = problem(args)
  traced, carries, compiled = {}, {}, {}
  compiling: dict[str, list[float]] = {}
  for name, way in ways().items():
    traced[name], start = training_step(way, model, arguments)
    carries[name] = jax.jit(start)(jax.random.key(0), batch[0])
    compiling[name] = []

  def compile(name):
    def steps(carry, batch):
      step = functools.partial(traced[name], batch=batch)
      return repeated(step, args.repeat)(carry)

    jitted = jax.jit(steps, donate_argnums=0)
    return jitted.lower(carries[name], batch).compile()

  # The first compilation of a process takes longer, and does not count.
  for turn in tqdm(range(-1, args.compilations), "compiling"):
    for number in range(len(traced)):
      name = list(traced)[(number + turn) % len(traced)]
      jax.clear_caches()
      begin = time.perf_counter()
      compiled[name] = compile(name)
      if turn >= 0:
        compiling[name].append(time.perf_counter() - begin)
  steps = {
    name: lambda carry, program=compiled[name]: program(carry, batch)
    for name in traced
  }
  with tqdm(total=args.turns + 2, desc="steps", unit="turn") as progress:
    seconds = take_turns(steps, carries, args.turns, progress=progress.update)
  rows = {}
  for name in traced:
    memory = compiled[name].memory_analysis()
    rows[name] = {
      "milliseconds": round(1e3 * seconds[name] / args.repeat, 3),
      "time_ratio": round(seconds[name] / seconds["dense"], 4),
      # What the step reads and writes is the same memory where it is donated.
      "bytes": memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes
      - memory.alias_size_in_bytes,
    }
  for name, row in rows.items():
    row["memory_ratio"] = round(row["bytes"] / rows["dense"]["bytes"], 4)
    if not args.compilations:
      continue
    # Least: whatever else the machine does only adds.
    seconds = {each: min(compiling[each]) for each in (name, "dense")}
    row["compile_seconds"] = round(seconds[name], 3)
    row["compile_ratio"] = round(seconds[name] / seconds["dense"], 4)
  return rows


def parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/benchmarks")
  add = parser.add_argument
  add("--model", choices=(*MODELS, "transformer"), default="resnet20")
  add(
    "--resolution", type=kit.at_least(1), default=32, help="of images, pixels"
  )
  add("--classes", type=kit.at_least(1), default=10, help="of images")
  add("--stem", choices=("cifar", "imagenet"), default="cifar")
  add("--dtype", choices=("float32", "bfloat16"), default="float32")
  add("--batch-size", type=kit.at_least(1), default=128)
  add_options(parser, 20, "timed programs, of each way")
  add(
    "--compilations",
    type=kit.at_least(0),
    default=5,
    help="timed, of each way, or 0",
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
  args = parse(argv)
  rows = measure(args)
  print(
    kit.markdown(
      (*COLUMNS, "times dense"),
      [
        (
          name,
          row["milliseconds"],
          row["time_ratio"],
          row["bytes"] / 1e6,
          row["memory_ratio"],
          row.get("compile_seconds", ""),
          row.get("compile_ratio", ""),
        )
        for name, row in rows.items()
      ],
    )
  )
  settings = {k: v for k, v in vars(args).items() if k != "out"}
  made = kit.provenance("examples.benchmarks.training_step", argv, "flax")
  results = {"settings": settings, "ways": rows}
  path = args.out / f"training_step_{args.model}.json"
  kit.write_json(path, made | results)


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
