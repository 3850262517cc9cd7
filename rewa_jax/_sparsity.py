"""How sparse a network is."""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rewa_jax._checks import Scalar, check_number
from rewa_jax._masks import Mask, kernels, selected
from rewa_jax._method import Method, weights_and_mask
from rewa_jax._power import as_wide
from rewa_jax._quantile import BASE, Count, add, as_float, count
from rewa_jax._trees import path_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparsity:
  """The counts of :func:`sparsity`; a pytree, so jit and vmap may return it.

  Counts are exact at any size. Where there may be 2^31 or more, they are NumPy
  integers of 64 bits, and under a transformation float32.

  Attributes:
    counts: nonzero entries of every selected leaf, by its path, as the high and
      the low 32 bits.
    size: entries of every selected leaf, by its path.
    uncounted: entries of all other leaves.
  """

  counts: dict[str, Count]
  size: dict[str, int] = dataclasses.field(metadata={"static": True})
  uncounted: int = dataclasses.field(default=0, metadata={"static": True})

  @property
  def nonzero(self) -> dict[str, jax.Array | np.ndarray]:
    """Nonzero entries of every selected leaf, by its path."""
    return {
      path: _number(self.counts[path], n) for path, n in self.size.items()
    }

  @property
  def total_nonzero(self) -> jax.Array | np.ndarray:
    """Nonzero entries in all."""
    zero = jnp.zeros((), jnp.uint32)
    total = functools.reduce(add, self.counts.values(), (zero, zero))
    return _number(total, self.total_size)

  @property
  def total_size(self) -> int:
    """Entries in all."""
    return sum(self.size.values())

  @property
  def sparsity(self) -> jax.Array:
    """The share of zeros, 0 to 1."""
    return _share_of_zeros(self.total_nonzero, self.total_size)

  @property
  def compression(self) -> jax.Array:
    """Total over nonzero; infinite where every weight is zero, 1 of nothing."""
    nonzero = jnp.asarray(self.total_nonzero, jnp.float32)
    return float(self.total_size) / nonzero if self.total_size else jnp.ones(())

  def scalars(self, prefix: str = "") -> dict[str, jax.Array | np.ndarray]:
    """Returns what to log, by names as TensorBoard groups them.

    Args:
      prefix: comes before every name, as in ``"eval/"``.

    Returns:
      A flat dict of scalars: ``sparsity``, ``compression`` and ``nonzero`` of
      all, and ``sparsity/`` with its path of every leaf.
    """
    leaves = {
      f"{prefix}sparsity/{path}": _share_of_zeros(n, self.size[path])
      for path, n in self.nonzero.items()
    }
    return {
      f"{prefix}sparsity": self.sparsity,
      f"{prefix}compression": self.compression,
      f"{prefix}nonzero": self.total_nonzero,
      **leaves,
    }

  def __str__(self) -> str:
    return show_each(self, _table)


def show_each(report, show) -> str:
  """Shows a report, or one after the other those that vmap has stacked."""
  leaves = jax.tree.leaves(report)
  if not leaves or not jnp.ndim(leaves[0]):
    return show(report)
  return "\n".join(
    f"[{i}]\n{jax.tree.map(lambda leaf, i=i: leaf[i], report)}"
    for i in range(len(leaves[0]))
  )


