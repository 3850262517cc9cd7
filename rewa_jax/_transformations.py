"""Optimizers of latents, as optax transformations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rewa_jax._checks import Gradient, Scalar, check_number
from rewa_jax._decay_by_rank import decay_by_rank
from rewa_jax._masks import Mask, kernels, transform_selected
from rewa_jax._method import Method, check_method
from rewa_jax._rewa import Rewa

# The mild decay where a sparsity s is asked for, times the method's degree and
# the root of 1 - s: sparser networks want more. SGD's is for no momentum.
_MILD_SGD, _MILD_ADAM = 5.8e-3, 0.14
# Adam's is the same below.
_LEAST_ADAM = 0.95


class ScaleByMethodState(NamedTuple):
  """State of :func:`scale_by_method`: its type tells it from others."""


def scale_by_method(
  method: Method,
) -> optax.GradientTransformationExtraArgs:
  """Scales gradients by what a method has in the place of an adaptive step.

  That is :func:`scale_by_rewa` for :class:`Rewa` and nothing for most others.
  An optimizer of one's own is a chain of this, a rule such as
  ``optax.scale_by_belief()``, ``optax.add_decayed_weights(weight_decay,
  mask=method.decaying)`` and the learning rate.

  Args:
    method: the method that made the latents.

  Returns:
    A stateless :class:`optax.GradientTransformationExtraArgs` whose ``update``
    needs params, the latents, and whose updates keep the dtype of params.

  Raises:
    ValueError: if params hold no latents of the method or its mask does not fit
      them; on ``update``, if params are missing or updates differ from them in
      structure or shape.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> rewa = rewa_jax.Rewa(k=3, m=1)
    >>> solver = rewa_jax.scale_by_method(rewa)
    >>> latents = {"w": jnp.array([2.0, 0.0]), "b": jnp.array([2.0])}
    >>> grads = {"w": jnp.array([1.0, 1.0]), "b": jnp.array([1.0])}
    >>> updates, _ = solver.update(grads, solver.init(latents), latents)
    >>> print(updates["w"], updates["b"])
    [2. 0.] [1.]
  """
  check_method(method)
  scale = transform_selected(
    lambda path, g, y: method.scale(g, y), method.decaying
  )

  def init_fn(params):
    scale.init(params)
    return ScaleByMethodState()

  return optax.GradientTransformationExtraArgs(init_fn, scale.update)


def scale_by_rewa(
  k: "Scalar",
  m: "Scalar" = 0.0,
  eps: "Scalar" = 0.0,
  *,
  mask: "Mask | None" = None,
  gradient: "Gradient" = "weight",
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
  return scale_by_method(Rewa(k, m, eps, mask=mask, gradient=gradient))


def sgd(
  learning_rate: "optax.ScalarOrSchedule",
  method: Method,
  *,
  weight_decay: "optax.ScalarOrSchedule | None" = None,
  sparsity: "Scalar | None" = None,
  steps: int | None = None,
  momentum: "Scalar | None" = None,
  nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""SGD on the latents of a method.

  .. math::
    y \leftarrow (1 - \eta_t\lambda)\,y - \eta_t\,s(y)\,g

  with s the method's adaptive step (:class:`Rewa`'s, 1 for most others); plain
  SGD without decay on leaves that have no latents. The decay stays outside the
  momentum.

  Args:
    learning_rate: :math:`\eta_t`, a number or a schedule.
    method: the method that made the latents.
    weight_decay: :math:`\lambda` >= 0, a number or a schedule, applied to the
      latents: the penalty on weights is ``method.implicit_penalty`` times
      :math:`\lambda` (with momentum, which counts the gradient
      1 / (1 - momentum) times, times :math:`(1 - \text{momentum})\lambda`). How
      strongly it shrinks weights by the end of training is
      :func:`decay_budget`. With a sparsity it is the mild decay, by default
      :math:`0.0058\,(1 - \text{momentum})` over :math:`k\sqrt{1 - s}`, k the
      method's degree and s the sparsity.
    sparsity: the share of zeros to end with, 0 <= sparsity < 1, by
      :func:`decay_by_rank`, after which :func:`finalize` cuts exactly so many.
      May be traced. None for the same weight decay on all weights.
    steps: how many updates there will be; goes with sparsity. In
      ``optax.MultiSteps`` those of the optimizer inside.
    momentum: decay of the momentum, or None for none.
    nesterov: whether the momentum is Nesterov's.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on latents.

  Raises:
    ValueError: if neither weight_decay nor sparsity and steps are given, one is
      out of range, params hold no latents of the method, or params and updates
      do not belong together.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> rewa = rewa_jax.Rewa(k=3, m=2)
    >>> target = jnp.array([1.0, 0.1])
    >>> def loss(latents):
    ...   return 0.5 * jnp.sum((rewa.to_weights(latents)["w"] - target) ** 2)
    >>> latents = rewa.to_latents({"w": jnp.array([0.125, 0.125])})
    >>> solver = rewa_jax.sgd(0.1, rewa, weight_decay=0.1)
    >>> state = solver.init(latents)
    >>> @jax.jit
    ... def step(latents, state):
    ...   grads = jax.grad(loss)(latents)
    ...   updates, state = solver.update(grads, state, latents)
    ...   return optax.apply_updates(latents, updates), state
    >>> for _ in range(1000):
    ...   latents, state = step(latents, state)
    >>> print("{:.2f} {:.2f}".format(*rewa.to_weights(latents)["w"]))
    0.90 0.00

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1.
    The authors' public code puts the decay inside the momentum buffer, where
    it acts about 1 / (1 - momentum) times as strongly as here.
  """
  rule = optax.identity()
  if momentum is not None:
    check_number("momentum", momentum, at_least=0, at_most=1)
    rule = optax.trace(decay=momentum, nesterov=nesterov)
  mild = _MILD_SGD * (1 if momentum is None else 1 - momentum)
  return _chain(
    rule, learning_rate, method, weight_decay, sparsity, steps, mild
  )


