"""What defines a reparameterization, said once: trees to latents and back."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, serialization
from flax.core import freeze
from jax.core import Tracer

from rewa_jax._checks import Scalar
from rewa_jax._masks import Mask, is_step_count, kernels, selected
from rewa_jax._trees import (
  NNX_LATENTS,
  Path,
  box_like,
  is_box,
  is_parts,
  leaf_path,
  outline,
  parts_of,
  path_name,
  unbox,
)

# Metadata of fields: no number, so never traced; and a number that only says
# where latents start or how they step, not which weights belong to them.
STATIC = {"static": True}
NOT_THE_MAP = {"maps": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A way to compute weights from latents, and to train the latents.

  A method is a frozen dataclass of hyperparameters that derives from this class
  and says in :meth:`split` and :meth:`join` how one array of weights is stored.
  Everything that maps between weights and latents takes a method: the functions
  below for trees, :func:`sgd` and :func:`adamw`, :func:`reparameterize`, and
  the modules of :mod:`rewa_jax.linen` and :mod:`rewa_jax.nnx`.

  Latents have the tree of the weights. A method that stores several arrays for
  one keeps them in a dict with the keys ``latent_0``, ``latent_1``, ... in the
  place of the leaf.

  A method is a pytree whose leaves are its numbers: they may be traced, and one
  ``vmap`` over stacked methods trains a grid. A field that is no number is
  declared with the metadata ``{"static": True}``, as JAX's own dataclasses do.

  Attributes:
    mask: which leaves have latents: a tree of bools with the structure of
      params or a prefix of it, a function of params that returns one, or None
      for all. Of linen's variables, params are what is in ``"params"``. The
      default takes the kernels.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.spred(offset=0)
    >>> params = {"kernel": jnp.array([4.0, -1.0]), "bias": jnp.array([3.0])}
    >>> latents = method.to_latents(params)
    >>> jax.tree.map(str, latents)["kernel"]
    {'latent_0': '[2. 1.]', 'latent_1': '[ 2. -1.]'}
    >>> print(method.to_weights(latents)["kernel"])
    [ 4. -1.]
  """

  mask: "Mask | None" = dataclasses.field(
    default=kernels, hash=False, repr=False, metadata=STATIC
  )

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    jax.tree_util.register_pytree_with_keys(
      cls, _flatten, lambda names, values: _unflatten(cls, names, values)
    )
    serialization.register_serialization_state(
      cls, _to_state_dict, _from_state_dict
    )

  @property
  def decays(self) -> tuple[bool, ...]:
    """For every array stored for one, whether weight decay reaches it."""
    return (True,)

  @property
  def degree(self) -> "Scalar":
    """By what power of the decaying latents weights grow."""
    return sum(self.decays)

  def split(self, path: str, x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns what to store for one array of weights at a path.

    Arrays that all have the shape of x must go with it entry by entry.
    """
    raise NotImplementedError

  def join(self, *values: jax.Array) -> jax.Array:
    """Returns the weights, by a function to differentiate."""
    raise NotImplementedError

  def exact_join(self, *values: jax.Array) -> jax.Array:
    """Returns what join does, with the derivative it has: join may pretend."""
    return self.join(*values)

  def size(self, *values: jax.Array) -> jax.Array:
    """Returns what orders weights by size: abs(x), or what grows as it."""
    return jnp.abs(self.join(*values))

  def scale(self, gradient: jax.Array, value: jax.Array) -> jax.Array:
    """Returns what an optimizer gets for the gradient of a decaying array."""
    del value
    return gradient

  def implicit_penalty(
    self, x: jax.typing.ArrayLike, path: str = "kernel"
  ) -> jax.Array:
    """Returns the penalty on one array of weights that weight decay 1 is."""
    raise NotImplementedError

  def to_latents(self, params: Any) -> Any:
    """Replaces the selected weights by latents that give the same weights.

    Args:
      params: a tree of weights.

    Returns:
      A tree of latents, other leaves as they are. Latents are best kept in
      float32: in bfloat16 the weight decay is lost to rounding.

    Raises:
      ValueError: if the mask does not fit params or selects nothing by name, or
        a selected leaf is known to hold latents already.
      TypeError: if a selected leaf is not floating point.
    """
    return self.map_weights(self.latents_of, params)

  def to_weights(self, latents: Any) -> Any:
    """Replaces latents by the weights they stand for.

    Called inside a loss function it makes any model train on latents.

    Args:
      latents: a tree as :meth:`to_latents` returns it.

    Returns:
      A tree of weights.

    Raises:
      ValueError: if the mask does not fit latents or selects nothing by name,
        or the latents are not this method's: weights, too many or too few
        arrays for one, or shapes that do not go together.
      TypeError: if a selected leaf is not floating point.
    """
    return self.map_latents(lambda _, node: self.weights_of(node), latents)

  def decaying(self, latents: Any) -> Any:
    """Says what weight decay reaches: a mask for optimizers of latents.

    Args:
      latents: a tree as :meth:`to_latents` returns it.

    Returns:
      A tree of bools of the same structure.

    Raises:
      ValueError, TypeError: as :meth:`to_weights`.

    Examples:
      >>> import optax
      >>> import rewa_jax
      >>> rewa = rewa_jax.Rewa(k=9)
      >>> adamw = optax.adamw(1e-3, weight_decay=0.2, mask=rewa.decaying)
      >>> solver = rewa_jax.reparameterize(adamw, rewa)
    """
    if is_step_count(latents):
      raise TypeError(
        "decaying was called with a step in the place of latents."
        " optax.inject_hyperparams takes every function for a schedule: name"
        " mask in its static_args."
      )

    def decays(node, values):
      return jax.tree.unflatten(jax.tree.structure(node), values)

    return self.map_latents(
      lambda _, node: decays(node, self.decays),
      latents,
      otherwise=lambda node: decays(node, (False,)),
    )

  def map_weights(self, fn, params: Any, otherwise=lambda leaf: leaf) -> Any:
    """Replaces selected weights by fn(path, leaf), a leaf in its box."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
      params, is_leaf=is_box
    )
    return treedef.unflatten(
      fn(path_name(path), leaf) if is_selected else otherwise(leaf)
      for is_selected, (path, leaf) in zip(selected(self.mask, params), leaves)
    )

  def map_latents(self, fn, latents: Any, otherwise=lambda node: node) -> Any:
    """Replaces the latents of one array by fn(path, node), with their boxes."""
    nodes, treedef = jax.tree_util.tree_flatten_with_path(
      latents, is_leaf=is_node
    )
    return treedef.unflatten(
      fn(path_name(path), node) if is_selected else otherwise(node)
      for is_selected, (path, node) in zip(self._selected(latents), nodes)
    )

  def latents_of(self, path: str, weight: Any) -> Any:
    """Returns the node of latents for one leaf of weights."""
    refuse_latents(path, weight)
    values = self.split(path, jnp.asarray(unbox(weight)))
    boxed = [_say_maker(box_like(weight, value), self) for value in values]
    return boxed[0] if len(boxed) == 1 else parts_of(boxed)

  def weights_of(self, node: Any) -> Any:
    """Returns the leaf of weights for one node of latents."""
    boxes = jax.tree.leaves(node, is_leaf=is_box)
    weight = self.join(*(jnp.asarray(unbox(box)) for box in boxes))
    box = next((box for box in boxes if is_box(box)), weight)
    return _say_maker(box_like(box, weight), None)

  def _selected(self, latents: Any) -> list[bool]:
    """Returns a bool for every node of latents, by the mask for weights."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
      latents, is_leaf=is_node
    )
    nodes = [node for _, node in leaves]
    paths = [leaf_path(path) for path, _ in leaves]
    if any(NNX_LATENTS in path for path in paths):
      chosen = [NNX_LATENTS in path for path in paths]
    else:
      weights = [
        outline(path_name(path), node) if is_parts(node) else node
        for path, node in zip(paths, nodes)
      ]
      chosen = selected(self.mask, treedef.unflatten(weights))
    for is_chosen, path, node in zip(chosen, paths, nodes):
      self._check_node(is_chosen, path, node)
    return chosen

  def _check_node(self, is_chosen: bool, path: Path, node: Any) -> None:
    name, stored = path_name(path), len(jax.tree.leaves(node))
    if is_parts(node) and not is_chosen:
      raise ValueError(
        f"{name} holds {stored} arrays for one, but the mask of {self} is False"
        " there. Were the latents made with another mask?"
      )
    if is_chosen and stored != len(self.decays):
      held = f"{stored} arrays for one" if stored > 1 else "one array"
      raise ValueError(
        f"{name} holds {held}, but {self} stores {len(self.decays)}. Are these"
        " weights, or the latents of another method? to_latents makes latents"
        " of weights."
      )
    for box in jax.tree.leaves(node, is_leaf=is_box):
      maker = isinstance(box, nnx.Variable) and box.get_metadata().get("method")
      if is_chosen:
        refuse_weights(name, box)
      if maker and not _map_alike(maker, self):
        raise ValueError(
          f"{name} holds latents of {maker}, but the optimizer is of {self}."
          " Give both the same method."
        )


def check_method(method: Any) -> None:
  """Raises unless it is a method."""
  if not isinstance(method, Method):
    raise TypeError(
      "method must be a rewa_jax.Method, such as rewa_jax.Rewa(k=9), got"
      f" {method!r} of type {type(method).__name__}."
    )


def weights_and_mask(
  params: Any, mask: Mask | None, method: Method | None
) -> tuple[Any, Mask | None]:
  """Returns weights and their mask for params that may be latents of a method.

  Raises:
    ValueError: if they are latents and method is None, as far as can be told,
      or mask and method disagree.
  """
  if method is not None:
    check_method(method)
    if mask is not kernels and mask is not method.mask:
      raise ValueError(
        f"mask and method both say which leaves have latents, mask {mask} and"
        f" method {method}. Leave mask out."
      )
    mask = method.map_latents(lambda *_: True, params, lambda _: False)
    return method.to_weights(params), mask
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_node)
  for path, node in leaves:
    if holds_latents(leaf_path(path), node):
      raise ValueError(
        f"{path_name(leaf_path(path))} holds latents, not weights. Pass the"
        " method that made them, or weights: what its to_weights returns, of an"
        " NNX model the state of weights()."
      )
  return params, mask


def holds_latents(path: Path, node: Any) -> bool:
  """Whether a node at a path holds latents, as far as it can be told."""
  if isinstance(node, nnx.Variable) and "method" in node.get_metadata():
    return node.get_metadata("method") is not None
  return is_parts(node) or NNX_LATENTS in path


def refuse_latents(name: str, box: Any) -> None:
  """Raises where an NNX model's latents would be taken for weights."""
  if isinstance(box, nnx.Variable) and box.get_metadata().get("method"):
    raise ValueError(
      f"{name} holds latents of {box.get_metadata('method')} already. Take the"
      " weights of the model, weights(), or a mask that leaves it out."
    )


