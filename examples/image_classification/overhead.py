"""Measures what ReWA adds to a training step: time and memory.

The steps of the dense network, by plain optax.sgd, and of ReWA in its ways in
are compiled and take turns; their order changes from turn to turn. What is
reported are medians, and ratios of medians, of the one run.

  python examples/image_classification/overhead.py --model resnet20
"""

import argparse
import json
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from config import Config
from models import MODELS
from state import init_state, make_setup, train_step
from tqdm import tqdm

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from provenance import provenance

PROGRAM = "examples/image_classification/overhead.py"
WAYS = ("dense", "linen", "trees", "drop-in")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program, and returns its exit status."""
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--model", choices=MODELS, default="resnet20")
  add("--resolution", type=int, default=32, help="of images, pixels")
  add("--classes", type=int, default=10)
  add("--stem", choices=("cifar", "imagenet"), default="cifar")
  add("--dtype", choices=("float32", "bfloat16"), default="float32")
  add("--batch-size", type=int, default=128)
  add("--turns", type=int, default=30, help="steps that are timed, of each")
  add("--out", type=pathlib.Path, help="a JSON file to write")
  args = parser.parse_args(argv)
  try:
    results = measure(args)
  except KeyboardInterrupt:
    return 130
  results = {
    "command": shlex.join(["python", PROGRAM, *argv]),
    **provenance("flax"),
    **results,
  }
  text = json.dumps(results, indent=1)
  print(text)
  if args.out:
    args.out.write_text(text + "\n")
  return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
  """Returns milliseconds and bytes of each way, and ratios to dense."""
  shape = (args.batch_size, args.resolution, args.resolution, 3)
  image_key, label_key = jax.random.split(jax.random.key(0))
  batch = {
    "image": jax.random.normal(image_key, shape),
    "label": jax.random.randint(label_key, (args.batch_size,), 0, args.classes),
  }
  steps, states, ways = {}, {}, {}
  for way in WAYS:
    begin = time.perf_counter()
    steps[way], states[way] = _compiled(args, way, batch)
    seconds = time.perf_counter() - begin
    memory = steps[way].memory_analysis()
    ways[way] = {
      "compile_seconds": round(seconds, 1),
      # What the step reads and writes is the same memory where it is donated.
      "bytes": memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes
      - memory.alias_size_in_bytes,
    }
  times: dict[str, list[float]] = {way: [] for way in WAYS}
  for turn in tqdm(range(-2, args.turns), unit="turn"):
    for number in range(len(WAYS)):
      way = WAYS[(number + turn) % len(WAYS)]
      begin = time.perf_counter()
      states[way], _ = jax.block_until_ready(steps[way](states[way], batch, ()))
      if turn >= 0:  # The first two warm up.
        times[way].append(time.perf_counter() - begin)
  dense = statistics.median(times["dense"])
  for way, row in ways.items():
    middle = statistics.median(times[way])
    row["milliseconds"] = round(1000 * middle, 3)
    row["time_ratio"] = round(middle / dense, 4)
    row["memory_ratio"] = round(row["bytes"] / ways["dense"]["bytes"], 4)
  settings = {k: v for k, v in vars(args).items() if k != "out"}
  return {"settings": settings, "ways": ways}


def _compiled(args, way, batch):
  config = Config(
    model=args.model,
    stem=args.stem,
    dtype=args.dtype,
    method="dense" if way == "dense" else "rewa",
    way="linen" if way == "dense" else way,
    weight_decay=1e-3,
    clip=0.0,
  )
  setup = make_setup(config, args.classes, optax.constant_schedule(0.01))
  if way == "dense":
    setup = setup._replace(optimizer=optax.sgd(0.01, config.momentum))
  images = jnp.zeros_like(batch["image"][:1])
  state = init_state(config, setup, jax.random.key(0), images)

  def to_images(key, batch, arrays):
    del key, arrays
    return batch["image"], batch["label"]

  step = train_step(config, setup, to_images, lambda params: params)
  jitted = jax.jit(step, donate_argnums=0)
  return jitted.lower(state, batch, ()).compile(), state


if __name__ == "__main__":
  sys.exit(main())
