"""The commands of the example's README, one after another, at fewer epochs."""

import json
import pathlib
import re
import shlex

import jax
import pytest

from examples.image_classification import compress, train

README = pathlib.Path(train.__file__).with_name("README.md")
PROGRAMS = {"train.py": train.main, "compress.py": compress.main}
PREFIX = ".venv/bin/python examples/image_classification/"


def commands():
  lines = README.read_text().splitlines()
  return [line.removeprefix(PREFIX) for line in lines if PREFIX in line]


def test_a_newcomer_trains_goes_on_prunes_fine_tunes_and_plots(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert len(commands()) == 4
  for command in commands():
    name, *arguments = shlex.split(command)
    arguments = [
      argument.replace("results/", f"{tmp_path}/") for argument in arguments
    ]
    if name == "train.py":
      arguments += ["--epochs", "2", "--warmup-epochs", "1"]
    assert PROGRAMS[name](arguments) == 0
  assert "Dense_0/kernel" in capsys.readouterr().out
  for name in ("curve.csv", "curve.png", "layers.png", "results.json"):
    assert (tmp_path / "digits" / name).exists()
  assert (tmp_path / "finetuned" / "results.json").exists()


@pytest.mark.parametrize("main", PROGRAMS.values())
def test_help_explains_itself(main, capsys):
  with pytest.raises(SystemExit, match="0"):
    main(["--help"])
  text = capsys.readouterr().out
  assert "examples/image_classification" in text and len(text) > 500


def test_figures_are_those_of_the_results():
  rows = re.findall(
    r"^\| [^|]+ \| ([\d]+)x \| ([\d.]+) ± ([\d.]+) % \| \[table\]\((.*)\) \|",
    README.read_text(),
    re.M,
  )
  assert len(rows) == 4
  main = (README.parents[2] / "README.md").read_text()
  for compression, accuracy, deviation, path in rows:
    table = json.loads((README.parent / path).read_text())
    assert len(table["runs"]) == 3
    assert compression == f"{table['mean']['compression']:.0f}"
    assert accuracy == f"{100 * table['mean']['test']:.2f}"
    assert deviation == f"{100 * table['deviation']['test']:.2f}"
    if "finetuned" not in path:
      text = " ".join(main.split())
      assert f"{accuracy} %" in text and f"at {compression}x" in text
