import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewa_jax

WEIGHTS = {
  "hidden": {
    "kernel": jnp.array([[3.0, 2e-5], [-1e-8, 0.0]]),
    "bias": jnp.array([1e-9, 5.0]),
  },
  "out": {"kernel": jnp.array([[2e-2], [1e-9]])},
}


def test_exactly_the_nonzeros_asked_for_are_left():
  weights, cut = rewa_jax.finalize(WEIGHTS, 2 / 3)
  assert cut.sparsity.total_nonzero == 2
  np.testing.assert_array_equal(
    weights["hidden"]["kernel"], [[3.0, 0.0], [0.0, 0.0]]
  )
  assert weights["hidden"]["bias"] is WEIGHTS["hidden"]["bias"]


def test_the_report_says_how_large_were_the_weights_it_took():
  _, cut = rewa_jax.finalize(WEIGHTS, 5 / 6)
  np.testing.assert_allclose(cut.largest_cut, 2e-2)
  assert cut.smallest_kept == 3
  # Above 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6.
  assert list(map(int, cut.above)) == [0, 1, 1, 1, 2, 2]
  assert str(cut) == (
    "1 of 6 weights are left, the smallest 3e+00; the largest cut was 2e-02.\n"
    "Cut above 1e-02: 1, above 1e-03: 1, above 1e-04: 1, above 1e-05: 2,"
    " above 1e-06: 2.\n"
    "Nothing is left of out/kernel."
  )


def test_where_more_is_zero_already_nothing_is_cut():
  weights, cut = rewa_jax.finalize({"w": jnp.array([0.0, 0.0, 1.0, 2.0])}, 0.25)
  np.testing.assert_array_equal(weights["w"], [0, 0, 1, 2])
  assert cut.largest_cut == 0 and cut.sparsity.total_nonzero == 2
  _, cut = rewa_jax.finalize({"w": jnp.zeros(4)}, 0.5)
  assert jnp.isinf(cut.smallest_kept)


def test_latents_are_cut_by_their_weights():
  rewa = rewa_jax.Rewa(9)
  weights, cut = rewa_jax.finalize(rewa.to_latents(WEIGHTS), 0.5, method=rewa)
  expected, same = rewa_jax.finalize(WEIGHTS, 0.5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), weights, expected
  )
  assert cut.sparsity.total_nonzero == same.sparsity.total_nonzero == 3


def test_groups_and_blocks_are_cut_as_prune_cuts_them():
  params = {"kernel": jax.random.normal(jax.random.key(0), (8, 6))}
  for options in ({"groups": "output"}, {"scope": "2:4"}, {"scope": "leaf"}):
    weights, cut = rewa_jax.finalize(params, 0.5, **options)
    pruned, _ = rewa_jax.prune(params, sparsity=0.5, **options)
    np.testing.assert_array_equal(weights["kernel"], pruned["kernel"])
    assert cut.sparsity.total_nonzero == 24


def test_where_nothing_is_selected_nothing_is_cut():
  for params, mask in (({}, rewa_jax.kernels), (WEIGHTS, lambda p: False)):
    weights, cut = rewa_jax.finalize(params, 0.5, mask=mask)
    assert weights == params
    assert cut.largest_cut == 0 and cut.smallest_kept == np.inf


def test_jit_and_vmap_return_the_report():
  @jax.jit
  @jax.vmap
  def cut_off(sparsity):
    return rewa_jax.finalize(WEIGHTS, sparsity)[1]

  cuts = cut_off(jnp.array([1 / 3, 5 / 6]))
  assert cuts.sparsity.total_nonzero.tolist() == [4, 1]
  assert str(cuts).startswith("[0]\n4 of 6 weights are left")


@pytest.mark.parametrize(
  ("sparsity", "message"),
  [(1.5, "sparsity must be"), ({"hidden": 0.5}, "scope must be 'leaf'")],
)
def test_bad_targets_are_named(sparsity, message):
  with pytest.raises(ValueError, match=message):
    rewa_jax.finalize(WEIGHTS, sparsity)
