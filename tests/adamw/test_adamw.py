import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from examples.adamw import adamw

FOLDER = pathlib.Path(adamw.__file__).parent
ROOT = FOLDER.parents[1]
TINY = adamw.Task(
  adamw.Perceptron(),
  (jnp.ones((8, 4)), jnp.arange(8)),
  (jnp.ones((2, 4)), jnp.arange(2)),
  batch_size=4,
  steps=3,
)


@pytest.mark.slow
def test_a_grid_has_a_row_for_every_setting_with_its_budget(capsys):
  rows = adamw.study(TINY, [0.01], [0.0, 0.3], steps=3)
  assert [row["weight_decay"] for row in rows] == [0.0, 0.3]
  assert rows[0]["budget"] == 0 < rows[1]["budget"]
  assert "| 0.01 | 0.3 |" in adamw.table(rows)
  # Three steps are far from enough, and that is said first.
  factor = 15 / rows[1]["budget"]
  said = capsys.readouterr().out
  assert said.startswith("warning: decay budgets 0.0 to 0.1, and below 8")
  steps = math.ceil(3 * factor)
  assert f"{steps} steps or, at a higher loss, a weight decay of" in said
  assert f"a weight decay of {0.3 * factor:.2g} for a budget of 15" in said


def interrupted(*args):
  raise KeyboardInterrupt


def test_a_grid_with_a_weak_end_says_so_and_does_not_warn(monkeypatch, capsys):
  monkeypatch.setattr(adamw, "train", interrupted)
  with pytest.raises(KeyboardInterrupt):
    adamw.study(TINY, [0.03], [0.01, 0.4], steps=500)
  said = capsys.readouterr().out
  assert "weak end of this grid" in said and "warning" not in said


@pytest.mark.slow
def test_the_transformer_is_of_the_size_it_says_and_sees_no_future():
  tokens = jnp.arange(64)[None] % 96
  model = adamw.Transformer(96)
  params = model.init(jax.random.key(0), tokens)
  kernels = [
    x.size
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if "kernel" in jax.tree_util.keystr(path)
  ]
  assert sum(kernels) == 104_448
  changed = model.apply(params, tokens.at[0, 40].set(7))
  same = model.apply(params, tokens)
  assert jnp.array_equal(changed[0, :40], same[0, :40])
  assert not jnp.array_equal(changed[0, 40:], same[0, 40:])


@pytest.mark.parametrize(
  "page", [FOLDER / "README.md", ROOT / "docs" / "choosing.md"]
)
def test_the_tables_are_those_of_the_results(page):
  known = {
    name: {
      (row["learning_rate"], row["weight_decay"]): row
      for row in json.loads((FOLDER / f"results/{name}.json").read_text())[
        "rows"
      ]
    }
    for name in adamw.TASKS
  }
  lines = re.findall(
    r"^\| (0\.\d+) \| (0\.\d+) \| (.*) \|$", page.read_text(), re.M
  )
  assert len(lines) in (8, 20)
  for rate, decay, rest in lines:
    wanted = []
    for name in adamw.TASKS:
      row = known[name][float(rate), float(decay)]
      wanted += [
        f"{row['budget']:.1f}",
        f"{row['pruned_loss']:.3f}",
        f"{row['sparsity']:.1%}",
      ]
    wanted.append(f"{row['dead_kernels']} of {row['kernels']}")
    assert rest.split(" | ") == wanted


@pytest.mark.slow
def test_the_program_writes_tables_and_pictures(tmp_path, capsys):
  adamw.main(["--fast", "--task", "digits", "--out", str(tmp_path)])
  assert "| learning rate |" in capsys.readouterr().out
  assert (tmp_path / "digits.png").stat().st_size > 1000
  results = json.loads((tmp_path / "digits.json").read_text())
  assert results["command"].endswith("adamw --task digits --fast")
  assert len(results["rows"]) == 2
