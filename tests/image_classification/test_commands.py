"""The commands of the example's README, one after another, at fewer epochs."""

import json
import pathlib
import re
import shlex

import jax
import pytest

from tests.extras import needs

needs("tensorboardX")
needs("grain")

from examples import settings
from examples.image_classification import compare, compress, train
from examples.image_classification.config import Config

README = pathlib.Path(train.__file__).with_name("README.md")
PROGRAMS = {"train": train.main, "compress": compress.main}
PREFIX = "python -m examples.image_classification."


def commands():
  lines = README.read_text().splitlines()
  commands = [line for line in lines if line.startswith(PREFIX)]
  commands = [line.removeprefix(PREFIX) for line in commands]
  # test_compare.py has that of the comparison.
  left_out = re.compile(r"compare| \.\.\.")
  return [line for line in commands if not left_out.search(line)]


@pytest.mark.slow
def test_a_newcomer_trains_goes_on_prunes_fine_tunes_and_plots(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert len(commands()) == 5
  for command in commands():
    name, *arguments = shlex.split(command)
    arguments = [
      argument.replace("results/", f"{tmp_path}/") for argument in arguments
    ]
    if name == "train":
      arguments += ["--epochs", "2", "--warmup-epochs", "1"]
    assert not PROGRAMS[name](arguments)
  assert "Dense_0/kernel" in capsys.readouterr().out
  for name in ("curve.csv", "curve.png", "layers.png", "results.json"):
    assert (tmp_path / "digits" / name).exists()
  assert (tmp_path / "finetuned" / "results.json").exists()


@pytest.mark.parametrize("main", [*PROGRAMS.values(), compare.main])
def test_help_explains_itself(main, capsys):
  with pytest.raises(SystemExit, match="0"):
    main(["--help"])
  text = capsys.readouterr().out
  assert "examples.image_classification" in text and len(text) > 500


def test_figures_are_those_of_the_results():
  rows = re.findall(
    r"^\| [^|]+ \| ([\d]+)x \| ([\d.]+) ± ([\d.]+) % \| \[table\]\((.*)\) \|",
    README.read_text(),
    re.M,
  )
  assert len(rows) == 4
  for compression, accuracy, deviation, path in rows:
    table = json.loads((README.parent / path).read_text())
    assert len(table["runs"]) == 3
    assert compression == f"{table['mean']['compression']:.0f}"
    assert accuracy == f"{100 * table['mean']['test']:.2f}"
    assert deviation == f"{100 * table['deviation']['test']:.2f}"


def test_runs_of_the_same_name_have_a_curve_each(tmp_path, monkeypatch):
  def measure(run, thresholds, recalibrate):
    test = 0.9 if run.parent.name == "a" else 0.8
    return [
      {"run": run.name, "threshold": t, "compression": 1 + t, "test": test}
      for t in thresholds
    ]

  monkeypatch.setattr(compress, "measure", measure)
  monkeypatch.setattr(
    compress.kit, "write_figure", lambda _, figure: figures.append(figure)
  )
  figures = []
  runs = [tmp_path / name / "digits" for name in "ab"]
  for run in runs:
    settings.write(run, Config())
  out = tmp_path / "out"
  compress.main(["curve", *map(str, runs), "--out", str(out)])
  lines = [line.get_ydata() for line in figures[0].axes[0].lines]
  assert [set(accuracy) for accuracy in lines] == [{90.0}, {80.0}]
  text = (out / "curve.csv").read_text()
  assert all(f"{run}," in text for run in runs)
