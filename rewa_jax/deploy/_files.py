"""Sparse weights in one file, in the container of safetensors."""

import hashlib
import json
import math
import os
import pathlib
import uuid
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rewa_jax._method import Method
from rewa_jax._trees import Path, leaf_path, with_paths
from rewa_jax.deploy._checks import check_weights

_FORMAT = "rewa_jax sparse weights 1"
# What the container itself costs an array.
_OVERHEAD = 80
_HALVES = ("float16", "bfloat16")
_TYPES = (
  *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"),
  *("uint64", *_HALVES, "float32", "float64", "complex64"),
)


class _Leaf(NamedTuple):
  """What the header says of a leaf."""

  shape: Sequence[int]
  dtype: str
  # The type of its values in the file.
  stored: str
  layout: str


def save(
  path: str | os.PathLike,
  weights: Any,
  *,
  method: Method | None = None,
  dtype: Literal["float16", "bfloat16"] | None = None,
) -> None:
  """Writes sparse weights to a file, every leaf in its cheapest layout.

  A leaf is stored dense, as the values that are not zero beside a bit for every
  entry, or as these values beside the indices of their columns, of 16 or 32
  bits, and the start of every row. The file is whole or not there, whatever
  happens. It is a safetensors file: the header says what each leaf is, and a
  reader needs nothing of this library.

  Args:
    path: the file.
    weights: a tree of weights, nested dicts or anything that names its leaves.
    method: what trained the weights, noted in the header.
    dtype: what floating-point values are rounded to in the file; None keeps
      them bit for bit, but for the sign of zeros. Read back, they have their
      own type again.

  Raises:
    ValueError: if weights are latents or hold NaN, a leaf does not fit dtype,
      or the name of a leaf is no name of a file.
    TypeError: if a leaf is no array of numbers of 8 to 64 bits.

  Examples:
    >>> import os, tempfile
    >>> import numpy as np
    >>> from rewa_jax import deploy
    >>> weights = {"kernel": np.zeros((100, 100), np.float32)}
    >>> weights["kernel"][3, 5] = 0.25
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = os.path.join(folder, "weights.safetensors")
    ...   deploy.save(path, weights)
    ...   print(os.path.getsize(path) < 700, deploy.load(path)["kernel"][3, 5])
    True 0.25
  """
  if dtype not in (None, *_HALVES):
    raise ValueError(
      f"dtype must be None, 'float16' or 'bfloat16', got {dtype!r}."
    )
  from safetensors.numpy import save as to_bytes

  check_weights(weights)
  arrays, leaves = {}, {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(weights):
    name = _checked_name(leaf_path(keys))
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
      raise TypeError(
        f"{name} is a random key, no weights: of an NNX model save what is"
        " needed, such as nnx.state(model, (nnx.Param, nnx.BatchStat))."
      )
    leaves[name], parts = _encode(name, np.asarray(leaf), dtype)
    for part, array in parts.items():
      if name + part in arrays:
        raise ValueError(f"Two arrays would be named {name + part}.")
      arrays[name + part] = array
  header = {
    "format": _FORMAT,
    "holds": "weights",
    "leaves": json.dumps({n: leaf._asdict() for n, leaf in leaves.items()}),
  }
  if method is not None:
    header |= {"method": str(method), "k": str(getattr(method, "k", ""))}
  header["checksum"] = _checksum(header, arrays)
  path = pathlib.Path(path)
  part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
  try:
    part.write_bytes(to_bytes(arrays, header))
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def load(
  path: str | os.PathLike, like: Any = None, *, limit: int = 2**30
) -> Any:
  """Reads weights that :func:`save` wrote.

  A file that is damaged, or made to harm, is an error before anything larger
  than the file is allocated. Nothing in it is run.

  Args:
    path: the file.
    like: a tree with the same leaves, whose structure is returned; None for
      nested dicts. Its arrays do not count.
    limit: how many entries all leaves may have together.

  Returns:
    The weights, as NumPy arrays.

  Raises:
    ValueError: if the file is damaged, holds something else, is larger than the
      limit once read, or has other leaves than like.
    OSError: if there is no such file.
  """
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, framework="np") as file:
      header = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}
  except (SafetensorError, KeyError, OverflowError, TypeError) as error:
    raise ValueError(f"{path} is no safetensors file: {error}.") from error
  if header.get("format") != _FORMAT or header.get("holds") != "weights":
    raise ValueError(
      f"{path} is no file of sparse weights: its format is"
      f" {header.get('format')!r}, not {_FORMAT!r}."
    )
  if header.get("checksum") != _checksum(header, arrays):
    raise ValueError(f"{path} is damaged: its checksum is another.")
  try:
    leaves = _declared(header.get("leaves", ""))
    size = sum(math.prod(leaf.shape) for leaf in leaves.values())
    if size > limit:
      raise ValueError(f"It declares {size:,} entries, above limit={limit:,}.")
    used = [n + part for n, leaf in leaves.items() for part in _parts(leaf)]
    if sorted(used) != sorted(arrays):
      raise ValueError(f"It holds {sorted(arrays)}, but declares {used}.")
    places = {
      name: _places(name, leaf, arrays) for name, leaf in leaves.items()
    }
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not as save writes it. {error}") from error
  weights = {
    name: _dense(leaf, arrays[name + _parts(leaf)[0]], places[name])
    for name, leaf in leaves.items()
  }
  return _nested(weights) if like is None else _as_tree(weights, like)


