import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rewa_jax


def between(low, high, number):
  """Numbers of both signs, evenly spread over powers of ten."""
  signs = np.where(np.arange(number) % 3, 1, -1)
  return signs * np.logspace(low, high, number)


def tree(*parts, dtype="float32"):
  kernel = np.random.default_rng(0).permutation(np.concatenate(parts))
  return {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.ones(3)}


DEAD = between(-9.1, -7.1, 9_000)
LIVE = between(-1.9, 0, 1_000)


def test_the_threshold_is_in_the_middle_of_the_gap():
  params = tree(DEAD, LIVE)
  report = rewa_jax.separation(params)
  assert float(report.threshold) == pytest.approx(10**-4.5, rel=1e-3)
  assert float(report.gap) == pytest.approx(5)
  assert float(report.below) == pytest.approx(0.9)
  assert report.near == 0
  assert str(report) == (
    "threshold 3.2e-05, in a gap of 5.0 decades\n"
    "90.00% of the weights are below, 0.00% within a decade around"
  )
  pruned, _ = rewa_jax.prune(params, threshold=report.threshold)
  assert rewa_jax.sparsity(pruned).sparsity == report.below


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_the_threshold_scales_with_the_weights(scale):
  report = rewa_jax.separation(tree(scale * DEAD, scale * LIVE))
  assert float(report.threshold) == pytest.approx(scale * 10**-4.5, rel=1e-2)
  assert float(report.gap) == pytest.approx(5, abs=0.01)


def test_a_smear_without_a_gap_says_so():
  report = rewa_jax.separation(tree(between(-8, 0, 10_000)))
  assert report.gap == 0
  assert 0.1 < report.near < 0.15
  assert "but no gap" in str(report)
  distances = np.abs(np.linspace(-8, 0, 10_000) - np.log10(report.threshold))
  np.testing.assert_allclose(report.near, np.mean(distances < 0.5), atol=1e-3)


def test_a_dense_network_has_no_gap():
  report = rewa_jax.separation(tree(np.random.default_rng(1).normal(size=9999)))
  assert report.gap == 0 and "but no gap" in str(report)


@pytest.mark.parametrize(
  "others",
  [
    # A few outliers far below, with wide gaps between them.
    [1e-30, 1e-22],
    # A few stragglers between the modes.
    between(-6, -3, 5),
    # Exact zeros, and what is no number.
    [0.0] * 5_000,
    [np.nan, np.inf, -np.inf],
  ],
)
def test_few_weights_elsewhere_do_not_matter(others):
  params = tree(np.tile(DEAD, 10), np.tile(LIVE, 10), others)
  report = rewa_jax.separation(params)
  assert 4.5 < report.gap < 5.5
  assert 10**-5 < report.threshold < 10**-4
  assert report.near < 1e-3


def test_two_live_modes_are_not_taken_apart():
  smaller, larger = between(-2.9, -2.1, 500), between(0.1, 0.9, 500)
  report = rewa_jax.separation(tree(DEAD, smaller, larger))
  assert 10**-6 < report.threshold < 10**-4


@pytest.mark.parametrize("live", [LIVE, np.linspace(0.01, 0.1, 1_000)])
def test_where_what_is_dead_is_zero_the_gap_is_below_the_smallest(live):
  report = rewa_jax.separation(tree(np.zeros(9_000), live))
  assert report.gap > 10
  assert 0 < report.threshold < np.abs(live).min()
  assert float(report.below) == pytest.approx(0.9)


def test_a_smear_down_to_underflow_is_not_parted_from_zeros():
  report = rewa_jax.separation(tree(np.zeros(5_000), between(-37.9, 0, 5_000)))
  assert report.gap == 0


@pytest.mark.parametrize(
  "values,below", [([1.0] * 5, 0), ([0.0] * 5, 1), ([2.0], 0), ([], 0)]
)
def test_with_nothing_to_part_nothing_but_zeros_are_pruned(values, below):
  report = rewa_jax.separation(tree(np.array(values)))
  assert report.threshold < 1e-30
  assert report.gap == report.near == 0
  assert report.below == below


def test_the_smallest_network():
  """Two weights are two modes; leaves are looked at together."""
  params = {"a": {"kernel": jnp.ones(1)}, "b": {"kernel": jnp.full(1, 1e-8)}}
  report = rewa_jax.separation(params)
  assert 1e-5 < report.threshold < 1e-3
  assert report.below == 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(dtype, request):
  if dtype == "float64":
    request.getfixturevalue("x64")
  dead = between(-4.1, -3.6, 900) if dtype == "float16" else DEAD
  report = rewa_jax.separation(tree(dead, LIVE[::10], dtype=dtype))
  assert report.gap > 1
  assert np.abs(dead).max() < report.threshold < np.abs(LIVE).min()


def test_of_latents_the_weights_are_looked_at():
  rewa = rewa_jax.Rewa(k=3)
  params = tree(DEAD, LIVE)
  report = rewa_jax.separation(rewa.to_latents(params), method=rewa)
  wanted = rewa_jax.separation(params)
  assert float(report.threshold) == pytest.approx(float(wanted.threshold), 0.3)
  assert rewa_jax.separation(params, mask=None).below < wanted.below


def test_a_grid_of_networks_prunes_each_at_its_threshold():
  scales = jnp.array([1.0, 1e-3])
  params = tree(DEAD, LIVE)

  @jax.jit
  @jax.vmap
  def look(scale):
    scaled = jax.tree.map(lambda x: scale * x, params)
    report = rewa_jax.separation(scaled)
    pruned, _ = rewa_jax.prune(scaled, threshold=report.threshold)
    return report, rewa_jax.sparsity(pruned).total_nonzero

  report, nonzero = look(scales)
  assert nonzero.tolist() == [1_000, 1_000]
  first, second = (jax.tree.map(lambda x, i=i: x[i], report) for i in (0, 1))
  assert str(report) == f"[0]\n{first}\n[1]\n{second}"


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights(axis_type):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
  params = tree(DEAD, LIVE)
  sharded = {
    "kernel": jax.device_put(params["kernel"], NamedSharding(mesh, P("x")))
  }
  found = rewa_jax.separation(sharded)
  np.testing.assert_allclose(found, rewa_jax.separation(params), rtol=1e-5)
