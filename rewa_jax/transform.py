"""ReWA as optax transformations of latents."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from rewa_jax.checks import (
  Gradient,
  check_gradient,
  check_hyperparameters,
  check_number,
  check_shapes,
)
from rewa_jax.masks import Mask, kernels, select
from rewa_jax.power import magnitude


def scale_by_rewa(
  k: jax.typing.ArrayLike,
  m: jax.typing.ArrayLike = 0.0,
  eps: jax.typing.ArrayLike = 0.0,
  *,
  mask: Mask | None = None,
  gradient: Gradient = "weight",
) -> optax.GradientTransformationExtraArgs:
  r"""Scales gradients by ReWA's adaptive step.

  With latents y, weights :math:`x = \operatorname{sign}(y)|y|^k` and the
  gradient g of the loss with respect to the weights, the update is

  .. math::
    s(y)\,g, \qquad s(y) = |y|^m \, \frac{|y|^{k-1}}{|y|^{k-1} + \epsilon},

  and exactly :math:`|y|^m g` for eps = 0, also at y = 0, where 0^0 is 1.

  Args:
    k: the power, one number >= 1. May be traced, as m and eps may.
    m: makes the step vanish with the latent, 0 <= m <= k - 1.
    eps: slows latents with :math:`|y|^{k-1}` below it, >= 0.
    mask: which leaves to scale: a tree of bools with the structure of params or
      a prefix of it, a function that returns one, or None for all.
    gradient: the convention of the incoming gradients. ``"weight"``: they are
      gradients with respect to the weights. ``"latent"``: they are gradients
      with respect to the latents, :math:`k|y|^{k-1}g`, and are divided by
      :math:`k(|y|^{k-1} + \epsilon)`. Both give the same update wherever
      nothing underflows.

  Returns:
    A stateless :class:`optax.GradientTransformationExtraArgs` whose ``update``
    needs params, the latents, and whose updates keep the dtype of params.

  Raises:
    ValueError: if k, m, eps or gradient are out of range; on ``update``, if
      params are missing or updates differ from them in structure or shape.
    TypeError: if a selected leaf is not floating point.

  Examples:
    By hand what :func:`rewa_sgd` does, with weight decay inside the momentum:

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> solver = optax.chain(
    ...     rewa_jax.scale_by_rewa(k=3, m=1), optax.sgd(0.1, momentum=0.9))
    >>> latents = {"w": jnp.array([2.0, 0.0])}
    >>> state = solver.init(latents)
    >>> grads = {"w": jnp.array([1.0, 1.0])}
    >>> updates, state = solver.update(grads, state, latents)
    >>> updates
    {'w': Array([-0.2, -0. ], dtype=float32)}

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1.
    The authors' public code has :math:`k|y|^{k-1}` in place of
    :math:`|y|^{k-1}`: its eps is k times the one here.
  """
  check_hyperparameters(k, m, eps)
  check_gradient(gradient)

  def init_fn(params):
    select(mask, params)
    return optax.EmptyState()

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    selected = jax.tree.leaves(select(mask, params))
    latents, treedef = jax.tree.flatten(params)
    grads = check_shapes("updates", updates, "params", params)
    scaled = [
      _scale(g, y, k, m, eps, gradient) if s and g is not None else g
      for s, g, y in zip(selected, grads, latents)
    ]
    return jax.tree.unflatten(treedef, scaled), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _scale(g, y, k, m, eps, gradient):
  """Returns s(y) times the gradient of the weights, in y's dtype."""
  y = jnp.asarray(y)
  scale = magnitude(y, m)
  g = jnp.asarray(g).astype(scale.dtype)
  # Nothing but |y|^m is left, and nothing else is worth compiling.
  if gradient == "weight" and isinstance(eps, (int, float)) and eps == 0:
    return (g * scale).astype(y.dtype)
  slope = magnitude(y, k - 1)
  eps = jnp.asarray(eps).astype(slope.dtype)
  # Where a division does not count, its denominator is 1.
  if gradient == "weight":
    # slope / (slope + eps) without overflow. The division comes last, so that
    # XLA keeps scaled gradients where it had gradients, and nothing beside.
    part = jnp.minimum(slope, 1)
    whole = part + eps / jnp.maximum(slope, 1)
    g = g * scale
    g = jnp.where(eps > 0, g * part / jnp.where(eps > 0, whole, 1), g)
  else:
    # Large powers come after the division: before it they may overflow.
    floor = jnp.minimum(slope + eps, jnp.finfo(slope.dtype).max)
    g = g * jnp.minimum(scale, 1) / k
    g = jnp.where(floor > 0, g / jnp.where(floor > 0, floor, 1), 0)
    g = g * jnp.maximum(scale, 1)
  return g.astype(y.dtype)