def _table(report):
  rows = [("leaf", "nonzero", "of", "sparsity", "compression")]
  for path, n, size in [
    *((path, n, report.size[path]) for path, n in report.nonzero.items()),
    ("all", report.total_nonzero, report.total_size),
  ]:
    n = int(n)
    sparsity = f"{1 - n / size:.2%}" if size else "-"
    compression = f"{size / n:.1f}x" if n else "-"
    rows.append((path, f"{n:,}", f"{size:,}", sparsity, compression))
  if report.uncounted:
    rows.append(("not counted", "", f"{report.uncounted:,}", "", ""))
  return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Returns a table: the first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join(
    "  ".join(
      [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
    ).rstrip()
    for row in rows
  )


def _number(words, size):
  """Returns a count of at most size as a number."""
  high, low = words
  if size < 2**31:
    return low.astype(jnp.int32)
  if isinstance(low, Tracer):
    return as_float((high, low))
  return np.asarray(high, np.int64) * BASE + np.asarray(low)


def _share_of_zeros(nonzero, size):
  zeros = nonzero.dtype.type(size) - nonzero
  return jnp.asarray(zeros / float(max(size, 1)), jnp.float32)


def sparsity(
  params: Any,
  threshold: "Scalar" = 0.0,
  mask: "Mask | None" = kernels,
  *,
  method: Method | None = None,
) -> Sparsity:
  """Counts the nonzero weights of a network.

  Args:
    params: a tree of weights, or of latents of the given method.
    threshold: weights with absolute value <= threshold count as zero, >= 0. May
      be traced.
    mask: which leaves to count: a tree of bools with the structure of params or
      a prefix of it, a function that returns one, or None for all.
    method: what params are latents of; its mask takes the place of mask. None
      says that params are weights.

  Returns:
    A report with counts by leaf and in all: ``print`` shows a table,
    ``scalars`` is for logs.

  Raises:
    ValueError: if threshold < 0, params hold latents without a method or of
      another, or the mask does not fit params or selects nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> params = {"hidden": {"kernel": jnp.array([[0.0, 2.0], [0.0, 0.0]])},
    ...           "out": {"kernel": jnp.array([[1.0], [1e-9]]),
    ...                   "bias": jnp.ones(1)}}
    >>> report = rewa_jax.sparsity(params, threshold=1e-6)
    >>> print(report)
    leaf           nonzero  of  sparsity  compression
    hidden/kernel        1   4    75.00%         4.0x
    out/kernel           1   2    50.00%         2.0x
    all                  2   6    66.67%         3.0x
    not counted              1
    >>> float(report.compression)
    3.0
    >>> rewa = rewa_jax.Rewa(k=3)
    >>> latents = rewa.to_latents(params)
    >>> float(rewa_jax.sparsity(latents, 1e-6, method=rewa).compression)
    3.0
  """
  check_number("threshold", threshold, at_least=0)
  # Sparse matrices of JAX and SciPy stand for what they are dense.
  params = jax.tree.map(
    lambda node: node.todense() if hasattr(node, "todense") else node,
    params,
    is_leaf=lambda node: hasattr(node, "todense"),
  )
  weights, mask = weights_and_mask(params, mask, method)
  return count_nonzero(weights, threshold, mask)


def count_nonzero(
  weights: Any, threshold: "Scalar", mask: Mask | None
) -> Sparsity:
  """Counts weights that are known to be no latents."""
  leaves = jax.tree_util.tree_leaves_with_path(weights)
  chosen = selected(mask, weights)
  paths = [path for (path, _), c in zip(leaves, chosen) if c]
  alike = collections.Counter(map(path_name, paths))
  counts, size, uncounted = {}, {}, 0
  for is_selected, (path, leaf) in zip(chosen, leaves):
    if is_selected:
      name = path_name(path)
      # {"a/b": x} and {"a": {"b": y}} are two leaves.
      name = name if alike[name] == 1 else jax.tree_util.keystr(path)
      counts[name] = _count_nonzero(leaf, threshold)
      size[name] = jnp.size(leaf)
    elif isinstance(leaf, jax.typing.ArrayLike):
      uncounted += jnp.size(leaf)
  return Sparsity(counts, size, uncounted)


@jax.jit
def _count_nonzero(leaf, threshold):
  # Not abs(leaf) > threshold: NaN is no zero. Wide, or a threshold would be
  # rounded to sixteen bits.
  return count([~(jnp.abs(as_wide(leaf)) <= threshold)])
