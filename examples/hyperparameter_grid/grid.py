"""Trains a whole grid of hyperparameters at once, on all devices.

`train_grid` runs a function of (key, hyperparameters) for every cell of a grid
in one compiled `vmap` whose axis is sharded over the devices of all hosts.
"""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

Grid = Mapping[str, Sequence[float]]


class GridResult(NamedTuple):
  """What `train_grid` returns.

  Attributes:
    outputs: what the train function returned, NumPy arrays with the axis of
      cells in front.
    diverged: for each cell, whether any of its outputs is not finite.
  """

  outputs: Any
  diverged: np.ndarray


def product(**axes: Sequence[float]) -> dict[str, list[float]]:
  """Returns the grid of all combinations; cells with m > k - 1 are left out.

  >>> product(k=[3, 5], m=[0, 4])
  {'k': [3, 5, 5], 'm': [0, 0, 4]}
  """
  cells = [
    dict(zip(axes, values)) for values in itertools.product(*axes.values())
  ]
  legal = [
    c for c in cells if not ({"k", "m"} <= set(c) and c["m"] > c["k"] - 1)
  ]
  return {name: [cell[name] for cell in legal] for name in axes}


def train_grid(
  train_fn: Callable[[jax.Array, dict[str, Any]], Any],
  grid: Grid,
  *,
  key: jax.Array,
  static: Sequence[str] = ("k",),
  checkpoints: pathlib.Path | None = None,
  memory: float | None = None,
  largest_chunk: int | None = None,
  progress: bool = True,
) -> GridResult:
  """Trains every cell of a grid.

  Cells of equal static hyperparameters share a program: a static integer k is
  repeated multiplication, twice as fast as a traced one. Each program takes as
  many cells at once as fit into memory by the compiler's own account. With
  several processes, call it in each of them after
  `jax.distributed.initialize()`, with the same arguments.

  Args:
    train_fn: a function of a key and a dict of hyperparameters that returns a
      tree of arrays of fixed shapes; it is jitted and vmapped. Static
      hyperparameters are Python numbers, the others traced scalars.
    grid: for each hyperparameter its value in every cell; see `product`.
    key: a PRNG key. A cell gets it folded with its "seed", 0 where the grid has
      no seeds: cells of one seed are paired.
    static: names of hyperparameters to compile in.
    checkpoints: a folder for finished chunks, common to all hosts. A grid that
      was interrupted goes on from there; another grid is refused.
    memory: bytes to use per device; by default what is free, less a fifth.
    largest_chunk: the most cells to train at once, for finer checkpoints.
    progress: whether to show a bar.

  Returns:
    The outputs in the order of the grid, and which cells diverged.

  Raises:
    ValueError: if the grid is empty or ragged, a cell has m > k - 1, outputs
      change their shape between cells, one cell does not fit into memory, or
      the checkpoints are of another grid.
    TypeError: if train_fn returns something else than arrays.
  """
  columns, count = _check(grid)
  seeds = jnp.asarray(columns.get("seed", np.zeros(count)), jnp.int32)
  keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seeds)
  keys = np.asarray(jax.random.key_data(keys))
  impl = jax.random.key_impl(key)
  fixed = [name for name in static if name in columns]
  groups: dict[tuple, list[int]] = {}
  for cell in range(count):
    groups.setdefault(tuple(grid[name][cell] for name in fixed), []).append(
      cell
    )

  folder = _open_checkpoints(checkpoints, columns, keys)
  finished = _finished(folder, count)
  mesh = jax.make_mesh(
    (jax.device_count(),), ("cells",), axis_types=(AxisType.Auto,)
  )
  shapes, results = None, {}
  bar = tqdm(total=count, unit="cell", disable=not progress)
  for values, cells in groups.items():
    statics = dict(zip(fixed, values))

    def train(key_data, hyperparameters, statics=statics):
      cell_key = jax.random.wrap_key_data(key_data, impl=impl)
      return train_fn(cell_key, {**hyperparameters, **statics})

    def arguments(cells, statics=statics):
      traced = {
        name: column[cells]
        for name, column in columns.items()
        if name not in statics
      }
      return keys[cells], traced

    first = jax.tree.map(lambda x: x[0], arguments(cells[:1]))
    shapes = _check_outputs(train, first, shapes, _describe(grid, cells[0]))
    todo = [cell for cell in cells if not finished[cell]]
    size = min(len(todo), largest_chunk or count)
    program, size = (
      _compile(train, arguments, todo, size, mesh, memory)
      if todo
      else (None, 1)
    )
    bar.update(len(cells) - len(todo))
    for start in range(0, len(todo), size):
      chunk = todo[start : start + size]
      # The last chunk is filled up with its last cell.
      padded = chunk + chunk[-1:] * (size - len(chunk))
      outputs = _run(program, arguments(np.asarray(padded)), mesh)
      for row, cell in enumerate(chunk):
        results[cell] = jax.tree.map(lambda x, row=row: x[row], outputs)
      _write(folder, {cell: results[cell] for cell in chunk})
      bar.update(len(chunk))
  bar.close()
  for cell in range(count):
    if cell not in results:
      results[cell] = _read(folder, cell, shapes)
  ordered = [results[cell] for cell in range(count)]
  outputs = jax.tree.map(lambda *rows: np.stack(rows), *ordered)
  return GridResult(outputs, _diverged(outputs, count))