def rewa_sgd(
  learning_rate: optax.ScalarOrSchedule,
  k: jax.typing.ArrayLike,
  m: jax.typing.ArrayLike = 0.0,
  eps: jax.typing.ArrayLike = 0.0,
  *,
  weight_decay: optax.ScalarOrSchedule,
  momentum: jax.typing.ArrayLike | None = None,
  nesterov: bool = False,
  mask: Mask | None = kernels,
  gradient: Gradient = "weight",
) -> optax.GradientTransformationExtraArgs:
  r"""ReWA with SGD.

  .. math::
    y \leftarrow (1 - \eta_t\lambda)\,y - \eta_t\,s(y)\,g

  on the selected leaves, with s(y) as in :func:`scale_by_rewa`; plain SGD
  without decay on the others. The decay stays outside the momentum.

  Args:
    learning_rate: :math:`\eta_t`, a number or a schedule.
    k: the power, one number >= 1. May be traced, as m and eps may.
    m: 0 <= m <= k - 1. With eps = 0, m > 1 is the paper's Config A.
    eps: >= 0. With m < 2, eps > 0 is the paper's Config B.
    weight_decay: :math:`\lambda` >= 0, a number or a schedule, applied to the
      latents. How strongly it shrinks weights by the end of training is
      :func:`decay_budget`.
    momentum: decay of the momentum, or None for none.
    nesterov: whether the momentum is Nesterov's.
    mask: which leaves are latents: a tree of bools with the structure of params
      or a prefix of it, a function that returns one, or None for all.
    gradient: the convention of the incoming gradients; see
      :func:`scale_by_rewa`.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on latents.

  Raises:
    ValueError: if a hyperparameter is out of range, the mask selects nothing by
      name, or params, updates and state do not belong together.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> target = jnp.array([1.0, 0.1])
    >>> def loss(latents):
    ...   w = rewa_jax.to_weights(latents, 3, gradient="weight")["w"]
    ...   return 0.5 * jnp.sum((w - target) ** 2)
    >>> solver = rewa_jax.rewa_sgd(0.1, k=3, m=2, weight_decay=0.1)
    >>> latents = {"w": jnp.array([0.5, 0.5])}
    >>> state = solver.init(latents)
    >>> @jax.jit
    ... def step(latents, state):
    ...   grads = jax.grad(loss)(latents)
    ...   updates, state = solver.update(grads, state, latents)
    ...   return optax.apply_updates(latents, updates), state
    >>> for _ in range(1000):
    ...   latents, state = step(latents, state)
    >>> print("{:.2f} {:.2f}".format(*rewa_jax.to_weights(latents, 3)["w"]))
    0.90 0.00

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1.
    The authors' public code puts the decay inside the momentum buffer, where
    it acts about 1 / (1 - momentum) times as strongly as here.
  """
  return _reject_foreign_state(
    optax.chain(
      scale_by_rewa(k, m, eps, mask=mask, gradient=gradient),
      optax.identity()
      if momentum is None
      else optax.trace(decay=momentum, nesterov=nesterov),
      _add_decay(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
    )
  )


def rewa_adamw(
  learning_rate: optax.ScalarOrSchedule,
  k: jax.typing.ArrayLike,
  m: jax.typing.ArrayLike = 0.0,
  eps: jax.typing.ArrayLike = 0.0,
  *,
  weight_decay: optax.ScalarOrSchedule,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  adam_eps: jax.typing.ArrayLike = 1e-8,
  mask: Mask | None = kernels,
  gradient: Gradient = "weight",
) -> optax.GradientTransformationExtraArgs:
  r"""ReWA with AdamW.

  .. math::
    y \leftarrow (1 - \eta_t\lambda)\,y - \eta_t\,\mathrm{Adam}(s(y)\,g)

  on the selected leaves, with s(y) as in :func:`scale_by_rewa`; Adam without
  decay on the others. Adam adapts the step already, so the paper advises m = 0
  and eps > 0 here.

  Args:
    learning_rate: :math:`\eta_t`, a number or a schedule.
    k: the power, one number >= 1. May be traced, as m and eps may.
    m: 0 <= m <= k - 1.
    eps: ReWA's eps, >= 0. Adam's own is adam_eps.
    weight_decay: :math:`\lambda` >= 0, a number or a schedule, applied to the
      latents.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    adam_eps: Adam's term in the denominator.
    mask: which leaves are latents: a tree of bools with the structure of params
      or a prefix of it, a function that returns one, or None for all.
    gradient: the convention of the incoming gradients; see
      :func:`scale_by_rewa`.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on latents.

  Raises:
    ValueError: if a hyperparameter is out of range, the mask selects nothing by
      name, or params, updates and state do not belong together.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> solver = rewa_jax.rewa_adamw(1e-2, k=3, eps=1e-3, weight_decay=0.1)
    >>> latents = {"w": jnp.array([2.0, -1.0])}
    >>> state = solver.init(latents)
    >>> grads = {"w": jnp.array([1.0, 1.0])}
    >>> updates, state = solver.update(grads, state, latents)
    >>> print(optax.apply_updates(latents, updates)["w"])
    [ 1.988 -1.009]

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 2
  """
  return _reject_foreign_state(
    optax.chain(
      scale_by_rewa(k, m, eps, mask=mask, gradient=gradient),
      optax.scale_by_adam(b1=b1, b2=b2, eps=adam_eps),
      _add_decay(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
    )
  )


def _add_decay(weight_decay: optax.ScalarOrSchedule, mask):
  if not callable(weight_decay):
    check_number("weight_decay", weight_decay, at_least=0)
  return optax.add_decayed_weights(
    weight_decay, mask=functools.partial(select, mask)
  )


def _reject_foreign_state(
  inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """Compares the state's shapes with what params would start with."""

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    expected: Any = jax.eval_shape(inner.init, params)
    check_shapes("the optimizer state", state, "that of params", expected)
    return inner.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)
