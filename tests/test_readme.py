"""The README's commands and snippets, as printed."""

import pathlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

import rewa_jax

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SETUP, *WAYS_IN, AFTERWARDS = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = re.findall(r"```sh\n(.*?)```", README, re.S)


def test_it_fits_on_a_few_screens():
  assert len(README.splitlines()) < 160


def test_there_are_four_ways_in_of_ten_lines():
  assert len(WAYS_IN) == 4
  for snippet in WAYS_IN:
    assert sum(map(bool, snippet.splitlines())) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("snippet", WAYS_IN)
def test_each_snippet_gives_a_sparse_network(snippet, capsys):
  names = {}
  exec(SETUP, names)
  exec(snippet, names)
  exec(AFTERWARDS, names)
  report = rewa_jax.sparsity(names["pruned"])
  assert report.compression > 5
  assert "compression" in capsys.readouterr().out

  bias1, kernel1, bias2, kernel2 = jax.tree.leaves(names["pruned"])
  hidden = jax.nn.relu(names["images"] @ kernel1 + bias1)
  logits = hidden @ kernel2 + bias2
  assert jnp.mean(logits.argmax(-1) == names["labels"]) > 0.9


def test_the_ways_in_say_k_once_each():
  for snippet in WAYS_IN:
    assert len(re.findall(r"\bk\b", snippet)) == 1


@pytest.mark.parametrize(
  "method",
  [
    "spred()",
    pytest.param("Gated('output', depth=3)", marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize("snippet", WAYS_IN)
def test_another_method_is_another_word(snippet, method):
  swapped, count = re.subn(
    r"rewa_jax\.Rewa\(.*\)", f"rewa_jax.baselines.{method}", snippet
  )
  assert count == 1
  names = {}
  for code in (SETUP, swapped, AFTERWARDS):
    # Five steps show that it runs.
    exec(code.replace("range(1000)", "range(5)"), names)
  kernels = rewa_jax.sparsity(names["pruned"])
  assert kernels.total_size == 64 * 128 + 128 * 10


def test_the_commands_are_one_line_each():
  assert [len(command.splitlines()) for command in COMMANDS] == [1, 1]
  quickstart, tests = COMMANDS
  assert "examples/quickstart/quickstart.py --out" in quickstart
  assert tests.strip().endswith(".venv/bin/python -m pytest -q -n auto")


def test_ci_runs_the_test_command_of_the_readme():
  script = (ROOT / ".ci" / "run").read_text()
  pattern = re.search(r"grep -m1 -E '(.*)' README.md", script)[1]
  matches = [line for line in README.splitlines() if re.search(pattern, line)]
  assert matches[0] == COMMANDS[1].strip()


def test_every_public_name_in_the_readme_exists():
  for name in re.findall(r"rewa_jax\.([\w.]+\w)", README):
    owner = rewa_jax
    for part in name.split("."):
      owner = getattr(owner, part)


def test_importing_the_package_imports_no_extra():
  code = (
    "import sys, rewa_jax;"
    "assert not {'sklearn', 'matplotlib', 'tqdm', 'equinox', 'haiku'}"
    " & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_wheel_alone_runs_the_first_snippet_in_an_empty_environment(tmp_path):
  source, python = tmp_path / "source", tmp_path / "venv" / "bin" / "python"

  def run(*command):
    return subprocess.run(
      [python, *command], check=True, cwd=tmp_path, capture_output=True
    ).stdout

  shutil.copytree(
    *(ROOT / "rewa_jax", source / "rewa_jax"),
    ignore=shutil.ignore_patterns("__pycache__"),
  )
  for name in ("LICENSE", "README.md", "pyproject.toml"):
    shutil.copy(ROOT / name, source)
  files = {str(path.relative_to(source)) for path in source.rglob("*.py*")}
  venv.create(tmp_path / "venv", with_pip=True)
  run("-m", "pip", "wheel", "--no-deps", "-w", "dist", source)
  (wheel,) = (tmp_path / "dist").iterdir()
  assert files - {"pyproject.toml"} <= {*zipfile.ZipFile(wheel).namelist()}
  run("-m", "pip", "install", wheel)

  # A file in the place of scikit-learn, for its digits.
  images, labels = sklearn.datasets.load_digits(return_X_y=True)
  np.savez(tmp_path / "digits.npz", images=images, labels=labels)
  (tmp_path / "sklearn").mkdir()
  (tmp_path / "sklearn" / "datasets.py").write_text(
    "import numpy\n\n\n"
    "def load_digits(return_X_y):\n"
    "  return numpy.load('digits.npz').values()\n"
  )
  (tmp_path / "snippet.py").write_text(SETUP + WAYS_IN[0] + AFTERWARDS)
  assert b"compression" in run("snippet.py")


def test_what_it_reaches_is_what_the_results_say():
  section = README.split("## What it reaches")[1].split("\n## ")[0]
  checked = 0
  for task, *cells in re.findall(
    r"^\| (.*) \| (.*) \| (.*) \|$", section, re.M
  ):
    if task == "task" or set(task) == {"-"}:
      continue
    link = re.search(r"\]\((examples/.*?)(#.*)?\)", task)
    made = (ROOT / link[1]).read_text().splitlines()
    # In the first column ReWA's figures, in the second those of who is named.
    for cell in re.split("; ", f"ReWA {cells[0]}; {cells[1]}"):
      for name, size, accuracy in re.findall(
        r"(\w[\w ]*) (\d+x), ([\d.]+%)", cell
      ):
        rows = [line for line in made if line.startswith(f"| {name}")]
        assert any(f"| {size} | {accuracy} |" in row for row in rows), cell
        checked += 1
      for name, figure in re.findall(
        r"(\w[\w ]*?) \**(\d\d\.\d\d ± \d\.\d\d)", cell
      ):
        rows = [line for line in made if line.startswith(f"| {name}")]
        assert any(figure in row for row in rows), cell
        checked += 1
      figures = re.findall(r" \**(0\.\d+|1\.\d+|\d\d\.\d\d|[\d.]+%)", cell)
      before = re.split(r"[*\d.]+%|\d+\.", cell)[0].removeprefix("ReWA ")
      words = set(re.findall(r"[^\W\d]\w+|L1", before))
      # In the rows of who is named, where there are any.
      rows = [line for line in made if words <= {*re.findall(r"\w+", line)}]
      rows = [x for x in rows if words and x.lstrip().startswith("|")] or made
      for figure in figures:
        assert any(figure in line for line in rows), (words, figure)
        checked += 1
  assert checked >= 25
