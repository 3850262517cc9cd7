"""Kills a training run at random moments until it is done.

  python -m tests.scripts.kill [--kills 20] [train.py's flags]

A run is trained without disturbance, then others with `kill -9`, most of them
shortly after a new checkpoint, some while the program starts, and the same
command after each. A run that gets done in spite of it must have the weights of
the first, bit for bit, and the next one begins. It takes some five minutes.
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from tqdm import tqdm

from examples.image_classification import checkpoints


def main() -> int:
  """Runs the program, and returns its exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  args, flags = parser.parse_known_args()
  settings = ["--epochs", "200", "--checkpoint-epochs", "1", *flags]
  chance = random.Random(args.seed)
  done, hits = 0, []
  with tempfile.TemporaryDirectory() as folder:
    whole, run = (pathlib.Path(folder) / name for name in ("whole", "run0"))
    if train(whole, settings).wait():
      sys.exit("kill.py: the run without kills failed.")
    bar = tqdm(total=args.kills, unit="kill")
    while len(hits) < args.kills or (run / "checkpoints").exists():
      process = train(run, settings)
      if len(hits) < args.kills and kill(process, run, chance):
        hits.append(newest(run))
        bar.update()
      elif process.wait():
        sys.exit(f"kill.py: the start after {hits} failed.")
      else:
        assert_same_weights(whole, run)
        done += 1
        run = pathlib.Path(folder) / f"run{done}"
    bar.close()
  print(
    f"{len(hits)} kills, with checkpoints of the steps {hits}; {done} runs got"
    " done: the same weights, bit for bit."
  )
  return 0


def kill(process, run, chance) -> bool:
  """Kills at a random moment; returns False if the run was done before."""
  before = newest(run)
  pause = chance.uniform(0, 5)  # Some are killed while the program starts.
  if chance.random() < 0.75:
    while process.poll() is None and newest(run) == before:
      time.sleep(0.01)
    pause = chance.uniform(0, 1)
  try:
    process.wait(pause)
  except subprocess.TimeoutExpired:
    process.kill()
  return process.wait() == -signal.SIGKILL


def assert_same_weights(one, other):
  trees = (jax.tree.leaves(checkpoints.load(run)[1]) for run in (one, other))
  for a, b in zip(*trees, strict=True):
    np.testing.assert_array_equal(a, b)


def train(run, settings):
  program = [sys.executable, "-m", "examples.image_classification.train"]
  return subprocess.Popen(
    [*program, *settings, "--out", run],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def newest(run):
  """Returns the step of the newest whole checkpoint, or 0."""
  steps = [
    int(path.name)
    for path in (run / "checkpoints").glob("*")
    if path.name.isdigit()
  ]
  return max(steps, default=0)


if __name__ == "__main__":
  sys.exit(main())
