"""Kills a training run at random moments until it is done.

  python tests/image_classification/kill.py [--kills 20] [train.py's flags]

A run is trained without disturbance, then again with `kill -9` at random
moments and the same command after each. The weights must be the same, bit for
bit, and every start must go on from the newest whole checkpoint. It takes some
six minutes on two cores.
"""

import argparse
import json
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

sys.path.insert(
  0, str(pathlib.Path(__file__).parents[2] / "examples/image_classification")
)
import checkpoints


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
  with tempfile.TemporaryDirectory() as folder:
    whole, parts = (
      pathlib.Path(folder) / "whole",
      pathlib.Path(folder) / "parts",
    )
    begin = time.monotonic()
    train(whole, settings).wait()
    seconds = time.monotonic() - begin
    reached = []
    for _ in tqdm(range(args.kills), unit="kill"):
      process = train(parts, settings)
      # From before the first checkpoint to some way into the run.
      time.sleep(chance.uniform(0.3, 1.0) * seconds / 2)
      process.send_signal(signal.SIGKILL)
      process.wait()
      reached.append(newest(parts))
    if reached != sorted(reached):
      sys.exit(f"kill.py: a start went back: {reached}")
    if train(parts, settings).wait():
      sys.exit("kill.py: the last start failed.")
    resumed = json.loads((parts / "results.json").read_text())["resumed_at"]
    one, other = (
      jax.tree.leaves(checkpoints.load(run)[1]) for run in (whole, parts)
    )
    for a, b in zip(one, other, strict=True):
      np.testing.assert_array_equal(a, b)
  print(
    f"{args.kills} kills, newest checkpoints {reached}, last start from"
    f" {resumed}: the same weights, bit for bit."
  )
  return 0


def train(run, settings):
  train_py = pathlib.Path(checkpoints.__file__).with_name("train.py")
  return subprocess.Popen(
    [sys.executable, train_py, *settings, "--out", run],
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
