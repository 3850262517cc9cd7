"""The comparison: which runs, what is chosen of them, the whole program."""

import json
import pathlib

import jax
import pytest

from tests.extras import needs

needs("tensorboardX")
needs("orbax.checkpoint")

from examples import settings
from examples.language_model import compare, report, train
from examples.language_model.plan import LABELS


def test_runs_come_in_the_order_of_what_matters_most(tmp_path):
  args = compare.parse(["--out", str(tmp_path)])
  names = [run.name for run in args.runs]
  # One is the dense run, cut in another way.
  assert len(set(names)) == len(names) - 1
  assert names[:3] == ["dense", "rank_90", "gmp_90"]
  asked = ("rank", "gmp", "difference")
  asked = [n for n in names if n.startswith(asked) and "_90" not in n]
  assert asked == [
    *("rank_80", "rank_95", "gmp_80", "gmp_95"),
    *("difference_80", "difference_95"),
    *("rank_50", "gmp_50", "difference_50"),
    *("rank_70", "gmp_70", "difference_70"),
    *("rank_50_units", "gmp_50_units", "rank_70_units", "gmp_70_units"),
  ]
  assert (
    names.index("gmp_95") < names.index("fixed_0.2") < names.index("l1_0.05")
  )


def test_all_methods_have_the_same_tokens_and_the_drop_in_a_tenth(tmp_path):
  args = compare.parse(["--out", str(tmp_path), "--steps", "1500"])
  steps = {run.method: run.settings.get("steps", 1500) for run in args.runs}
  assert steps == {name: 1500 for name in LABELS} | {"drop-in": 150}
  trials = args.plan.trials("fixed")
  assert [t.settings["learning_rate"] for t in trials] == [0.01, 0.02, 0.04]
  assert all(t.settings["steps"] == 150 for t in trials)
  # Squares take longer than fifth powers.
  trials = args.plan.trials("difference")
  assert all(t.settings["steps"] == 240 for t in trials)
  assert all(t.settings["latents"] == "difference" for t in trials)
  trials = args.plan.trials("fixed")
  # So that they shrink as much in all.
  assert all(t.settings["weight_decay"] == 10 * 0.2 for t in trials)


def pretend(args, run, loss):
  """Makes a run look finished."""
  folder = compare.folder_of(args, run)
  folder.mkdir(parents=True)
  results = {"validation": {"nats_per_byte": loss}}
  (folder / "results.json").write_text(json.dumps(results))


def test_of_what_is_cut_the_loss_at_90_percent_chooses(tmp_path):
  args = compare.parse([*("--out", str(tmp_path)), "--only", "fixed"])
  trials = args.plan.trials("fixed")
  for trial, whole, cut in zip(trials, [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]):
    pretend(args, trial, whole)
    assert not compare.is_finished(args, trial)
    row = {"sparsity": 0.9, "validation": {"nats_per_byte": cut}}
    worth = {"rows": [{"sparsity": 0.5}, row]}
    compare.worth_of(args, trial).write_text(json.dumps(worth))
  assert compare.best_rates(args, trials) == [0.02, 0.04, 0.01]


def test_a_rate_that_diverges_loses_and_the_others_go_on(tmp_path, monkeypatch):
  args = compare.parse([*("--out", str(tmp_path)), "--only", "rank"])
  first, *others = args.plan.trials("rank")

  def diverge(*args):
    raise FloatingPointError("the loss is nan by step 50")

  monkeypatch.setattr(compare, "train", diverge)
  compare.finish(args, first, None, None)
  assert compare.has_diverged(args, first) and compare.is_finished(args, first)
  for trial, loss in zip(others, [2.0, 1.0]):
    pretend(args, trial, loss)
  rates = compare.best_rates(args, [first, *others])
  assert rates == [0.02, 0.01, 0.005]


def test_short_runs_choose_two_learning_rates_and_whole_runs_one(tmp_path):
  args = compare.parse(["--out", str(tmp_path), "--only", "rank"])
  first, second = args.runs[:2]
  for trial, loss in zip(args.plan.trials("rank"), [2.0, 1.5, 1.7]):
    assert compare.resolve(args, first) == []
    pretend(args, trial, loss)
  two = compare.resolve(args, first)
  assert [run.name for run in two] == ["rank_90_0.01", "rank_90_0.02"]
  assert [run.settings["learning_rate"] for run in two] == [0.01, 0.02]
  for run, loss in zip(two, [1.4, 1.3]):
    assert compare.resolve(args, second) == []
    pretend(args, run, loss)
  assert compare.rates(args) == {"rank": 0.02}
  (run,) = compare.resolve(args, second)
  assert (run.name, run.settings["learning_rate"]) == ("rank_80", 0.02)
  assert compare.listed(args).splitlines()[:6] == [
    f"{'rate_rank_0.005':22} finished",
    f"{'rate_rank_0.01':22} finished",
    f"{'rate_rank_0.02':22} finished",
    f"{'rank_90_0.01':22} finished",
    f"{'rank_90_0.02':22} finished",
    f"{'rank_80':22} 0 of 3000 steps",
  ]


