"""Runs are repeatable, and Orbax resumes them, on any number of devices."""

import functools

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rewa_jax
from rewa_jax import baselines
from tests import runs

DEVICES = 8


@pytest.fixture(params=runs.WAYS_IN)
def way(request):
  return request.param


@functools.cache
def trained(way):
  """A run's start, its step, and its carry in the middle and at the end."""
  start, step = way()
  step = jax.jit(step)
  middle = advance(step, start)
  return start, step, middle, advance(step, middle)


def advance(step, carry):
  for _ in range(5):
    carry = step(carry)
  return carry


def spread(tree, count):
  """Over so many devices, fully sharded where the first axis allows it."""
  mesh = jax.make_mesh(
    *((count,), ("devices",)),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:count],
  )

  def place(x):
    spec = P("devices") if x.ndim and x.shape[0] % count == 0 else P()
    return jax.device_put(x, NamedSharding(mesh, spec))

  return jax.tree.map(place, tree)


def save(path, tree):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)


def restore(path, like):
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path, abstract)


def assert_same(one, other, **tolerance):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
    if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_allclose(a, b, **({"rtol": 0} | tolerance))


@pytest.mark.parametrize("way", [runs.by_linen, runs.by_nnx_drop_in])
def test_two_runs_from_scratch_are_the_same_bit_for_bit(way):
  _, _, middle, _ = trained(way)
  start, step = way()
  assert_same(advance(jax.jit(step), start), middle)


def test_a_restored_run_continues_bit_for_bit(way, tmp_path):
  start, step, middle, end = trained(way)
  save(tmp_path / "run", middle)
  assert_same(advance(step, restore(tmp_path / "run", start)), end)


@pytest.mark.parametrize(
  "way", [runs.by_linen, runs.by_injection, runs.by_drop_in]
)
def test_a_run_in_bytes_of_flax_continues_bit_for_bit(way):
  start, step, middle, end = trained(way)
  restored = serialization.from_bytes(start, serialization.to_bytes(middle))
  assert_same(advance(step, restored), end)


@pytest.mark.parametrize(
  "way",
  [
    pytest.param(way, marks=() if way is runs.by_linen else pytest.mark.slow)
    for way in runs.WAYS_IN
  ],
)
def test_a_run_saved_by_eight_devices_continues_on_fewer(way, tmp_path):
  start, step, middle, end = trained(way)
  save(tmp_path / "run", spread(middle, DEVICES))
  for count in (2, 1):
    like = spread(start, count)
    restored = restore(tmp_path / "run", like)
    assert_same(restored, middle)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like)):
      assert leaf.sharding == wanted.sharding
    # Two devices add up in another order.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if count > 1 else {}
    assert_same(advance(step, restored), end, **tolerance)


@pytest.mark.parametrize(
  "method", [runs.REWA, baselines.spred(), baselines.Gated("output", depth=11)]
)
def test_latents_restored_without_a_target_are_those_of_the_weights(
  method, tmp_path
):
  weights = runs.BARE.init(jax.random.key(0), runs.INPUTS)
  model = rewa_jax.linen.Reparameterized(runs.BARE, method)
  latents = model.to_latents(weights)
  save(tmp_path / "latents", latents)
  with ocp.StandardCheckpointer() as checkpointer:
    restored = checkpointer.restore(tmp_path / "latents")
  assert_same(restored, latents)
  assert_same(model.to_weights(restored), model.to_weights(latents))
  outputs = runs.BARE.apply(weights, runs.INPUTS)
  assert_same(model.apply(restored, runs.INPUTS), outputs, rtol=1e-4)
