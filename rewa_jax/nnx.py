"""Any method for Flax NNX: latents in Variables, weights in the call."""

import dataclasses
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import lax

from rewa_jax._method import (
  Method,
  check_method,
  refuse_latents,
  refuse_weights,
)
from rewa_jax._trees import NNX_LATENTS, is_box, is_parts, leaf_names, unbox

Model = TypeVar("Model", bound=nnx.Module)
Path = tuple[Any, ...]

# During a call weights are in the model itself, so threads take turns.
_CALL = threading.RLock()


class Latent(nnx.Param):
  """A Param that holds latents: optimizers of Params train it.

  Its metadata name the method, so that an optimizer of another one refuses it.
  """


class Reparameterized(nnx.Module, Generic[Model]):
  """An NNX module that stores latents and computes with weights.

  Made by :func:`reparameterize`. It has the methods, properties and attributes
  of the model. They run on the model itself, with weights in its Params until
  they return, so that the model keeps what it would keep bare. Weights that
  they assign become latents, and are constants to differentiation; Params that
  they add have none. To hand out Params that are empty by then, as a submodule
  would, is an error: take those from :meth:`weights`.

  Attributes:
    model: the model; its selected Params are empty.
    rewa_latents: nested dicts with a :class:`Latent`, or a dict of several, at
      the paths that the selected Params had at first.
    method: the method that the latents are of.
  """

  def __init__(self, model: Model, latents: Any, method: Method):
    self.model = model
    setattr(self, NNX_LATENTS, nnx.data(latents))
    self.method = nnx.static(method)

  def __call__(self, *args, **kwargs):
    return self._call("__call__", *args, **kwargs)

  def __getattribute__(self, name: str) -> Any:
    # nnx.Module has these, the model may have others.
    if name in ("train", "eval", "set_attributes"):
      return self.__getattr__(name)
    return super().__getattribute__(name)

  def __getattr__(self, name: str) -> Any:
    model = self.__dict__.get("model")
    if model is not None and name in vars(model):
      return self._outside(name, vars(model)[name])
    if model is None or name.startswith("_"):
      raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
    value = getattr(type(model), name, None)
    if not callable(value):
      value = self._run(name, lambda model: getattr(model, name))
    if not callable(value):
      return value

    @functools.wraps(value)
    def method(self, *args, **kwargs):
      return self._call(name, *args, **kwargs)

    return types.MethodType(method, self)

  def __setattr__(self, name: str, value: Any) -> None:
    if self._is_own(name):
      super().__setattr__(name, value)
    else:
      self._run(name, lambda model: setattr(model, name, value))

  def __delattr__(self, name: str) -> None:
    if self._is_own(name):
      super().__delattr__(name)
    else:
      self._run(name, lambda model: delattr(model, name))

  def _is_own(self, name: str) -> bool:
    """Whether an attribute is the wrapper's, not the model's."""
    if name in ("model", NNX_LATENTS, "method") or name in vars(self):
      return True
    model = vars(self).get("model")
    return name.startswith("_") and (model is None or name not in vars(model))

  def weights(self) -> Model:
    """Returns the bare model with weights; the two share nothing."""
    model = self._run("weights", _copied)
    for slot in _marked(model).values():
      slot.del_metadata(NNX_LATENTS)
    return model

  def _call(self, name: str, *args, **kwargs):
    return self._run(name, lambda model: getattr(model, name)(*args, **kwargs))

  def _run(self, name: str, fn: Callable[[Model], Any]) -> Any:
    """Returns fn(model), computed with weights in the model's Params."""
    with _CALL:
      slots, nodes = self._slots(), _nodes(getattr(self, NNX_LATENTS))
      # A call within a call finds weights there.
      before = {path: slot.get_raw_value() for path, slot in slots.items()}
      for path, node in nodes.items():
        for latent in jax.tree.leaves(node, is_leaf=is_box):
          refuse_weights(_name(path), latent)
      weights = {
        path: self.method.weights_of(jax.tree.map(unbox, node, is_leaf=is_box))
        for path, node in nodes.items()
      }
      try:
        _fill(slots, weights)
        result = fn(self.model)
      finally:
        after = {path: slot.get_raw_value() for path, slot in slots.items()}
        _fill(slots, before)
        for path, weight in weights.items():
          if after[path] is not weight:
            self._adopt(path, nodes[path], weight, after[path])
      return self._outside(name, result)

  def _adopt(self, path: Path, node: Any, before: Any, after: Any) -> None:
    """Stores the latents of a weight that a call assigned."""
    # A transform within the call returns every weight, changed or not.
    known = before.shape == after.shape
    changed = jnp.any(before != after) if known else True
    assigned = self.method.latents_of(_name(path), lax.stop_gradient(after))
    jax.tree.map(
      lambda latent, value: latent.set_value(
        jnp.where(changed, value, latent.get_value()) if known else value
      ),
      node,
      assigned,
      is_leaf=is_box,
    )

  def _outside(self, name: str, value: Any) -> Any:
    """Returns what a call hands out, unless it holds an empty Param."""
    slots = {id(slot): path for path, slot in self._slots().items()}
    if value is self.model:
      return self
    if inspect.isgenerator(value):
      raise AttributeError(
        f"{name} of {type(self.model).__name__} returns a generator, which runs"
        " when the Params are empty again: call it of weights()."
      )
    for _, leaf in nnx.iter_graph(value):
      if id(leaf) in slots:
        raise AttributeError(
          f"{name} of {type(self.model).__name__} holds the Param"
          f" {_name(slots[id(leaf)])}, which is empty outside of calls: take it"
          " from weights(), or call a method of the model that uses it."
        )
    return value

  def _slots(self) -> dict[Path, nnx.Variable]:
    """Returns the empty Params by the paths of their latents."""
    slots = _marked(self.model)
    for path in _nodes(getattr(self, NNX_LATENTS)):
      if path not in slots:
        raise ValueError(
          f"The Param that began as {_name(path)} is no longer in the model, so"
          " its latents serve nothing. To change weights, set the value of the"
          " Param, as in param[...] = value, not another Param."
        )
    return slots


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
    model: the model; it is left as it is. Whoever goes on to train it in the
      place of what is returned trains it dense, without a word.
    method: what the latents are, :class:`rewa_jax.Rewa` or another. It is
      static: its hyperparameters are Python numbers. Its mask is asked about
      ``nnx.to_pure_dict(nnx.state(model, nnx.Param))``.
    latents: what to train from, as ``method.to_latents`` returns it for that
      dict; None for the latents of the model's own weights.

  Returns:
    A :class:`Reparameterized`, whose ``weights()`` is the bare model again.

  Raises:
    ValueError: if the mask or latents do not fit the Params, the mask selects
      nothing by name or latents of a module wrapped before, or there are no
      Params yet.
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
  check_method(method)
  model = _copied(model)
  state = nnx.state(model, nnx.Param)
  # As stored: a Param may hand out something else than it holds.
  weights = nnx.to_pure_dict(state, nnx.Variable.get_raw_value)
  if not weights:
    raise ValueError("model has no Params. Is it yet to be initialized?")
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
  for path in chosen:
    refuse_latents(_name(path), params[path])
  maker = dataclasses.replace(method, mask=None)
  boxed = {
    path: jax.tree.map(
      functools.partial(_latent, params[path], maker), nodes[path]
    )
    for path in chosen
  }
  level = _level(node for _, node in nnx.iter_graph(model))
  for path, param in params.items():
    if path in chosen:
      param.set_metadata(NNX_LATENTS, (level, path))
  _fill(
    params,
    {path: None if path in chosen else _copy(nodes[path]) for path in params},
  )
  return Reparameterized(model, traverse_util.unflatten_dict(boxed), method)