def _check(grid: Grid) -> tuple[dict[str, np.ndarray], int]:
  lengths = {name: len(values) for name, values in grid.items()}
  if not lengths or 0 in lengths.values():
    raise ValueError(f"The grid is empty: its columns have lengths {lengths}.")
  if len(set(lengths.values())) > 1:
    raise ValueError(f"The columns of a grid need one length, got {lengths}.")
  count = next(iter(lengths.values()))
  for cell in range(count if {"k", "m"} <= set(grid) else 0):
    if grid["m"][cell] > grid["k"][cell] - 1:
      raise ValueError(f"m must be at most k - 1, in {_describe(grid, cell)}.")
  columns = {
    name: np.asarray(values, np.int32 if name == "seed" else np.float32)
    for name, values in grid.items()
  }
  return columns, count


def _check_outputs(train, arguments, shapes, cell: str) -> Any:
  def checked(*arguments):
    outputs = train(*arguments)
    for leaf in jax.tree.leaves(outputs):
      if not isinstance(leaf, jax.Array):
        raise TypeError(
          "train_fn must return a tree of JAX arrays, got"
          f" {leaf!r} of type {type(leaf).__name__}, in {cell}."
        )
    return outputs

  found = jax.eval_shape(checked, *arguments)
  if shapes is not None and found != shapes:
    raise ValueError(
      f"train_fn must return the same shapes in every cell, got {found} after"
      f" {shapes}, in {cell}."
    )
  return found


def _describe(grid: Grid, cell: int) -> str:
  values = ", ".join(f"{name}={column[cell]}" for name, column in grid.items())
  return f"cell {cell} ({values})"


def _compile(train, arguments, cells, size, mesh, memory):
  """Returns a program and for how many cells: as many as fit."""
  devices = mesh.size
  size = -(-size // devices) * devices
  budget = memory or _free_memory()
  sharding = NamedSharding(mesh, P("cells"))
  step = jax.jit(jax.vmap(train), in_shardings=sharding, out_shardings=sharding)
  while True:
    example = arguments(np.resize(np.asarray(cells), size))
    example = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example
    )
    program = step.lower(*example).compile()
    account = program.memory_analysis()
    needed = (
      account.temp_size_in_bytes
      + account.argument_size_in_bytes
      + account.output_size_in_bytes
    )
    if needed <= budget:
      return program, size
    if size == devices:
      raise ValueError(
        f"One cell per device needs {needed:,} bytes, {budget:,.0f} are free."
      )
    fitting = int(size / devices * budget / needed)
    size = max(min(fitting, size // devices - 1), 1) * devices


def _free_memory() -> float:
  stats = jax.local_devices()[0].memory_stats()
  if stats:
    return 0.8 * (stats["bytes_limit"] - stats["bytes_in_use"])
  meminfo = pathlib.Path("/proc/meminfo").read_text()
  free = int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
  return 0.8 * free / jax.local_device_count()


def _run(program, arguments, mesh):
  sharding = NamedSharding(mesh, P("cells"))

  def spread(x):
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  outputs = program(*jax.tree.map(spread, arguments))
  return multihost_utils.process_allgather(outputs, tiled=True)


def _open_checkpoints(folder, columns, keys) -> pathlib.Path | None:
  if folder is None:
    return None
  digest = hashlib.sha256(keys.tobytes())
  for name, column in columns.items():
    digest.update(name.encode() + column.tobytes())
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  label = folder / "grid.json"
  if not label.exists():
    if jax.process_index() == 0:
      _replace(label, json.dumps({"grid": digest.hexdigest()}).encode())
  elif json.loads(label.read_text())["grid"] != digest.hexdigest():
    raise ValueError(f"{folder} holds the checkpoints of another grid or key.")
  return folder


def _finished(folder, count) -> np.ndarray:
  """Returns which cells have a checkpoint."""
  if folder is None:
    return np.zeros(count, bool)
  found = [(folder / f"{cell}.npz").exists() for cell in range(count)]
  # Process 0 decides for all, or their collectives would not meet.
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(found)))


def _write(folder, results) -> None:
  if folder is None or jax.process_index() != 0:
    return
  for cell, outputs in results.items():
    part = folder / f"{cell}.npz.part"
    with part.open("wb") as file:
      np.savez(file, *jax.tree.leaves(outputs))
    part.replace(folder / f"{cell}.npz")


def _read(folder, cell, shapes) -> Any:
  leaves, treedef = jax.tree.flatten(shapes)
  with np.load(folder / f"{cell}.npz", allow_pickle=False) as file:
    arrays = [file[name] for name in file.files]
  if [(x.shape, x.dtype) for x in arrays] != [
    (x.shape, x.dtype) for x in leaves
  ]:
    raise ValueError(
      f"{folder / f'{cell}.npz'} does not hold what train_fn returns."
    )
  return treedef.unflatten(arrays)


def _replace(path: pathlib.Path, content: bytes) -> None:
  part = path.with_name(path.name + ".part")
  part.write_bytes(content)
  part.replace(path)


def _diverged(outputs, count) -> np.ndarray:
  diverged = np.zeros(count, bool)
  for leaf in jax.tree.leaves(outputs):
    if np.issubdtype(leaf.dtype, np.floating):
      diverged |= ~np.isfinite(leaf.reshape(count, -1)).all(axis=1)
  return diverged
