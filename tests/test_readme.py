"""The README's commands and snippets, as printed."""

import csv
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rewa_jax

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SETUP, *WAYS_IN, AFTERWARDS, SWAPPED, SIXTEEN_BITS, FINITE = re.findall(
  r"```python\n(.*?)```", README, re.S
)
COMMANDS = re.findall(r"```sh\n(.*?)```", README, re.S)


def test_there_are_four_ways_in_of_ten_lines():
  assert len(WAYS_IN) == 4
  for snippet in [*WAYS_IN, SWAPPED]:
    assert sum(map(bool, snippet.splitlines())) <= 10


def test_a_step_that_is_not_finite_is_skipped():
  names = {"rewa_jax": rewa_jax, "optax": optax, "rewa": rewa_jax.Rewa(9, 2)}
  exec(FINITE, names)
  solver, latents = names["solver"], {"kernel": jnp.ones(2)}
  broken = {"kernel": jnp.array([jnp.nan, 1])}
  state = solver.init(latents)
  for _ in range(5):
    updates, state = solver.update(broken, state, latents)
    assert not updates["kernel"].any()
  updates, _ = solver.update(broken, state, latents)
  assert jnp.isnan(updates["kernel"]).any()


@pytest.mark.parametrize(
  "snippet", [*WAYS_IN, SWAPPED, WAYS_IN[-1] + SIXTEEN_BITS]
)
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


@pytest.mark.parametrize("method", ["spred()", "Gated('output', depth=3)"])
@pytest.mark.parametrize("snippet", WAYS_IN)
def test_another_method_is_another_word(snippet, method):
  swapped = re.sub(
    r"rewa_jax\.Rewa\(.*\)", f"rewa_jax.baselines.{method}", snippet
  )
  assert swapped != snippet
  names = {}
  # Five steps show that it runs.
  exec(SETUP.replace("range(1000)", "range(5)"), names)
  exec(swapped.replace("range(1000)", "range(5)"), names)
  kernels = rewa_jax.sparsity(names["weights"])
  assert kernels.total_size == 64 * 128 + 128 * 10


def test_the_commands_are_one_line_each():
  assert [len(command.splitlines()) for command in COMMANDS] == [1, 1]
  quickstart, tests = COMMANDS
  assert "examples/quickstart.py --out" in quickstart
  assert " -m pytest -q -n auto --cov=rewa_jax --cov-fail-under=95" in tests


def test_ci_runs_the_test_command_of_the_readme():
  script = (ROOT / ".ci" / "run").read_text()
  pattern = re.search(r"grep -m1 -E '(.*)' README.md", script)[1]
  matches = [line for line in README.splitlines() if re.search(pattern, line)]
  assert matches[0] == COMMANDS[1].strip()


def test_links_lead_somewhere():
  headings = re.findall(r"^#+ (.*)$", README, re.M)
  anchors = {f"#{title.lower().replace(' ', '-')}" for title in headings}
  for target in re.findall(r"\]\(([^)]+)\)", README):
    if not target.startswith("http"):
      assert target in anchors or (ROOT / target).exists(), target


def test_every_public_name_in_the_readme_exists():
  for name in re.findall(r"rewa_jax\.([A-Za-z_.]+[A-Za-z_])", README):
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


@pytest.mark.parametrize(
  ("network", "begin", "end", "methods"),
  [
    ("lenet300", "## The other methods", "On LeNet-5", 8),
    ("lenet5", "On LeNet-5", "### Sparse statistics", 6),
  ],
)
def test_the_comparison_tables_are_those_of_the_results(
  network, begin, end, methods
):
  results = {
    (row["method"], float(row["tolerance"])): row
    for row in read(f"compare_methods/{network}/results.csv")
  }
  section = README.split(begin)[1].split(end)[0]
  rows = re.findall(r"^\| ([^|]+) \| (\d+)x, ([\d.]+) % \|", section, re.M)
  assert len(rows) >= methods
  for name, compression, accuracy in rows:
    row = results[name, 0.01]
    assert f"{float(row['compression']):.0f}" == compression, name
    assert f"{100 * float(row['test_accuracy']):.1f}" == accuracy, name


def test_the_regression_table_is_that_of_the_results():
  results = read("sparse_regression/results.csv")
  tasks = list(dict.fromkeys(row["task"] for row in results))
  section = README.split("### Sparse statistics")[1].split("\n## ")[0]
  cell = r" ([\d.]+), ([\d.]+), ([\d.]+) \|"
  rows = re.findall(r"^\| ([^|]+) \|" + cell * len(tasks), section, re.M)
  assert [name for name, *_ in rows] == list(
    dict.fromkeys(row["method"] for row in results)
  )
  for name, *values in rows:
    expected = [
      f"{np.mean([float(row[key]) for row in mine]):.2f}"
      for task in tasks
      for mine in [
        [r for r in results if (r["task"], r["method"]) == (task, name)]
      ]
      for key in ("precision", "recall", "error")
    ]
    assert values == expected, name


@pytest.mark.parametrize(
  "table", ["sparse_regression/genes.md", "low_precision/table.md"]
)
def test_a_table_is_that_of_the_results(table):
  made = (ROOT / "examples" / "results" / table).read_text()
  rows = [line for line in made.splitlines() if line.startswith("| ")]
  assert len(rows) > 6
  for line in rows[1:]:
    assert line in README, line


def read(path):
  with (ROOT / "examples" / "results" / path).open() as file:
    return list(csv.DictReader(file))
