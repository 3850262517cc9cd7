"""Several processes at once train as one does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.extras import needs

needs("tensorboardX")
needs("grain")

from examples.image_classification import checkpoints

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = "examples.image_classification.train"
SETTINGS = ["--epochs", "3", "--warmup-epochs", "1", "--batch-size", "256"]


def start(run, *arguments, devices=1):
  flags = f"--xla_force_host_platform_device_count={devices}"
  return subprocess.Popen(
    [sys.executable, "-m", PROGRAM, *SETTINGS, "--out", run, *arguments],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  output, _ = process.communicate()
  assert process.returncode == 0, output


def losses_of(run):
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return [line["loss"] for line in lines if line["kind"] == "test"]


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_two_processes_train_as_one_does(parallelism, tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  several = ["--coordinator", f"localhost:{port}", "--processes", "2"]
  several += ["--parallelism", parallelism]
  runs = [
    start(tmp_path / "two", *several, "--process", str(process))
    for process in range(2)
  ]
  for run in runs:
    finish(run)
  finish(start(tmp_path / "one"))
  assert json.loads((tmp_path / "two/results.json").read_text())["devices"] == 2
  np.testing.assert_allclose(
    losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), rtol=1e-3
  )
  weights = [
    jax.tree.leaves(checkpoints.load(tmp_path / name)[1])
    for name in ("one", "two")
  ]
  for one, two in zip(*weights):
    np.testing.assert_allclose(one, two, atol=1e-4)
