"""Gradual magnitude pruning, as the last link of an optax chain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rewa_jax._checks import check_number
from rewa_jax._groups import Groups
from rewa_jax._masks import Mask, kernels, select
from rewa_jax._power import wide_dtype
from rewa_jax._ranking import (
  Scope,
  check_ranking,
  cubic_progress,
  largest,
  when_due,
)
from rewa_jax._trees import check_params, check_shapes


class GradualPruningState(NamedTuple):
  """State of :func:`gradual_pruning`.

  Attributes:
    count: the number of updates so far, a scalar int32.
    masks: bool arrays of the selected leaves, False where a weight is pruned,
      ``optax.MaskedNode`` elsewhere.
  """

  count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
  masks: optax.Params


def gradual_pruning(
  sparsity: Any,
  *,
  begin: int | jax.Array,
  end: int | jax.Array,
  every: int | jax.Array = 100,
  scope: "Scope" = "global",
  groups: Groups | None = None,
  mask: "Mask | None" = kernels,
) -> optax.GradientTransformationExtraArgs:
  r"""Prunes ever more of the smallest weights while training goes on.

  .. math::
    s_t = s\left(1 - \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^3\right)

  of the weights are pruned after update t, counted from 0, of the updates
  :math:`t_0` to :math:`t_1`, at every so many of which the smallest weights
  join those pruned. What is pruned stays zero, whatever the momentum; what is
  zero but not pruned goes on training.

  Args:
    sparsity: s, the share pruned in the end, 0 to 1. May be traced, as the
      next three may.
    begin: :math:`t_0` >= 0, the update from which on weights are pruned.
    end: :math:`t_1` >= begin + 1, the update after which the last are pruned.
    every: how many updates apart weights are pruned, >= 1.
    scope: what sparsity is a share of: ``"global"``, all selected leaves
      together, ``"leaf"``, each on its own, or ``"n:m"``; see
      :func:`rewa_jax.prune`, also for trees of shares and for groups.
    groups: what is pruned together, or None for single weights.
    mask: which leaves to prune: a tree of bools with the structure of params or
      a prefix of it, a function that returns one, or None for all.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` that is the last of a
    chain: it needs to see the updates as they will be added to params. Updates
    of selected leaves have the dtype of params.

  Raises:
    ValueError: if an argument is out of range, or the mask does not fit params
      or selects nothing by name; on ``update``, if params are missing or
      updates differ from them in structure or shape.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from rewa_jax import baselines
    >>> solver = optax.chain(
    ...   optax.sgd(0.125), baselines.gradual_pruning(0.5, begin=0, end=10))
    >>> params = {"w": jnp.array([3.0, 0.125, -2.0, 0.25])}
    >>> grads = {"w": jnp.array([1.0, 0.0, 1.0, 0.0])}
    >>> state = solver.init(params)
    >>> for _ in range(11):
    ...   updates, state = solver.update(grads, state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> print(params["w"])
    [ 1.625  0.    -3.375  0.   ]

  References:
    Zhu and Gupta, `To prune, or not to prune: exploring the efficacy of pruning
    for model compression <https://arxiv.org/abs/1710.01878>`_, 2017, Eq. 1
  """
  check_ranking(sparsity, scope, groups)
  check_number("begin", begin, at_least=0)
  check_number("end", end, at_least=1)
  check_number("end - begin", end - begin, at_least=1)
  check_number("every", every, at_least=1)

  def init_fn(params):
    masks = jax.tree.map(
      lambda selected, x: (
        jnp.ones_like(x, bool) if selected else optax.MaskedNode()
      ),
      select(mask, params),
      params,
    )
    return GradualPruningState(jnp.zeros([], jnp.int32), masks)

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check_params(params)
    leaves, treedef = jax.tree.flatten(params)
    ahead = check_shapes("updates", updates, "params", params)
    masks = treedef.flatten_up_to(state.masks)
    selected = [not isinstance(keep, optax.MaskedNode) for keep in masks]
    weights = [jnp.asarray(x) for s, x in zip(selected, leaves) if s]
    steps = [0 if u is None else u for s, u in zip(selected, ahead) if s]
    kept = [keep for s, keep in zip(selected, masks) if s]

    since = state.count - begin

    def choose(given, kept):
      moved = iter(
        jnp.where(keep, _size(x + u), 0) for keep, x, u in zip(kept, *given)
      )
      # A tree again, by whose paths leaves are told.
      tree = treedef.unflatten(
        next(moved) if s else leaf for s, leaf in zip(selected, leaves)
      )
      progress = cubic_progress(state.count, begin, end)
      above = largest(tree, selected, sparsity, scope, groups, progress)
      return [keep & new for keep, new in zip(kept, above)]

    due = (since % every == 0) | (state.count == end)
    due = due & (since >= 0) & (state.count <= end)
    kept = when_due(due, choose, (weights, steps), kept)
    steps = [
      jnp.where(keep, u, -x).astype(x.dtype)
      for keep, x, u in zip(kept, weights, steps)
    ]
    kept, steps = iter(kept), iter(steps)
    masks = [next(kept) if s else keep for s, keep in zip(selected, masks)]
    ahead = [next(steps) if s else u for s, u in zip(selected, ahead)]
    count = jnp.asarray(optax.safe_increment(state.count))
    return (
      treedef.unflatten(ahead),
      GradualPruningState(count, treedef.unflatten(masks)),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _size(x):
  """Returns |x|, but more than 0: of zeros those that are pruned go first."""
  size = jnp.abs(x).astype(wide_dtype(x))
  return jnp.maximum(size, jnp.finfo(size.dtype).tiny)