def adamw(
  learning_rate: "optax.ScalarOrSchedule",
  method: Method,
  *,
  weight_decay: "optax.ScalarOrSchedule | None" = None,
  sparsity: "Scalar | None" = None,
  steps: int | None = None,
  b1: "Scalar" = 0.9,
  b2: "Scalar" = 0.999,
  adam_eps: "Scalar" = 1e-8,
) -> optax.GradientTransformationExtraArgs:
  r"""AdamW on the latents of a method.

  .. math::
    y \leftarrow (1 - \eta_t\lambda)\,y - \eta_t\,\mathrm{Adam}(s(y)\,g)

  with s the method's adaptive step (:class:`Rewa`'s, 1 for most others); Adam
  without decay on leaves that have no latents. Adam adapts the step already, so
  for :class:`Rewa` the paper advises m = 0 and eps > 0 here. As with AdamW,
  what is solved is not the penalized problem itself: Adam rescales the loss
  alone.

  Args:
    learning_rate: :math:`\eta_t`, a number or a schedule.
    method: the method that made the latents.
    weight_decay: :math:`\lambda` >= 0, a number or a schedule, applied to the
      latents. With a sparsity it is the mild decay, by default 0.14 over
      :math:`k\sqrt{1 - s}`, k the method's degree and s the sparsity, or 0.95
      if that is more.
    sparsity: the share of zeros to end with, 0 <= sparsity < 1, by
      :func:`decay_by_rank`, after which :func:`finalize` cuts exactly so many.
      May be traced. None for the same weight decay on all weights.
    steps: how many updates there will be; goes with sparsity. In
      ``optax.MultiSteps`` those of the optimizer inside.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    adam_eps: Adam's term in the denominator.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on latents.

  Raises:
    ValueError: if neither weight_decay nor sparsity and steps are given, one is
      out of range, params hold no latents of the method, or params and updates
      do not belong together.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> rewa = rewa_jax.Rewa(k=3, eps=1e-3)
    >>> solver = rewa_jax.adamw(1e-2, rewa, weight_decay=0.1)
    >>> latents = rewa.to_latents({"w": jnp.array([8.0, -1.0])})
    >>> grads = {"w": jnp.array([1.0, 1.0])}
    >>> updates, _ = solver.update(grads, solver.init(latents), latents)
    >>> print(optax.apply_updates(latents, updates)["w"])
    [ 1.988 -1.009]

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 2
  """
  rule = optax.scale_by_adam(b1=b1, b2=b2, eps=adam_eps)
  return _chain(
    *(rule, learning_rate, method, weight_decay, sparsity, steps),
    mild=_MILD_ADAM,
    least=_LEAST_ADAM,
  )


