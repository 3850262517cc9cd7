"""The programs run, as a user starts them."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "theory"
SHARED = {"__init__.py", "report.py", "task.py"}
PROGRAMS = sorted(p for p in FOLDER.glob("*.py") if p.name not in SHARED)


@pytest.mark.slow
def test_a_program_prints_its_numbers_and_writes_both_files(tmp_path):
  program = "examples.theory.stagnation"
  process = subprocess.run(
    [sys.executable, "-m", program, "--out", tmp_path],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  assert "Written to" in process.stdout
  assert (tmp_path / "stagnation.png").read_bytes().startswith(b"\x89PNG")
  results = json.loads((tmp_path / "stagnation.json").read_text())
  assert results["command"].startswith(f"python -m {program} --out ")
  committed = json.loads((FOLDER / "results" / "stagnation.json").read_text())
  assert results["claim"] == committed["claim"]
  for mine, theirs in zip(results["decay"], committed["decay"]):
    assert mine["end_without_decay"] == pytest.approx(
      theirs["end_without_decay"]
    )


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_has_its_results_and_a_place_in_the_readme(program):
  name = program.stem
  assert (FOLDER / "results" / f"{name}.json").exists()
  assert f"[{name}](results/{name}.png)" in (FOLDER / "README.md").read_text()
  assert "arXiv 2605.25134" in ast.get_docstring(ast.parse(program.read_text()))
