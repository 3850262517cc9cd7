"""Which leaves of a parameter tree are reparameterized."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rewa_jax.checks import check_floating, leaf_paths, path_name, strip_box

Mask = Any | Callable[[Any], Any]

_KERNEL_NAMES = (
  *("kernel", "weight", "weight_ih", "weight_hh"),
  *("w", "w_i", "w_h"),
)
# In the libraries that call a kernel "weight", these owners have one too.
_OTHER_OWNERS = ("norm", "embed")


class _Kernels(NamedTuple):
  """Stands for `kernels` where no callable can: it is an empty pytree."""


def kernels(params: Any) -> Any:
  """Selects the kernels of a network: what ReWA reparameterizes by default.

  A leaf is a kernel by its name: ``kernel`` (Flax's Dense, Conv, attention and
  recurrent cells), ``weight``, ``weight_ih``, ``weight_hh`` (Equinox) or ``w``,
  ``w_i``, ``w_h`` (Haiku). Biases, norm scales, embeddings and statistics are
  plain, and so is a ``weight`` that has one axis or whose owner is a norm or an
  embedding, told by its class or, in dicts, by its key.

  Args:
    params: a tree of parameters: Flax variables, an ``nnx.State``, an Equinox
      module, Haiku params or nested dicts. Boxes are looked into.

  Returns:
    A tree of bools of the same structure, True on kernels.

  Raises:
    ValueError: if params has leaves and none of them is a kernel, since a
      network must not train dense in silence.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    >>> rewa_jax.kernels(params)
    {'dense': {'bias': False, 'kernel': True}}
  """
  if _is_step_count(params):
    return _Kernels()
  mask = jax.tree_util.tree_map_with_path(
    lambda path, leaf: _is_kernel(path, leaf, params), params
  )
  leaves = jax.tree.leaves(mask)
  if leaves and not any(leaves):
    raise ValueError(
      f"No leaf is named {', '.join(_KERNEL_NAMES[:-1])} or"
      f" {_KERNEL_NAMES[-1]}, so nothing would be reparameterized. The leaves"
      f" are {leaf_paths(params)}. Pass mask, a tree of bools or a function"
      " of params that returns one."
    )
  return mask


def select(mask: Mask | None, params: Any) -> Any:
  """Returns a bool for every leaf of params.

  Args:
    mask: a tree of bools with the structure of params or a prefix of it, a
      function of params that returns one, or None for every leaf.
    params: the tree to select from.

  Raises:
    ValueError: if the mask's structure is neither.
    TypeError: if a leaf of the mask is no bool, or a selected leaf of params is
      not floating point; the message names its path.
  """
  if mask is None:
    mask = True
  elif isinstance(mask, _Kernels):
    mask = kernels(params)
  elif callable(mask):
    mask = mask(params)
  for path, selected in jax.tree_util.tree_leaves_with_path(mask):
    if not isinstance(selected, (bool, np.bool_)):
      raise TypeError(
        f"mask must have bools as leaves, got {selected!r} at"
        f" {path_name(path)}."
      )
  try:
    full = jax.tree.map(
      lambda selected, part: jax.tree.map(lambda _: bool(selected), part),
      mask,
      params,
    )
  except ValueError as error:
    raise ValueError(
      "mask must have the structure of params or a prefix of it. mask has the"
      f" leaves {leaf_paths(mask)}, params has {leaf_paths(params)}."
    ) from error
  jax.tree_util.tree_map_with_path(
    lambda path, selected, leaf: (
      selected and check_floating(path_name(path), leaf)
    ),
    full,
    params,
  )
  return full


def map_selected(
  fn: Callable[[Any], Any], mask: Mask | None, params: Any
) -> Any:
  """Applies fn to the selected leaves and leaves the others as in params."""
  return jax.tree.map(
    lambda selected, leaf: fn(leaf) if selected else leaf,
    select(mask, params),
    params,
  )


def _is_kernel(path: jax.tree_util.KeyPath, leaf: Any, params: Any) -> bool:
  path = strip_box(path)
  name = _key_name(path[-1]) if path else ""
  if name not in _KERNEL_NAMES:
    return False
  if name != "weight":
    return True
  owner = _owner_name(path, params).lower()
  return jnp.ndim(leaf) > 1 and not any(word in owner for word in _OTHER_OWNERS)


def _owner_name(path: jax.tree_util.KeyPath, params: Any) -> str:
  """Returns the class that the leaf is an attribute of, or the dict's key."""
  if not isinstance(path[-1], jax.tree_util.GetAttrKey):
    return _key_name(path[-2]) if len(path) > 1 else ""
  owner = params
  for key in path[:-1]:
    if isinstance(key, jax.tree_util.GetAttrKey):
      owner = getattr(owner, key.name)
    elif isinstance(key, jax.tree_util.DictKey):
      owner = owner[key.key]
    elif isinstance(key, jax.tree_util.SequenceKey):
      owner = owner[key.idx]
    else:  # A custom node that does not say how it is indexed.
      return _key_name(path[-2])
  return type(owner).__name__


def _key_name(key: Any) -> str:
  return jax.tree_util.keystr((key,), simple=True)


def _is_step_count(params: Any) -> bool:
  # optax.inject_hyperparams takes every callable argument for a schedule, a
  # default mask too, calls it with the step and hands back what it returned.
  return (
    isinstance(params, jax.Array)
    and params.ndim == 0
    and jnp.issubdtype(params.dtype, jnp.integer)
  )