def test_runs_of_other_settings_are_not_compared(tmp_path):
  out = ["--out", str(tmp_path), "--only", "dense"]
  args = compare.parse(out)
  (trial, *_) = args.plan.trials("dense")
  pretend(args, trial, 2.0)
  settings.write(compare.folder_of(args, trial), compare.config_of(args, trial))
  assert "rate_dense_0.002       finished" in compare.listed(args)
  with pytest.raises(SystemExit, match="other settings: layers was 5 and is 2"):
    compare.main([*out, "--layers", "2"])
  with pytest.raises(SystemExit, match="seed was 0 and is 7"):
    compare.main([*out, "--seed", "7", "--list"])


def test_what_starts_from_the_dense_model_takes_the_better_one(tmp_path):
  args = compare.parse(["--out", str(tmp_path), "--only", "drop-in"])
  args.runs += [r for r in args.plan.runs() if r.method == "dense-units"]
  for trial, loss in zip(args.plan.trials("dense"), [2.0, 1.5, 1.7]):
    pretend(args, trial, loss)
  two = compare.resolve(args, args.runs[0])
  for run, loss in zip(two, [1.4, 1.3]):
    assert compare.resolve(args, args.runs[1]) == []
    pretend(args, run, loss)
  (drop_in,) = compare.resolve(args, args.runs[1])
  assert drop_in.settings["start"] == str(tmp_path / "runs" / "dense_0.008")
  # And what is only cut may be either.
  units = compare.resolve(args, args.runs[-1])
  assert [run.name for run in units] == [run.name for run in two]


def test_validation_chooses_among_strengths():
  rows = [
    {
      "run": str(i),
      "method": "l1",
      "sparsity": sparsity,
      "validation": {"nats_per_byte": validation},
      "test": {"nats_per_byte": 1 / validation},
    }
    for i, (sparsity, validation) in enumerate(
      [(0.5, 2.0), (0.5, 1.0), (0.9, 3.0), (0.9, 4.0)]
    )
  ]
  assert [row["run"] for row in report.best(rows)] == ["1", "2"]


def test_only_names_methods_there_are(tmp_path, capsys):
  out = ["--out", str(tmp_path)]
  args = compare.parse([*out, "--only", "drop-in", "--only", "gmp"])
  assert {run.method for run in args.runs} == {"dense", "gmp", "drop-in"}
  args = compare.parse([*out, "--only", "rank-units"])
  names = [run.name for run in args.runs]
  assert names == ["rank_90", "rank_50_units", "rank_70_units"]
  with pytest.raises(SystemExit):
    compare.parse([*out, "--only", "other"])
  assert "invalid choice" in capsys.readouterr().err


def test_help_explains_itself(capsys):
  with pytest.raises(SystemExit, match="0"):
    compare.main(["--help"])
  assert "learning rates for every method" in capsys.readouterr().out


@pytest.mark.slow
def test_a_comparison_is_written_and_goes_on_where_it_stopped(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  held_out = tmp_path / "other.txt"
  held_out.write_text("Neque porro quisquam est. " * 100)
  arguments = ["--fast", "--held-out", str(held_out), "--steps", "120"]
  arguments += ["--out", str(tmp_path / "out")]
  for method in ("rank", "drop-in", "l1"):
    compare.main([*arguments, "--only", method])
  compare.main([*arguments, "--list"])
  assert "fixed_0.2              0 of 120" in capsys.readouterr().out
  compare.main(arguments)
  results = json.loads((tmp_path / "out" / "results.json").read_text())
  found = {(row["method"], row["sparsity"]) for row in results["best"]}
  labels = {name: text for name, text in LABELS.items() if name != "difference"}
  whole = {(name, 0.0) for name in ("dense", "l1", "fixed")}
  each = {(name, s) for name in labels for s in (0.5, 0.9)}
  others = {(name, 0.9) for name in LABELS if name.endswith("-units")}
  assert found == (whole | each) - {("drop-in", 0.5)} - others
  table = (tmp_path / "out" / "table.md").read_text()
  assert all(label in table for label in labels.values())
  assert "text of another kind" in table
  assert (tmp_path / "out" / "loss.png").stat().st_size > 5000
  # Nothing is trained twice.
  monkeypatch.setattr(train, "begin_with", None)
  compare.main(arguments)


@pytest.mark.parametrize("results", ["dictionary", "dictionary_600"])
def test_the_results_in_the_readme_are_those_of_the_program(results):
  folder = pathlib.Path(compare.__file__).parent
  table = (folder / "results" / results / "table.md").read_text()
  sections = (folder / "README.md").read_text().split("\n### ")
  (section,) = [s for s in sections if f"results/{results}/" in s]
  rows = [line for line in section.splitlines() if line.startswith("| ")]
  labels = [row.split(" | ")[0].strip("| ") for row in rows]
  assert len(labels) >= 7 and all(row in table for row in rows[1:])
