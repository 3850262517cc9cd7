"""NaN gradients inside optax.apply_if_finite: the step is as if it were not."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import rewa_jax
from tests import runs

GUARDED = functools.partial(optax.apply_if_finite, max_consecutive_errors=3)
BROKEN = runs.INPUTS.at[0, 0].set(jnp.nan)
# What counts broken steps, and what NNX counts in every step.
COUNTS = {"notfinite_count", "last_finite", "total_notfinite"}
NNX_COUNTS = {"step", "dropout/rngs/count"}


def changed(before, after):
  """Returns the paths of leaves that differ, without what NNX puts around."""
  names = set()
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)
  ):
    if not jnp.array_equal(a, b):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      name = name.partition("/")[2].removesuffix("/value")
      names.add(name.removeprefix("opt_state/").removeprefix("model/"))
  return names


@pytest.mark.parametrize("way", runs.WAYS_IN)
def test_a_broken_step_moves_nothing_but_counts(way):
  start, step = way(GUARDED)
  step = jax.jit(step)
  before = step(start)
  after = step(before, BROKEN)
  is_nnx = way in (runs.by_nnx, runs.by_nnx_drop_in)
  assert changed(before, after) == COUNTS | (NNX_COUNTS if is_nnx else set())
  assert changed(after, step(after)) > COUNTS - {"total_notfinite"}
  if not is_nnx:
    assert changed(step(before), step(after)) == {"total_notfinite"}
  for _ in range(2):
    after = step(after, BROKEN)
  assert all_finite(after)
  assert not all_finite(step(after, BROKEN))  # The fourth in a row.


def all_finite(tree):
  return all(
    jnp.isfinite(leaf).all()
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  )


@pytest.mark.slow
def test_batch_statistics_keep_the_nan_of_an_input():
  # They are updated by the forward pass: in NNX,
  model = nnx.Sequential(
    nnx.Linear(4, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0))
  )
  model = rewa_jax.nnx.reparameterize(model, runs.REWA)
  solver = GUARDED(rewa_jax.sgd(0.1, runs.REWA, weight_decay=0.1))
  optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
  optimizer.update(model, nnx.grad(lambda model: model(BROKEN).sum())(model))
  assert all_finite(nnx.state((model, optimizer), nnx.Param))
  assert not all_finite(nnx.state(model, nnx.BatchStat))

  # and in linen.
  model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=False)])
  model = rewa_jax.linen.Reparameterized(model, runs.REWA)
  variables = model.init(jax.random.key(0), runs.INPUTS)
  _, after = model.apply(variables, BROKEN, mutable=["batch_stats"])
  assert not all_finite(after["batch_stats"])
