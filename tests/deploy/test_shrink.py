"""The program that shrinks networks, at a tiny size."""

import gzip
import json
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.deploy import forms, networks, shrink
from rewa_jax import deploy
from tests.extras import needs

FOLDER = pathlib.Path(shrink.__file__).parent
TABLES = "".join(p.read_text() for p in (FOLDER / "results").glob("*/*.md"))
DOCS = (FOLDER.parents[1] / "docs" / "deploy.md").read_text()


@pytest.fixture
def network():
  data = networks.load_data(None)
  return networks.train("lenet300", "whole units", data, steps=4)


@pytest.mark.slow
def test_a_network_is_pruned_cut_written_and_checked(tmp_path, network):
  pruning = {"sparsity": 0.9}
  variables, small, report = shrink.shrink(network, pruning, tmp_path)
  assert report["largest difference"] < 1e-5
  assert report["accuracy"] == report["accuracy of the file"] > 0
  assert report["sparsity"] == pytest.approx(0.9, abs=1e-4)
  sizes = report["bytes"]
  assert sizes["compact"] < sizes["sparse"] < sizes["dense"] / 4
  assert sizes["compact, float16"] < sizes["compact"]
  assert sizes["entropy bound"] < sizes["sparse"]
  assert report["entries of compact"] < report["entries"]
  names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
  assert names == [
    f"lenet300_whole_units_sparsity_0.9_{form}.safetensors"
    for form in ("compact", "compact_float16", "sparse")
  ]
  for name, tree in ((names[0], small.params), (names[2], variables)):
    found = deploy.load(tmp_path / name)
    jax.tree.map(np.testing.assert_array_equal, found, tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet300", "convnet"])
def test_every_form_computes_the_same_logits(name, tmp_path):
  images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
  model = networks.make(name)
  variables = model.init(jax.random.key(0), images)
  network = networks.Network(name, "", model, variables, images, None)
  pruning = {"threshold": 0.1}
  variables, small, _ = shrink.shrink(network, pruning, tmp_path)
  made = forms.forms(network, variables, small)
  calls = {name: make(np.asarray(images)) for name, make in made.items()}
  assert {"dense", "compact", "BCSR"} <= calls.keys()
  assert ({"BCOO", "SciPy"} <= calls.keys()) == (name == "lenet300")
  wanted = model.apply(variables, images)
  for call in calls.values():
    assert forms.largest_difference(call(), wanted) < 1e-5


def test_a_difference_is_relative_to_the_largest_output():
  wanted = np.array([0.5, -4.0])
  assert forms.largest_difference(np.array([1.5, -4.0]), wanted) == 0.25
  assert forms.largest_difference(np.zeros(2), np.zeros(2)) == 0


def test_a_form_pays_from_where_it_stays_faster():
  def row(sparsity, **ms):
    names = {"network": "net", "sparse in": "units", "sparsity": sparsity}
    return {**names, "ms": {"1": {"dense": 2.0, **ms}}}

  rows = [
    row(0.9, early=1.0, late=1.0, never=1.0),
    row(0.98, early=0.5, late=3.0, never=1.0),
    row(0.997, early=0.25, late=1.0, never=1.9),
  ]
  assert shrink.pays(rows).splitlines()[2:] == [
    "| net | units | 1 | 90 %, 8x | 99.7 %, 2x | never |"
  ]


def test_slow_forms_are_called_less_often(monkeypatch):
  now, count = 0.0, {"fast": 0, "slow": 0}
  takes = {"fast": 1e-3, "slow": 0.7}

  def call(name, seconds):
    nonlocal now
    now += seconds
    count[name] += 1
    return np.zeros(())

  monkeypatch.setattr(forms.time, "perf_counter", lambda: now)
  calls = {n: lambda n=n, s=s: call(n, s) for n, s in takes.items()}
  found = forms.milliseconds(calls, turns=3)
  assert found == pytest.approx({"fast": 1, "slow": 700})
  assert count == {"fast": 30, "slow": 2}


def test_the_bound_is_the_entropy_of_positions_and_the_values():
  tree = {
    "half": jnp.arange(64) % 2.0,
    "none": jnp.zeros(8),
    "all": jnp.ones(3),
  }
  assert shrink.entropy_bound(tree) == 64 // 8 + 4 * (32 + 3)
  # Nothing general does better than it by much, on random positions.
  leaf = np.random.default_rng(0).normal(size=40000).astype("f")
  leaf = np.where(np.random.default_rng(1).random(40000) < 0.1, leaf, 0)
  bound = shrink.entropy_bound({"leaf": leaf})
  assert 0.9 * bound < len(gzip.compress(leaf.tobytes())) < 1.5 * bound


@pytest.mark.slow
def test_the_program_writes_tables_and_numbers(tmp_path, capsys):
  first, again = tmp_path / "first", tmp_path / "again"
  argv = ["--steps", "30", "--sparsities", "0.9", "--turns", "1"]
  shrink.main([*argv, "--out", str(first)])
  results = json.loads((first / "results.json").read_text())
  assert [row["network"] for row in results["rows"]] == [
    *("lenet300", "lenet300", "convnet", "convnet")
  ]
  for row in results["rows"]:
    assert row["largest difference"] < 1e-5
    assert row["largest difference of forms"] < 1e-5
  assert {*results["rows"][0]["ms"]} == {"1", "256"}
  printed = capsys.readouterr().out
  for name, table in shrink.tables(results["rows"]).items():
    assert (first / f"{name}.md").read_text().startswith(table)
    assert table in printed
  # What was trained is there for another run.
  argv = ["--weights", str(first), "--networks", "convnet", *argv[2:]]
  shrink.main([*argv, "--out", str(again)])
  found = json.loads((again / "results.json").read_text())["rows"]
  for key in ("network", "accuracy", "bytes"):
    assert [r[key] for r in found] == [r[key] for r in results["rows"][2:]]


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--steps", "0"], "--steps: must be at least 1, got 0"),
    (["--sparsities", "99"], "--sparsities must be shares, got"),
    (["--networks", "lenet5"], "lenet5 takes images of MNIST's size"),
    (["--threshold", "nan"], "--threshold: must be at least 0, got nan"),
  ],
)
def test_options_that_do_not_do_are_refused(argv, message, capsys):
  with pytest.raises(SystemExit):
    shrink.main(argv)
  assert message in capsys.readouterr().err


