import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from examples.hyperparameter_grid import figure1

FOLDER = pathlib.Path(figure1.__file__).parent


@pytest.fixture(autouse=True)
def few_cells(monkeypatch):
  monkeypatch.setattr(figure1, "POWERS", (3, 5))
  monkeypatch.setattr(figure1, "MS", (0, 4))


def test_every_legal_cell_gets_its_own_k_and_m():
  compiled = []

  def train(k, m):
    compiled.append(k)
    return {"sum": 10 * k + m, "broken": jnp.where(m == 0, jnp.nan, m)}

  tables = figure1.train_grid(train)
  assert compiled == [3, 5]  # Python's integers: the fast powers.
  np.testing.assert_array_equal(tables["sum"], [[30, 50], [np.nan, 54]])
  np.testing.assert_array_equal(tables["broken"], [[np.nan] * 2, [np.nan, 4]])


def test_more_shrinkage_than_l1_finds_the_one_coefficient(monkeypatch):
  monkeypatch.setattr(figure1, "POWERS", (5,))
  monkeypatch.setattr(figure1, "MS", (0, 2))
  train = figure1.train_linear(0.05, 0.02, 200, samples=400, steps=2000)
  # p = 1.2 and p = 0.8.
  above_one, below_one = figure1.train_grid(train)["test loss"][:, 0]
  assert below_one < above_one
  assert below_one < 1.3


@pytest.mark.slow
def test_lenet_trains_in_every_cell(monkeypatch):
  monkeypatch.setattr(figure1, "POWERS", (5,))
  monkeypatch.setattr(figure1, "MS", (0, 2))
  data = figure1.load_digits_split()
  tables = figure1.train_grid(figure1.train_lenet(0.05, 0.02, data, epochs=10))
  assert (tables["test accuracy"] > 0.8).all()
  assert (tables["compression"] >= 1).all()


@pytest.mark.parametrize(
  ("steps", "said"),
  [
    (4000, "decay budgets 12.0 to 20.0\n"),
    (
      2500,
      "decay budgets 7.5 to 12.5, and below 8 a network may stay dense: the",
    ),
    (
      400,
      "warning: decay budgets 1.2 to 2.0, and below 8 a network may stay dense",
    ),
  ],
)
def test_the_decay_budgets_of_a_grid_are_said(steps, said, capsys):
  figure1.train_linear(0.02, 0.1, 20, samples=40, steps=steps)
  linear = capsys.readouterr().out
  assert linear.startswith(said)
  # Of LeNet an epoch of a single batch is a step.
  data = jnp.ones((2, 4)), jnp.zeros(2, int), jnp.ones((2, 4)), jnp.zeros(2)
  figure1.train_lenet(0.02, 0.1, data, epochs=steps, batch_size=2)
  assert capsys.readouterr().out == linear
  assert ("--weight-decay 0.75 for" in linear) == (steps == 400)


def test_a_step_that_diverges_leaves_an_empty_cell():
  train = figure1.train_linear(1e6, 0.02, 20, samples=40, steps=100)
  assert np.isnan(figure1.train_grid(train)["test loss"]).all()


def test_the_program_writes_a_plot_and_numbers(tmp_path, monkeypatch):
  monkeypatch.setattr(
    figure1,
    "train_linear",
    lambda *_: lambda k, m: {"test loss": jnp.where(k == 3, jnp.nan, m + 1)},
  )
  figure1.main(["linear", "--out", str(tmp_path)])
  results = json.loads((tmp_path / "linear.json").read_text())
  assert results["outputs"]["test loss"] == [None, 1, 5]
  assert results["cells"] == {"k": [3, 5, 5], "m": [0, 0, 4]}
  assert (tmp_path / "linear.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_the_readme_are_those_of_the_results():
  lenet = json.loads((FOLDER / "results" / "lenet.json").read_text())
  pairs = list(zip(lenet["cells"]["k"], lenet["cells"]["m"]))
  readme = " ".join((FOLDER / "README.md").read_text().split())
  for m in (0, 2, 6):
    accuracy, compression = (
      lenet["outputs"][name][pairs.index((9, m))]
      for name in ("test accuracy", "compression")
    )
    assert f"{compression:.0f}x at {100 * accuracy:.1f} %" in readme
