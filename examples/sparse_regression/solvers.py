"""Every method: from the samples of a problem to its coefficients."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from skglm import GeneralizedLinearEstimator
from skglm.datafits import Logistic, Quadratic
from skglm.penalties import L0_5, L1, SCAD, MCPenalty
from skglm.solvers import AndersonCD
from sklearn.linear_model import LassoCV

import rewa_jax
from rewa_jax import baselines

from .problems import Problem

MOMENTUM = 0.9
# Smaller coefficients count as zero.
THRESHOLD = 1e-3
# Of the strength at which nothing is left by L1, in logarithmic steps.
STRENGTHS, LOWEST_STRENGTH = 12, 0.01
HELD_BACK = 0.25


class Fit(NamedTuple):
  """What a method made of a problem.

  Attributes:
    coefficients: (dimension,), of all samples at the chosen strength.
    path: (strengths, dimension), of the samples that were not held back, or
      None where a method keeps that to itself.
    strength: the chosen one.
  """

  coefficients: np.ndarray
  path: np.ndarray | None
  strength: float


# From inputs, targets, strengths and logistic to (strengths, dimension).
Solver = Callable[..., np.ndarray]


def mean_loss(coefficients, inputs, targets, logistic):
  """Half the mean squared error, or the mean logistic loss."""
  outputs = inputs @ coefficients
  if logistic:
    return optax.sigmoid_binary_cross_entropy(outputs, targets).mean()
  return jnp.mean((outputs - targets) ** 2) / 2


def curvature(inputs, logistic):
  """Estimates how fast the loss's gradient changes, by power iteration."""

  def step(direction, _):
    image = inputs.T @ (inputs @ direction) / len(inputs)
    norm = jnp.linalg.norm(image)
    return image / norm, norm

  start = jax.random.normal(jax.random.key(0), inputs.shape[1:])
  norms = jax.lax.scan(step, start, length=30)[1]
  return norms[-1] / 4 if logistic else norms[-1]


@functools.partial(jax.jit, static_argnames=("method", "steps", "logistic"))
def _descend(method, steps, rate, inputs, targets, decays, logistic):
  bend = curvature(inputs, logistic)
  shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 20, steps)
  # A gradient step from zero, so that most signs are right: from a wrong one
  # ReWA with m > 1 does not come back.
  zeros = jnp.zeros(inputs.shape[1])
  start = -jax.grad(mean_loss)(zeros, inputs, targets, logistic) / bend

  def train(decay):
    # The penalty is outside the momentum, the gradient inside.
    solver = rewa_jax.sgd(
      lambda count: rate / bend * shape(count),
      method,
      weight_decay=decay / (1 - MOMENTUM),
      momentum=MOMENTUM,
    )

    def loss(latents):
      return mean_loss(method.to_weights(latents), inputs, targets, logistic)

    def step(carry, _):
      latents, state = carry
      grads = jax.grad(loss)(latents)
      updates, state = solver.update(grads, state, latents)
      return (optax.apply_updates(latents, updates), state), None

    latents = method.to_latents(start)
    carry = latents, solver.init(latents)
    (latents, _), _ = jax.lax.scan(step, carry, length=steps)
    return method.to_weights(latents)

  return jax.vmap(train)(decays)


def descend(
  method, rate, steps, inputs, targets, strengths, *, logistic, decay=1.0
):
  """Trains one model for every strength, by full gradients.

  Args:
    method: of the package, for a bare array: its mask is None.
    rate: peak of the learning rate, in units of the loss's inverse curvature.
    steps: how many.
    inputs: (samples, dimension).
    targets: (samples,).
    strengths: of the penalty on coefficients, one for each model.
    logistic: whether targets are 0 and 1.
    decay: the weight decay of latents that is the penalty of strength 1.

  Returns:
    Coefficients, (strengths, dimension).
  """
  decays = decay * np.asarray(strengths)
  arrays = (jnp.float32(array) for array in (inputs, targets, decays))
  return np.asarray(_descend(method, steps, rate, *arrays, logistic))


