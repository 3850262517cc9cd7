"""What lies above a quantile of |x|, by counting: nothing is sorted or moved.

Reductions are all it takes, so arrays may be sharded as they like.
"""

import functools
import itertools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rewa_jax._checks import Scalar

Count = tuple[jax.Array, jax.Array]

# What a digit of a count cannot reach.
BASE = 2**32
# Bits of a size that are found in one pass: two counts more cost little.
_BITS = 2


def count(masks: Sequence[jax.Array]) -> Count:
  """Counts True in all masks, exactly: the high and the low 32 bits."""
  # With False beside it: XLA makes one sum on a CPU, but not two, 15 times
  # slower than reading takes.
  return _total(_counts([mask, ~mask])[0] for mask in masks)


def add(a: Count, b: Count) -> Count:
  """Adds two counts."""
  low = a[1] + b[1]
  return a[0] + b[0] + (low < b[1]).astype(low.dtype), low


def as_float(count: Count) -> jax.Array:
  """Returns a count in float32, rounded."""
  return count[0].astype(jnp.float32) * float(BASE) + count[1].astype(
    jnp.float32
  )


def _total(counts):
  zero = jnp.zeros((), jnp.uint32)
  return functools.reduce(add, counts, (zero, zero))


def _counts(masks):
  """Counts True in each of some masks of one shape, in one pass over them."""
  zero, axes = np.uint32(0), range(masks[0].ndim)
  ones = [mask.astype(jnp.uint32) for mask in masks]
  if masks[0].size < BASE:

    def add_all(a, b):
      return tuple(map(operator.add, a, b))

    totals = lax.reduce(tuple(ones), (zero,) * len(ones), add_all, axes)
    return [(jnp.zeros_like(total), total) for total in totals]
  return [
    lax.reduce((jnp.zeros_like(low), low), (zero, zero), add, axes)
    for low in ones
  ]


def above_quantile(
  arrays: Sequence[jax.Array],
  share: "Scalar",
) -> list[jax.Array]:
  """Says which entries are left when a share with the smallest |x| goes.

  Exactly ``size - round((1 - share) * size)`` go, of equal ones the first, NaN
  last. A traced share counts in its own precision.

  Args:
    arrays: floating point, any shapes and shardings.
    share: of all entries together, 0 to 1, may be traced.

  Returns:
    For every array a mask of its shape and sharding.
  """
  if not arrays:
    return []
  size = sum(x.size for x in arrays)
  if isinstance(share, jax.Array):
    kept = 1 - jnp.clip(share, 0, 1) * jnp.float32(1)
    # The float of a large size may be less than the size.
    left = jnp.where(kept < 1, jnp.round(kept * float(size)), 2.0 * size)
    digits = [x.astype(jnp.uint32) for x in jnp.divmod(left, float(BASE))]
  else:
    left = round((1 - np.asarray(share).item()) * size)
    digits = [np.uint32(x) for x in divmod(left, BASE)]
  return _largest(lax.stop_gradient(list(arrays)), digits)


@jax.jit
def _largest(arrays, number):
  """Says which entries are among the largest: those not below a cut.

  Entries are ordered by words that no two share: the bits of |x| (of floats
  >= 0 the larger has the larger bits), then the place. The cut is found from
  the highest bits on: the highest that at least so many entries are not below.
  """
  with jax.numpy_dtype_promotion("standard"):
    dtype = jnp.result_type(*arrays)
  bits = jnp.finfo(dtype).bits
  sizes = [bits - 1] if bits <= 32 else [31, 32]
  dims = itertools.zip_longest(*(x.shape for x in arrays), fillvalue=0)
  last = [len(arrays) - 1, *(max(*dim, 1) - 1 for dim in dims)]
  places = [number.bit_length() for number in last]

  def above(cut, arrays, depth=None):
    return [
      jnp.logical_not(_below(_words(x.astype(dtype), place)[:depth], cut))
      for place, x in enumerate(arrays)
    ]

  def search(cut, found, steps, depth):
    def unfinished(carry):
      step, _, found = carry
      return (step < len(steps)) & ~found

    def refine(carry):
      step, cut, _ = carry
      # Behind a barrier, lest all words are computed beforehand and kept.
      here, trials = lax.optimization_barrier((arrays, cut[None] | steps[step]))
      masks = zip(*(above(trial, here, depth) for trial in trials))
      counts = map(_total, zip(*map(_counts, masks)))
      high, low = map(jnp.stack, zip(*counts))
      equal = (high == number[0]) & (low == number[1])
      more = (high > number[0]) | ((high == number[0]) & (low > number[1]))
      # Trials rise, so those that are low enough come first.
      fits = jnp.sum(more | equal, dtype=jnp.int32)
      cuts = jnp.concatenate([cut[None], trials])
      return step + 1, cuts[fits], jnp.any(equal)

    if not len(steps):
      return cut, found
    return lax.while_loop(unfinished, refine, (0, cut, found))[1:]

  words = len(sizes + places)
  cut, found = jnp.zeros(words, jnp.uint32), jnp.asarray(False)
  cut, found = search(cut, found, _trials(sizes, words, _BITS), len(sizes))
  # Places count where the cut goes through equal ones, bit by bit: these are
  # long words, and such passes rare.
  zeros = [0] * len(sizes)
  cut, _ = search(cut, found, _trials(zeros + places, words, 1), None)
  return above(cut, arrays)


def _trials(widths, words, bits):
  """Returns for each pass what some bits of a word may be, in rising order."""
  rows = [
    [
      [
        (word == at) * min(digit, 2 ** (width - shift) - 1) << shift
        for word in range(words)
      ]
      for digit in range(1, 2**bits)
    ]
    for at, width in enumerate(widths)
    for shift in reversed(range(0, width, bits))
  ]
  return jnp.asarray(rows, jnp.uint32)


def _words(x, place):
  """Returns what orders the entries of an array, the first word first."""
  dtype = jnp.dtype(f"uint{jnp.finfo(x.dtype).bits}")
  bits = lax.bitcast_convert_type(x, dtype) & (jnp.iinfo(dtype).max >> 1)
  # All NaN alike, above infinity.
  infinity = np.asarray(jnp.inf, x.dtype).view(dtype)
  bits = jnp.minimum(bits, infinity + dtype.type(1))
  words = [bits >> 32, bits] if dtype.itemsize == 8 else [bits]
  index = [
    lax.broadcasted_iota(jnp.uint32, x.shape, axis) for axis in range(x.ndim)
  ]
  return [*(word.astype(jnp.uint32) for word in words), place, *index]


def _below(words, cut):
  """Compares two rows of words, the longer of which is cut off."""
  below = False
  for word, edge in reversed(list(zip(words, cut))):
    below = (word < edge) | ((word == edge) & below)
  return below
