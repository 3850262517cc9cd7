"""The program that shrinks networks, at a tiny size."""

import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.deploy import networks, shrink
from rewa_jax import deploy
from tests.extras import needs

FOLDER = pathlib.Path(shrink.__file__).parent


@pytest.fixture
def network():
  data = networks.load_data(None)
  return networks.train("lenet300", "whole units", data, steps=4)


@pytest.mark.slow
def test_a_network_is_pruned_cut_written_and_checked(tmp_path, network):
  variables, small, report = shrink.shrink(network, 0.9, tmp_path)
  assert report["largest difference"] < 1e-5
  assert report["accuracy"] == report["accuracy of the file"] > 0
  sizes = report["bytes"]
  assert sizes["compact"] < sizes["sparse"] < sizes["dense"] / 4
  assert sizes["compact, float16"] < sizes["compact"]
  assert sizes["entropy bound"] < sizes["sparse"]
  assert report["entries of compact"] < report["entries"]
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == [
    f"lenet300_whole_units_0.9_{form}.safetensors"
    for form in ("compact", "compact_float16", "sparse")
  ]
  for name, tree in ((names[0], small.params), (names[2], variables)):
    found = deploy.load(tmp_path / name)
    jax.tree.map(np.testing.assert_array_equal, found, tree)


@pytest.mark.slow
def test_every_form_computes_the_same_logits(network, tmp_path):
  variables, small, _ = shrink.shrink(network, 0.9, tmp_path)
  images = np.asarray(network.images[:3])
  wanted = network.model.apply(variables, images)
  for params in (variables, small.params):
    found = shrink.mlp(deploy.to_scipy(params), images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


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
  argv = ["--steps", "30", "--sparsities", "0.9", "--turns", "1"]
  shrink.main([*argv, "--out", str(tmp_path)])
  results = json.loads((tmp_path / "results.json").read_text())
  assert [row["network"] for row in results["rows"]] == [
    *("lenet300", "lenet300", "convnet", "convnet")
  ]
  assert all(row["largest difference"] < 1e-5 for row in results["rows"])
  assert {*results["rows"][0]["ms"]} == {"1", "256"}
  printed = capsys.readouterr().out
  for name, table in zip(("sizes", "latency"), shrink.tables(results["rows"])):
    assert (tmp_path / f"{name}.md").read_text().startswith(table)
    assert table in printed


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--steps", "0"], "--steps must be at least 1, got 0"),
    (["--sparsities", "99"], "--sparsities must be shares, got"),
  ],
)
def test_numbers_out_of_range_are_refused(argv, message, capsys):
  with pytest.raises(SystemExit):
    shrink.main(argv)
  assert message in capsys.readouterr().err


def test_a_folder_that_does_not_do_is_named(tmp_path):
  argv = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
  with pytest.raises(
    SystemExit, match="shrink.py: .*No such file.*train-images"
  ):
    shrink.main(argv)


def test_the_tables_of_the_readme_are_those_of_the_results():
  text = (FOLDER / "results" / "trained" / "results.json").read_text()
  results = json.loads(text)
  readme = (FOLDER / "README.md").read_text()
  for table in shrink.tables(results["rows"]):
    assert table in readme
  assert all(row["largest difference"] < 1e-5 for row in results["rows"])


@pytest.mark.slow
def test_a_run_of_image_classification_is_made_small(tmp_path):
  needs("orbax.checkpoint")
  train = needs("examples.image_classification.train")
  run = tmp_path / "run"
  assert train.main(["--epochs", "8", "--out", str(run)]) == 0
  trained = json.loads((run / "results.json").read_text())
  argv = ["--run", str(run), "--sparsities", "0", "0.9", "--turns", "1"]
  shrink.main([*argv, "--out", str(tmp_path / "out")])
  results = json.loads((tmp_path / "out" / "results.json").read_text())
  for row in results["rows"]:
    assert row["network"] == "lenet300" and row["sparse in"] == "rewa"
    assert row["accuracy of the file"] == row["accuracy"]
  wanted = trained["test"]["accuracy"]
  assert results["rows"][0]["accuracy"] == pytest.approx(wanted, abs=1e-4)
  text = (tmp_path / "out" / "results.json").read_text()
  assert str(tmp_path) not in text