def _checksum(header: dict[str, str], arrays: dict[str, np.ndarray]) -> str:
  """Returns a checksum of all that a file says."""
  said = {key: text for key, text in header.items() if key != "checksum"}
  result = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
  for name, array in sorted(arrays.items()):
    result.update(json.dumps([name, array.dtype.name, array.shape]).encode())
    result.update(array.tobytes())
  return result.hexdigest()


def _parts(leaf: _Leaf) -> tuple[str, ...]:
  """Returns what is appended to a leaf's name in the names of its arrays."""
  if leaf.layout == "bitmask":
    return (".values", ".bits")
  return (".values", ".indices", ".starts") if leaf.layout == "csr" else ("",)


def _in_file(values: np.ndarray) -> np.ndarray:
  # NumPy has no bfloat16: it is kept as its bits.
  return values.view(np.uint16) if values.dtype == jnp.bfloat16 else values


def _encode(
  name: str, leaf: np.ndarray, dtype: str | None
) -> tuple[_Leaf, dict[str, np.ndarray]]:
  """Returns what to say of a leaf and the arrays to store for it."""
  if leaf.dtype.name not in _TYPES:
    raise TypeError(
      f"{name} is of type {leaf.dtype}, but a file can hold"
      f" {', '.join(_TYPES)}."
    )
  values = leaf
  if dtype and jnp.issubdtype(leaf.dtype, jnp.floating):
    if leaf.dtype.itemsize > 2:
      with np.errstate(over="ignore"):
        values = leaf.astype(dtype)
    if not np.array_equal(np.isfinite(values), np.isfinite(leaf)):
      raise ValueError(f"{name} has values that are too large for {dtype}.")
  flat = np.ascontiguousarray(values).reshape(-1)
  # Of -0 too: powers of latents underflow to it, and it would cost a value.
  nonzero = flat != 0
  count, width = int(np.count_nonzero(nonzero)), flat.dtype.itemsize
  rows = [math.prod(leaf.shape[:axis]) for axis in range(leaf.ndim)]
  starts = np.min_scalar_type(count)
  costs = {
    (width * flat.size + _OVERHEAD, "dense", 0),
    (width * count + (flat.size + 7) // 8 + 2 * _OVERHEAD, "bitmask", 0),
    *(
      (
        (width + _index_type(flat.size // n).itemsize) * count
        + starts.itemsize * (n + 1)
        + 3 * _OVERHEAD,
        "csr",
        n,
      )
      for n in rows
      if flat.size and flat.size // n <= 2**32
    ),
  }
  _, layout, row_count = min(costs)
  described = _Leaf(leaf.shape, leaf.dtype.name, values.dtype.name, layout)
  if layout == "dense":
    return described, {"": _in_file(flat).reshape(leaf.shape)}
  parts = {".values": _in_file(flat[nonzero])}
  if layout == "bitmask":
    return described, parts | {".bits": np.packbits(nonzero)}
  table = nonzero.reshape(row_count, -1)
  indices = np.nonzero(table)[1].astype(_index_type(table.shape[1]))
  ends = np.cumsum(np.count_nonzero(table, axis=1))
  return described, parts | {
    ".indices": indices,
    ".starts": np.concatenate([[0], ends]).astype(starts),
  }


def _index_type(columns: int) -> np.dtype:
  return np.dtype(np.uint16 if columns <= 2**16 else np.uint32)


def _declared(text: str) -> dict[str, _Leaf]:
  """Returns what a header says of its leaves, if it can be meant."""
  leaves, described = {}, json.loads(text)
  if not isinstance(described, dict):
    raise ValueError("It describes no leaves.")
  for name, fields in described.items():
    names = tuple(name.split("/"))
    _checked_name(names)
    if any("/".join(names[:i]) in described for i in range(1, len(names))):
      raise ValueError(f"{name} lies within another leaf.")
    if not isinstance(fields, dict) or fields.keys() != {*_Leaf._fields}:
      raise ValueError(f"{name} is described by {fields!r}.")
    leaf = leaves[name] = _Leaf(**fields)
    is_shape = isinstance(leaf.shape, list) and len(leaf.shape) <= 32
    if not is_shape or not all(
      type(size) is int and 0 <= size <= 2**32 for size in leaf.shape
    ):
      raise ValueError(f"{name} has the shape {leaf.shape!r}.")
    types = (leaf.dtype, *_HALVES)
    if leaf.dtype not in _TYPES or leaf.stored not in types:
      raise ValueError(f"{name} is {leaf.dtype!r} stored as {leaf.stored!r}.")
    if leaf.layout not in ("dense", "bitmask", "csr"):
      raise ValueError(f"{name} has the layout {leaf.layout!r}.")
  return leaves


def _places(
  name: str, leaf: _Leaf, arrays: dict[str, np.ndarray]
) -> np.ndarray | None:
  """Returns where the values of a leaf belong, None if they are all of it."""
  values, *rest = (arrays[name + part] for part in _parts(leaf))
  size = math.prod(leaf.shape)
  stored = np.dtype(np.uint16 if leaf.stored == "bfloat16" else leaf.stored)
  shape = leaf.shape if leaf.layout == "dense" else [*values.shape[:1]]
  if values.dtype != stored or [*values.shape] != [*shape]:
    raise ValueError(f"The values of {name} have another shape or type.")
  if leaf.layout == "dense":
    return None
  if leaf.layout == "bitmask":
    (bits,) = rest
    if bits.dtype != np.uint8 or bits.shape != ((size + 7) // 8,):
      raise ValueError(f"The bits of {name} are not one for each entry.")
    places = np.flatnonzero(np.unpackbits(bits))
    if places.max(initial=-1) >= size:
      raise ValueError(f"The bits of {name} go on after its last entry.")
  else:
    indices, starts = (part.astype(np.int64) for part in rest)
    if not all(p.ndim == 1 and p.dtype.kind == "u" for p in rest):
      raise ValueError(f"The indices of {name} are no lists of numbers.")
    rows = len(starts) - 1
    if rows < 1 or size % rows:
      raise ValueError(f"{name} has {rows} rows of {size} entries.")
    if (
      starts[0] != 0
      or starts[-1] != len(indices)
      or (np.diff(starts) < 0).any()
    ):
      raise ValueError(f"The rows of {name} do not follow each other.")
    if (indices >= size // rows).any():
      raise ValueError(f"An index of {name} is out of range.")
    places = np.repeat(np.arange(rows) * (size // rows), np.diff(starts))
    places = places + indices
  if len(places) != len(values) or (np.diff(places) <= 0).any():
    raise ValueError(f"The values of {name} do not fit their places.")
  return places


def _dense(
  leaf: _Leaf, values: np.ndarray, places: np.ndarray | None
) -> np.ndarray:
  stored, dtype = jnp.dtype(leaf.stored), jnp.dtype(leaf.dtype)
  if places is not None:
    result = np.zeros(math.prod(leaf.shape), dtype)
    result[places] = values.view(stored).astype(dtype)
    return result.reshape(leaf.shape)
  return values.view(stored).astype(dtype, copy=False)


def _checked_name(names: Path) -> str:
  """Returns the name of a leaf, which may become the name of a file."""
  for name in names or ("",):
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0:"):
      raise ValueError(
        f"A leaf is named {'/'.join(names)!r}, but its keys must be names of"
        " files: without slashes, colons and the like, and no dots alone."
      )
  if names == ("__metadata__",):
    raise ValueError(
      "A leaf is named '__metadata__', which safetensors keeps for itself."
    )
  return "/".join(names)


def _nested(weights: dict[str, np.ndarray]) -> Any:
  """Returns nested dicts of leaves by the names of their paths."""
  result = {}
  for name, leaf in weights.items():
    *owners, last = name.split("/")
    node = result
    for owner in owners:
      node = node.setdefault(owner, {})
    node[last] = leaf
  return result


def _as_tree(weights: dict[str, np.ndarray], like: Any) -> Any:
  names = [path for path, _ in with_paths(like)]
  if sorted(names) != sorted(weights):
    raise ValueError(
      f"The file has the leaves {', '.join(weights)}, but like has"
      f" {', '.join(names)}."
    )
  return jax.tree.unflatten(
    jax.tree.structure(like), [weights[name] for name in names]
  )
