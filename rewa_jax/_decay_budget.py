"""Whether there is enough weight decay for dead weights to reach zero."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rewa_jax._checks import Scalar, check_hyperparameters, check_number
from rewa_jax._masks import Mask, kernels, selected
from rewa_jax._method import Method, check_method, weights_and_mask


def decay_budget(
  k: "Scalar",
  weight_decay: "Scalar",
  learning_rate: "optax.ScalarOrSchedule",
  steps: int,
) -> jax.Array:
  r"""Returns :math:`B = k\lambda\sum_{t<T}\eta_t`, the decay of a whole run.

  Without a gradient a weight shrinks by exp(-B) from the first step to the
  last. A budget of 12 to 18 separates dead weights from live ones, and a
  threshold between them prunes without loss; near 8 a smear of small weights is
  left. Exact zeros in float32 need about 85.

  Args:
    k: the power, one number >= 1.
    weight_decay: :math:`\lambda` >= 0 of the decay on latents, decoupled from
      momentum.
    learning_rate: :math:`\eta_t`, a number or an optax schedule.
    steps: T, the number of updates, >= 1.

  Returns:
    A scalar.

  Raises:
    ValueError: if an argument is out of range.

  Examples:
    >>> import optax
    >>> import rewa_jax
    >>> schedule = optax.cosine_decay_schedule(0.1, 3000)
    >>> print(f"{rewa_jax.decay_budget(9, 0.01, schedule, 3000):.1f}")
    13.5

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1,
    without the gradient
  """
  check_hyperparameters(k)
  check_number("weight_decay", weight_decay, at_least=0)
  check_number("steps", steps, at_least=1)
  return sum_of_steps(learning_rate, 0, steps) * k * weight_decay


def weight_decay_for(
  budget: "Scalar",
  k: "Scalar",
  learning_rate: "optax.ScalarOrSchedule",
  steps: int,
) -> jax.Array:
  r"""Returns the weight decay that gives a run this decay budget.

  Args:
    budget: B >= 0, see :func:`decay_budget`; 12 to 18 to start with.
    k: the power, one number >= 1.
    learning_rate: :math:`\eta_t`, a number or an optax schedule.
    steps: T, the number of updates, >= 1.

  Returns:
    :math:`\lambda`, a scalar.

  Raises:
    ValueError: if an argument is out of range.

  Examples:
    >>> import optax
    >>> import rewa_jax
    >>> schedule = optax.cosine_decay_schedule(0.1, 3000)
    >>> print(f"{rewa_jax.weight_decay_for(13.5, 9, schedule, 3000):.3f}")
    0.010
  """
  check_hyperparameters(k)
  check_number("budget", budget, at_least=0)
  check_number("steps", steps, at_least=1)
  return jnp.asarray(budget) / (k * sum_of_steps(learning_rate, 0, steps))


def measure_decay_budget(
  solver: optax.GradientTransformation,
  params: Any,
  steps: int,
  *,
  mask: "Mask | None" = kernels,
  method: Method | None = None,
) -> float:
  r"""Measures the decay budget of any optimizer: it runs without gradients.

  That is :math:`B = \log|x_0| - \log|x_T|` of weights whose gradients are zero
  from the first step to the last: what :func:`decay_budget` computes, for
  whatever chain, schedule or wrapper it is. 0 says that nothing decays, and the
  network will stay dense. Of a solver that is asked for a sparsity it says
  nothing: that one checks its own budget.

  Args:
    solver: an optimizer, of weights or of latents, which needs no more than
      updates, state and params.
    params: what it would train, or their shapes: every leaf is taken for ones,
      in float64 so that no step is lost to rounding, and of a single entry
      unless masks are seen to look at sizes.
    steps: T, the number of updates, >= 1.
    mask: which leaves to look at: a tree of bools with the structure of params
      or a prefix of it, a function that returns one, or None for all.
    method: what params are latents of; its mask takes the place of mask. None
      says that params are weights, as the drop-in's are.

  Returns:
    B of the selected leaf that decays least, a Python number. Budgets beyond
    700 are infinite.

  Raises:
    ValueError: if steps < 1, params hold latents without a method or of
      another, or the mask does not fit params or selects nothing.
    TypeError: if a selected leaf is not floating point.

  Examples:
    The weight decay that AdamW has by default is far from enough:

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> rewa = rewa_jax.Rewa(k=9)
    >>> params = {"kernel": jnp.ones((2, 3))}
    >>> adamw = rewa_jax.reparameterize(optax.adamw(1e-3), rewa)
    >>> print(f"{rewa_jax.measure_decay_budget(adamw, params, 10_000):.3f}")
    0.009
    >>> sgd = rewa_jax.sgd(0.2, rewa, weight_decay=0.015)
    >>> latents = rewa.to_latents(params)
    >>> budget = rewa_jax.measure_decay_budget(sgd, latents, 1000, method=rewa)
    >>> print(f"{budget:.1f}")
    27.0
  """
  check_number("steps", steps, at_least=1)
  if method is not None:
    check_method(method)
  solver = optax.with_extra_args_support(solver)

  def step(carry, _):
    params, state = carry
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = solver.update(zeros, state, params)
    return (optax.apply_updates(params, updates), state), None

  # The context, since an optimizer's own arrays must be float64 too.
  with jax.enable_x64(True):
    chosen = _chosen(params, mask, method)
    if not any(chosen):
      raise ValueError("The mask selects nothing, so there is no decay to see.")
    first = _ones(params, method, lambda shape: (1,) * len(shape))
    whole = jax.eval_shape(lambda: _ones(params, method, lambda shape: shape))
    state, of_whole = (jax.eval_shape(solver.init, x) for x in (first, whole))
    # Masks that look at sizes are others for single entries.
    if (
      jax.tree.structure(state) != jax.tree.structure(of_whole)
      or _chosen(first, mask, method) != chosen
    ):
      first = _ones(params, method, lambda shape: shape)

    @jax.jit
    def run():
      carry, _ = jax.lax.scan(step, (first, solver.init(first)), length=steps)
      return carry[0]

    sizes = []
    for tree in (first, run()):
      weights, _ = weights_and_mask(tree, mask, method)
      leaves = zip(chosen, jax.tree.leaves(weights))
      sizes.append([np.abs(np.ravel(x)[0]) for c, x in leaves if c])
  with np.errstate(divide="ignore"):
    return float(np.min(np.log(sizes[0]) - np.log(sizes[1])))


def _chosen(
  params: Any, mask: Mask | None, method: Method | None
) -> list[bool]:
  """Returns a bool for every leaf of weights: whether it is looked at."""
  if method is None:
    return selected(mask, params)
  chosen = method.map_latents(lambda *_: True, params, lambda _: False)
  return jax.tree.leaves(chosen)


def _ones(params: Any, method: Method | None, shape_of: Any) -> Any:
  """Returns params of weights that are 1.

  Args:
    params: a tree of arrays or their shapes.
    method: what they are latents of.
    shape_of: from the shape of a leaf to that of its ones.
  """

  def one(x):
    is_floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    dtype = "float64" if is_floating else jnp.result_type(x)
    return jnp.ones(shape_of(jnp.shape(x)), dtype)

  if method is None:
    return jax.tree.map(one, params)

  def of_one(path, node):
    weight = one(jax.eval_shape(method.join, *jax.tree.leaves(node)))
    values = method.split(path, weight)
    return jax.tree.unflatten(jax.tree.structure(node), values)

  return method.map_latents(
    of_one, params, otherwise=lambda node: jax.tree.map(one, node)
  )


def sum_of_steps(
  learning_rate: "optax.ScalarOrSchedule", begin: int, end: int
) -> jax.Array:
  """Returns the sum of the learning rates of updates begin to end - 1."""
  if callable(learning_rate):
    return jnp.sum(rates_of_steps(learning_rate, begin, end))
  check_number("learning_rate", learning_rate, at_least=0)
  return jnp.asarray(learning_rate * (end - begin))


def rates_of_steps(
  learning_rate: "optax.ScalarOrSchedule", begin: int, end: int
) -> jax.Array:
  """Returns the rates of updates begin to end - 1, or the only one."""
  if not callable(learning_rate):
    return jnp.asarray(learning_rate)
  try:
    return jnp.asarray(jax.vmap(learning_rate)(jnp.arange(begin, end)))
  except (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
  ):
    # A schedule of one's own may ask `if step < warm_up`.
    return jnp.stack([jnp.asarray(learning_rate(t)) for t in range(begin, end)])
