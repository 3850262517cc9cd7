"""Random sparse params, with whole rows, columns and biases of zeros."""

import jax
import numpy as np


def sparsify(params, seed=0, *, density=0.4, dead=0.4):
  """Returns random params of the same shapes; variances are positive."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    x = rng.normal(size=leaf.shape).astype(leaf.dtype)
    if "var" in jax.tree_util.keystr(path):
      return np.abs(x) + np.float32(0.5)
    if leaf.ndim > 1:
      x *= rng.random(leaf.shape) < density
      for axis in (-1, -2):
        shape = [1] * leaf.ndim
        shape[axis] = leaf.shape[axis]
        x *= rng.random(shape) > dead
      return x
    return x * (rng.random(leaf.shape) > dead)

  return jax.tree_util.tree_map_with_path(draw, params)


def widths(small):
  """Returns the outputs of every kernel after compaction, by its module."""
  return {
    path.split("/")[-2]: after[-1]
    for path, (_, after) in small.shapes.items()
    if path.endswith("kernel")
  }
