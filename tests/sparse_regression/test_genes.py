import csv
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.sparse_regression import genes
from tests.extras import needs

TYPES, GENES = 3, 30


def some_cells(count=120):
  """Three types, told apart by the first three genes."""
  random = np.random.default_rng(0)
  types = np.arange(count) % TYPES
  expression = random.normal(size=(count, GENES))
  expression[np.arange(count), types] += 4
  return genes.Cells(np.float32(expression), np.int32(types))


def test_the_bundled_data_is_what_the_program_says():
  needs("scanpy")
  cells = genes.load()
  assert cells.expression.shape == (700, 765)
  assert cells.expression.dtype == np.float32
  assert np.unique(cells.types).tolist() == list(range(10))


def test_splits_are_disjoint_and_keep_types_in_proportion():
  cells = some_cells()
  for training, test in genes.split(cells, 3):
    assert (len(training), len(test)) == (96, 24)
    assert not set(training) & set(test)
    assert np.bincount(cells.types[test]).tolist() == [8, 8, 8]


def test_only_the_first_kernel_is_made_sparse():
  network = genes.Network(TYPES)
  params = network.init(jax.random.key(0), jnp.zeros((1, GENES)))
  mask = genes.only_genes(params)["params"]
  assert mask == {
    "genes": {"kernel": True, "bias": False},
    "types": {"kernel": False, "bias": False},
  }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ReWA in groups", "grouped Hadamard"])
def test_more_strength_leaves_the_genes_that_matter(name):
  cells = some_cells()
  splits = tuple(map(np.stack, zip(*genes.split(cells, 2))))
  recipe = genes.methods(2)[name]
  found, accuracy = genes.train(
    genes.Network(TYPES),
    recipe.method,
    recipe.rate,
    recipe.decay * jnp.array([0.0, recipe.strengths[-1]]),
    cells,
    splits,
    steps=800,
  )
  assert found.shape == accuracy.shape == (2, 2)
  assert (found[:, 0] == GENES).all()
  assert (found[:, 1] <= 6).all()
  assert (accuracy[:, 1] > 0.7).all()


def test_logistic_regression_goes_from_few_genes_to_many():
  cells = some_cells()
  splits = tuple(map(np.stack, zip(*genes.split(cells, 2))))
  done = []
  found, accuracy = genes.logistic_regression(
    3, cells, splits, lambda: done.append(1)
  )
  assert len(done) == 2
  assert (np.diff(found) >= 0).all()
  assert (accuracy[:, -1] > 0.8).all()


def test_accuracy_is_read_off_between_mean_numbers_of_genes():
  counts = [[1, 100], [1, 100]]
  accuracy = [[0.2, 0.8], [0.4, 0.8]]
  assert genes.accuracy_at(counts, accuracy, 10) == pytest.approx(0.55)
  assert genes.accuracy_at(counts, accuracy, 101) is None


@pytest.mark.slow
def test_the_program_writes_table_curves_and_numbers(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(genes, "load", some_cells)
  few = {"ReWA": genes.methods(2)["ReWA"]}
  monkeypatch.setattr(genes, "methods", lambda count: few)
  options = ["--splits", "2", "--strengths", "2", "--steps", "20"]
  genes.main([*options, "--out", str(tmp_path)])
  printed = capsys.readouterr().out
  with (tmp_path / "genes.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 * 2 * 2
  results = json.loads((tmp_path / "genes.json").read_text())
  assert list(results["results"]) == ["ReWA", "L1 logistic regression"]
  assert (tmp_path / "genes.png").read_bytes().startswith(b"\x89PNG")
  assert "| ReWA |" in printed
  # Twenty steps are too few for any strength, and that is said first.
  assert re.match(r"ReWA: warning: decay budgets 0.\d to 2.\d, and be", printed)
  assert re.search(r"a strength of \S+ or --steps 1\d\d for a bud", printed)


def test_strengths_that_do_are_not_warned_of():
  recipe = genes.methods(3)["spred"]
  said = genes.describe_budgets(
    genes.Network(TYPES), recipe, some_cells(), steps=2000
  )
  assert said.startswith("decay budgets 1") and "dense" not in said


def test_a_single_split_is_refused(capsys):
  with pytest.raises(SystemExit):
    genes.main(["--splits", "1"])
  assert "--splits must be at least 2, got 1" in capsys.readouterr().err


def test_the_table_of_the_readme_is_that_of_the_results():
  folder = pathlib.Path(genes.__file__).parent
  made = (folder / "results" / "genes.md").read_text()
  rows = [line for line in made.splitlines() if line.startswith("| ")]
  assert len(rows) == 8
  readme = (folder / "README.md").read_text()
  for line in rows:
    assert line in readme, line