def _marked(model: nnx.Module) -> dict[Path, nnx.Variable]:
  """Returns the Params that have latents by the paths of these."""
  nodes = [node for _, node in nnx.iter_graph(model)]
  level = _level(nodes)
  return {
    node.get_metadata(NNX_LATENTS)[1]: node
    for node in nodes
    if isinstance(node, nnx.Variable)
    and node.get_metadata(NNX_LATENTS, (None,))[0] == level
  }


def _level(nodes: Iterable[Any]) -> int:
  """Returns what tells the marks of a module from those of modules in it."""
  return sum(isinstance(node, Reparameterized) for node in nodes)


def _fill(slots: dict[Path, nnx.Variable], values: dict[Path, Any]) -> None:
  for path, value in values.items():
    # set_value refuses within a transform that closes over the model.
    object.__setattr__(slots[path], "_raw_value", value)


def _latent(param: Any, maker: Method, value: jax.Array) -> Any:
  # The metadata may name the axes of the array, for sharding.
  if value.shape == param.shape:
    metadata = {**param.get_metadata(), "method": maker}
    for hook in ("on_get_value", "on_set_value", "on_create_value"):
      metadata.pop(hook, None)  # They are for weights.
    return Latent.from_metadata(value.copy(), metadata)
  return Latent(value.copy(), method=maker)


def _nodes(latents: Any) -> dict[Path, Any]:
  """Returns what stands for one Param each, by its path."""
  return traverse_util.flatten_dict(
    latents, is_leaf=lambda path, node: is_parts(node)
  )


def _name(path: Path) -> str:
  return "/".join(map(str, path))


def _copied(model: Model) -> Model:
  """Returns a model of its own Variables and arrays, which may be donated."""
  graphdef, state = nnx.split(model)  # nnx.clone would share the arrays.
  return nnx.merge(graphdef, jax.tree.map(_copy, state))


def _copy(leaf):
  return leaf.copy() if isinstance(leaf, jax.Array) else leaf
