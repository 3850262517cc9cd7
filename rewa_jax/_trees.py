"""Leaves of trees: their paths, the boxes Flax puts them in, their shapes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core.meta import AxisMetadata

Path = tuple[str, ...]


def leaf_path(path: jax.tree_util.KeyPath) -> Path:
  """Returns the names on the way to a leaf, whatever the containers are."""
  # The trailing `.value` is that of a box.
  if path and path[-1] == jax.tree_util.GetAttrKey("value"):
    path = path[:-1]
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def path_name(path: jax.tree_util.KeyPath | Path) -> str:
  """Returns a leaf's path as users write it: dense/kernel."""
  names = path if all(isinstance(p, str) for p in path) else leaf_path(path)
  return "/".join(names) or "(the only leaf)"


def leaf_names(tree: Any) -> str:
  """Returns the paths of all leaves, for an error message."""
  paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
  return ", ".join(paths) if paths else "(none)"


# Where in an NNX model latents are; its optimizer sees nothing but the path.
NNX_LATENTS = "rewa_latents"


def bare_path(path: jax.tree_util.KeyPath) -> Path:
  """Returns the path that a leaf of latents has in the bare model."""
  return tuple(name for name in leaf_path(path) if name != NNX_LATENTS)


# Several arrays that stand for one are a dict with these keys: any container
# of params has dicts, and every format of checkpoints keeps them.
_PART = re.compile(r"latent_\d+")


def parts_of(values: Sequence[Any]) -> dict[str, Any]:
  """Returns the node that stores several arrays in the place of one."""
  return dict(zip(_part_names(len(values)), values))


def is_parts(node: Any) -> bool:
  """Whether a node stores several arrays in the place of one."""
  return (
    isinstance(node, Mapping)
    and len(node) > 1
    and sorted(map(str, node)) == _part_names(len(node))
    and all(is_box(v) or jax.tree_util.all_leaves([v]) for v in node.values())
  )


def outline(name: str, parts: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape and dtype of the weights that several arrays are for."""
  values = jax.tree.leaves(parts)
  shapes = [jnp.shape(value) for value in values]
  try:
    shape = jnp.broadcast_shapes(*shapes)
  except ValueError as error:
    raise ValueError(
      f"{name} holds arrays whose shapes do not go together:"
      f" {', '.join(map(str, shapes))}."
    ) from error
  return jax.ShapeDtypeStruct(shape, jnp.result_type(values[0]))


def for_all(marks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns what holds for all weights that an array of that shape serves."""
  shared = [i for i, n in enumerate(shape) if n != marks.shape[i]]
  return jnp.all(marks, axis=shared, keepdims=True) if shared else marks


def strip_part(path: Path) -> Path:
  """Returns the path of the array that a part stands for."""
  return path[:-1] if path and _PART.fullmatch(path[-1]) else path


def _part_names(count: int) -> list[str]:
  # In the order in which JAX flattens dicts.
  return sorted(f"latent_{i}" for i in range(count))


def is_box(node: Any) -> bool:
  """Whether a node is one leaf with metadata: a linen box, an NNX Variable."""
  return (
    isinstance(node, (AxisMetadata, nnx.Variable))
    and len(jax.tree.leaves(node)) == 1
  )


def unbox(node: Any) -> Any:
  """Returns what is inside a box, and anything else as it is."""
  if not is_box(node):
    return node
  if isinstance(node, nnx.Variable):
    return node.get_value()
  return jax.tree.leaves(node)[0]


def box_like(box: Any, value: Any) -> Any:
  """Puts value into a box like the given one, if it is one and names fit.

  A box may name the axes of its array, so only the same shape fits.
  """
  if not is_box(box) or jnp.shape(value) != jnp.shape(unbox(box)):
    return value
  if isinstance(box, nnx.Variable):
    return box.replace(value)
  return box.replace_boxed(value)


def check_shapes(name: str, tree: Any, like_name: str, like: Any) -> list[Any]:
  """Returns the leaves of tree in the order of like's, of the same shapes.

  Where like has a leaf, tree may have None (Equinox's gradients do).
  """
  leaves = flatten_up_to(name, tree, like_name, like)
  for (path, reference), leaf in zip(with_paths(like), leaves):
    if leaf is not None:
      check_shape(name, path, leaf, like_name, reference)
  return leaves


def check_shape(
  name: str, path: str, leaf: Any, like_name: str, reference: Any
) -> None:
  """Raises unless two leaves at a path have the same shape."""
  shape = jnp.shape(leaf) if jax.tree_util.all_leaves([leaf]) else "a subtree"
  if shape != jnp.shape(reference):
    raise ValueError(
      f"{name} and {like_name} differ at {path}: {name} has shape {shape},"
      f" {like_name} has shape {jnp.shape(reference)}."
    )


def flatten_up_to(
  name: str, tree: Any, like_name: str, like: Any, is_leaf=None
) -> list[Any]:
  """Returns what tree has where like has leaves, or says how they differ."""
  try:
    return jax.tree.structure(like, is_leaf=is_leaf).flatten_up_to(tree)
  except ValueError as error:
    raise ValueError(
      f"{name} and {like_name} are different trees: {name} has the leaves"
      f" {leaf_names(tree)}, {like_name} has {leaf_names(like)}."
    ) from error


def with_paths(tree: Any, is_leaf=None) -> Iterator[tuple[str, Any]]:
  """Yields the readable path and the value of every leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return ((path_name(path), leaf) for path, leaf in leaves)


def check_params(params: Any) -> None:
  """Raises where an optimizer that needs params is updated without them."""
  if params is None:
    raise ValueError(
      "params are missing: call update(updates, state, params). In a chain they"
      " are handed on to every part."
    )
