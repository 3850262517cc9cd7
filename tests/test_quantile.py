import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewa_jax._quantile import above_quantile, add, count

NUMBERS = [0.0, -0.0, 0.5, -0.5, 2.0, -3.0, float("inf"), float("nan")]


def by_sorting(arrays, share):
  """The definition: a stable sort of all |x|, which puts NaN last."""
  sizes = np.concatenate([np.abs(np.ravel(x).astype(float)) for x in arrays])
  above = np.ones(sizes.size, bool)
  going = sizes.size - round((1 - share) * sizes.size)
  above[np.argsort(sizes, kind="stable")[:going]] = False
  ends = np.cumsum([np.size(x) for x in arrays])
  return [
    part.reshape(np.shape(x))
    for part, x in zip(np.split(above, ends[:-1]), arrays)
  ]


@given(
  values=st.lists(st.sampled_from(NUMBERS), min_size=19, max_size=19),
  share=st.floats(0, 1, width=16),
  dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_what_a_sort_puts_first_is_below(values, share, dtype):
  whole = jnp.array(values, "float32")
  arrays = [
    whole[:12].reshape(2, 3, 2).astype(dtype),
    whole[12],
    whole[13:13].reshape(0, 4),
    whole[13:].reshape(3, 2),
  ]
  for found, wanted in zip(
    above_quantile(arrays, share), by_sorting(arrays, share)
  ):
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_numbers_that_differ_in_the_last_bit_are_told_apart(dtype, request):
  if dtype == "float64":
    request.getfixturevalue("x64")
  # Not in order, and from the smallest normal number to the largest.
  info = jnp.finfo(dtype)
  ends = jnp.array([info.max, info.tiny, 1], dtype)
  x = jnp.concatenate([jnp.nextafter(ends, jnp.ones_like(ends)), ends])
  if dtype in ("float32", "float64"):
    assert len(np.unique(x)) == 5
  for going in range(7):
    (found,) = above_quantile([x], going / 6)
    (wanted,) = by_sorting([x], going / 6)
    np.testing.assert_array_equal(found, wanted)


def test_one_number_alone():
  (x,) = above_quantile([jnp.ones(())], 0.4)
  assert x.shape == () and x
  assert not above_quantile([jnp.ones(())], 1.0)[0]
  assert above_quantile([], 0.5) == []


def test_shares_may_be_traced_and_stacked():
  arrays = [jnp.array([3.0, -1.0, 0.0, 0.0]), jnp.array([[2.0], [0.0]])]
  shares = jnp.array([-0.5, 0.0, 0.3, 0.5, 0.9, 1.0, 1.5])
  stacked = jax.jit(jax.vmap(lambda s: above_quantile(arrays, s)))(shares)
  for i, share in enumerate(np.clip(shares, 0, 1).tolist()):
    wanted = by_sorting(arrays, share)
    for found, expected in zip(stacked, wanted):
      np.testing.assert_array_equal(found[i], expected)


def test_stacked_arrays_are_each_on_its_own():
  stacked = jax.random.normal(jax.random.key(0), (3, 4, 5))
  found = jax.vmap(lambda x: above_quantile([x], 0.7)[0])(stacked)
  for above, x in zip(found, stacked):
    np.testing.assert_array_equal(above, by_sorting([x], 0.7)[0])


def test_integers_and_half_precision_may_be_shares():
  x = jnp.arange(70_000.0)
  for share in (np.float16(0.5), jnp.float16(0.5), jnp.bfloat16(0.5)):
    assert int(above_quantile([x], share)[0].sum()) == 35_000
  assert not above_quantile([x], jnp.int32(1))[0].any()
  assert above_quantile([x], 0)[0].all()


def test_counts_carry_into_a_second_digit():
  def value(count):
    high, low = map(int, count)
    return (high << 32) + low

  digits = [
    (jnp.uint32(high), jnp.uint32(low))
    for high in (0, 1, 7)
    for low in (0, 1, 2**31, 2**32 - 1)
  ]
  for a in digits:
    for b in digits:
      assert value(add(a, b)) == value(a) + value(b)
  assert value(count([])) == 0
  masks = [jnp.ones((2, 3), bool), jnp.array(True), jnp.zeros((0, 2), bool)]
  assert value(count(masks)) == 7
