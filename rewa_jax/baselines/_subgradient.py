"""Gradients of penalties on weights, added to those of the loss.

The shortcuts: they go before an optimizer, as :func:`optax.add_decayed_weights`
does, and leave weights small where a proximal step sets them to zero.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rewa_jax._checks import check_number
from rewa_jax._masks import Mask, kernels, transform_selected
from rewa_jax._power import wide_dtype


def add_l1_subgradient(
  strength: jax.typing.ArrayLike, *, mask: Mask | None = kernels
) -> optax.GradientTransformationExtraArgs:
  r"""Adds a subgradient of the lasso's penalty, :math:`\lambda
  \operatorname{sign}(x)`, which is 0 at 0.

  Args:
    strength: :math:`\lambda` >= 0, one number. May be traced.
    mask: which leaves are penalized: a tree of bools with the structure of
      params or a prefix of it, a function that returns one, or None for all.

  Returns:
    A stateless :class:`optax.GradientTransformationExtraArgs` whose ``update``
    needs params and keeps their dtype. In a chain with a learning rate
    :math:`\eta` weights do not reach 0 but end within about
    :math:`\eta\lambda` of it.

  Raises:
    ValueError: if strength is out of range, the mask selects nothing by name;
      on ``update``, if params are missing or updates differ from them in
      structure or shape.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from rewa_jax.baselines import add_l1_subgradient
    >>> solver = optax.chain(add_l1_subgradient(0.5), optax.sgd(0.1))
    >>> params = {"w": jnp.array([2.0, 0.0, -1.0])}
    >>> state = solver.init(params)
    >>> grads = {"w": jnp.array([1.0, 1.0, 0.0])}
    >>> updates, state = solver.update(grads, state, params)
    >>> print(updates["w"])
    [-0.15 -0.1   0.05]

  References:
    Tibshirani, Regression shrinkage and selection via the lasso, 1996
  """
  check_number("strength", strength, at_least=0)
  return _add_gradient(lambda x: jnp.sign(x) * strength, mask)


def add_clipped_lp(
  strength: jax.typing.ArrayLike,
  p: jax.typing.ArrayLike,
  clip: jax.typing.ArrayLike,
  *,
  mask: Mask | None = kernels,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds the clipped gradient of an lp penalty :math:`\lambda\sum_i|x_i|^p`.

  .. math::
    \operatorname{sign}(x)\,\min(\lambda p\,|x|^{p-1},\, G),

  which is 0 at 0. It is the gradient of a penalty that is linear below
  :math:`x_c = (G / (\lambda p))^{1/(p-1)}`, and beyond that lies
  :math:`(1-p)\lambda x_c^p` below the true one, for each weight: a small G
  bounds the gradient and loses the penalty, a large one the other way round.

  Args:
    strength: :math:`\lambda` >= 0, one number. May be traced, as p and clip
      may.
    p: the exponent, 0 <= p <= 1. 1 is L1.
    clip: G >= 0, the bound on the gradient of the penalty, strength included.
    mask: which leaves are penalized: a tree of bools with the structure of
      params or a prefix of it, a function that returns one, or None for all.

  Returns:
    A stateless :class:`optax.GradientTransformationExtraArgs` whose ``update``
    needs params and keeps their dtype. In a chain with a learning rate
    :math:`\eta` weights do not reach 0 but end within about :math:`\eta G` of
    it.

  Raises:
    ValueError: if strength, p or clip are out of range, the mask selects
      nothing by name; on ``update``, if params are missing or updates differ
      from them in structure or shape.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from rewa_jax.baselines import add_clipped_lp
    >>> solver = optax.chain(add_clipped_lp(1.0, p=0.5, clip=2), optax.sgd(0.1))
    >>> params = {"w": jnp.array([4.0, 0.0, -0.01])}
    >>> state = solver.init(params)
    >>> updates, state = solver.update({"w": jnp.zeros(3)}, state, params)
    >>> print(updates["w"])
    [-0.025 -0.     0.2  ]

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Theorem 3.7,
    which rules the shortcut out
  """
  check_number("strength", strength, at_least=0)
  check_number("p", p, at_least=0, at_most=1)
  check_number("clip", clip, at_least=0)

  def gradient(x):
    # Sizes from the least normal number on, whose powers are finite.
    size = jnp.maximum(jnp.abs(x), jnp.finfo(x.dtype).tiny)
    return jnp.sign(x) * jnp.minimum(strength * p * size ** (p - 1), clip)

  return _add_gradient(gradient, mask)


def _add_gradient(
  gradient: Callable[[jax.Array], jax.Array], mask: Mask | None
) -> optax.GradientTransformationExtraArgs:
  """Adds a function of each selected leaf to its update."""

  def add(path, g, x):
    del path
    wide = wide_dtype(x)
    return jnp.asarray(g).astype(wide) + gradient(x.astype(wide))

  return transform_selected(add, mask)
