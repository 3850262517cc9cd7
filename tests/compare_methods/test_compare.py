import csv
import json
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.compare_methods import compare, methods, tables, training
from examples.compare_methods.networks import LeNet300

# Of each kind of method one: latents, penalties, and a state that prunes.
QUICK = ("ReWA", "L1, proximal", "GMP")
GRID = {
  # A row for each threshold, a column for each cell.
  "accuracy": [[0.98, 0.97], [0.97, 0.97], [0.90, 0.95]],
  "nonzero": [[100, 50], [20, 50], [10, 5]],
}


@pytest.mark.parametrize(
  ("least", "pick"),
  [(0.975, (0, 0)), (0.97, (1, 0)), (0.95, (2, 1)), (0.99, None)],
)
def test_the_sparsest_of_the_accurate_is_chosen(least, pick):
  assert compare.choose(GRID, least) == pick


def test_of_equally_sparse_networks_the_most_accurate_is_chosen():
  grid = {"accuracy": [[0.96, 0.98, 0.97]], "nonzero": [[7, 7, 7]]}
  assert compare.choose(grid, 0.95) == (0, 1)


def test_whole_channels_count_as_long_as_one_weight_is_left():
  kernel = jnp.zeros((4, 5)).at[0, 1].set(1).at[2, 1].set(1).at[2, 3].set(1)
  conv = jnp.zeros((3, 3, 2, 4)).at[0, 1, 0, 2].set(1)
  weights = {"a": {"kernel": kernel, "bias": jnp.ones(5)}}
  assert training.structured_size(weights) == 2 * 2
  assert training.structured_size({"kernel": conv}) == 9


class Tiny(nn.Module):
  @nn.compact
  def __call__(self, images):
    x = nn.relu(nn.Dense(4)(images.reshape(len(images), -1)))
    return nn.Dense(3)(x)


def tiny_data(count=256):
  key = jax.random.key(0)
  labels = jax.random.randint(key, (count,), 0, 3)
  images = jax.nn.one_hot(labels, 64).reshape(count, 8, 8)
  return training.Data(*[(images, labels)] * 3)


@pytest.mark.parametrize(
  "name",
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in methods.METHODS["lenet300"]()
  ],
)
def test_every_method_trains_all_its_cells_at_once(name):
  method = methods.METHODS["lenet300"]()[name]
  data = tiny_data()
  network = Tiny()
  pilot = network.init(jax.random.key(0), data.train[0][:1])
  cells = [(s, 0.1) for s in method.strengths[:2]]
  done = []
  trained = training.train(
    network,
    method,
    cells,
    data,
    seed=0,
    epochs=2,
    pilot=pilot,
    advance=lambda: done.append(1),
  )
  assert len(done) == 2
  assert jax.tree.structure(trained.weights) == jax.tree.structure(pilot)
  kernel = trained.weights["params"]["Dense_0"]["kernel"]
  assert kernel.shape == (2, 64, 4)
  assert jnp.isfinite(kernel).all()
  assert not jnp.array_equal(kernel[0], kernel[1])
  measured = training.measure(
    network, trained.weights, jnp.array([0.0, 1e9]), *data.test
  )
  assert measured["nonzero"].shape == (2, 2)
  assert (measured["nonzero"][1] == 0).all()


def budgets_said(name, epochs):
  recipe = methods.METHODS["lenet300"]()[name]
  # The steps of an epoch of MNIST.
  data = tiny_data()._replace(train=(jnp.ones((1, 8, 8)), np.ones(55_000)))
  return training.describe_budgets(Tiny(), recipe, data, epochs)


@pytest.mark.parametrize(
  ("name", "epochs", "said"),
  [
    # Without gradients: k times strength times the sum of rates.
    ("ReWA", 12, "decay budgets 3.5 to 55.6, .* weak end of this grid will"),
    ("spred", 12, "decay budgets 3.1 to 38.7, .* weak end"),
    (
      "ReWA",
      1,
      "warning: .* a strength of 0.013 or --epochs 4 for a budget of",
    ),
    ("DWF, D = 3", 12, "warning: decay budgets 0.3 to 6.2, .* strength of 0.0"),
  ],
)
def test_methods_whose_strength_is_a_decay_say_how_far_it_goes(
  name, epochs, said
):
  assert re.match(said, budgets_said(name, epochs))


