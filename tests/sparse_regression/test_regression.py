import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

from rewa_jax import baselines
from tests.extras import needs

needs("skglm")

from examples.sparse_regression import problems, regression, solvers

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "sparse_regression"


def test_columns_correlate_as_asked_and_have_unit_variance():
  task = problems.Task(5, correlation=0.7)
  inputs = np.asarray(problems.draw(task, 0, 20_000, 8).inputs)
  distance = np.abs(np.subtract.outer(range(8), range(8)))
  np.testing.assert_allclose(np.cov(inputs.T), 0.7**distance, atol=0.05)


def test_targets_are_the_true_coefficients_plus_noise():
  problem = problems.draw(problems.Task((1.0, -2.0)), 0, 20_000, 4)
  assert problem.truth.tolist() == [1, -2, 0, 0]
  noise = problem.targets - problem.inputs @ problem.truth
  assert jnp.std(noise) == pytest.approx(1, abs=0.02)
  assert jnp.abs(problem.inputs.T @ noise / 20_000).max() < 0.03


def test_logistic_targets_are_1_as_often_as_the_model_says():
  problem = problems.draw(problems.TASKS["logistic"], 0, 20_000, 4)
  assert set(np.unique(problem.targets)) == {0, 1}
  chance = 1 / (1 + np.exp(-np.asarray(problem.inputs @ problem.truth)))
  sure = chance > 0.8
  share = float(np.asarray(problem.targets)[sure].mean())
  assert share == pytest.approx(chance[sure].mean(), abs=0.02)


def test_drawn_coefficients_have_the_asked_number_and_sizes():
  truth = problems.draw(problems.TASKS["20 correlated"], 3, 10, 500).truth
  found = np.sort(np.abs(truth[truth != 0]))
  np.testing.assert_allclose(found, np.linspace(0.2, 1, 20), rtol=1e-5)
  assert (truth < 0).any() and (truth > 0).any()


def test_spred_finds_the_lasso():
  problem = problems.draw(problems.Task(5), 0, 100, 60)
  inputs, targets = np.asarray(problem.inputs), np.asarray(problem.targets)
  spred, strengths = baselines.spred(mask=None), [0.3, 0.1]
  found = solvers.descend(
    spred, 0.5, 3000, inputs, targets, strengths, logistic=False
  )
  for coefficients, strength in zip(found, strengths):
    lasso = Lasso(strength, fit_intercept=False, tol=1e-10)
    lasso.fit(np.float64(inputs), targets)
    np.testing.assert_allclose(coefficients, lasso.coef_, atol=2e-4)


def test_the_curvature_is_the_largest_eigenvalue():
  inputs = np.random.default_rng(0).normal(size=(50, 20))
  exact = np.linalg.eigvalsh(inputs.T @ inputs / 50)[-1]
  found = solvers.curvature(jnp.float32(inputs), logistic=False)
  assert found == pytest.approx(exact, rel=0.02)
  assert solvers.curvature(jnp.float32(inputs), True) == pytest.approx(
    found / 4
  )


def test_the_strength_with_the_least_loss_on_samples_held_back_is_taken():
  problem = problems.draw(problems.Task((1.0,)), 0, 40, 3)
  asked = []

  def solver(inputs, targets, strengths, *, logistic):
    asked.append((len(targets), len(strengths)))
    # Right at the fourth strength, and a spurious speck that is pruned.
    found = np.zeros((len(strengths), 3))
    found[:, 0], found[:, 1] = 5, 1e-4
    found[min(3, len(strengths) - 1), 0] = 1
    return found

  fit = solvers.hold_out(solver, problem, path=True)
  slope = np.asarray(problem.inputs).T @ (
    problem.targets - problem.targets.mean()
  )
  top = np.abs(slope / 40).max()
  assert fit.strength == pytest.approx(
    top * np.geomspace(1, solvers.LOWEST_STRENGTH, solvers.STRENGTHS)[3]
  )
  assert asked == [(30, solvers.STRENGTHS), (40, 4)]
  assert fit.coefficients.tolist() == [1, 0, 0]
  solvers.hold_out(solver, problem, path=False)
  assert asked[-1] == (40, 1)


def test_what_is_found_is_measured_against_the_truth():
  measured = regression.measure(
    np.array([1.0, 0, 2, 0]), np.array([1, 1, 0, 0])
  )
  assert measured == {
    **{"nonzero": 2, "precision": 0.5, "recall": 0.5},
    "error": pytest.approx(5**0.5),
  }
  nothing = regression.measure(np.zeros(2), np.array([1.0, 0]))
  assert (nothing["precision"], nothing["recall"]) == (1, 0)


@pytest.mark.slow
def test_the_program_runs_as_a_user_starts_it(tmp_path):
  # In its own process, where numba may compile.
  env = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"}
  program = "examples.sparse_regression.regression"
  options = ["--fast", "--task", "20 correlated", "--steps", "1000"]
  process = subprocess.run(
    [sys.executable, "-m", program, *options, "--out", tmp_path],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  with (tmp_path / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [row["method"] for row in rows] == list(solvers.methods(1))
  for row in rows:
    assert float(row["recall"]) > 0.2, row
    # Nothing at all would be as far away as the truth is long.
    assert float(row["error"]) < np.linalg.norm(np.linspace(0.2, 1, 20)), row
  results = json.loads((tmp_path / "results.json").read_text())
  assert "--fast" in results["command"]
  assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
  assert "| 20 correlated | L0.5 |" in (tmp_path / "table.md").read_text()


def test_too_few_steps_are_refused(capsys):
  with pytest.raises(SystemExit):
    regression.main(["--steps", "3"])
  assert "--steps must be at least 20, got 3" in capsys.readouterr().err


def test_the_table_of_the_readme_is_that_of_the_results():
  with (FOLDER / "results" / "results.csv").open() as file:
    results = list(csv.DictReader(file))
  tasks = list(dict.fromkeys(row["task"] for row in results))
  cell = r" ([\d.]+), ([\d.]+), ([\d.]+) \|"
  rows = re.findall(
    r"^\| ([^|]+) \|" + cell * len(tasks),
    (FOLDER / "README.md").read_text(),
    re.M,
  )
  assert [name for name, *_ in rows] == list(
    dict.fromkeys(row["method"] for row in results)
  )
  for name, *values in rows:
    expected = [
      f"{np.mean([float(row[key]) for row in mine]):.2f}"
      for task in tasks
      for mine in [
        [r for r in results if (r["task"], r["method"]) == (task, name)]
      ]
      for key in ("precision", "recall", "error")
    ]
    assert values == expected, name
