"""Thousands of steps leave nothing behind: no arrays, programs or memory."""

import gc
from operator import sub

import jax
import optax
import pytest

import rewa_jax
from tests import runs
from tests.memory import resident

pytestmark = pytest.mark.slow

# Bytes. An empty dict that stays from each of 3,000 calls makes 200,000, an
# array 7 million.
MARGIN = 150_000


# A leak grows with every round; the allocator's own pools grow once.
ROUNDS = 4


def left_behind(use):
  """Returns the fewest arrays and bytes that 3,000 calls leave, of rounds."""
  counts = []
  for _ in range(1 + ROUNDS):
    for _ in range(3000):
      result = use()
    jax.block_until_ready(jax.tree.leaves(result))
    gc.collect()
    counts.append((len(jax.live_arrays()), resident()))
  arrays, memory = zip(*counts)
  return min(map(sub, arrays[1:], arrays)), min(map(sub, memory[1:], memory))


@pytest.mark.parametrize("way", runs.WAYS_IN)
def test_steps_leave_nothing_behind(way):
  carry, step = way()
  step = jax.jit(step, donate_argnums=0)

  def use():
    nonlocal carry
    carry = step(carry)
    return carry

  arrays, memory = left_behind(use)
  assert arrays <= 0
  assert step._cache_size() == 1
  assert memory < MARGIN


@pytest.mark.parametrize(
  "make",
  [
    lambda: rewa_jax.rewa_sgd(0.1, 3, 1, weight_decay=0.1, momentum=0.9),
    lambda: rewa_jax.adamw(0.1, rewa_jax.Rewa(k=3), weight_decay=0.1),
    lambda: rewa_jax.reparameterize(optax.sgd(0.1), rewa_jax.Rewa(k=3)),
  ],
)
def test_transformations_leave_nothing_behind(make):
  arrays, memory = left_behind(make)
  assert arrays <= 0
  assert memory < MARGIN