def test_a_folder_that_does_not_do_is_named(tmp_path):
  argv = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
  with pytest.raises(
    SystemExit, match="shrink.py: .*No such file.*train-images"
  ):
    shrink.main(argv)


def test_the_tables_of_the_readme_are_from_the_results():
  found = {*TABLES.splitlines()}
  readme = (FOLDER / "README.md").read_text().splitlines()
  rows = [line for line in readme if re.match(r"\| [a-z]\w+ \|", line)]
  assert len(rows) > 10 and set(rows) <= found


def test_in_the_results_all_forms_have_the_same_outputs():
  for path in (FOLDER / "results").glob("*/results.json"):
    for row in json.loads(path.read_text())["rows"]:
      assert row["largest difference"] < 1e-5
      assert row["largest difference of forms"] < 1e-5


@pytest.mark.slow
def test_the_commands_of_the_docs_make_a_run_small(tmp_path, monkeypatch):
  needs("orbax.checkpoint")
  train = needs("examples.image_classification.train")
  compress = needs("examples.image_classification.compress")
  monkeypatch.chdir(tmp_path)
  (commands,) = re.findall(r"^```sh\n(.*?)^```", DOCS, re.S | re.M)
  programs = {"train": train, "compress": compress, "shrink": shrink}
  for command in commands.splitlines():
    python, _, module, *argv = shlex.split(command)
    assert python == "python"
    assert not programs[module.split(".")[-1]].main(argv)
  (path,) = tmp_path.glob("results/*/sizes.md")
  results = json.loads((path.parent / "results.json").read_text())
  (row,) = results["rows"]
  assert (row["network"], row["sparse in"]) == ("lenet300", "rewa")
  assert row["accuracy of the file"] == row["accuracy"] > 0.95
  assert row["bytes"]["compact"] < row["bytes"]["dense"] / 20
  assert str(tmp_path) not in json.dumps(results)
