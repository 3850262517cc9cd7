"""Any method for Flax linen: latents in the variables, weights in `apply`."""

import inspect
import types
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from rewa_jax._method import Method


class Reparameterized(nn.Module):
  """A linen module that stores latents and computes with weights.

  The variables have the tree and names of the wrapped module's own, with
  latents in the place of the weights that the method selects. ``init`` stores
  the latents of its ordinary initialization, from the same random numbers, and
  ``apply`` computes the weights inside. Methods of the module are methods of
  this one: ``apply(..., method="encode")`` works. What is reached through
  ``.module`` computes with bare latents; call methods instead. Inside a
  ``compact`` method the variables are named after the wrapped module, as they
  would be without the wrapper.

  Nothing in the variables of a method that stores one array for one tells them
  from weights: deploy what :meth:`to_weights` returns, never the variables.

  Attributes:
    module: the module to wrap.
    method: what the latents are, :class:`rewa_jax.Rewa` or another. Its numbers
      are static under ``jax.jit``, unless the module is made inside.

  Raises:
    ValueError: on ``init`` and ``apply``, if the method's mask does not fit the
      params or selects nothing by name, or the variables hold weights or the
      latents of a method that stores another number of arrays.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> bare = nn.Dense(3)
    >>> model = rewa_jax.linen.Reparameterized(bare, rewa_jax.Rewa(k=3))
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

  module: nn.Module
  method: Method

  def setup(self):
    nn.share_scope(self, self.module)

  def __call__(self, *args, **kwargs):
    return self._call_method("__call__", *args, **kwargs)

  @nn.nowrap
  def to_weights(self, variables: Any) -> Any:
    """Returns variables for the wrapped module, weights in place of latents."""
    return _map_params(self.method.to_weights, variables)

  @nn.nowrap
  def to_latents(self, variables: Any) -> Any:
    """Returns variables for this module from the wrapped module's own."""
    return _map_params(self.method.to_latents, variables)

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
  def _own_method(self, method):
    """Returns the name of a function or method of the wrapped module."""
    name = getattr(method, "__name__", None)
    function = getattr(method, "__func__", method)
    is_wrapped = name and getattr(type(self.module), name, None) is function
    return name if is_wrapped else method


def _map_params(fn: Callable[[Any], Any], variables: Any) -> Any:
  params = variables.get("params", {})
  if not jax.tree.leaves(params):
    return variables
  return {**variables, "params": fn(params)}
