"""The methods for Flax NNX: Params for all factors, weights in the call."""

from typing import Any

import jax
from flax import nnx, traverse_util

from rewa_jax.baselines.reparameterization import (
  Factors,
  Reparameterization,
  is_factors,
)
from rewa_jax.checks import leaf_paths
from rewa_jax.masks import Mask, kernels
from rewa_jax.nnx import LatentModule, copied


class Reparameterized(LatentModule):
  """An NNX module that stores a method's latents and computes with weights.

  Made by :func:`reparameterize`. Calling it, or a method of the model by its
  name, runs the model on the weights; batch statistics, dropout streams and
  every other Variable are the model's own and propagate.

  Attributes:
    model: the model; its selected Params are empty.
    factors: nested dicts with :class:`Factors` of Params at the paths of the
      model's selected Params.
  """

  def __init__(
    self, model: nnx.Module, factors: Any, method: Reparameterization
  ):
    self.model = model
    self.factors = nnx.data(factors)
    self._method = method

  def _shared_weights(self) -> nnx.Module:
    values = jax.tree.map(
      lambda param: param[...], self.factors, is_leaf=_is_variable
    )
    weights = traverse_util.flatten_dict(self._method.to_weights(values))
    return _fill_params(weights, self.model)


def reparameterize(
  model: nnx.Module,
  method: Reparameterization,
  *,
  mask: Mask | None = kernels,
  latents: Any = None,
) -> Reparameterized:
  """Returns a copy of an NNX model that trains on a method's latents.

  The copy has ordinary ``nnx.Param`` s for the values of all :class:`Factors`
  in the place of the selected ones, and it computes with the weights they stand
  for. ``nnx.Optimizer``, ``nnx.grad``, ``nnx.jit``, ``split`` and ``merge`` see
  nothing special; :func:`sgd` and :func:`adamw` find the Factors in its state.

  Args:
    model: the model; it is left as it is.
    method: the method that makes latents. It is static: under ``nnx.jit`` its
      hyperparameters are Python numbers.
    mask: which of the model's Params are replaced: a tree of bools with the
      structure of ``nnx.to_pure_dict(nnx.state(model, nnx.Param))`` or a prefix
      of it, a function of that dict that returns one, or None for all.
    latents: what to train from, as :func:`draw_factors` returns it for that
      dict; None for ``method.to_latents(params, mask=mask)``.

  Returns:
    A :class:`Reparameterized`, whose ``weights()`` is the bare model again.

  Raises:
    ValueError: if mask or latents do not fit the Params, or the mask selects
      nothing by name.
    TypeError: if a selected Param is not floating point.

  Examples:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> bare = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> method = baselines.spred()
    >>> model = baselines.nnx.reparameterize(bare, method)
    >>> solver = baselines.sgd(0.1, method, strength=0.01)
    >>> optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
    >>> x = jnp.ones((1, 2))
    >>> grads = nnx.grad(lambda model: model(x).sum())(model)
    >>> _ = optimizer.update(model, grads)
    >>> bool(jnp.allclose(model(x), model.weights()(x)))
    True
  """
  state = nnx.state(model, nnx.Param)
  if latents is None:
    latents = method.to_latents(nnx.to_pure_dict(state), mask=mask)
  params = dict(nnx.to_flat_state(state))
  nodes: dict[Any, Any] = traverse_util.flatten_dict(latents)
  if nodes.keys() != params.keys():
    raise ValueError(
      "latents must be nested dicts with the leaves of the model's Params,"
      f" {leaf_paths(state)}. They have {leaf_paths(latents)}."
    )
  factors = {
    path: _params_like(params[path], node)
    for path, node in nodes.items()
    if is_factors(node)
  }
  plain = {path: None if path in factors else nodes[path] for path in nodes}
  return Reparameterized(
    copied(_fill_params(plain, model)),
    traverse_util.unflatten_dict(factors),
    method,
  )


def _fill_params(values: dict[tuple[Any, ...], Any], model: nnx.Module):
  """Returns model with other values at paths; it shares other Variables."""
  return nnx.map(
    lambda path, leaf: leaf.replace(values[path]) if path in values else leaf,
    model,
  )


def _params_like(param: Any, factors: Factors) -> Any:
  """Returns Factors of Params that have param's metadata where it fits."""
  # It may name the axes of the array, for sharding.
  return jax.tree.map(
    lambda value: (
      param.replace(value) if value.shape == param.shape else nnx.Param(value)
    ),
    factors,
  )


def _is_variable(node: Any) -> bool:
  return isinstance(node, nnx.Variable)
