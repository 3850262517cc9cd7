"""What is zero at the start stays zero: fine-tuning of pruned networks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rewa_jax._masks import Mask, kernels, select
from rewa_jax._method import Method, check_method, is_node
from rewa_jax._trees import (
  check_params,
  check_shapes,
  for_all,
  is_parts,
  leaf_path,
  path_name,
)


class KeepZerosState(NamedTuple):
  """State of :func:`keep_zeros`.

  Attributes:
    masks: bool arrays of the selected leaves, False where nothing may move,
      ``optax.MaskedNode`` elsewhere.
  """

  masks: optax.Params


def keep_zeros(
  *, mask: "Mask | None" = kernels, method: Method | None = None
) -> optax.GradientTransformationExtraArgs:
  """Keeps zero what is zero at ``init``, whatever momentum and decay want.

  The last of a chain, in every way in: on weights, on latents, inside or after
  the drop-in. Params that change from outside need a new ``init``.

  Args:
    mask: whose zeros are kept: a tree of bools with the structure of params or
      a prefix of it, a function that returns one, or None for all leaves.
      Biases, which start at zero, are not selected by default.
    method: what params are latents of; its mask takes the place of mask, and
      latents stay as they are where their weights are zero. None says that
      params are weights, as behind the drop-in.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` whose updates are zero
    where weights were zero at ``init``, and as they are elsewhere.

  Raises:
    ValueError: if the mask does not fit params or selects nothing by name,
      params hold latents of several arrays for one without a method, or are not
      latents of the method; on ``update``, if params are missing or updates
      differ from them in structure or shape.
    TypeError: if a selected leaf is not floating point.

  Examples:
    Fine-tuning a pruned network:

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> params = {"w": jnp.array([3.0, 0.125, -2.0])}
    >>> params, _ = rewa_jax.prune(params, threshold=1.0)
    >>> solver = optax.chain(optax.sgd(0.5), rewa_jax.keep_zeros())
    >>> state = solver.init(params)
    >>> updates, state = solver.update(params, state, params)
    >>> print(optax.apply_updates(params, updates)["w"])
    [ 1.5  0.  -1. ]
  """

  if method is not None:
    check_method(method)
    if mask is not kernels:
      raise ValueError("mask and method both select leaves. Leave mask out.")

  def init_fn(params):
    if method is None:
      return KeepZerosState(_of_weights(mask, params))
    return KeepZerosState(_of_latents(method, params))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check_params(params)
    steps = check_shapes("updates", updates, "params", params)
    treedef = jax.tree.structure(params)
    kept = [
      u
      if u is None or isinstance(keep, optax.MaskedNode)
      else jnp.where(keep, u, jnp.zeros_like(u))
      for keep, u in zip(treedef.flatten_up_to(state.masks), steps)
    ]
    return treedef.unflatten(kept), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _of_weights(mask, params):
  """Returns where selected weights are not zero."""
  for path, node in jax.tree_util.tree_leaves_with_path(
    params, is_leaf=is_node
  ):
    if is_parts(node):
      raise ValueError(
        f"{path_name(leaf_path(path))} holds latents, several arrays for one,"
        " which are not zero where their weights are. Pass their method."
      )
  return jax.tree.map(
    lambda is_selected, x: (
      jnp.asarray(x) != 0 if is_selected else optax.MaskedNode()
    ),
    select(mask, params),
    params,
  )


def _of_latents(method, latents):
  """Returns where latents serve a weight that is not zero."""

  def of_one(_, node):
    values, treedef = jax.tree.flatten(node)
    is_zero = method.exact_join(*map(jnp.asarray, values)) == 0
    return treedef.unflatten(~for_all(is_zero, jnp.shape(y)) for y in values)

  return method.map_latents(
    of_one,
    latents,
    lambda node: jax.tree.map(lambda _: optax.MaskedNode(), node),
  )
