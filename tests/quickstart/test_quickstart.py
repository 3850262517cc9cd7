"""The quickstart at a tiny size, and as a user starts it."""

import ast
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from examples.quickstart import quickstart

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "quickstart"
COMMAND = [sys.executable, "examples/quickstart/quickstart.py"]


def start(*arguments):
  # One device, as users have: the tests' own eight would only slow it down.
  environment = os.environ | {"XLA_FLAGS": ""}
  return subprocess.Popen(
    [*COMMAND, *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_it_prints_a_table_and_writes_a_plot_and_results(tmp_path):
  process = start("--out", tmp_path / "out", "--steps", 60, "--seeds", 2)
  printed, errors = process.communicate()
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
  results = json.loads((FOLDER / "results" / "results.json").read_text())
  readme = (FOLDER / "README.md").read_text()
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


def test_the_program_imports_nothing_of_the_examples():
  imports = [
    node
    for node in ast.walk(ast.parse((FOLDER / "quickstart.py").read_text()))
    if isinstance(node, ast.ImportFrom)
  ]
  assert not any(node.level or "examples" in node.module for node in imports)


def test_the_sparsest_of_the_accurate_is_chosen():
  rows = [
    {"mean_validation_accuracy": accuracy, "mean_nonzero": nonzero}
    for accuracy, nonzero in ((0.97, 900), (0.95, 90), (0.5, 1))
  ]
  assert quickstart.choose(rows, 0.94)["mean_nonzero"] == 90
  assert quickstart.choose(rows, 0.99)["mean_nonzero"] == 900


@pytest.mark.parametrize(
  "name", [pytest.param("L1", marks=pytest.mark.slow), "ReWA"]
)
def test_every_method_trains_all_penalties_and_seeds_at_once(name, monkeypatch):
  monkeypatch.setattr(quickstart, "PENALTIES", (0.0, 5.0))
  recipe = quickstart.recipes()[name]
  data = quickstart.load_data(2)
  params = quickstart.train_grid(name, recipe, data, 20, 2)
  rows = quickstart.evaluate(recipe, params, data)
  assert [row["penalty"] for row in rows] == list(recipe.penalties)
  assert all(len(row["test_accuracy"]) == 2 for row in rows)
  assert rows[0]["mean_nonzero"] > 80_000
  assert rows[1]["mean_nonzero"] < 1000


def test_help_and_bad_arguments(capsys):
  with pytest.raises(SystemExit, match="0"):
    quickstart.parse(["--help"])
  assert "validation" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="2"):
    quickstart.parse(["--steps", "0"])
  assert "must be a positive integer" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_leaves_cleanly(tmp_path):
  process = start("--out", tmp_path, "--steps", 3000)
  for line in iter(lambda: process.stderr.read(1), ""):
    if line == "%":  # The bar has begun.
      break
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate()
  assert process.returncode == 130
  assert "Traceback" not in errors and not list(tmp_path.iterdir())
