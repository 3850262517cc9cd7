"""Any method for Flax NNX: latents in Variables, weights in the call."""

import dataclasses
import functools
from typing import Any, Generic, TypeVar

import jax
from flax import nnx, traverse_util

from rewa_jax._method import NNX_LATENTS, Method
from rewa_jax._trees import is_box, is_parts, leaf_names, unbox

Model = TypeVar("Model", bound=nnx.Module)


class Latent(nnx.Param):
  """A Param that holds latents: optimizers of Params train it.

  Its metadata name the method, so that an optimizer of another one refuses it.
  """


class Reparameterized(nnx.Module, Generic[Model]):
  """An NNX module that stores latents and computes with weights.

  Made by :func:`reparameterize`. Calling it, or a method of the model by its
  name, runs the model on the weights; batch statistics, dropout streams and
  every other Variable are the model's own and propagate.

  Attributes:
    model: the model; its selected Params are empty.
    rewa_latents: nested dicts with a :class:`Latent`, or a dict of several, at
      the paths of the model's selected Params.
    method: the method that the latents are of.
  """

  def __init__(self, model: Model, latents: Any, method: Method):
    self.model = model
    setattr(self, NNX_LATENTS, nnx.data(latents))
    self.method = nnx.static(method)

  def __call__(self, *args, **kwargs):
    return self._shared_weights()(*args, **kwargs)

  def __getattr__(self, name: str) -> Any:
    model = self.__dict__.get("model")
    if not name.startswith("_") and callable(getattr(type(model), name, None)):
      return lambda *args, **kwargs: getattr(self._shared_weights(), name)(
        *args, **kwargs
      )
    raise AttributeError(
      f"{type(self).__name__} has no attribute {name!r}; attributes of the"
      f" wrapped model that are not methods are under .model."
    )

  def weights(self) -> Model:
    """Returns the bare model with weights; the two share nothing."""
    return _copied(self._shared_weights())

  def _shared_weights(self) -> Model:
    """Returns a model with weights that shares every other Variable."""
    return _fill_params(
      {
        path: self.method.weights_of(jax.tree.map(unbox, node, is_leaf=is_box))
        for path, node in _nodes(getattr(self, NNX_LATENTS)).items()
      },
      self.model,
    )


def reparameterize(
  model: Model, method: Method, *, latents: Any = None
) -> Reparameterized[Model]:
  r"""Returns a copy of an NNX model that trains on latents.

  The copy has Variables of type :class:`Latent` in the place of the Params that
  the method selects, and computes with the weights they stand for. They are
  Params: ``nnx.Optimizer``, ``nnx.grad``, ``nnx.jit``, ``split`` and ``merge``
  see nothing special. Their paths in the state begin with ``rewa_latents``: a
  bare model takes no such state by mistake, and :func:`rewa_jax.sgd` and
  :func:`rewa_jax.adamw` know latents by it.

  Args:
    model: the model; it is left as it is.
    method: what the latents are, :class:`rewa_jax.Rewa` or another. It is
      static: its hyperparameters are Python numbers. Its mask is asked about
      ``nnx.to_pure_dict(nnx.state(model, nnx.Param))``.
    latents: what to train from, as ``method.to_latents`` returns it for that
      dict; None for the latents of the model's own weights.

  Returns:
    A :class:`Reparameterized`, whose ``weights()`` is the bare model again.

  Raises:
    ValueError: if the mask or latents do not fit the Params, or the mask
      selects nothing by name.
    TypeError: if a selected Param is not floating point.

  Examples:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> bare = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> rewa = rewa_jax.Rewa(k=3)
    >>> model = rewa_jax.nnx.reparameterize(bare, rewa)
    >>> solver = rewa_jax.sgd(0.1, rewa, weight_decay=0.01)
    >>> optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
    >>> x = jnp.ones((1, 2))
    >>> grads = nnx.grad(lambda model: model(x).sum())(model)
    >>> _ = optimizer.update(model, grads)
    >>> bool(jnp.allclose(model(x), model.weights()(x)))
    True

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1
  """
  state = nnx.state(model, nnx.Param)
  weights = nnx.to_pure_dict(state)
  selected = method.map_weights(lambda *_: True, weights, lambda _: False)
  if latents is None:
    latents = method.to_latents(weights)
  params, nodes = dict(nnx.to_flat_state(state)), _nodes(latents)
  if nodes.keys() != params.keys():
    raise ValueError(
      "latents must be nested dicts with the leaves of the model's Params,"
      f" {leaf_names(state)}. They have {leaf_names(latents)}."
    )
  chosen = {path for path, is_chosen in _nodes(selected).items() if is_chosen}
  maker = dataclasses.replace(method, mask=None)
  boxed = {
    path: jax.tree.map(
      functools.partial(_latent, params[path], maker), nodes[path]
    )
    for path in chosen
  }
  plain = {path: None if path in chosen else nodes[path] for path in nodes}
  return Reparameterized(
    _copied(_fill_params(plain, model)),
    traverse_util.unflatten_dict(boxed),
    method,
  )


def _fill_params(values: dict[tuple[Any, ...], Any], model: Model) -> Model:
  """Returns model with other values at paths; it shares other Variables."""
  return nnx.map(
    lambda path, leaf: leaf.replace(values[path]) if path in values else leaf,
    model,
  )


def _latent(param: Any, maker: Method, value: jax.Array) -> Any:
  # The metadata may name the axes of the array, for sharding.
  if value.shape == param.shape:
    metadata = {**param.get_metadata(), "method": maker}
    return Latent.from_metadata(value.copy(), metadata)
  return Latent(value.copy(), method=maker)


def _nodes(latents: Any) -> dict[tuple[Any, ...], Any]:
  """Returns what stands for one Param each, by its path."""
  return traverse_util.flatten_dict(
    latents, is_leaf=lambda path, node: is_parts(node)
  )


def _copied(model: Model) -> Model:
  """Returns a model of its own Variables and arrays, which may be donated."""
  graphdef, state = nnx.split(model)  # nnx.clone would share the arrays.
  return nnx.merge(graphdef, jax.tree.map(_copy, state))


def _copy(leaf):
  return leaf.copy() if isinstance(leaf, jax.Array) else leaf
