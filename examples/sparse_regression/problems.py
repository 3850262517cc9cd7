"""Regression problems with a known sparse truth."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
  """Samples of a linear model, and the truth behind them.

  Attributes:
    inputs: (samples, dimension).
    targets: (samples,), numbers, or 0 and 1 of a logistic model.
    truth: (dimension,), the true coefficients.
    correlation: of neighbouring columns; columns i and j have its power
      abs(i - j).
    logistic: whether the model is logistic.
  """

  inputs: jax.Array
  targets: jax.Array
  truth: jax.Array
  correlation: float
  logistic: bool


class Task(NamedTuple):
  """What to draw a problem of.

  Attributes:
    coefficients: the true ones, or how many to draw.
    correlation: of neighbouring columns.
    logistic: whether targets are 0 and 1.
  """

  coefficients: tuple[float, ...] | int
  correlation: float = 0.0
  logistic: bool = False

  @property
  def sizes(self) -> np.ndarray:
    """The absolute values of the true coefficients."""
    if isinstance(self.coefficients, int):
      return np.linspace(0.2, 1.0, self.coefficients, dtype=np.float32)
    return np.abs(self.coefficients)


TASKS = {
  "linear": Task((1.0,)),
  "logistic": Task((1.0, 0.5), logistic=True),
  "20 correlated": Task(20, correlation=0.7),
  "100 correlated": Task(100, correlation=0.7),
}


def draw(task: Task, seed: int, samples: int, dimension: int) -> Problem:
  """Draws Gaussian inputs, a truth and targets with Gaussian noise of 1.

  True coefficients that are not given are drawn at random places, with sizes
  evenly spread over 0.2 to 1 and random signs. Targets of a logistic model are
  1 with the probability sigmoid(inputs @ truth).
  """
  keys = jax.random.split(jax.random.key(seed), 4)
  truth = jnp.zeros(dimension)
  if isinstance(task.coefficients, int):
    count = len(task.sizes)
    places = jax.random.permutation(keys[0], dimension)[:count]
    signs = jax.random.rademacher(keys[1], (count,), jnp.float32)
    truth = truth.at[places].set(signs * task.sizes)
  else:
    truth = truth.at[: len(task.coefficients)].set(jnp.array(task.coefficients))
  noise = jax.random.normal(keys[2], (dimension, samples))
  rho = task.correlation

  def next_column(column, noise):
    column = rho * column + jnp.sqrt(1 - rho**2) * noise
    return column, column

  # The first column has variance 1, as all others.
  _, columns = jax.lax.scan(next_column, noise[0], noise[1:])
  inputs = jnp.concatenate([noise[:1], columns]).T
  means = inputs @ truth
  if task.logistic:
    targets = jax.random.bernoulli(keys[3], jax.nn.sigmoid(means))
    targets = targets.astype(jnp.float32)
  else:
    targets = means + jax.random.normal(keys[3], (samples,))
  return Problem(inputs, targets, truth, rho, task.logistic)
