"""ReWA for Flax linen: the power inside `apply`, latents in the variables."""

import inspect
import types
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax.core import FrozenDict, freeze, unfreeze

from rewa_jax.checks import Gradient
from rewa_jax.latents import to_latents, to_weights
from rewa_jax.masks import Mask, kernels


class LatentModule(nn.Module):
  """A linen module that stores latents and computes with weights.

  Subclasses say in ``_latents_of`` and ``_weights_of`` what the latents of a
  tree of params are, and have a field ``mask``.

  Attributes:
    module: the module to wrap.
  """

  module: nn.Module

  def __post_init__(self):
    if isinstance(self.mask, dict):
      self.mask = freeze(self.mask)  # linen modules are hashable.
    super().__post_init__()

  def setup(self):
    nn.share_scope(self, self.module)

  def __call__(self, *args, **kwargs):
    return self._call_method("__call__", *args, **kwargs)

  @nn.nowrap
  def to_weights(self, variables: Any) -> Any:
    """Returns variables for the wrapped module, weights in place of latents."""
    return self._map_params(self._weights_of, variables)

  @nn.nowrap
  def to_latents(self, variables: Any) -> Any:
    """Returns variables for this module from the wrapped module's own."""
    return self._map_params(self._latents_of, variables)

  @nn.nowrap
  def _weights_of(self, latents: Any, mask: Mask | None) -> Any:
    raise NotImplementedError

  @nn.nowrap
  def _latents_of(self, weights: Any, mask: Mask | None) -> Any:
    raise NotImplementedError

  @nn.nowrap
  def apply(self, variables, *args, method=None, **kwargs):
    return super().apply(
      variables, *args, method=self._own_method(method), **kwargs
    )

  @nn.nowrap
  def init_with_output(self, rngs, *args, method=None, **kwargs):
    return super().init_with_output(
      rngs, *args, method=self._own_method(method), **kwargs
    )

  def __getattr__(self, name: str) -> Any:
    module = self.__dict__.get("module")
    if not name.startswith("_") and inspect.isfunction(
      getattr(type(module), name, None)
    ):

      def method(self, *args, **kwargs):
        return self._call_method(name, *args, **kwargs)

      return types.MethodType(method, self)
    return super().__getattr__(name)

  def _call_method(self, name: str, *args, **kwargs):
    mapped = nn.map_variables(
      lambda module, *args, **kwargs: getattr(module, name)(*args, **kwargs),
      "params",
      trans_in_fn=self.to_weights,
      trans_out_fn=self.to_latents,
      # Not init=True: it takes latents that a first call stored for weights.
      mutable=self.is_initializing(),
    )
    return mapped(self.module, *args, **kwargs)

  @nn.nowrap
  def _map_params(self, fn: Callable[..., Any], variables: Any) -> Any:
    params = variables.get("params", {})
    if not jax.tree.leaves(params):
      return variables
    mask = self.mask
    if isinstance(mask, FrozenDict):
      mask = unfreeze(mask)
    return {**variables, "params": fn(params, mask)}

  @nn.nowrap
  def _own_method(self, method):
    """Returns the name of a function or method of the wrapped module."""
    name = getattr(method, "__name__", None)
    function = getattr(method, "__func__", method)
    is_wrapped = name and getattr(type(self.module), name, None) is function
    return name if is_wrapped else method


class Reparameterized(LatentModule):
  r"""A linen module that stores latents and computes with weights.

  The variables have the tree, names and shapes of the wrapped module's own.
  ``init`` stores :math:`y = \operatorname{sign}(x)|x|^{1/k}` of its ordinary
  initialization x, from the same random numbers, and ``apply`` computes
  :math:`x = \operatorname{sign}(y)|y|^k` inside. Methods of the module are
  methods of this one: ``apply(..., method="encode")`` works. What is reached
  through ``.module`` computes with bare latents; call methods instead. Inside a
  ``compact`` method the variables are named after the wrapped module, as they
  would be without the wrapper.

  Attributes:
    module: the module to wrap.
    k: the power, a number >= 1; static.
    mask: which leaves of ``params`` are latents: a tree of bools with the
      structure of params or a prefix of it, a function that returns one, or
      None for all.
    gradient: ``"weight"`` (default): ``jax.grad`` gives the gradients of the
      weights, as :func:`rewa_sgd` and :func:`rewa_adamw` expect them by
      default. ``"latent"``: those of the latents, by the chain rule.

  Raises:
    ValueError: on ``init`` and ``apply``, if k < 1, gradient is unknown, or the
      mask does not fit the params or selects nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> bare = nn.Dense(3)
    >>> model = rewa_jax.linen.Reparameterized(bare, k=3)
    >>> x = jnp.ones((1, 2))
    >>> latents = model.init(jax.random.key(0), x)
    >>> jax.tree.map(jnp.shape, latents)
    {'params': {'bias': (3,), 'kernel': (2, 3)}}
    >>> weights = model.to_weights(latents)
    >>> bool(jnp.allclose(model.apply(latents, x), bare.apply(weights, x)))
    True

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1
  """

  k: float
  mask: Mask | None = kernels
  gradient: Gradient = "weight"

  @nn.nowrap
  def _weights_of(self, latents, mask):
    return to_weights(latents, self.k, mask=mask, gradient=self.gradient)

  @nn.nowrap
  def _latents_of(self, weights, mask):
    return to_latents(weights, self.k, mask=mask)
