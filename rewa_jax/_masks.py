"""Which leaves of a tree are reparameterized, decayed, penalized, counted."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rewa_jax._checks import check_floating
from rewa_jax._trees import (
  Path,
  check_params,
  check_shapes,
  leaf_names,
  leaf_path,
  path_name,
  strip_part,
  with_paths,
)

Mask = Any | Callable[[Any], Any]

_KERNEL_NAMES = (
  *("kernel", "weight", "weight_ih", "weight_hh"),
  *("w", "w_i", "w_h"),
)
# In the libraries that call a kernel so, these owners have one too.
_SHARED_NAMES = ("weight", "w")
_OTHER_OWNERS = ("norm", "embed")


class _Kernels(NamedTuple):
  """Stands for `kernels` where no callable can: it is an empty pytree."""


def kernels(params: Any) -> Any:
  """Selects the kernels of a network: what ReWA reparameterizes by default.

  A leaf is a kernel by its name: ``kernel`` (Flax's Dense, Conv, attention and
  recurrent cells), ``weight``, ``weight_ih``, ``weight_hh`` (Equinox) or ``w``,
  ``w_i``, ``w_h`` (Haiku). Biases, norm scales, embeddings and statistics are
  plain, and so is a ``weight`` or ``w`` of a layer that has one axis or is a
  norm or an embedding, told by its class or, in dicts, by its key.

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
  if is_step_count(params):
    return _Kernels()
  mask = jax.tree_util.tree_map_with_path(
    lambda path, leaf: _is_kernel(path, leaf, params), params
  )
  leaves = jax.tree.leaves(mask)
  if leaves and not any(leaves):
    raise ValueError(
      f"No leaf is named {', '.join(_KERNEL_NAMES[:-1])} or"
      f" {_KERNEL_NAMES[-1]}, so nothing would be reparameterized. The leaves"
      f" are {leaf_names(params)}. Pass mask, a tree of bools or a function"
      " of params that returns one."
    )
  return mask


