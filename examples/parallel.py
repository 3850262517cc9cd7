"""One program over many devices: by jit and a mesh, or by pmap.

Both take the same functions, of a whole batch and a state without copies.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.experimental.multihost_utils import host_local_array_to_global_array
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


class Jit:
  """Batches are spread over all devices; XLA adds the communication.

  Args:
    shard_params: whether params and what belongs to them are spread too,
      instead of being everywhere.
  """

  def __init__(self, shard_params: bool = False):
    self._shard_params = shard_params
    self._mesh = jax.make_mesh(
      (jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,)
    )
    self._everywhere = NamedSharding(self._mesh, P())

  def network(self, network: nn.Module) -> nn.Module:
    """Returns the network that computes on a part of a batch like on all."""
    return network

  def init(self, fn: Callable[..., Any], *args) -> Any:
    """Computes a state, which is spread from the beginning."""
    self._shardings = jax.tree.map(self._sharding, jax.eval_shape(fn, *args))
    return jax.jit(fn, out_shardings=self._shardings)(*args)

  def _sharding(self, leaf):
    sizes = [n if n % self._mesh.size == 0 else 0 for n in leaf.shape]
    if not self._shard_params or not any(sizes):
      return self._everywhere
    axis = sizes.index(max(sizes))
    return NamedSharding(self._mesh, P(*[None] * axis, AXIS))

  def train(
    self,
    key: jax.Array,
    differentiate: Callable[..., Any],
    update: Callable[..., Any],
  ) -> Callable[..., Any]:
    """Compiles a step of training, whose state is donated.

    Args:
      key: of all random numbers; each step gets its own.
      differentiate: (key, state, batch, arrays) to a tree of means over the
        batch, of gradients, statistics and metrics.
      update: (state, gradients, statistics) to the next state.

    Returns:
      A function of state, batch and arrays to the next state and metrics.
    """

    def step(state, batch, arrays):
      # Spread params come together where they are used.
      gathered = state.replace(params=self._gather(state.params))
      step_key = jax.random.fold_in(key, state.step)
      *slopes, metrics = differentiate(step_key, gathered, batch, arrays)
      return update(state, *slopes), metrics

    shardings = (self._shardings, self._everywhere)
    return jax.jit(step, donate_argnums=0, out_shardings=shardings)

  def test(self, count: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function of params, batch and arrays to sums over a batch."""

    def step(params, batch, arrays):
      return count(self._gather(params), batch, arrays)

    return jax.jit(step, out_shardings=self._everywhere)

  def _gather(self, params):
    return jax.lax.with_sharding_constraint(params, self._everywhere)

  def batch(self, batch: Any) -> Any:
    """Spreads a batch, of which every process has its part."""
    spread = NamedSharding(self._mesh, P(AXIS))
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(spread, x), batch
    )

  def copies(self, arrays: Any) -> Any:
    """Puts arrays onto every device."""
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(self._everywhere, x),
      arrays,
    )


class Pmap(Jit):
  """Every device has all params and runs the step on its part of a batch."""

  def network(self, network):
    # Batch statistics are those of the batches of all devices.
    has_statistics = hasattr(network, "axis_name")
    return network.clone(axis_name=AXIS) if has_statistics else network

  def train(self, key, differentiate, update):
    def step(state, batch, arrays):
      step_key = jax.random.fold_in(key, state.step)
      step_key = jax.random.fold_in(step_key, jax.lax.axis_index(AXIS))
      parts = differentiate(step_key, state, batch, arrays)
      *slopes, metrics = jax.lax.pmean(parts, AXIS)
      return update(state, *slopes), metrics

    return self._mapped(step, donate_argnums=0)

  def test(self, count):
    def step(params, batch, arrays):
      return jax.lax.psum(count(params, batch, arrays), AXIS)

    return self._mapped(step)

  def _mapped(self, step, **options):
    options |= {"in_axes": (None, 0, None), "out_axes": None}
    step = jax.pmap(step, AXIS, **options)

    def run(*args):
      # Of several processes, each has its own result, and all are equal.
      return host_local_array_to_global_array(step(*args), self._mesh, P())

    return run

  def batch(self, batch):
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def make_parallel(kind: str) -> Jit:
  """Returns the kind that --parallelism names."""
  return Pmap() if kind == "pmap" else Jit(shard_params=kind == "fsdp")
