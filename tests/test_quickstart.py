"""The quickstart at a tiny size, as a user starts it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
COMMAND = [sys.executable, "examples/quickstart.py"]


def start(*arguments):
  # One device, as users have: the tests' own eight would only slow it down.
  environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  return subprocess.Popen(
    [*COMMAND, *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_it_prints_a_table_and_writes_a_plot_and_results(tmp_path):
  process = start("--out", tmp_path / "out", "--steps", 60, "--seeds", 2)
  printed, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert "ReWA: 100%" in errors  # The progress bar.
  assert "fewer weights" in printed
  plot = tmp_path / "out" / "accuracy_against_compression.png"
  assert plot.read_bytes().startswith(b"\x89PNG")
  text = (tmp_path / "out" / "results.json").read_text()
  assert str(tmp_path) not in text
  results = json.loads(text)
  assert set(results) >= {"command", "date", "machine", "versions", "settings"}
  assert list(results["grids"]) == ["dense", "L1", "ReWA"]
  assert len(results["grids"]["L1"]) == len(results["grids"]["ReWA"]) > 4
  for rows in results["grids"].values():
    for row in rows:
      assert len(row["test_accuracy"]) == 2
      total = row["compression"] * row["mean_nonzero"]
      assert total == pytest.approx(64 * 256 + 256 * 256 + 256 * 10)


def test_the_committed_results_are_what_the_readme_says():
  folder = ROOT / "examples" / "results" / "quickstart"
  results = json.loads((folder / "results.json").read_text())
  readme = (ROOT / "README.md").read_text()
  for name, row in results["chosen"].items():
    accuracy = f"{row['mean_test_accuracy']:.1%}".replace("%", " %")
    cells = (
      name,
      accuracy,
      f"{row['mean_nonzero']:,.0f}",
      f"{row['compression']:.0f}",
    )
    assert "| " + " | ".join(cells) + " |" in readme, cells
    assert np.mean(row["test_accuracy"]) == pytest.approx(
      row["mean_test_accuracy"]
    )


def test_help_and_bad_arguments():
  process = start("--help")
  assert "validation" in process.communicate(timeout=60)[0]
  process = start("--steps", "0")
  assert "must be a positive integer" in process.communicate(timeout=60)[1]
  assert process.returncode == 2


def test_ctrl_c_leaves_cleanly(tmp_path):
  process = start("--out", tmp_path, "--steps", 3000)
  for line in iter(lambda: process.stderr.read(1), ""):
    if line == "%":  # The bar has begun.
      break
  time.sleep(0.2)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "Traceback" not in errors and not list(tmp_path.iterdir())
