"""Units that are zero together, and the smaller model without them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rewa_jax
from tests.extras import needs

needs("tensorboardX")
needs("orbax.checkpoint")

from examples.language_model import compact, train
from examples.language_model.model import Shape, Transformer, kernels, units

TINY = (
  *("--layers", "1", "--width", "16", "--heads", "4", "--hidden", "24"),
  *("--context", "16", "--batch-size", "16", "--evaluate", "512"),
  *("--evaluate-steps", "60", "--checkpoint-steps", "60"),
)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_a_unit_is_a_head_or_a_channel(activation):
  shape = Shape(11, 2, 16, 4, 24, activation)
  weights = nnx.state(Transformer(shape, jnp.float32, nnx.Rngs(0)))
  _, kept = rewa_jax.prune(weights, sparsity=0.5, groups=units, mask=kernels)
  found = {}
  for path, mask in jax.tree_util.tree_leaves_with_path(kept):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if "/kernel" in name:
      axis = 0 if "/output/" in name else 2
      others = tuple(i for i in range(mask.ndim) if i != axis)
      np.testing.assert_array_equal(mask.any(others), mask.all(others))
      found[name] = mask.shape[axis]
  assert sorted(found.values()) == 4 * [4] + 4 * [24]


@pytest.mark.slow
def test_dead_units_go_and_outputs_stay(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  run, out = tmp_path / "run", tmp_path / "out"
  asked = ["--method", "rewa", "--sparsity", "0.5", "--groups", "units"]
  rate = ["--steps", "60", "--learning-rate", "3e-2", "--k", "9"]
  train.main([*TINY, *asked, *rate, "--out", str(run)])
  compact.main([str(run), "--turns", "1", "--out", str(out)])
  (row,) = json.loads((out / "compact.json").read_text())["rows"]
  whole, small = row["whole"], row["small"]
  assert (whole["heads"], whole["channels"]) == (4, 24)
  assert whole["kernel_weights"] == 16 * 48 + 16 * 16 + 3 * 16 * 24
  assert (
    small["heads"] * 256 + small["channels"] * 48 == small["kernel_weights"]
  )
  assert small["kernel_weights"] <= whole["kernel_weights"] / 2
  assert row["largest_difference"] < 1e-4
  assert f"{small['channels']} of 24" in (out / "compact.md").read_text()


def test_groups_need_a_sparsity(tmp_path):
  with pytest.raises(SystemExit, match="groups units go with a sparsity"):
    train.main(["--groups", "units", "--out", str(tmp_path)])
