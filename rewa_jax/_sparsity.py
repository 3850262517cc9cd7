"""How sparse a network is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rewa_jax._checks import check_number
from rewa_jax._masks import Mask, kernels, selected
from rewa_jax._method import Method, weights_and_mask
from rewa_jax._trees import with_paths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparsity:
  """The counts of :func:`sparsity`; a pytree, so jit and vmap may return it.

  Attributes:
    nonzero: nonzero entries of every selected leaf, by its path.
    size: entries of every selected leaf, by its path.
  """

  nonzero: dict[str, jax.Array]
  size: dict[str, int] = dataclasses.field(metadata={"static": True})

  @property
  def total_nonzero(self) -> jax.Array:
    """Nonzero entries in all."""
    return jnp.asarray(sum(self.nonzero.values()))

  @property
  def total_size(self) -> int:
    """Entries in all."""
    return sum(self.size.values())

  @property
  def sparsity(self) -> jax.Array:
    """The share of zeros, 0 to 1."""
    return (self.total_size - self.total_nonzero) / max(self.total_size, 1)

  @property
  def compression(self) -> jax.Array:
    """Total over nonzero; infinite where every weight is zero, 1 of nothing."""
    return self.total_size / self.total_nonzero if self.size else jnp.ones(())

  def __str__(self) -> str:
    rows = [("leaf", "nonzero", "of", "sparsity", "compression")]
    nonzero = {**self.nonzero, "all": self.total_nonzero}
    sizes = {**self.size, "all": self.total_size}
    for path, size in sizes.items():
      n = int(nonzero[path])
      sparsity = f"{1 - n / size:.2%}" if size else "-"
      compression = f"{size / n:.1f}x" if n else "-"
      rows.append((path, f"{n:,}", f"{size:,}", sparsity, compression))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
      f"{row[0]:<{widths[0]}}  "
      + "  ".join(map(str.rjust, row[1:], widths[1:]))
      for row in rows
    )


def sparsity(
  params: Any,
  threshold: jax.typing.ArrayLike = 0.0,
  mask: Mask | None = kernels,
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
    A report with counts by leaf and in all; ``print`` shows a table.

  Raises:
    ValueError: if threshold < 0, params hold latents without a method or of
      another, or the mask does not fit params or selects nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> params = {"hidden": {"kernel": jnp.array([[0.0, 2.0], [0.0, 0.0]])},
    ...           "out": {"kernel": jnp.array([[1.0], [1e-9]])}}
    >>> report = rewa_jax.sparsity(params, threshold=1e-6)
    >>> print(report)
    leaf           nonzero  of  sparsity  compression
    hidden/kernel        1   4    75.00%         4.0x
    out/kernel           1   2    50.00%         2.0x
    all                  2   6    66.67%         3.0x
    >>> float(report.compression)
    3.0
    >>> rewa = rewa_jax.Rewa(k=3)
    >>> latents = rewa.to_latents(params)
    >>> float(rewa_jax.sparsity(latents, 1e-6, method=rewa).compression)
    3.0
  """
  check_number("threshold", threshold, at_least=0)
  params, mask = weights_and_mask(params, mask, method)
  nonzero, size = {}, {}
  for is_selected, (name, leaf) in zip(
    selected(mask, params), with_paths(params)
  ):
    if is_selected:
      # Not abs(leaf) > threshold: NaN is no zero.
      nonzero[name] = jnp.sum(~(jnp.abs(leaf) <= threshold))
      size[name] = jnp.size(leaf)
  return Sparsity(nonzero, size)
