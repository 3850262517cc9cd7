"""The last cut: exactly the sparsity asked for, and what it cost."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rewa_jax._groups import Groups
from rewa_jax._masks import Mask, kernels, selected
from rewa_jax._method import Method, weights_and_mask
from rewa_jax._pruning import prune_to
from rewa_jax._ranking import Scope
from rewa_jax._sparsity import Sparsity, count_nonzero, show_each

# The sizes above which weights that were cut are counted.
LEVELS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


class Cut(NamedTuple):
  """What :func:`finalize` cut; jit and vmap may return it.

  Attributes:
    sparsity: the counts of what is left.
    largest_cut: the size of the largest weight that was cut, 0 if none was.
    smallest_kept: the size of the smallest nonzero weight, infinite of none.
    above: how many of those cut were larger than 1e-1, 1e-2, ..., 1e-6.
  """

  sparsity: Sparsity
  largest_cut: jax.Array
  smallest_kept: jax.Array
  above: tuple[Any, ...]

  def __str__(self) -> str:
    return show_each(self, _sentences)


def finalize(
  params: Any,
  sparsity: Any,
  *,
  scope: "Scope" = "global",
  groups: Groups | None = None,
  mask: "Mask | None" = kernels,
  method: Method | None = None,
) -> tuple[Any, Cut]:
  """Cuts a trained network to the sparsity asked for, and says what it cost.

  That is :func:`prune` with a report. After :func:`decay_by_rank` what is cut
  has all but vanished, and the cut costs next to nothing; where it takes
  weights in use, the report shows it.

  Args:
    params: a tree of weights, or of latents of the given method.
    sparsity: the share of zeros, or a tree of shares; see :func:`prune`, also
      for the next three.
    scope: what sparsity is a share of.
    groups: what goes or stays together, or None.
    mask: which leaves to cut.
    method: what params are latents of; its mask takes the place of mask. None
      says that params are weights.

  Returns:
    The weights with exactly the zeros asked for, or more where there were more,
    and a report to print.

  Raises:
    ValueError, TypeError: as :func:`prune`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> params = {"w": jnp.array([2e-5, -3.0, 1e-8, 2.0])}
    >>> weights, cut = rewa_jax.finalize(params, 0.5)
    >>> print(weights["w"])
    [ 0. -3.  0.  2.]
    >>> print(cut)
    2 of 4 weights are left, the smallest 2e+00; the largest cut was 2e-05.
    Cut above 1e-05: 1, above 1e-06: 1.
  """
  weights, mask = weights_and_mask(params, mask, method)
  pruned, _ = prune_to(weights, sparsity, scope, groups, mask)
  return pruned, _report(weights, pruned, mask)


def _report(before, after, mask):
  chosen = selected(mask, before)
  pairs = [
    (jnp.abs(jnp.asarray(x)), y != 0)
    for c, x, y in zip(chosen, jax.tree.leaves(before), jax.tree.leaves(after))
    if c
  ]
  cut = [jnp.where(kept, 0, size) for size, kept in pairs]
  # As floats: leaves may be of several dtypes.
  largest = [jnp.max(x, initial=0).astype(float) for x in cut]
  smallest = [
    jnp.min(size, initial=jnp.inf, where=kept).astype(float)
    for size, kept in pairs
  ]
  return Cut(
    count_nonzero(after, 0.0, mask),
    jnp.max(jnp.array(largest), initial=0),
    jnp.min(jnp.array(smallest), initial=jnp.inf),
    tuple(count_nonzero(cut, x, mask=None).total_nonzero for x in LEVELS),
  )


def _sentences(cut):
  report = cut.sparsity
  lines = [
    f"{int(report.total_nonzero):,} of {report.total_size:,} weights are left,"
    f" the smallest {cut.smallest_kept:.0e}; the largest cut was"
    f" {cut.largest_cut:.0e}."
  ]
  above = [
    f"above {level:.0e}: {int(n):,}" for level, n in zip(LEVELS, cut.above) if n
  ]
  if above:
    lines.append(f"Cut {', '.join(above)}.")
  empty = [path for path, n in report.nonzero.items() if not n]
  if empty:
    lines.append(f"Nothing is left of {', '.join(empty)}.")
  return "\n".join(lines)
