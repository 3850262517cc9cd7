"""The comparison, tiny: its plan, its choices, and that it goes on."""

import functools
import json
import pathlib
import signal

import jax
import numpy as np
import pytest

import rewa_jax
from tests.extras import needs

needs("tensorboardX")
needs("grain")

from examples import kit, settings
from examples.image_classification import (
  checkpoints,
  compare,
  models,
  plan,
  train,
  worth,
)
from examples.image_classification.config import Config
from examples.image_classification.pipeline import open_data
from examples.image_classification.state import make_schedule
from examples.metrics import Metrics

SMALL = functools.partial(
  models.ResNet, stages=(1,), block=models.NarrowBlock, width=4
)
BASE = Config(model="resnet20", epochs=20, warmup_epochs=1, held_back=5000)
STEPS_PER_EPOCH = 351


def test_what_matters_most_comes_first_and_other_seeds_after():
  runs = plan.plan(BASE, STEPS_PER_EPOCH, seeds=2)
  assert [run.name for run in runs[:6]] == [
    "dense-0-seed0",
    "rank-0.95-seed0",
    "gmp-0.95-seed0",
    "rewa-15-seed0",
    "l1-0.4-seed0",
    "difference-0.95-seed0",
  ]
  assert len({run.name for run in runs}) == len(runs)
  assert [run.config.seed for run in runs] == [0] * 16 + [1] * 16


@pytest.mark.parametrize("epochs", [5, 20])
def test_strengths_are_decay_budgets_whatever_the_epochs(epochs):
  base = Config(model="resnet20", epochs=epochs, warmup_epochs=epochs / 20)
  for run in plan.plan(base, STEPS_PER_EPOCH, seeds=1):
    config = run.config
    rate = make_schedule(config, STEPS_PER_EPOCH)
    sum_of_rates = sum(map(float, jax.vmap(rate)(np.arange(epochs * 351))))
    if run.method == "rewa":
      budget = config.k * config.weight_decay * sum_of_rates
      assert budget == pytest.approx(run.strength, rel=0.01)
    if run.method == "l1":
      moved = config.l1 * sum_of_rates
      assert moved == pytest.approx(run.strength, rel=0.01)
    if run.method in ("gmp", "rank", "difference"):
      assert config.sparsity == run.strength
    assert (config.latents == "difference") == (run.method == "difference")


def test_data_or_fast(tmp_path, capsys):
  for arguments in ([], ["--fast", "--data", "cifar10"]):
    with pytest.raises(SystemExit):
      compare.main([*arguments, "--out", str(tmp_path)])
    assert "give --data, or --fast" in capsys.readouterr().err


def accuracy_of(folder, sparsity, recalibrated, split):
  """Counts by hand what pruned weights get right."""
  config, weights, statistics = checkpoints.load(folder)
  source = open_data(config)
  weights, _ = rewa_jax.prune(weights, sparsity=sparsity)
  if recalibrated:
    again = worth.recalibration(config, source, worth.BATCHES)
    statistics = again(weights, statistics)
  arrays = source.arrays[split]
  everything = {"index": np.arange(len(arrays.labels))}
  images, labels = source.to_images(None, everything, arrays)
  variables = {"params": weights, "batch_stats": statistics}
  logits = SMALL(classes=10).apply(variables, images)
  return np.mean(np.argmax(logits, -1) == labels)


@pytest.mark.slow
def test_the_comparison_goes_on_chooses_on_images_held_back_and_tests_once(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  monkeypatch.setitem(models.MODELS, "resnet8", SMALL)
  monkeypatch.setattr(worth, "BATCHES", 3)
  order = (("dense", 0), ("rank", 0.9), ("rank", 0.98))
  monkeypatch.setattr(compare, "FAST", order)
  command = ["--fast", "--epochs", "6", "--out", str(tmp_path)]
  step, starts = Metrics.step, []

  def interrupt(self, number, *args):
    starts.append(number)
    if len(starts) == 60:  # In the second run.
      signal.raise_signal(signal.SIGINT)
    step(self, number, *args)

  monkeypatch.setattr(Metrics, "step", interrupt)
  assert compare.main(command) == 130
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["finished"] == "1 of 3" and list(results["chosen"]) == [
    "dense"
  ]
  capsys.readouterr()
  assert compare.main([*command, "--list"]) == 0
  assert capsys.readouterr().out.split("\n")[:3] == [
    "finished   dense-0-seed0",
    "begun      rank-0.9-seed0",
    "not begun  rank-0.98-seed0",
  ]
  assert compare.main([*command, "--only", "rank"]) == 0
  assert len(starts) == 3 * 54
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["finished"] == "3 of 3"
  rows = {run["name"]: run["pruned"] for run in results["runs"]}
  for number, sparsity in enumerate(plan.SPARSITIES):
    chosen = results["chosen"]["rank"][str(sparsity)]
    held_back = {
      strength: rows[f"rank-{strength:g}-seed0"][number]["validation"]
      for strength in (0.9, 0.98)
    }
    assert chosen["validation"] == [max(held_back.values())]
    assert held_back[chosen["strength"]] == max(held_back.values())
    name = f"rank-{chosen['strength']:g}-seed0"
    recalibrated = rows[name][number]["recalibrated"]
    for split in ("validation", "test"):
      by_hand = accuracy_of(
        tmp_path / "runs" / name, sparsity, recalibrated, split
      )
      assert chosen[split][0] == pytest.approx(float(by_hand), abs=1e-5)
    left = sum(chosen["nonzero"].values()) / sum(chosen["of"].values())
    assert left <= 1 - sparsity + 1e-3
  assert len(results["runs"][0]["curve"]) == 6
  for name in ("frontier.png", "layers.png", "training.png"):
    assert (tmp_path / name).stat().st_size > 1000
  table = (tmp_path / "table.md").read_text()
  assert "ReWA by rank" in table and "3 of 3 runs are finished" in table
  # All is done: nothing is trained or tested again.
  before = {path: path.read_bytes() for path in tmp_path.glob("runs/*/*.json")}
  monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained again"))
  monkeypatch.setattr(worth, "_open", lambda *_: pytest.fail("opened again"))
  assert compare.main(command) == 0
  assert all(path.read_bytes() == text for path, text in before.items())


@pytest.mark.slow
def test_a_run_that_diverges_leaves_the_others(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(compare, "FAST", (("dense", 0),))

  def diverge(*_):
    raise FloatingPointError("the loss is nan by step 50")

  monkeypatch.setattr(train, "train", diverge)
  assert compare.main(["--fast", "--out", str(tmp_path)]) == 0
  assert "dense-0-seed0: the loss is nan" in capsys.readouterr().err
  assert not (tmp_path / "table.md").exists()


def test_runs_of_other_settings_are_not_compared(tmp_path, capsys):
  command = ["--fast", "--out", str(tmp_path)]
  folder = tmp_path / "runs" / "dense-0-seed0"
  settings.write(folder, compare.parse(command).base)
  kit.write_json(folder / "results.json", {})
  with pytest.raises(SystemExit, match="epochs was 20 and is 3"):
    compare.main([*command, "--epochs", "3", "--list"])


def test_the_readme_has_the_committed_table():
  folder = pathlib.Path(compare.__file__).parent
  table = (folder / "results" / "resnet20_compared" / "table.md").read_text()
  readme = (folder / "README.md").read_text()
  assert table.split("\n\n")[0] in readme
