"""Where the gap between dead and live weights is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rewa_jax._masks import Mask, kernels, selected
from rewa_jax._method import Method, weights_and_mask
from rewa_jax._quantile import as_float, count
from rewa_jax._sparsity import show_each

# Thresholds that are tried: so many for every factor of 10, in all so many.
_PER_DECADE = 4
_DECADES = 45
# How many weights in a gap are none, as a share of the smaller side. A side
# that is itself less than 100 times the other share of all is a few outliers.
_FEW = 0.01
_OUTLIERS = 1e-6


class Separation(NamedTuple):
  """The result of :func:`separation`; jit and vmap may return it.

  Attributes:
    threshold: where to prune, the middle of the gap on a logarithmic scale.
    gap: how many decades wide the gap is, 0 if there is none.
    below: the share of the weights that pruning there makes zero.
    near: the share of the weights within a decade around it.
  """

  threshold: jax.Array
  gap: jax.Array
  below: jax.Array
  near: jax.Array

  def __str__(self) -> str:
    return show_each(self, _sentence)


def separation(
  params: Any,
  mask: "Mask | None" = kernels,
  *,
  method: Method | None = None,
) -> Separation:
  r"""Looks for the gap between weights that are dead and those in use.

  Weight decay, given enough budget, parts the weights into tiny ones and live
  ones with a wide gap in :math:`\log|x|` between, where a threshold of
  :func:`prune` costs nothing. With N(t) the number of nonzero weights with
  :math:`|x| \le t`, n of all, the gap is the widest :math:`(a, b]` such that

  .. math::
    N(b) - N(a) + 10^{-6}\,n \;\le\; \tau\,\min(N(a),\, n - N(b)),
    \qquad \tau = 0.01

  so that next to nothing is inside, and what is a ten-thousandth of the
  weights or less is no side but a few outliers. Ends are quarters of decades.
  If no such gap is a decade wide, zeros are counted as dead weights too; if
  still none is, there is no gap, and the threshold is the middle of the decade
  that needs the smallest :math:`\tau`. Pruning there, or anywhere, may cut off
  weights in use; more decay budget helps.

  Args:
    params: a tree of weights, or of latents of the given method.
    mask: which leaves to look at: a tree of bools with the structure of params
      or a prefix of it, a function that returns one, or None for all.
    method: what params are latents of; its mask takes the place of mask. None
      says that params are weights.

  Returns:
    The threshold and how well it separates; ``print`` says it in words.

  Raises:
    ValueError: if params hold latents without a method or of another, or the
      mask does not fit params or selects nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> dead, live = jnp.logspace(-9, -7.1, 900), jnp.logspace(-1.9, 0, 100)
    >>> params = {"kernel": jnp.concatenate([dead, -live])}
    >>> report = rewa_jax.separation(params)
    >>> print(report)
    threshold 3.2e-05, in a gap of 5.0 decades
    90.00% of the weights are below, 0.00% within a decade around
    >>> pruned, _ = rewa_jax.prune(params, threshold=report.threshold)
  """
  params, mask = weights_and_mask(params, mask, method)
  chosen = selected(mask, params)
  leaves = [x for c, x in zip(chosen, jax.tree.leaves(params)) if c]
  return _separation([jnp.asarray(x) for x in leaves])


@jax.jit
def _separation(leaves):
  with jax.numpy_dtype_promotion("standard"):
    dtype = jnp.result_type(jnp.float32, *leaves)
  tiny = jnp.finfo(dtype).tiny

  def up_to(threshold):
    return as_float(
      count([jnp.abs(x).astype(dtype) <= threshold for x in leaves])
    )

  top = jnp.asarray(tiny, dtype)
  for x in leaves:
    finite = jnp.where(jnp.isfinite(x), jnp.abs(x), 0).astype(dtype)
    top = jnp.maximum(top, jnp.max(finite, initial=0))
  # From the largest weight down, and never below what floats can hold.
  decades = jnp.arange(-_DECADES * _PER_DECADE, 1, dtype=dtype) / _PER_DECADE
  ends = jnp.maximum(jnp.log10(top) + decades, jnp.log10(tiny))
  counts = jax.lax.map(up_to, 10**ends)
  zeros, size = up_to(0.0), float(sum(x.size for x in leaves))

  width = ends[None] - ends[:, None]
  inside = counts[None] - counts[:, None]

  def widest(ignored):
    """Returns the ends of the widest gap and the tau it takes."""
    sides = jnp.minimum(counts[:, None] - ignored, size - counts[None])
    needed = inside + _OUTLIERS * (size - ignored)
    needed = jnp.where(sides > 0, needed / sides, jnp.inf)
    # Of ends that differ by a decade, rounded.
    decade = width > 1 - 0.5 / _PER_DECADE
    tau = jnp.maximum(_FEW, jnp.min(jnp.where(decade, needed, jnp.inf)))
    fits = (needed <= tau) & jnp.isfinite(needed)
    best = jnp.argmax(jnp.where(fits, width, 0))
    return (*jnp.divmod(best, len(ends)), tau)

  of_nonzero, of_all = widest(zeros), widest(0.0)
  low, high, tau = (
    jnp.where(of_nonzero[2] > _FEW, b, a) for a, b in zip(of_nonzero, of_all)
  )
  middle = (ends[low] + ends[high]) / 2
  near = up_to(10 ** (middle + 0.5)) - up_to(10 ** (middle - 0.5))
  return Separation(
    threshold=10**middle,
    gap=jnp.where(tau > _FEW, 0, width[low, high]),
    below=up_to(10**middle) / max(size, 1.0),
    near=near / max(size, 1.0),
  )


def _sentence(report):
  gap = f"in a gap of {report.gap:.1f} decades" if report.gap else "but no gap"
  return (
    f"threshold {report.threshold:.1e}, {gap}\n"
    f"{report.below:.2%} of the weights are below,"
    f" {report.near:.2%} within a decade around"
  )
