"""What the example programs share."""

import argparse
import json
import os
import signal
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

from examples import kit


def test_a_table_has_the_same_cells_in_markdown_and_csv(tmp_path):
  columns, rows = ("method", "loss"), [("a, b", 1 / 3), ("c", 7)]
  assert kit.markdown(columns, rows) == (
    "| method | loss |\n|---|---|\n| a, b | 0.333 |\n| c | 7 |\n"
  )
  kit.write_csv(tmp_path / "table.csv", columns, rows)
  text = (tmp_path / "table.csv").read_text()
  assert text == 'method,loss\n"a, b",0.333333\nc,7\n'


def test_results_say_how_they_were_made_but_not_where():
  argv = [
    "--out=some/where/runs/1/",
    "--data",
    "some/where/mnist",
    "--steps",
    "9",
  ]
  made = kit.provenance("examples.a.b", argv, "numpy")
  assert made["command"] == (
    "python -m examples.a.b --out=1 --data mnist --steps 9"
  )
  assert set(made["versions"]) == {"rewa_jax", "jax", "optax", "numpy"}
  assert f"{os.cpu_count()} cores" in kit.made_by(made)


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "new" / "results.json"
  kit.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    kit.write_json(path, {"a": object()})
  assert json.loads(path.read_text()) == {"a": 1}
  figure = plt.figure()
  kit.write_figure(path.with_suffix(".png"), figure)
  assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
  assert not plt.fignum_exists(figure.number)
  assert len(list(path.parent.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_said_before_the_run(tmp_path, capsys):
  (tmp_path / "file").touch()
  parser = kit.parser("What it does.", "results/x")
  with pytest.raises(SystemExit, match="2"):
    parser.parse_args(["--out", str(tmp_path / "file" / "out")])
  assert "argument --out" in capsys.readouterr().err
  assert parser.parse_args(["--out", str(tmp_path / "a" / "b")]).out.is_dir()


def test_numbers_are_of_the_kind_of_their_bound():
  assert kit.at_least(1)("3") == 3 and kit.at_least(0.0)("1e-3") == 1e-3
  for bound, text in ((1, "0"), (0.0, "nan"), (0.0, "inf"), (0.0, "-1")):
    with pytest.raises(argparse.ArgumentTypeError, match=f"got {text}"):
      kit.at_least(bound)(text)
  with pytest.raises(ValueError):
    kit.at_least(1)("1.5")


def test_what_is_wrong_with_files_ends_a_program_in_a_sentence(tmp_path):
  with pytest.raises(SystemExit, match="No such file.*nothing"):
    with kit.in_a_sentence():
      (tmp_path / "nothing").read_text()


@pytest.mark.parametrize(
  ("budgets", "said"),
  [
    ([13.46], "decay budget 13.5"),
    ([9, 40], "decay budgets 9.0 to 40.0"),
    (
      [40, 3],
      "decay budgets 3.0 to 40.0, and"
      " below 8 a network may stay dense: the weak"
      " end of this grid will.",
    ),
    (
      [2.5],
      "warning: decay budget 2.5, and"
      " below 8 a network may stay dense. It takes"
      " --epochs 12 for a budget of 15.",
    ),
    (
      [1, 5],
      "warning: decay budgets 1.0 to 5.0, and"
      " below 8 a network may stay dense. It"
      " takes --epochs 6 for a budget of 15.",
    ),
    (
      [0.0],
      "warning: decay budget 0.0, and"
      " below 8 a network may stay dense. There is"
      " no weight decay.",
    ),
  ],
)
def test_too_little_decay_is_said_with_what_would_do(budgets, said):
  assert (
    kit.describe_budgets(budgets, lambda factor: f"--epochs {2 * factor:g}")
    == said
  )


def test_ctrl_c_ends_a_program_with_a_sentence():
  code = (
    "import signal; from examples import kit;"
    "kit.leave_on_ctrl_c(); signal.raise_signal(signal.SIGINT); print('on')"
  )
  process = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert process.returncode == 128 + signal.SIGINT
  assert process.stderr == "\nInterrupted; nothing is written.\n"
  assert not process.stdout


def test_a_run_goes_on_from_results_of_its_own_settings_alone(tmp_path):
  path = tmp_path / "results.json"
  assert kit.read_json(path, {"epochs": 3}) == {}
  kit.write_json(path, {"epochs": 3, "rows": [1]})
  assert kit.read_json(path, {"epochs": 3})["rows"] == [1]
  with pytest.raises(SystemExit, match="was made with epochs 3, not 4"):
    kit.read_json(path, {"epochs": 4})
  path.write_text("{")
  with pytest.raises(SystemExit, match="is no JSON, .*: move it away"):
    kit.read_json(path, {"epochs": 3})


@pytest.mark.parametrize("cores, devices", ((1, 1), (2, 2), (12, 8), (96, 16)))
def test_batches_spread_over_the_cores_whatever_their_number(
  cores, devices, monkeypatch
):
  monkeypatch.setattr(
    os, "sched_getaffinity", lambda _: range(cores), raising=False
  )
  assert kit.cpu_devices(16) == devices
