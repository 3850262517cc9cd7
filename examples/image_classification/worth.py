"""What a finished run is worth when it is pruned to each sparsity."""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import rewa_jax

from .. import kit
from . import checkpoints as ckpt
from .compress import recalibration, testing
from .pipeline import open_data

# Train batches that batch statistics are taken anew from.
BATCHES = 50

Rows = list[dict[str, Any]]


def judge(run: pathlib.Path, sparsities: Sequence[float]) -> Rows:
  """Prunes a run to each sparsity, and counts hits on images held back.

  The rows are kept in the run's folder.

  Args:
    run: its folder.
    sparsities: shares of zeros; a run that has more keeps them.

  Returns:
    A row for each: the sparsity, whether batch statistics taken anew do better,
    the accuracy on images held back, and the nonzero weights of each layer.
  """
  path = run / "pruned.json"
  if path.exists():
    return json.loads(path.read_text())["rows"]
  weights, statistics, accuracy, recalibrated = _open(run)
  rows = []
  for sparsity in sparsities:
    pruned, _ = rewa_jax.prune(weights, sparsity=sparsity)
    report = rewa_jax.sparsity(pruned)
    as_trained = accuracy(pruned, statistics, "validation")
    anew = accuracy(pruned, recalibrated(pruned, statistics), "validation")
    row = {
      "sparsity": sparsity,
      "recalibrated": anew > as_trained,
      "validation": max(anew, as_trained),
      "nonzero": {name: int(n) for name, n in report.nonzero.items()},
      "of": report.size,
    }
    rows.append(row)
  kit.write_json(path, {"rows": rows})
  return rows


def test(run: pathlib.Path, sparsity: float) -> float:
  """Returns the accuracy of a pruned run on test images, tested once.

  Args:
    run: its folder, judged before.
    sparsity: one that it was judged at.
  """
  path = run / "pruned.json"
  rows = json.loads(path.read_text())["rows"]
  (row,) = [row for row in rows if row["sparsity"] == sparsity]
  if "test" not in row:
    weights, statistics, accuracy, recalibrated = _open(run)
    weights, _ = rewa_jax.prune(weights, sparsity=sparsity)
    if row["recalibrated"]:
      statistics = recalibrated(weights, statistics)
    row["test"] = accuracy(weights, statistics, "test")
    kit.write_json(path, {"rows": rows})
  return row["test"]


@functools.lru_cache(maxsize=1)
def _open(run):
  config, weights, statistics = ckpt.load(run)
  source = open_data(config)
  recalibrated = recalibration(config, source, BATCHES)
  return weights, statistics, testing(config, source), recalibrated
