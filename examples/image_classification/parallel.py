"""One program over many devices: by jit and a mesh, or by pmap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


class Jit:
  """Batches are spread over all devices; XLA adds the communication.

  Args:
    shard_params: whether params and what belongs to them are spread too,
      instead of being everywhere.
  """

  axis_name = None

  def __init__(self, shard_params: bool):
    self._shard_params = shard_params
    self._mesh = jax.make_mesh(
      (jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,)
    )
    self._everywhere = NamedSharding(self._mesh, P())

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

  def train(self, step: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a step of training, whose state is donated."""
    return jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(self._shardings, self._everywhere),
    )

  def test(self, step: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a step of testing."""
    return jax.jit(step, out_shardings=self._everywhere)

  def gather(self, params: Any) -> Any:
    """Inside a step: brings params together where they are used."""
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

  def one(self, tree: Any) -> Any:
    """Returns what `init` or a step returned as a tree without copies."""
    return tree

  def place(self, state: Any) -> Any:
    """The inverse of `one`."""
    return state


class Pmap:
  """Every device has all params and runs the step on its part of a batch."""

  axis_name = AXIS

  def init(self, fn: Callable[..., Any], *args) -> Any:
    return self.place(jax.jit(fn)(*args))

  def train(self, step: Callable[..., Any]) -> Callable[..., Any]:
    return jax.pmap(step, AXIS, donate_argnums=0)

  def test(self, step: Callable[..., Any]) -> Callable[..., Any]:
    return jax.pmap(step, AXIS)

  def gather(self, params: Any) -> Any:
    return params

  def batch(self, batch: Any) -> Any:
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)

  def copies(self, arrays: Any) -> Any:
    return self.place(arrays)

  def one(self, tree: Any) -> Any:
    return jax.device_get(jax.tree.map(lambda x: x[0], tree))

  def place(self, state: Any) -> Any:
    copy = jax.pmap(lambda _, tree: tree, AXIS, in_axes=(0, None))
    return copy(jnp.arange(jax.local_device_count()), state)


def make_parallel(kind: str) -> Jit | Pmap:
  """Returns the kind that --parallelism names."""
  return Pmap() if kind == "pmap" else Jit(shard_params=kind == "fsdp")
