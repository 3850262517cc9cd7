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
  process = start("--out", tmp_path / "out", "--steps", 60)
  printed, errors = process.communicate()
  assert process.returncode == 0, errors
  assert "training: 100%" in errors  # The progress bar.
  plot = tmp_path / "out" / "accuracy_against_compression.png"
  assert plot.read_bytes().startswith(b"\x89PNG")
  text = (tmp_path / "out" / "results.json").read_text()
  assert str(tmp_path) not in text
  results = json.loads(text)
  assert set(results) >= {"command", "date", "machine", "versions", "steps"}
  assert quickstart.table(results["readings"]) in printed
  assert quickstart.sentence(results["asked"]) in printed
  assert list(results["curves"]) == ["dense", "L1", "ReWA", "asked"]
  for name in quickstart.METHODS:
    for values in results["curves"][name].values():
      assert np.shape(values) == (len(results["penalties"]), quickstart.FOLDS)


def test_the_committed_results_are_what_the_readme_says():
  results = json.loads((FOLDER / "results" / "results.json").read_text())
  readme = (FOLDER / "README.md").read_text()
  table, verdict = quickstart.table(results["readings"]).split("\n\n")
  assert table in readme
  said = " ".join(readme.split())
  assert verdict.rstrip(".") in said
  assert quickstart.sentence(results["asked"]) in said
  # Its jackknife over folds, at 3 points: Student's t of 4 degrees of freedom.
  every = np.arange(quickstart.FOLDS)
  log = log_ratio(results["curves"], every, 0.03)
  left_out = [
    log_ratio(results["curves"], np.delete(every, fold), 0.03) for fold in every
  ]
  # Folds differ by an image in size.
  assert np.exp(log) == pytest.approx(
    results["readings"][2]["ReWA / L1"][0], rel=0.01
  )
  margin = 2.776 * np.sqrt((quickstart.FOLDS - 1) * np.var(left_out))
  low, high = np.exp([log - margin, log + margin])
  assert f"{low:.2f} to {high:.2f};" in readme


def log_ratio(curves, folds, below_dense):
  """The compression of ReWA by that of L1, of some folds alone."""
  level = np.mean(np.array(curves["dense"]["accuracy"])[:, folds]) - below_dense
  logs = []
  for name in quickstart.METHODS:
    compression = np.log(curves[name]["compression"])[:, folds].mean(axis=1)
    accuracy = np.array(curves[name]["accuracy"])[:, folds].mean(axis=1)
    read = quickstart.read_off(np.exp(compression), accuracy, level)
    logs.append(np.log(read))
  return logs[1] - logs[0]


def test_the_documentation_quotes_the_committed_results():
  results = json.loads((FOLDER / "results" / "results.json").read_text())
  rows = results["curves"]["ReWA"]["compression"]
  means = np.exp(np.log(rows).mean(axis=1))
  said = " ".join((ROOT / "docs" / "choosing.md").read_text().split())
  for penalty, digits in ((0.004, 1), (0.008, 0), (0.012, 0)):
    mean = means[results["penalties"].index(penalty)]
    assert f"leaves {mean:.{digits}f}x" in said, mean


def test_the_program_imports_nothing_of_the_examples():
  imports = [
    node
    for node in ast.walk(ast.parse((FOLDER / "quickstart.py").read_text()))
    if isinstance(node, ast.ImportFrom)
  ]
  assert not any(node.level or "examples" in node.module for node in imports)


def test_folds_test_every_image_once_and_train_on_none_they_test():
  data = quickstart.load_data()
  assert data.train.shape[0] == quickstart.FOLDS
  counts = np.bincount(data.fold_of, minlength=quickstart.FOLDS)
  assert counts.sum() == len(data.labels) == 1797
  assert counts.max() - counts.min() <= 1
  for fold, train in enumerate(np.asarray(data.train)):
    assert len(set(train)) == len(train) >= 1797 - counts[fold] - 1
    assert fold not in data.fold_of[train]


def test_curves_are_read_off_between_their_points_in_the_logarithm():
  compression = np.array([100.0, 1.0, 10_000.0])
  accuracy = np.array([0.96, 0.98, 0.9])
  levels = np.array([0.97, 0.96, 0.93, 0.5])
  read = quickstart.read_off(compression, accuracy, levels)
  np.testing.assert_allclose(read, [10, 100, 1000, np.nan])


def test_what_rises_along_a_curve_is_averaged():
  compression = np.array([1.0, 10.0, 100.0, 1000.0])
  accuracy = np.array([0.98, 0.94, 0.96, 0.92])
  # The two in the middle are 0.95.
  read = quickstart.read_off(compression, accuracy, np.array([0.965, 0.935]))
  np.testing.assert_allclose(read, [10**0.5, 10**2.5])


