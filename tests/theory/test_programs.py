"""The programs run, as a user starts them."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "results" / "theory"
SHARED = {"report.py", "task.py"}
PROGRAMS = sorted(
  path
  for path in (ROOT / "examples" / "theory").glob("*.py")
  if path.name not in SHARED
)


def test_a_program_prints_its_numbers_and_writes_both_files(tmp_path):
  command = [sys.executable, "examples/theory/stagnation.py", "--out", tmp_path]
  process = subprocess.run(
    command,
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert process.returncode == 0, process.stderr
  assert "Written to" in process.stdout
  assert (tmp_path / "stagnation.png").read_bytes().startswith(b"\x89PNG")
  results = json.loads((tmp_path / "stagnation.json").read_text())
  committed = json.loads((RESULTS / "stagnation.json").read_text())
  assert results["claim"] == committed["claim"]
  for mine, theirs in zip(results["decay"], committed["decay"]):
    assert mine["end_without_decay"] == pytest.approx(
      theirs["end_without_decay"]
    )


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_has_its_results_and_a_place_in_the_readme(program):
  assert (RESULTS / f"{program.stem}.json").exists()
  link = f"(examples/results/theory/{program.stem}.png)"
  assert link in (ROOT / "README.md").read_text()
  assert "arXiv 2605.25134" in ast.get_docstring(ast.parse(program.read_text()))