def rewa_sgd(
  learning_rate: "optax.ScalarOrSchedule",
  k: "Scalar",
  m: "Scalar" = 0.0,
  eps: "Scalar" = 0.0,
  *,
  weight_decay: "optax.ScalarOrSchedule | None" = None,
  sparsity: "Scalar | None" = None,
  steps: int | None = None,
  momentum: "Scalar | None" = None,
  nesterov: bool = False,
  mask: "Mask | None" = kernels,
  gradient: "Gradient" = "weight",
) -> optax.GradientTransformationExtraArgs:
  r"""ReWA with SGD: :func:`sgd` of :class:`Rewa`, for chains and injection.

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
      :func:`decay_budget`. With a sparsity it is the mild decay, by default
      :math:`0.0058\,(1 - \text{momentum})` over :math:`k\sqrt{1 - s}`, k the
      method's degree and s the sparsity.
    sparsity: the share of zeros to end with, 0 <= sparsity < 1, by
      :func:`decay_by_rank`, after which :func:`finalize` cuts exactly so many.
      May be traced. None for the same weight decay on all weights.
    steps: how many updates there will be; goes with sparsity. Under
      injection it is static, and the learning rate should be.
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
    The weight decay as something to schedule or to set from outside:

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> solver = optax.inject_hyperparams(rewa_jax.rewa_sgd)(
    ...   0.1, k=3, m=2, weight_decay=optax.linear_schedule(0.0, 0.1, 100))
    >>> latents = {"w": jnp.array([2.0, -1.0])}
    >>> updates, _ = solver.update(latents, solver.init(latents), latents)
    >>> print(optax.apply_updates(latents, updates)["w"])
    [ 1.2 -0.9]

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1.
    The authors' public code puts the decay inside the momentum buffer, where
    it acts about 1 / (1 - momentum) times as strongly as here.
  """
  rewa = Rewa(k, m, eps, mask=mask, gradient=gradient)
  return sgd(
    learning_rate,
    rewa,
    weight_decay=weight_decay,
    sparsity=sparsity,
    steps=steps,
    momentum=momentum,
    nesterov=nesterov,
  )


def rewa_adamw(
  learning_rate: "optax.ScalarOrSchedule",
  k: "Scalar",
  m: "Scalar" = 0.0,
  eps: "Scalar" = 0.0,
  *,
  weight_decay: "optax.ScalarOrSchedule | None" = None,
  sparsity: "Scalar | None" = None,
  steps: int | None = None,
  b1: "Scalar" = 0.9,
  b2: "Scalar" = 0.999,
  adam_eps: "Scalar" = 1e-8,
  mask: "Mask | None" = kernels,
  gradient: "Gradient" = "weight",
) -> optax.GradientTransformationExtraArgs:
  r"""ReWA with AdamW: :func:`adamw` of :class:`Rewa`, for chains and injection.

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
      latents. With a sparsity it is the mild decay, by default 0.14 over
      :math:`k\sqrt{1 - s}`, k the method's degree and s the sparsity, or 0.95
      if that is more.
    sparsity: the share of zeros to end with, 0 <= sparsity < 1, by
      :func:`decay_by_rank`, after which :func:`finalize` cuts exactly so many.
      May be traced. None for the same weight decay on all weights.
    steps: how many updates there will be; goes with sparsity. Under
      injection it is static, and the learning rate should be.
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
  rewa = Rewa(k, m, eps, mask=mask, gradient=gradient)
  return adamw(
    learning_rate,
    rewa,
    weight_decay=weight_decay,
    sparsity=sparsity,
    steps=steps,
    b1=b1,
    b2=b2,
    adam_eps=adam_eps,
  )


def _chain(
  rule: optax.GradientTransformation,
  learning_rate: "optax.ScalarOrSchedule",
  method: Method,
  weight_decay: "optax.ScalarOrSchedule | None",
  sparsity: "Scalar | None",
  steps: int | None,
  mild: "Scalar",
  least: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  check_method(method)
  if weight_decay is not None and not callable(weight_decay):
    check_number("weight_decay", weight_decay, at_least=0)
  if sparsity is not None and steps is not None:
    if not jax.tree_util.all_leaves([sparsity]):
      raise ValueError(
        "sparsity must be one number here, got a tree: decay_by_rank takes one"
        " share for each leaf."
      )
    low: Any = weight_decay
    if low is None:
      # In Python's precision, where a number below 1 stays below it.
      left = jnp.minimum(jnp.asarray(1 - sparsity), 1 - least)
      low = mild / (method.degree * jnp.sqrt(left))
    decay = decay_by_rank(method, sparsity, learning_rate, steps, low=low)
  elif sparsity is not None or steps is not None:
    raise ValueError(
      f"sparsity and steps go together, got sparsity={sparsity},"
      f" steps={steps}: ask for a sparsity after so many updates, or give"
      " weight_decay alone."
    )
  elif weight_decay is not None:
    decayed = optax.add_decayed_weights(weight_decay)
    # A schedule or an array would make 16 bits float32.
    kept = optax.chain(decayed, optax.stateless(_in_dtype_of))
    decay = optax.masked(kept, method.decaying)
  else:
    raise ValueError(
      "Give weight_decay, or sparsity and steps: without a decay nothing"
      " becomes sparse. weight_decay=0 trains dense."
    )
  return optax.chain(
    scale_by_method(method),
    rule,
    decay,
    optax.scale_by_learning_rate(learning_rate),
  )


def _in_dtype_of(updates, params):
  return jax.tree.map(
    lambda u, p: u if u is None else u.astype(jnp.result_type(p)),
    updates,
    params,
    is_leaf=lambda leaf: leaf is None,
  )
