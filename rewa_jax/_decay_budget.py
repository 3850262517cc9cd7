"""Whether there is enough weight decay for dead weights to reach zero."""

import jax
import jax.numpy as jnp
import optax

from rewa_jax._checks import check_hyperparameters, check_number


def decay_budget(
  k: jax.typing.ArrayLike,
  weight_decay: jax.typing.ArrayLike,
  learning_rate: optax.ScalarOrSchedule,
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
  return _sum_of_steps(learning_rate, steps) * k * weight_decay


def weight_decay_for(
  budget: jax.typing.ArrayLike,
  k: jax.typing.ArrayLike,
  learning_rate: optax.ScalarOrSchedule,
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
  return jnp.asarray(budget) / (k * _sum_of_steps(learning_rate, steps))


def _sum_of_steps(learning_rate, steps):
  check_number("steps", steps, at_least=1)
  if callable(learning_rate):
    return jnp.sum(jnp.asarray(jax.vmap(learning_rate)(jnp.arange(steps))))
  check_number("learning_rate", learning_rate, at_least=0)
  return jnp.asarray(learning_rate * steps)