def refuse_weights(name: str, box: Any) -> None:
  """Raises where weights were put in the place of an NNX model's latents."""
  if isinstance(box, nnx.Variable) and box.get_metadata("method", box) is None:
    raise ValueError(
      f"{name} holds weights in the place of latents, as to_weights, prune and"
      " finalize return them. To deploy a pruned model, prune the state of its"
      " weights() and update that; to train on, take to_latents first."
    )


def _say_maker(box: Any, method: "Method | None") -> Any:
  """Says in a Variable of latents whose they are, None where weights are."""
  if isinstance(box, nnx.Variable) and "method" in box.get_metadata():
    maker = method and dataclasses.replace(method, mask=None)
    return box.replace(method=maker)
  return box


def is_node(node: Any) -> bool:
  """Whether latents of one array may be here, not deeper in the tree."""
  return is_box(node) or (is_parts(node) and bool(jax.tree.leaves(node)))


def _map_alike(one: Method, other: Method) -> bool:
  """Whether two methods take the same weights for latents, as far as known."""
  pairs = maps_of(one, other)
  return pairs is not None and all(
    any(isinstance(value, Tracer) for value in pair) or pair[0] == pair[1]
    for pair in pairs
  )


def maps_of(one: Method, other: Method) -> list[tuple[Any, Any]] | None:
  """Returns pairs of the numbers that say which latents weights have.

  None for two methods that differ in more than numbers.
  """
  if type(one) is not type(other):
    return None
  fields = [
    (field, getattr(one, field.name), getattr(other, field.name))
    for field in dataclasses.fields(one)
    if field.name != "mask" and field.metadata.get("maps", True)
  ]
  if any(a != b for field, a, b in fields if field.metadata.get("static")):
    return None
  return [(a, b) for field, a, b in fields if not field.metadata.get("static")]


# As flax.struct, but without __post_init__: it would see JAX's placeholders.


def _flatten(method: Method):
  fields = dataclasses.fields(method)
  numbers = [f.name for f in fields if not f.metadata.get("static")]
  # Frozen, since the structures of trees are hashed.
  others = {
    f.name: freeze(value) if isinstance(value, dict) else value
    for f in fields
    if f.name not in numbers
    for value in [getattr(method, f.name)]
  }
  children = [
    (jax.tree_util.GetAttrKey(name), getattr(method, name)) for name in numbers
  ]
  return children, (tuple(numbers), tuple(others.items()))


def _unflatten(cls, structure, values):
  numbers, others = structure
  method = object.__new__(cls)
  for name, value in (*zip(numbers, values), *others):
    object.__setattr__(method, name, value)
  return method


def _to_state_dict(method: Method) -> dict[str, Any]:
  children, _ = _flatten(method)
  return {key.name: value for key, value in children}


def _from_state_dict(method: Method, state: dict[str, Any]) -> Method:
  _, (numbers, others) = _flatten(method)
  values = [state[name] for name in numbers]
  return _unflatten(type(method), (numbers, others), values)