def selected(mask: Mask | None, params: Any) -> list[bool]:
  """Returns a bool for every leaf of params, in the order of jax.tree.leaves.

  Args:
    mask: a tree of bools with the structure of params or a prefix of it, a
      function of params that returns one, or None for every leaf. Leaves are
      found by their paths, so dicts may be frozen or states of NNX on one side.
    params: the tree to select from; of linen's variables what is in
      ``"params"``.

  Raises:
    ValueError: if the mask's structure is neither.
    TypeError: if a leaf of the mask is no bool, or a selected leaf of params is
      not floating point; the message names its path.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  chosen = _chosen(mask, params, [leaf_path(path) for path, _ in leaves])
  for is_chosen, (path, leaf) in zip(chosen, leaves):
    if is_chosen:
      check_floating(path_name(path), leaf)
  return chosen


def select(mask: Mask | None, params: Any) -> Any:
  """Returns :func:`selected` as a tree of the structure of params."""
  return jax.tree.unflatten(jax.tree.structure(params), selected(mask, params))


def transform_selected(
  fn: Callable[[str, Any, Any], Any], mask: Mask | None
) -> optax.GradientTransformationExtraArgs:
  """Replaces updates of selected leaves by fn(path, update, leaf of params)."""

  def init_fn(params):
    selected(mask, params)
    return optax.EmptyState()

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    return update_selected(fn, mask, updates, params), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def update_selected(
  fn: Callable[[str, Any, Any], Any],
  mask: Mask | None,
  updates: Any,
  params: Any,
) -> Any:
  """Returns updates, those of selected leaves by fn in the dtype of params."""
  check_params(params)
  steps = check_shapes("updates", updates, "params", params)
  changed = [
    jnp.asarray(fn(path, u, jnp.asarray(x))).astype(jnp.result_type(x))
    if is_selected and u is not None
    else u
    for is_selected, (path, x), u in zip(
      selected(mask, params), with_paths(params), steps
    )
  ]
  return jax.tree.unflatten(jax.tree.structure(params), changed)


def _chosen(mask: Any, params: Any, paths: list[Path]) -> list[bool]:
  if mask is None:
    inside = not _is_variables(params)
    return [inside or path[0] == "params" for path in paths]
  if isinstance(mask, _Kernels):
    mask = kernels
  if callable(mask) and jax.tree_util.all_leaves([mask]):
    mask = mask(_inside(params))
  elif jnp.isscalar(mask) and paths != [()]:
    raise TypeError(
      "mask must be a tree of bools, a function, or None for all leaves, got"
      f" {mask!r}. Under optax.inject_hyperparams a function is taken for a"
      " schedule, of which such a value comes: name mask in its static_args, or"
      " let a method carry the mask."
    )
  in_variables = _is_variables(mask)
  for path, mark in jax.tree_util.tree_leaves_with_path(mask):
    if not isinstance(mark, (bool, np.bool_)):
      raise TypeError(
        f"mask must have bools as leaves, got {mark!r} at {path_name(path)}."
      )
    if in_variables and mark and leaf_path(path)[0] != "params":
      raise ValueError(
        "mask must be False in collections other than params, got True at"
        f" {path_name(path)}."
      )
  return list(map(bool, for_leaves("mask", mask, params)))


def for_leaves(name: str, tree: Any, params: Any) -> list[Any]:
  """Returns for every leaf of params what a tree has there, or above it.

  Args:
    name: of the tree, for an error message.
    tree: of the structure of params or a prefix of it. Leaves are found by
      their paths. Of linen's variables params alone count: other collections
      get 0.
    params: the tree to cover.

  Raises:
    ValueError: if the tree's structure is neither.
  """
  tree = _inside(tree)
  if _is_variables(params):
    inside = iter(for_leaves(name, tree, params["params"]))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    is_inside = [leaf_path(path)[0] == "params" for path, _ in leaves]
    return [next(inside) if there else 0 for there in is_inside]
  found = {
    leaf_path(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  paths = [leaf_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
  covering = [
    next((p for p in _prefixes(path) if p in found), None) for path in paths
  ]
  empty = _empty(params)
  unused = [
    path
    for path in found.keys() - set(covering)
    if empty.isdisjoint(_prefixes(path))
  ]
  if None in covering or unused:
    raise ValueError(
      f"{name} must have the structure of params or a prefix of it. {name} has"
      f" the leaves {leaf_names(tree)}, params has {leaf_names(params)}."
    )
  return [found[path] for path in covering if path is not None]


def _inside(tree: Any) -> Any:
  """Returns the params of linen's variables, or the tree if it is none.

  So masks are of the same tree whether an optimizer trains variables or params.
  """
  return tree["params"] if _is_variables(tree) else tree


def _is_variables(tree: Any) -> bool:
  """Whether a tree, or a mask of it, has params and at most collections."""
  # A State has the names that a user gave attributes.
  if not isinstance(tree, Mapping) or isinstance(tree, nnx.State):
    return False
  # A mask may have a bool for all params.
  return "params" in tree and (
    len(tree) == 1 or isinstance(tree["params"], (Mapping, bool))
  )


def _prefixes(path: Path) -> Iterator[Path]:
  """Yields a path and those of the nodes above it, the longest first."""
  return (path[:i] for i in range(len(path), -1, -1))


def _empty(tree: Any) -> set[Path]:
  """Returns the paths of subtrees without leaves, None among them."""
  nodes = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda node: not jax.tree.leaves(node)
  )
  return {leaf_path(path) for path, node in nodes if not jax.tree.leaves(node)}


def _is_kernel(path: jax.tree_util.KeyPath, leaf: Any, params: Any) -> bool:
  # What stands for one weight in several arrays is named after it.
  path = path[: len(strip_part(leaf_path(path)))]
  name = _key_name(path[-1]) if path else ""
  if name not in _KERNEL_NAMES:
    return False
  if name not in _SHARED_NAMES:
    return True
  owner = _owner_name(path, params).lower()
  if any(word in owner for word in _OTHER_OWNERS):
    return False
  return jnp.ndim(leaf) > 1 or not owner


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


def is_step_count(params: Any) -> bool:
  """Whether a function of params was called with a step.

  optax.inject_hyperparams takes every callable argument for a schedule, a
  default mask too, calls it with the step and hands back what it returned.
  """
  return (
    isinstance(params, jax.Array)
    and params.ndim == 0
    and jnp.issubdtype(params.dtype, jnp.integer)
  )
