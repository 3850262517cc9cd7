"""Proximal steps: exact zeros from any penalty with a proximal map."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rewa_jax._checks import check_number
from rewa_jax._masks import Mask, kernels, selected, update_selected
from rewa_jax._power import wide_dtype
from rewa_jax.baselines._penalties import SparsePenalty


def proximal_step(
  penalty: SparsePenalty,
  learning_rate: optax.ScalarOrSchedule,
  *,
  mask: Mask | None = kernels,
) -> optax.GradientTransformationExtraArgs:
  r"""Ends a chain by the proximal step of a penalty.

  With the update u that the chain before it arrived at,

  .. math::
    x \leftarrow \operatorname{prox}_{\eta_t P}(x + u), \qquad
    \operatorname{prox}_{\eta P}(z)
      = \operatorname*{argmin}_v \tfrac12\|v - z\|^2 + \eta P(v)

  on the selected leaves, x + u on the others. What the step sets to zero is
  exactly zero after :func:`optax.apply_updates`.

  Args:
    penalty: P, one of :mod:`rewa_jax.baselines`, or anything with
      their ``prox``.
    learning_rate: :math:`\eta_t` >= 0, a number or a schedule: the one that u
      was made with. May be traced.
    mask: which leaves are penalized: a tree of bools with the structure of
      params or a prefix of it, a function that returns one, or None for all.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` whose ``update`` needs
    params and whose updates keep their dtype. It must come last in its chain.

  Raises:
    ValueError: if the learning rate is out of range, the mask selects nothing
      by name; on ``update``, if params are missing or updates differ from them
      in structure or shape.
    TypeError: if penalty has no proximal map, or a selected leaf is not
      floating point.

  Examples:
    A grid of strengths, and a schedule of the strength, both through a function
    of it:

    >>> import jax.numpy as jnp
    >>> import optax
    >>> from rewa_jax.baselines import MCP
    >>> from rewa_jax.baselines import proximal_step
    >>> def solver(strength):
    ...   return optax.chain(
    ...     optax.sgd(0.1), proximal_step(MCP(strength), 0.1))
    >>> warm_up = optax.linear_schedule(0.0, 1.0, 1000)
    >>> scheduled = optax.inject_hyperparams(solver)(strength=warm_up)
    >>> params = {"w": jnp.array([5.0, 0.05])}
    >>> grads = {"w": jnp.array([1.0, 0.0])}
    >>> state = solver(1.0).init(params)
    >>> updates, state = solver(1.0).update(grads, state, params)
    >>> print(optax.apply_updates(params, updates)["w"])
    [4.9 0. ]

  References:
    Parikh and Boyd, Proximal algorithms, 2014
  """
  if not isinstance(penalty, SparsePenalty):
    raise TypeError(
      "penalty must have the methods value and prox, as L1, MCP, SCAD,"
      f" AdaptiveL1 and GroupL1 of rewa_jax.baselines have, got {penalty!r}."
    )
  if not callable(learning_rate):
    check_number("learning_rate", learning_rate, at_least=0)

  def init_fn(params):
    selected(mask, params)
    if callable(learning_rate):
      return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
    return optax.EmptyState()

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    step: Any = learning_rate
    if callable(learning_rate):
      step = learning_rate(state.count)
      state = optax.ScaleByScheduleState(optax.safe_increment(state.count))

    def move(path, u, x):
      wide = wide_dtype(x)
      z = penalty.prox(x.astype(wide) + jnp.asarray(u).astype(wide), step, path)
      return z.astype(x.dtype) - x

    return update_selected(move, mask, updates, params), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def proximal_sgd(
  learning_rate: optax.ScalarOrSchedule,
  penalty: SparsePenalty,
  *,
  momentum: jax.typing.ArrayLike | None = None,
  nesterov: bool = False,
  mask: Mask | None = kernels,
) -> optax.GradientTransformationExtraArgs:
  r"""SGD with a proximal step.

  .. math::
    x \leftarrow \operatorname{prox}_{\eta_t P}(x - \eta_t g)

  on the selected leaves, with the momentum in place of g if there is one; plain
  SGD on the others. Fixed points are stationary points of loss + P (with
  momentum, whose sum of gradients is 1 / (1 - momentum) times one, of
  loss + (1 - momentum) P).

  Args:
    learning_rate: :math:`\eta_t`, a number or a schedule.
    penalty: P, one of :mod:`rewa_jax.baselines`.
    momentum: decay of the momentum, or None for none.
    nesterov: whether the momentum is Nesterov's.
    mask: which leaves are penalized: a tree of bools with the structure of
      params or a prefix of it, a function that returns one, or None for all.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on weights.

  Raises:
    ValueError: if the learning rate is out of range, the mask selects nothing
      by name, or params and updates do not belong together.
    TypeError: if penalty has no proximal map, or a selected leaf is not
      floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from rewa_jax.baselines import L1
    >>> from rewa_jax.baselines import proximal_sgd
    >>> target = jnp.array([1.0, 0.05])
    >>> loss = lambda params: 0.5 * jnp.sum((params["w"] - target) ** 2)
    >>> solver = proximal_sgd(0.1, L1(0.1))
    >>> params = {"w": jnp.array([0.5, 0.5])}
    >>> state = solver.init(params)
    >>> for _ in range(200):
    ...   updates, state = solver.update(jax.grad(loss)(params), state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> print("{:.2f} {}".format(*params["w"]))
    0.90 0.0
  """
  return optax.chain(
    optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    proximal_step(penalty, learning_rate, mask=mask),
  )


def proximal_adam(
  learning_rate: optax.ScalarOrSchedule,
  penalty: SparsePenalty,
  *,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
  mask: Mask | None = kernels,
) -> optax.GradientTransformationExtraArgs:
  r"""Adam with a proximal step.

  .. math::
    x \leftarrow \operatorname{prox}_{\eta_t P}(x - \eta_t\,\mathrm{Adam}(g))

  on the selected leaves, Adam on the others. The penalty stays outside the
  moments, as the decay of AdamW does: its strength is weighed against steps of
  a size near 1, not against gradients, so that the fixed points are not the
  stationary points of loss + P. For those take :func:`proximal_sgd`.

  Args:
    learning_rate: :math:`\eta_t`, a number or a schedule.
    penalty: P, one of :mod:`rewa_jax.baselines`.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: Adam's term in the denominator.
    mask: which leaves are penalized: a tree of bools with the structure of
      params or a prefix of it, a function that returns one, or None for all.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on weights.

  Raises:
    ValueError: if the learning rate is out of range, the mask selects nothing
      by name, or params and updates do not belong together.
    TypeError: if penalty has no proximal map, or a selected leaf is not
      floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from rewa_jax.baselines import L1
    >>> from rewa_jax.baselines import proximal_adam
    >>> solver = proximal_adam(0.1, L1(0.5))
    >>> params = {"w": jnp.array([1.0, 0.125])}
    >>> state = solver.init(params)
    >>> grads = {"w": jnp.array([1.0, 1.0])}
    >>> updates, state = solver.update(grads, state, params)
    >>> print("{:.2f} {}".format(*optax.apply_updates(params, updates)["w"]))
    0.85 0.0
  """
  return optax.chain(
    optax.adam(learning_rate, b1=b1, b2=b2, eps=eps),
    proximal_step(penalty, learning_rate, mask=mask),
  )