def curve(wrong, compression):
  """A curve of 1000 images, of which the first so many are wrong."""
  hits = np.arange(1000) >= np.array(wrong)[:, None]
  folds = np.array(compression)[:, None] * np.ones(quickstart.FOLDS)
  return quickstart.Curve(folds, hits)


@pytest.mark.parametrize(
  ("compression", "said"), [(100.0, "even at 1"), (800.0, "ReWA ahead at 1")]
)
def test_the_verdict_is_computed_with_its_interval(
  compression, said, monkeypatch
):
  monkeypatch.setattr(quickstart, "BOOTSTRAPS", 50)
  curves = {
    "dense": curve([20], [1]),
    "L1": curve([20, 100], [1, 100]),
    "ReWA": curve([20, 100], [1, compression]),
  }
  readings = quickstart.compare(curves)
  for row in readings:
    share = row["points_below"] / 8
    assert row["accuracy"][0] == pytest.approx(0.98 - row["points_below"] / 100)
    assert row["L1"][0] == pytest.approx(100**share)
    assert row["ReWA / L1"][0] == pytest.approx((compression / 100) ** share)
    for estimate, low, high in (row["L1"], row["ReWA / L1"]):
      assert low <= estimate <= high
  assert said in quickstart.table(readings)


def test_what_was_asked_for_is_compared_at_its_compression(monkeypatch):
  monkeypatch.setattr(quickstart, "BOOTSTRAPS", 50)
  asked = quickstart.judge_asked(
    {
      "dense": curve([20], [1]),
      "L1": curve([20, 100], [1, 1e4]),
      "ReWA": curve([20, 40], [1, 100]),
      "asked": curve([30], [100]),
    }
  )
  assert asked["asked"][0] == pytest.approx(0.97)
  assert asked["asked - L1"][0] == pytest.approx(0.97 - 0.94)
  assert asked["asked - ReWA"][0] == pytest.approx(0.97 - 0.96)
  text = quickstart.sentence(asked)
  assert text.startswith("Asked for 99%, ReWA has 97.0 % at 100x; L1 of the")


@pytest.mark.slow
def test_a_network_ends_at_the_sparsity_it_was_asked_for():
  recipe = quickstart.recipes(60)["asked"]
  data = quickstart.load_data()
  params = quickstart.train_grid(recipe, data, 60, lambda _: None)
  trained = quickstart.evaluate(recipe, params, data)
  np.testing.assert_allclose(trained.compression, 100, rtol=1e-3)


def test_a_level_below_a_curve_is_beyond_the_grid(monkeypatch):
  monkeypatch.setattr(quickstart, "BOOTSTRAPS", 10)
  curves = {name: curve([20, 25], [1, 9]) for name in quickstart.METHODS}
  readings = quickstart.compare({"dense": curve([20], [1]), **curves})
  assert "beyond the grid at 3" in quickstart.table(readings)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["L1", "ReWA"])
def test_every_method_trains_all_penalties_and_folds_at_once(name, monkeypatch):
  monkeypatch.setattr(quickstart, "PENALTIES", (0.0, 5.0))
  recipe = quickstart.recipes(60)[name]
  data = quickstart.load_data()
  done = []
  params = quickstart.train_grid(recipe, data, 20, done.append)
  assert sum(done) == 20
  trained = quickstart.evaluate(recipe, params, data)
  assert trained.hits.shape == (2, 1797)
  assert trained.compression.shape == (2, quickstart.FOLDS)
  assert trained.compression[0].max() < 1.1
  assert trained.compression[1].min() > 80
  assert trained.hits[0].mean() > 0.3


@pytest.mark.parametrize(
  ("steps", "said"),
  [
    (1500, "ReWA has decay budgets 2.7 to 33.8, and below 8 a network may"),
    (60, "warning: ReWA has decay budgets 0.1 to 1.4, and below 8 a network"),
  ],
)
def test_decay_budgets_are_said_before_training(
  steps, said, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(quickstart, "train_grid", interrupted)
  with pytest.raises(KeyboardInterrupt):
    quickstart.main(["--steps", str(steps), "--out", str(tmp_path)])
  printed = capsys.readouterr().out
  assert printed.startswith(said)
  # A cosine from 0.1, and k = 9.
  rates = 0.05 * (1 + np.cos(np.pi * np.arange(steps) / steps))
  enough = 15 / (9 * rates.sum())
  assert f"a penalty of {enough:.2g} for a budget of 15" in printed


def interrupted(*args):
  raise KeyboardInterrupt


def test_help_and_bad_arguments(capsys):
  with pytest.raises(SystemExit, match="0"):
    quickstart.parse(["--help"])
  assert "cross-validation" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="2"):
    quickstart.parse(["--steps", "0"])
  assert "must be an integer >= 60" in capsys.readouterr().err


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
