"""How sparse a network is, and cutting off what is small."""

import dataclasses
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rewa_jax.checks import check_number, path_name
from rewa_jax.masks import Mask, kernels, select


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
) -> Sparsity:
  """Counts the nonzero weights of a network.

  Args:
    params: a tree of weights; of latents, the count at threshold 0 is that of
      their weights unless the power underflows.
    threshold: entries with absolute value <= threshold count as zero, >= 0. May
      be traced.
    mask: which leaves to count: a tree of bools with the structure of params or
      a prefix of it, a function that returns one, or None for all.

  Returns:
    A report with counts by leaf and in all; ``print`` shows a table.

  Raises:
    ValueError: if threshold < 0, or the mask does not fit params or selects
      nothing by name.
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
  """
  check_number("threshold", threshold, at_least=0)
  selected = jax.tree.leaves(select(mask, params))
  leaves = jax.tree_util.tree_leaves_with_path(params)
  nonzero, size = {}, {}
  for chosen, (path, leaf) in zip(selected, leaves):
    if chosen:
      name = path_name(path)
      # Not abs(leaf) > threshold: NaN is no zero.
      nonzero[name] = jnp.sum(~(jnp.abs(leaf) <= threshold))
      size[name] = jnp.size(leaf)
  return Sparsity(nonzero, size)


def prune(
  params: Any,
  *,
  threshold: jax.typing.ArrayLike | None = None,
  sparsity: jax.typing.ArrayLike | None = None,
  scope: Literal["global", "leaf"] = "global",
  mask: Mask | None = kernels,
) -> tuple[Any, Any]:
  """Sets the smallest weights to zero.

  Args:
    params: a tree of weights.
    threshold: prune entries with absolute value <= threshold, >= 0.
    sparsity: prune this share of the entries, 0 to 1, those of the smallest
      absolute value; of equal ones the first. Give either this or threshold.
    scope: what sparsity is a share of: ``"global"``, all selected leaves
      together, or ``"leaf"``, each on its own.
    mask: which leaves to prune: a tree of bools with the structure of params or
      a prefix of it, a function that returns one, or None for all.

  Returns:
    The pruned params, and masks: a tree of bool arrays of the same structure
    and shapes, False where an entry is zero by pruning or was before; all True
    on leaves not selected. Multiplying updates by masks keeps zeros zero.

  Raises:
    ValueError: if not exactly one of threshold and sparsity is given, either is
      out of range, scope is unknown, or the mask does not fit params or selects
      nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> params = {"w": jnp.array([0.1, -3.0, 0.0, 2.0])}
    >>> pruned, masks = rewa_jax.prune(params, sparsity=0.5)
    >>> print(pruned["w"], masks["w"])
    [ 0. -3.  0.  2.] [False  True False  True]
  """
  if scope not in ("global", "leaf"):
    raise ValueError(f"scope must be 'global' or 'leaf', got {scope!r}.")
  selected = jax.tree.leaves(select(mask, params))
  leaves, treedef = jax.tree.flatten(params)
  chosen = [jnp.asarray(leaf) for s, leaf in zip(selected, leaves) if s]
  if threshold is not None and sparsity is None:
    check_number("threshold", threshold, at_least=0)
    kept = [~(jnp.abs(leaf) <= threshold) for leaf in chosen]
  elif sparsity is not None and threshold is None:
    check_number("sparsity", sparsity, at_least=0, at_most=1)
    kept = _largest(chosen, 1 - sparsity, scope)
  else:
    raise ValueError(
      "Give exactly one of threshold and sparsity, got"
      f" threshold={threshold}, sparsity={sparsity}."
    )
  kept = iter(kept)
  masks = [
    next(kept) & (leaf != 0) if s else jnp.ones(jnp.shape(leaf), bool)
    for s, leaf in zip(selected, leaves)
  ]
  pruned = [
    jnp.where(keep, leaf, 0) if s else leaf
    for s, leaf, keep in zip(selected, leaves, masks)
  ]
  return treedef.unflatten(pruned), treedef.unflatten(masks)


def _largest(leaves, share, scope):
  """Returns for each leaf which entries are among the largest."""
  if scope == "leaf":
    return [_largest([leaf], share, "global")[0] for leaf in leaves]
  if not leaves:
    return []
  sizes = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in leaves])
  rank = jnp.argsort(jnp.argsort(sizes))
  kept = rank >= sizes.size - round(share * sizes.size)
  ends = list(itertools.accumulate(leaf.size for leaf in leaves))
  parts = jnp.split(kept, ends[:-1])
  return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)]