def coordinate_descent(penalty, inputs, targets, strengths, *, logistic):
  """Solves for every strength by skglm, each started at the one before.

  Args:
    penalty: from a strength to a penalty of skglm.
    inputs: (samples, dimension).
    targets: (samples,).
    strengths: falling.
    logistic: whether targets are 0 and 1.

  Returns:
    Coefficients, (strengths, dimension).
  """
  datafit = Logistic() if logistic else Quadratic()
  solver = AndersonCD(
    ws_strategy="fixpoint", fit_intercept=False, warm_start=True
  )
  inputs = np.asfortranarray(inputs, float)
  targets = np.asarray(targets, float)
  model = GeneralizedLinearEstimator(datafit, penalty(strengths[0]), solver)
  found = []
  for strength in strengths:
    model.penalty = penalty(strength)
    model.fit(inputs, 2 * targets - 1 if logistic else targets)
    found.append(np.array(model.coef_).ravel())
  return np.stack(found)


def hold_out(solver: Solver, problem: Problem, *, path: bool) -> Fit:
  """Chooses the strength on samples held back, then solves with all.

  Args:
    solver: solves for several strengths.
    problem: what to fit.
    path: whether the solver comes to a strength through all before it.
  """
  inputs, targets = np.asarray(problem.inputs), np.asarray(problem.targets)
  slope = inputs.T @ (targets - targets.mean()) / len(targets)
  strengths = np.abs(slope).max() * np.geomspace(1, LOWEST_STRENGTH, STRENGTHS)
  kept = int(len(targets) * (1 - HELD_BACK))
  solve = functools.partial(solver, logistic=problem.logistic)
  found = prune(solve(inputs[:kept], targets[:kept], strengths))
  losses = [
    mean_loss(jnp.float32(row), inputs[kept:], targets[kept:], problem.logistic)
    for row in found
  ]
  best = int(np.nanargmin(losses))
  used = strengths[: best + 1] if path else strengths[[best]]
  coefficients = prune(solve(inputs, targets, used)[-1])
  return Fit(coefficients, found, float(strengths[best]))


def lasso_cv(problem: Problem) -> Fit:
  """scikit-learn's own choice, by 5 folds; of a logistic model, skglm's L1."""
  if problem.logistic:
    return hold_out(
      functools.partial(coordinate_descent, L1), problem, path=True
    )
  model = LassoCV(cv=5, fit_intercept=False)
  model.fit(np.asarray(problem.inputs, float), np.asarray(problem.targets))
  return Fit(prune(model.coef_), None, float(model.alpha_))


def prune(coefficients):
  return np.where(np.abs(coefficients) < THRESHOLD, 0.0, coefficients)


def methods(steps: int) -> dict[str, Callable[[Problem], Fit]]:
  """Returns all methods, by name."""

  def trained(method, rate, decay=1.0):
    solver = functools.partial(descend, method, rate, steps, decay=decay)
    return functools.partial(hold_out, solver, path=False)

  def solved(penalty):
    solver = functools.partial(coordinate_descent, penalty)
    return functools.partial(hold_out, solver, path=True)

  # The rates are 1 over the most that a coefficient of 1 moves with its latent.
  return {
    "ReWA, k = 9, m = 2": trained(rewa_jax.Rewa(9, 2, mask=None), 1 / 9),
    "ReWA, k = 3, m = 2": trained(rewa_jax.Rewa(3, 2, mask=None), 1 / 3),
    "spred": trained(baselines.spred(mask=None), 1 / 2),
    # Strengths are of the published penalty, 2/D of what weight decay adds.
    "DWF, D = 3": trained(
      baselines.deep_weight_factorization(3, mask=None), 1 / 3, decay=2 / 3
    ),
    "lasso": lasso_cv,
    "MCP": solved(lambda strength: MCPenalty(strength, 3.0)),
    "SCAD": solved(lambda strength: SCAD(strength, 3.7)),
    "L0.5": solved(L0_5),
  }
