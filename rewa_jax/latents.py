"""Trees of latents from trees of weights, and back."""

from typing import Any

import jax

from rewa_jax.checks import Gradient, check_gradient, check_hyperparameters
from rewa_jax.masks import Mask, kernels, map_selected
from rewa_jax.power import power, root


def to_latents(
  params: Any, k: jax.typing.ArrayLike, *, mask: Mask | None = kernels
) -> Any:
  r"""Replaces weights by latents, :math:`y = \operatorname{sign}(x)|x|^{1/k}`.

  Args:
    params: a tree of weights.
    k: the power, one number >= 1. May be traced.
    mask: which leaves to replace: a tree of bools with the structure of params
      or a prefix of it, a function that returns one, or None for all.

  Returns:
    A tree of the same structure, shapes and dtypes; leaves that the mask does
    not select are the given ones. Latents are best kept in float32: in bfloat16
    the weight decay is lost to rounding.

  Raises:
    ValueError: if k < 1, or the mask does not fit params or selects nothing by
      name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> params = {"kernel": jnp.array([8.0, -1.0]), "bias": jnp.array([8.0])}
    >>> latents = rewa_jax.to_latents(params, 3)
    >>> print(latents["kernel"], latents["bias"])
    [ 2. -1.] [8.]

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1
  """
  check_hyperparameters(k)
  return map_selected(lambda x: root(x, k), mask, params)


def to_weights(
  latents: Any,
  k: jax.typing.ArrayLike,
  *,
  mask: Mask | None = kernels,
  gradient: Gradient = "latent",
) -> Any:
  r"""Replaces latents by weights, :math:`x = \operatorname{sign}(y)|y|^k`.

  Called inside a loss function it makes any model train on latents.

  Args:
    latents: a tree as :func:`to_latents` returns it.
    k: the power that the latents were made with. May be traced.
    mask: the mask that the latents were made with.
    gradient: ``"latent"`` for the chain rule, ``"weight"`` to pass the gradient
      of the weights through unchanged; see :func:`power`.

  Returns:
    A tree of the same structure, shapes and dtypes.

  Raises:
    ValueError: if k < 1, gradient is unknown, or the mask does not fit latents
      or selects nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> latents = {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([8.0])}
    >>> def loss(latents):
    ...   params = rewa_jax.to_weights(latents, 3, gradient="weight")
    ...   return 0.5 * jnp.sum(params["kernel"] ** 2)
    >>> jax.grad(loss)(latents)["kernel"]
    Array([ 8., -1.], dtype=float32)

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1
  """
  check_hyperparameters(k)
  check_gradient(gradient)
  return map_selected(lambda y: power(y, k, gradient=gradient), mask, latents)
