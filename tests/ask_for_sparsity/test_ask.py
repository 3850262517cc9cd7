import json
import pathlib

import pytest

from examples.ask_for_sparsity import ask

ROW = {
  "compression": 50,
  "seed": 1,
  "nonzero": 20,
  "largest_cut": 1e-5,
  "smallest_kept": 2e-2,
  "validation": 0.97,
  "validation_uncut": 0.97,
  "test": 0.98,
  "test_uncut": 0.981,
}


def test_the_table_has_means_over_seeds_and_what_the_cut_cost():
  rows = [ROW, ROW | {"seed": 2, "test": 0.96, "test_uncut": 0.96}]
  line = ask.table(rows).splitlines()[2]
  assert line.startswith(
    "| 50x | 98.00% | 20 | 97.00 % ± 1.41 | 97.00 % | 0.05"
  )


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--epochs", "0"], "--epochs: must be at least 1"),
    (["--compressions", "0.5"], "--compressions: must be at least 1"),
    (["--method", "hadamard", "--k", "3"], "--k and --m are of --method rewa"),
  ],
)
def test_bad_options_are_named(words, message, capsys, tmp_path):
  with pytest.raises(SystemExit):
    ask.parse([*words, "--out", str(tmp_path)])
  assert message in capsys.readouterr().err


def test_the_same_command_finds_its_settings_in_the_file(tmp_path):
  compressions = ask.parse(["--out", str(tmp_path)]).compressions
  assert json.loads(json.dumps(compressions)) == compressions


@pytest.mark.slow
def test_every_target_is_met_to_the_weight(tmp_path, capsys):
  argv = ["--epochs", "6", "--compressions", "2", "10", "--seeds", "1"]
  argv += ["--out", str(tmp_path)]
  ask.main(argv)
  results = json.loads((tmp_path / "lenet300" / "results.json").read_text())
  assert [row["nonzero"] for row in results["rows"]] == [133_100, 26_620]
  assert results["rows"][0]["test"] > 0.8
  assert (tmp_path / "lenet300" / "accuracy.png").exists()
  assert "| 10x | 90.00% | 26,620 |" in capsys.readouterr().out
  # The same command trains nothing, and shows the seeds it names alone.
  path = tmp_path / "lenet300" / "results.json"
  other = [row | {"seed": 7, "test": 0.0} for row in results["rows"]]
  path.write_text(json.dumps(results | {"rows": results["rows"] + other}))
  ask.main(argv)
  assert "| 10x | 90.00% | 26,620 |" in capsys.readouterr().out
  assert "±" not in (tmp_path / "lenet300" / "table.md").read_text()
  # Of another data set they are no results.
  path.write_text(json.dumps(results | {"data": "another"}))
  with pytest.raises(SystemExit, match="was made with data another, not"):
    ask.main(argv)


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "fashion", "hadamard"])
def test_the_readme_has_the_committed_tables(name):
  folder = pathlib.Path(ask.__file__).parent
  results = json.loads((folder / f"results/{name}/results.json").read_text())
  shown = ask.table(results["rows"], results.get("fixed", ()))
  assert shown in (folder / "README.md").read_text()


def test_held_back_images_choose_the_fixed_decay():
  rows = [
    ROW | {"weight_decay": decay, "validation": validation, "test": test}
    for decay, validation, test in [(1e-3, 0.9, 0.8), (2e-3, 0.8, 0.95)]
  ]
  assert ask.best_decay(rows, 50) == (1e-3, pytest.approx(0.8))
  assert ask.table([ROW], rows).splitlines()[2].endswith("| 80.00 % (0.001) |")
