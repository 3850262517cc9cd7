"""Which weights stay when a share of the smallest goes."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rewa_jax._checks import check_number
from rewa_jax._groups import Groups, check_groups, group_axes, group_norms
from rewa_jax._masks import Mask, for_leaves, kernels, selected
from rewa_jax._quantile import above_quantile
from rewa_jax._trees import bare_path, is_parts, outline, path_name

# Signatures quote it: help() would spell out every type behind it.
Scope = Literal["global", "leaf"] | str


def check_ranking(sparsity: Any, scope: str, groups: Groups | None) -> None:
  """Raises unless these say what to rank; tracers pass unseen."""
  block = _block(scope)
  if groups is not None:
    check_groups(groups)
    if block:
      raise ValueError(
        f"scope {scope!r} and groups {groups!r} exclude each other: give one."
      )
  if not jnp.isscalar(sparsity) and not jax.tree_util.all_leaves([sparsity]):
    for path, share in jax.tree_util.tree_leaves_with_path(sparsity):
      name = f"sparsity at {path_name(path)}"
      check_number(name, share, at_least=0, at_most=1)
    if scope != "leaf":
      raise ValueError(
        "sparsity is a tree, a share for each leaf, so scope must be 'leaf',"
        f" got {scope!r}."
      )
    return
  check_number("sparsity", sparsity, at_least=0, at_most=1)
  if block and not isinstance(sparsity, Tracer):
    share = 1 - block[0] / block[1]
    if not math.isclose(float(sparsity), share, rel_tol=1e-6):
      raise ValueError(
        f"scope {scope!r} keeps {block[0]} of every {block[1]}, a sparsity of"
        f" {share:g}, got sparsity={sparsity}."
      )


def largest(
  tree: Any,
  chosen: Sequence[bool],
  sparsity: Any,
  scope: "Scope" = "global",
  groups: Groups | None = None,
  progress: int | jax.Array = 1,
) -> list[jax.Array]:
  """Says which weights stay when the smallest go.

  Args:
    tree: of weights, or of what orders them by size.
    chosen: which of its leaves are ranked.
    sparsity: the share that goes in the end, or a tree of shares.
    scope: what it is a share of, as :func:`rewa_jax.prune` has it.
    groups: what stays or goes together, or None for single weights.
    progress: how much of the sparsity is due: the integer 1, or an array.

  Returns:
    For every leaf that is chosen a mask of its shape.
  """
  leaves = [
    (path_name(bare_path(path)), jnp.asarray(leaf))
    for c, (path, leaf) in zip(
      chosen, jax.tree_util.tree_leaves_with_path(tree)
    )
    if c
  ]
  sizes = [x for _, x in leaves]
  if groups is not None:
    axes = [group_axes(groups, path, x) for path, x in leaves]
    # Per weight, so that groups of unlike sizes can be compared.
    sizes = [_root_mean_square(x, a) for (_, x), a in zip(leaves, axes)]
  elif block := _block(scope):
    sizes = [_losers(path, x, *block) for path, x in leaves]
  if scope == "leaf":
    shares = [sparsity] * len(chosen)
    if not jax.tree_util.all_leaves([sparsity]):
      shares = for_leaves("sparsity", sparsity, tree)
    shares = [share for c, share in zip(chosen, shares) if c]
    kept = [
      above_quantile([x], _times(share, progress))[0]
      for share, x in zip(shares, sizes)
    ]
  else:
    kept = above_quantile(sizes, _times(sparsity, progress))
  return [jnp.broadcast_to(k, x.shape) for k, (_, x) in zip(kept, leaves)]


def when_due(
  due: jax.Array, rank: Callable[[Any, Any], Any], given: Any, old: Any
) -> Any:
  """Ranks anew or not at all: ``rank(given, old)`` where due, else ``old``.

  A loop of one turn or none. It writes where the old masks lie, which a branch
  copies, and of many under vmap it runs when one is due, not at every update.
  """

  def turn(carry):
    due, old = carry

    def bound(x):
      is_float = jnp.issubdtype(jnp.result_type(x), jnp.inexact)
      return jnp.where(due, x, 0) if is_float else x

    # To a value of the carry, or XLA does before the loop what it can.
    bounded = jax.tree.map(bound, jax.lax.stop_gradient(given))
    return jnp.zeros_like(due), rank(bounded, old)

  start = due, jax.lax.stop_gradient(old)
  return jax.lax.while_loop(lambda carry: carry[0], turn, start)[1]


def cubic_progress(
  count: jax.Array, begin: int | jax.Array, end: int | jax.Array
) -> jax.Array:
  r"""Returns :math:`1 - (1 - u)^3`, u from 0 at begin to 1 at end."""
  return 1 - (1 - jnp.clip((count - begin) / (end - begin), 0, 1)) ** 3


def erdos_renyi_kernel(
  params: Any, sparsity: float, mask: "Mask | None" = kernels
) -> Any:
  r"""Spreads a sparsity over layers: thin ones keep a larger share.

  A leaf of the shape :math:`(n_1, n_2, \ldots)` keeps a share in proportion to

  .. math::
    \frac{n_1 + n_2 + \cdots}{n_1 \, n_2 \cdots},

  but no more than all, such that the shares make up the sparsity.

  Args:
    params: a tree of weights, or their shapes; of an NNX model that stores
      latents, of whatever method, its state.
    sparsity: the share of zeros among all selected weights, 0 to 1.
    mask: which leaves are sparse: a tree of bools with the structure of params
      or a prefix of it, a function of params that returns one, or None for all.

  Returns:
    A tree of shares of the structure of params, one for each array of weights,
    0 on leaves not selected: a ``sparsity`` for :func:`prune` and
    :func:`decay_by_rank` with the scope ``"leaf"``.

  Raises:
    ValueError: if sparsity is out of range, or the mask does not fit params or
      selects nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> params = {"first": {"kernel": jnp.ones((100, 100))},
    ...           "last": {"kernel": jnp.ones((100, 10))}}
    >>> shares = rewa_jax.erdos_renyi_kernel(params, 0.9)
    >>> print("{first[kernel]:.3f} {last[kernel]:.3f}".format(**shares))
    0.929 0.610

  References:
    Evci et al., `Rigging the lottery: making all tickets winners
    <https://arxiv.org/abs/1911.11134>`_, 2020, Section 3, (1)
  """
  check_number("sparsity", sparsity, at_least=0, at_most=1)
  nodes, treedef = jax.tree_util.tree_flatten_with_path(
    params, is_leaf=is_parts
  )
  leaves = [
    outline(path_name(path), node) if is_parts(node) else node
    for path, node in nodes
  ]
  chosen = selected(mask, treedef.unflatten(leaves))
  shapes = [jnp.shape(x) for x in leaves]
  sizes = np.array([c * math.prod(s) for c, s in zip(chosen, shapes)], float)
  weights = np.array([c * sum(s) for c, s in zip(chosen, shapes)], float)
  # Leaves that would keep more than all keep all, and the others the rest.
  # So does a scalar, which has no layer's shape.
  kept, full = np.zeros_like(sizes), sizes <= 1
  for _ in leaves:
    left = (1 - sparsity) * sizes.sum() - sizes[full].sum()
    open_weights = np.where(full, 0, weights)
    kept = open_weights * max(left, 0) / max(open_weights.sum(), 1)
    full |= kept > sizes
  kept = np.where(full, sizes, kept)
  shares = 1 - kept / np.maximum(sizes, 1)
  return treedef.unflatten(
    float(share) if c and n else 0.0
    for c, n, share in zip(chosen, sizes, shares)
  )


def _block(scope: str) -> tuple[int, int] | None:
  """Returns n and m of the scope n:m, None of the two that have names."""
  if scope in ("global", "leaf"):
    return None
  found = re.fullmatch(r"(\d+):(\d+)", str(scope))
  if not found or not 0 < int(found[1]) <= int(found[2]):
    raise ValueError(
      "scope must be 'global', 'leaf' or n:m with 0 < n <= m, such as '2:4',"
      f" got {scope!r}."
    )
  return int(found[1]), int(found[2])


def _losers(path: str, x: jax.Array, n: int, m: int) -> jax.Array:
  """Returns |x|, infinite where it is among the n largest of its m."""
  if x.ndim < 2:
    raise ValueError(
      f"{path} of shape {x.shape} has no inputs and outputs, of which blocks of"
      f" {m} are made. Pass a mask that is False there."
    )
  # The innermost of the input axes, along which kernels multiply.
  axis = group_axes("input", path, x)[-1]
  if x.shape[axis] % m:
    raise ValueError(
      f"{path} of shape {x.shape} has {x.shape[axis]} inputs, which do not make"
      f" blocks of {m}. Pass a mask that is False there."
    )
  size = jnp.abs(x).reshape(*x.shape[:axis], -1, m, *x.shape[axis + 1 :])
  size = jnp.where(jnp.isnan(size), jnp.inf, size)
  place = jax.lax.broadcasted_iota(jnp.int32, size.shape, axis + 1)
  before = jnp.zeros(size.shape, jnp.int32)
  for i in range(m):
    other = jax.lax.slice_in_dim(size, i, i + 1, axis=axis + 1)
    ahead = (other > size) | ((other == size) & (i > place))
    before += ahead.astype(jnp.int32)
  # A loser that is infinite itself still loses.
  losers = jnp.minimum(size, jnp.finfo(size.dtype).max)
  return jnp.where(before < n, jnp.inf, losers).reshape(x.shape)


def _root_mean_square(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  norms = group_norms(x, axes)
  return norms / math.sqrt(x.size / norms.size)


def _times(share: Any, progress: int | jax.Array) -> Any:
  # The whole share as it is: a product with an array would round it.
  return share if isinstance(progress, int) else share * progress
