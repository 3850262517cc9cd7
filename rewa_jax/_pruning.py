"""Cutting off what is small."""

from typing import Any

import jax
import jax.numpy as jnp

from rewa_jax._checks import Scalar, check_number
from rewa_jax._groups import Groups
from rewa_jax._masks import Mask, kernels, selected
from rewa_jax._method import Method, weights_and_mask
from rewa_jax._power import as_wide
from rewa_jax._ranking import Scope, check_ranking, largest


def prune(
  params: Any,
  *,
  threshold: "Scalar | None" = None,
  sparsity: Any = None,
  scope: "Scope" = "global",
  groups: Groups | None = None,
  mask: "Mask | None" = kernels,
  method: Method | None = None,
) -> tuple[Any, Any]:
  """Sets the smallest weights to zero.

  Weights may be sharded, but not in ``jax.shard_map``, where each device sees
  its part alone, nor for n:m along the inputs on an explicit mesh; what is
  returned is sharded as they are. Nothing is sorted, and nothing of their size
  but the result is kept.

  Args:
    params: a tree of weights, or of latents of the given method.
    threshold: prune entries with absolute value <= threshold, >= 0;
      :func:`separation` finds one. May be traced, as sparsity may.
    sparsity: prune this share of the entries, 0 to 1, those of the smallest
      absolute value; of equal ones the first, NaN last. Give either this or
      threshold. A traced float32 is a share to one part in 2^24. Or a tree of
      shares, of the structure of the weights or a prefix of it, with the scope
      ``"leaf"``; :func:`erdos_renyi_kernel` makes one.
    scope: what sparsity is a share of: ``"global"``, all selected leaves
      together, ``"leaf"``, each on its own, or ``"n:m"``, such as ``"2:4"``: of
      every m weights along the input axis all but the n largest go.
    groups: what goes or stays together, by its norm per weight, see
      :func:`baselines.group_axes`; sparsity is then a share of groups. None for
      single weights.
    mask: which leaves to prune: a tree of bools with the structure of params or
      a prefix of it, a function that returns one, or None for all.
    method: what params are latents of; its mask takes the place of mask. None
      says that params are weights.

  Returns:
    The pruned weights, of which ``method.to_latents`` makes latents again, and
    masks: a tree of bool arrays of the same structure and shapes, False where a
    weight is zero by pruning or was before; all True on leaves not selected.
    Multiplying updates of weights by masks keeps zeros zero.

  Raises:
    ValueError: if not exactly one of threshold and sparsity is given, either is
      out of range, scope or groups are unknown, do not fit a leaf or come with
      a threshold, params hold latents without a method or of another, or the
      mask does not fit params or selects nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> params = {"w": jnp.array([0.1, -3.0, 0.0, 2.0])}
    >>> pruned, masks = rewa_jax.prune(params, sparsity=0.5)
    >>> print(pruned["w"], masks["w"])
    [ 0. -3.  0.  2.] [False  True False  True]
  """
  weights, mask = weights_and_mask(params, mask, method)
  if threshold is not None and sparsity is None:
    check_number("threshold", threshold, at_least=0)
    if scope != "global" or groups is not None:
      raise ValueError(
        "threshold prunes single weights, wherever they are: scope and groups"
        f" go with sparsity, got scope={scope!r}, groups={groups!r}."
      )
    chosen = selected(mask, weights)
    ranked = [leaf for c, leaf in zip(chosen, jax.tree.leaves(weights)) if c]
    # Wide, or a threshold would be rounded to sixteen bits.
    kept = [~(jnp.abs(as_wide(leaf)) <= threshold) for leaf in ranked]
    return _keep(weights, chosen, kept)
  if sparsity is not None and threshold is None:
    return prune_to(weights, sparsity, scope, groups, mask)
  raise ValueError(
    "Give exactly one of threshold and sparsity, got"
    f" threshold={threshold}, sparsity={sparsity}."
  )


def prune_to(
  weights: Any,
  sparsity: Any,
  scope: Scope,
  groups: Groups | None,
  mask: Mask | None,
) -> tuple[Any, Any]:
  """Prunes weights that are known to be no latents to a sparsity."""
  check_ranking(sparsity, scope, groups)
  chosen = selected(mask, weights)
  kept = largest(weights, chosen, sparsity, scope, groups)
  return _keep(weights, chosen, kept)


def _keep(weights, chosen, kept):
  """Returns pruned weights and masks; kept are those of the chosen leaves."""
  leaves, treedef = jax.tree.flatten(weights)
  kept = iter(kept)
  masks = [
    next(kept) & (leaf != 0) if c else jnp.ones(jnp.shape(leaf), bool)
    for c, leaf in zip(chosen, leaves)
  ]
  pruned = [
    jnp.where(keep, leaf, 0) if c else leaf
    for c, leaf, keep in zip(chosen, leaves, masks)
  ]
  return treedef.unflatten(pruned), treedef.unflatten(masks)