def test_the_program_says_so_before_it_trains(tmp_path, monkeypatch, capsys):
  def interrupted(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(compare, "tune", interrupted)
  argv = ["--fast", "--out", str(tmp_path)]
  args = compare.parse(argv)
  args.recipes = {"ReWA": args.recipes["ReWA"]}
  with pytest.raises(KeyboardInterrupt):
    compare.compare(args, Tiny(), tiny_data())
  assert "ReWA: warning: decay budgets" in capsys.readouterr().out


@pytest.mark.parametrize("network", methods.METHODS)
def test_other_methods_have_no_decay_budget(network):
  known = methods.METHODS[network]()
  without = {name for name, recipe in known.items() if recipe.method is None}
  assert {"dense", "L1, proximal", "GMP"} <= without
  assert not without & {"ReWA", "spred", "DWF, D = 3, corrected start"}


@pytest.fixture
def small(monkeypatch):
  known = methods.METHODS["lenet300"]()
  few = {
    name: known[name]._replace(strengths=known[name].strengths[:1])
    for name in ("dense", "L1, proximal", "adaptive lasso")
  }
  monkeypatch.setitem(compare.METHODS, "lenet300", lambda: few)


@pytest.mark.slow
def test_the_program_writes_curves_and_tables_and_continues(
  tmp_path, small, capsys
):
  argv = ["--fast", "--only", "adaptive lasso", "--epochs", "8"]
  argv += ["--out", str(tmp_path)]
  out = tmp_path / "lenet300"
  compare.main(argv)
  first = capsys.readouterr().out
  result = json.loads((out / "adaptive_lasso.json").read_text())
  for chosen in result["chosen"]:
    assert len(chosen["test_accuracy"]) == 1
  assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
  with (out / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert {row["method"] for row in rows} <= {"dense", "adaptive lasso"}
  assert tuple(rows[0]) == tables.COLUMNS
  assert "| adaptive lasso |" in first

  # The methods that are there are not trained again, a new one is added.
  files = {path: path.read_bytes() for path in out.glob("*.json")}
  compare.main([*argv, "--only", "L1, proximal"])
  second = capsys.readouterr().out
  assert {path: path.read_bytes() for path in files} == files
  assert (out / "l1_proximal.json").exists()
  tables_of = [
    {line for line in text.splitlines() if line.startswith("|")}
    for text in (first, second)
  ]
  assert tables_of[0] < tables_of[1]

  # Timing anew changes the milliseconds alone.
  compare.main([*argv, "--time"])
  timed = json.loads((out / "adaptive_lasso.json").read_text())
  assert timed["milliseconds_per_step"] != result["milliseconds_per_step"]
  timed["milliseconds_per_step"] = result["milliseconds_per_step"]
  assert timed == result


def test_timing_needs_something_finished(tmp_path, small):
  with pytest.raises(SystemExit, match="holds no finished comparison"):
    compare.main(["--fast", "--time", "--out", str(tmp_path / "empty")])


def test_pilots_survive_the_disk(tmp_path):
  pilots = {
    seed: LeNet300(3).init(jax.random.key(seed), jnp.ones((1, 4, 4)))
    for seed in (0, 3)
  }
  compare.write_pilots(tmp_path / "pilots.npz", pilots)
  read = compare.read_pilots(tmp_path / "pilots.npz", pilots[0])
  assert sorted(read) == [0, 3]
  jax.tree.map(np.testing.assert_array_equal, read, pilots)


def test_an_unknown_method_is_named(capsys):
  with pytest.raises(SystemExit):
    compare.main(["--only", "magic"])
  assert "--only magic: not one of dense" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("network", "title", "methods"),
  [("lenet300", "LeNet-300-100", 14), ("lenet5", "LeNet-5", 6)],
)
def test_the_tables_of_the_readme_are_those_of_the_results(
  network, title, methods
):
  folder = pathlib.Path(compare.__file__).parent
  with (folder / "results" / network / "results.csv").open() as file:
    results = {
      (row["method"], float(row["tolerance"])): row
      for row in csv.DictReader(file)
    }
  sections = (folder / "README.md").read_text().split("\n## ")
  (section,) = (s for s in sections if s.startswith(f"{title}\n"))
  rows = re.findall(r"^\| ([^|]+) \| (\d+)x, ([\d.]+) % \|", section, re.M)
  assert len(rows) == methods
  for name, compression, accuracy in rows:
    row = results[name, 0.01]
    assert f"{float(row['compression']):.0f}" == compression, name
    assert f"{100 * float(row['test_accuracy']):.1f}" == accuracy, name
