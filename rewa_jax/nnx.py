"""ReWA for Flax NNX: the power when the model is called."""

from typing import Any

import jax
from flax import nnx, traverse_util

from rewa_jax.checks import Gradient, check_gradient, check_hyperparameters
from rewa_jax.masks import Mask, kernels, select
from rewa_jax.power import power, root


class LatentModule(nnx.Module):
  """An NNX module that stores latents and computes with weights.

  Subclasses have a model, and compute its weights in ``_shared_weights``.
  """

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

  def weights(self) -> nnx.Module:
    """Returns the bare model with weights; the two share nothing."""
    return copied(self._shared_weights())

  def _shared_weights(self) -> nnx.Module:
    """Returns a model with weights that shares every other Variable."""
    raise NotImplementedError


class Reparameterized(LatentModule):
  """An NNX module that stores latents and computes with weights.

  Made by :func:`reparameterize`. Calling it, or a method of the model by its
  name, runs the model on the weights; batch statistics, dropout streams and
  every other Variable are the model's own and propagate.

  Attributes:
    model: the model, with latents in its selected Params.
  """

  def __init__(self, model: nnx.Module, k: float, paths, gradient: Gradient):
    self.model = model
    self._k = k
    self._paths = paths
    self._gradient: Gradient = gradient

  def _shared_weights(self) -> nnx.Module:
    return _map_params(
      lambda y: power(y, self._k, gradient=self._gradient),
      self._paths,
      self.model,
    )


def reparameterize(
  model: nnx.Module,
  k: float,
  *,
  mask: Mask | None = kernels,
  gradient: Gradient = "weight",
) -> Reparameterized:
  r"""Returns a copy of an NNX model that trains on latents.

  The Params of the copy hold :math:`y = \operatorname{sign}(x)|x|^{1/k}` of the
  model's weights x, and it computes with :math:`x = \operatorname{sign}(y)
  |y|^k`. They stay ordinary ``nnx.Param`` s: ``nnx.Optimizer``, ``nnx.grad``,
  ``nnx.jit``, ``split`` and ``merge`` see nothing special.

  Args:
    model: the model; it is left as it is.
    k: the power, a number >= 1; static.
    mask: which of the model's Params are latents: a tree of bools with the
      structure of ``nnx.to_pure_dict(nnx.state(model, nnx.Param))`` or a prefix
      of it, a function of that dict that returns one, or None for all.
    gradient: ``"weight"`` (default): ``nnx.grad`` gives the gradients of the
      weights, as :func:`rewa_sgd` and :func:`rewa_adamw` expect them by
      default. ``"latent"``: those of the latents, by the chain rule.

  Returns:
    A :class:`Reparameterized`, whose ``weights()`` is the bare model again.

  Raises:
    ValueError: if k < 1, gradient is unknown, or the mask does not fit the
      Params or selects nothing by name.
    TypeError: if a selected Param is not floating point.

  Examples:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> bare = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> model = rewa_jax.nnx.reparameterize(bare, k=3)
    >>> solver = rewa_jax.rewa_sgd(0.1, k=3, weight_decay=0.01)
    >>> optimizer = nnx.Optimizer(model, solver, wrt=nnx.Param)
    >>> x = jnp.ones((1, 2))
    >>> grads = nnx.grad(lambda model: model(x).sum())(model)
    >>> _ = optimizer.update(model, grads)
    >>> bool(jnp.allclose(model(x), model.weights()(x)))
    True

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1
  """
  check_hyperparameters(k)
  check_gradient(gradient)
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  selected = traverse_util.flatten_dict(select(mask, params))
  paths = frozenset(path for path, chosen in selected.items() if chosen)
  latents = _map_params(lambda x: root(x, k), paths, copied(model))
  return Reparameterized(latents, k, paths, gradient)


def copied(model: nnx.Module) -> nnx.Module:
  """Returns a model of its own Variables and arrays, which may be donated."""
  graphdef, state = nnx.split(model)  # nnx.clone would share the arrays.
  return nnx.merge(graphdef, jax.tree.map(_copy, state))


def _copy(leaf):
  return leaf.copy() if isinstance(leaf, jax.Array) else leaf


def _map_params(fn, paths, model):
  """Returns model with fn applied at paths; it shares every other Variable."""
  return nnx.map(
    lambda path, leaf: leaf.replace(fn(leaf[...])) if path in paths else leaf,
    model,
  )
