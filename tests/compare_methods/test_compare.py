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
from examples.compare_methods.frontier import (
  DECISIVE,
  UNPRUNED,
  Found,
  ranked_rates,
)

# Of each kind of method one: latents, penalties, and a state that prunes.
QUICK = ("ReWA", "GMP")


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
    for name in methods.methods()
  ],
)
def test_every_method_trains_all_its_cells_at_once(name):
  method = methods.methods()[name]
  data = tiny_data()
  network = Tiny()
  pilot = network.init(jax.random.key(0), data.train[0][:1])
  cells = [(method.ladder(rung), 0.1) for rung in (0, 2)]
  done = []
  weights = training.train(
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
  assert jax.tree.structure(weights) == jax.tree.structure(pilot)
  kernel = weights["params"]["Dense_0"]["kernel"]
  assert kernel.shape == (2, 64, 4)
  assert jnp.isfinite(kernel).all()
  assert not jnp.array_equal(kernel[0], kernel[1])
  measured = training.measure(
    network, weights, jnp.array([1.0, 268.0]), *data.test
  )
  assert measured["accuracy"].shape == (2, 2)
  # Of 268 weights one is left, and with it one row and column of one kernel.
  np.testing.assert_allclose(measured["structured"][1], 268)


def test_a_network_is_measured_as_it_is_when_pruned_exactly():
  data = tiny_data(64)
  network = Tiny()
  weights = network.init(jax.random.key(0), data.test[0])
  stacked = jax.tree.map(lambda leaf: leaf[None], weights)
  measured = training.measure(
    network, stacked, jnp.array([1.0, 4.0]), *data.test
  )
  kernels = [weights["params"][f"Dense_{i}"]["kernel"] for i in (0, 1)]
  sizes = np.sort(np.abs(np.concatenate([k.ravel() for k in kernels])))
  least = sizes[-len(sizes) // 4]
  cut = jax.tree.map(lambda x: jnp.where(abs(x) < least, 0, x), weights)
  for i, expected in enumerate((weights, cut)):
    hits = network.apply(expected, data.test[0]).argmax(-1) == data.test[1]
    np.testing.assert_allclose(measured["accuracy"][i, 0], hits.mean())


def budgets_said(name, epochs, highest):
  recipe = methods.methods()[name]
  cells = [(recipe.ladder(0), recipe.rates[0])]
  cells.append((recipe.ladder(highest), recipe.rates[-1]))
  # The steps of an epoch of MNIST.
  data = tiny_data()._replace(train=(jnp.ones((1, 8, 8)), np.ones(55_000)))
  return training.describe_budgets(Tiny(), recipe, cells, data, epochs)


@pytest.mark.parametrize(
  ("name", "epochs", "highest", "said"),
  [
    # Without gradients: k times strength times the sum of rates.
    ("ReWA", 12, 7, r"decay budgets 0.9 to 9\d\..*, .* weak end of this grid"),
    ("spred", 1, 3, "warning: .* a strength of 0.0.. or 8 epochs for a budget"),
  ],
)
def test_methods_whose_strength_is_a_decay_say_how_far_it_goes(
  name, epochs, highest, said
):
  assert re.match(said, budgets_said(name, epochs, highest))


def test_other_methods_have_no_decay_budget():
  known = methods.methods()
  without = {name for name, recipe in known.items() if recipe.method is None}
  assert {"dense", "L1, proximal", "GMP", "ReWA by rank"} <= without
  assert not without & {"ReWA", "spred", "DWF, D = 3, corrected start"}


def test_ladders_go_on_in_both_directions():
  for name, recipe in methods.methods().items():
    rungs = [recipe.ladder(rung) for rung in range(-4, 12)]
    assert rungs == sorted(rungs), name
    assert len(set(rungs)) >= 15, name


def invented(best, best_rate=0.2):
  """Returns what trials find where one rung is best at every compression."""

  def run(cells, seed):
    return [
      {"rung": rung, "rate": rate, "seed": seed, "strength": rung}
      | {
        "validation": [
          1 - 0.01 * abs(rung - b) - abs(rate - best_rate) for b in best
        ]
      }
      for rung, rate in cells
    ]

  return run


def best_at(weak, strong):
  count = len(compare.COMPRESSIONS)
  return np.linspace(weak, strong, count)


def search(tmp_path, best, *best_rate):
  args = compare.parse(["--out", str(tmp_path)])
  recipe = methods.methods()["L1, proximal"]
  trials = compare.Trials(tmp_path / "trials.json", {}, {})
  found = compare.search(args, recipe, trials, invented(best, *best_rate))
  rate = found.rates[0]
  assert {t["rate"] for t in trials.all if t["seed"]} == {rate}
  assert found.trials == [t for t in trials.all if t["seed"]]
  return trials.all


def test_a_search_finds_the_rate_then_the_strengths_then_takes_seeds(tmp_path):
  trials = search(tmp_path, best_at(2, 5))
  probes = [(t["rung"], t["rate"]) for t in trials if t["seed"] == 0]
  assert probes == [(r, rate) for rate in (0.1, 0.2, 0.4) for r in (2, 5)]
  tried = [t["rung"] for t in trials if t["seed"] == 1]
  assert tried == list(range(8))
  assert {t["rate"] for t in trials if t["seed"]} == {0.2}
  for seed in (2, 3):
    again = [t["rung"] for t in trials if t["seed"] == seed]
    assert set(again) < set(tried)
    assert 2 <= len(again) <= 5


def test_a_search_goes_beyond_an_end_that_is_best(tmp_path):
  trials = search(tmp_path, best_at(3, 30))
  tried = [t["rung"] for t in trials if t["seed"] == 1]
  assert tried == list(range(12))
  (tmp_path / "trials.json").unlink()
  trials = search(tmp_path, best_at(-4, 3))
  tried = sorted(t["rung"] for t in trials if t["seed"] == 1)
  assert tried[-1] == 7
  assert tried[0] in (-2, -4)


@pytest.mark.parametrize(
  ("best", "tried"),
  [
    (0.3, [0.1, 0.2, 0.4]),
    (0.9, [0.1, 0.2, 0.4, 0.8, 1.6]),
    (9.0, [0.1, 0.2, 0.4, 0.8, 1.6]),
    (0.05, [0.025, 0.05, 0.1, 0.2, 0.4]),
  ],
)
def test_a_search_tries_rates_beyond_one_that_is_best(best, tried, tmp_path):
  trials = search(tmp_path, best_at(2, 5), best)
  assert sorted({t["rate"] for t in trials if t["seed"] == 0}) == tried


def test_trials_that_are_there_are_not_run_again(tmp_path):
  first = search(tmp_path, best_at(2, 5))

  def fail(cells, seed):
    raise AssertionError((cells, seed))

  args = compare.parse(["--out", str(tmp_path)])
  trials = compare.Trials(tmp_path / "trials.json", {}, {})
  recipe = methods.methods()["L1, proximal"]
  compare.search(args, recipe, trials, fail)
  assert trials.all == first


@pytest.fixture
def small(monkeypatch):
  known = methods.methods()
  few = {name: known[name] for name in ("dense", "L1, proximal")}
  few["adaptive lasso"] = known["adaptive lasso"]
  monkeypatch.setattr(compare, "methods", lambda: few)
  monkeypatch.setattr(compare, "PROBES", (2,))
  for name, recipe in few.items():
    few[name] = recipe._replace(rates=(0.2,))


@pytest.mark.slow
def test_the_program_writes_a_table_and_a_picture_and_continues(
  tmp_path, small, capsys
):
  argv = ["--fast", "--only", "adaptive lasso", "--epochs", "4", "6"]
  argv += ["--out", str(tmp_path)]
  out = tmp_path / "lenet300"
  compare.main(argv)
  first = capsys.readouterr().out
  assert (out / "frontiers.png").read_bytes().startswith(b"\x89PNG")
  with (out / "frontiers.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert {row["method"] for row in rows} == {"dense", "adaptive lasso"}
  assert {row["epochs"] for row in rows} == {"4", "6"}
  assert tuple(rows[0]) == tables.COLUMNS
  assert first.count("| adaptive lasso |") == 2

  # The trials that are there are not trained again, a new method is added.
  files = {path: path.read_bytes() for path in out.glob("*/*.json")}
  assert len(files) == 4
  compare.main([*argv, "--only", "L1, proximal"])
  assert {path: path.read_bytes() for path in files} == files
  result = json.loads((out / "long" / "l1_proximal.json").read_text())
  assert {trial["seed"] for trial in result["trials"]} == {1}


def test_results_of_other_settings_are_not_mixed(tmp_path, small):
  path = tmp_path / "lenet300" / "short" / "dense.json"
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps({"method": "dense", "epochs": 7, "trials": []}))
  with pytest.raises(SystemExit, match="was made with"):
    compare.main(["--fast", "--epochs", "1", "0", "--out", str(tmp_path)])


def test_an_unknown_method_is_named(capsys):
  with pytest.raises(SystemExit):
    compare.main(["--only", "magic"])
  assert "--only magic: not one of dense" in capsys.readouterr().err


FOLDER = pathlib.Path(compare.__file__).parent


def section(title):
  sections = (FOLDER / "README.md").read_text().split("\n## ")
  (found,) = (text for text in sections if text.startswith(f"{title}\n"))
  return found


TITLES = {
  "lenet300": "LeNet-300-100",
  "fashion": "Another data set",
  "lenet5": "LeNet-5",
}


@pytest.mark.parametrize("network", TITLES)
def test_the_table_of_the_readme_is_that_of_the_results(network):
  table = (FOLDER / "results" / network / "table.md").read_text()
  rows = [line for line in table.splitlines() if line.startswith("|")]
  assert len(rows) > 4
  assert all(row in section(TITLES[network]).splitlines() for row in rows)


@pytest.mark.parametrize("network", TITLES)
def test_the_committed_table_is_made_of_the_committed_trials(network):
  folder = FOLDER / "results" / network
  found, rates = {}, {}
  # The short trainings, which have the trials of rates, come last.
  for path in sorted(folder.glob("*/*.json"), reverse=True):
    content = json.loads(path.read_text())
    name, epochs, trials = map(content.get, ("method", "epochs", "trials"))
    probes = [t for t in trials if t["seed"] == compare.RATE_SEED]
    if probes:
      at = UNPRUNED if name == "dense" else DECISIVE
      rates[name] = ranked_rates(probes, at)
    found.setdefault(epochs, {})[name] = Found(
      rates[name],
      [
        t
        for t in trials
        if t["seed"] in content["seeds"] and t["rate"] == rates[name][0]
      ],
    )
  rows = tables.rows(dict(sorted(found.items())), methods.methods())
  table = (folder / "table.md").read_text()
  assert table.startswith(tables.to_markdown(rows).strip())


@pytest.mark.parametrize("network", TITLES)
def test_the_readme_has_the_committed_table(network):
  table = (FOLDER / "results" / network / "table.md").read_text()
  assert table.split("\n\n")[1] in (FOLDER / "README.md").read_text()
