"""Algorithms 1 and 2 in float64 NumPy, written from the equations."""

import numpy as np


def power(y, k):
  return np.sign(y) * np.abs(y) ** k


def root(x, k):
  return np.sign(x) * np.abs(x) ** (1 / k)


def step_scale(y, k, m, eps):
  if eps == 0:
    return np.abs(y) ** m
  slope = np.abs(y) ** (k - 1)
  return np.abs(y) ** m * slope / (slope + eps)


def train(
  params,
  is_kernel,
  gradient,
  *,
  k,
  m,
  eps,
  weight_decay,
  learning_rates,
  momentum=0.0,
  nesterov=False,
  adam=False,
):
  """Returns the weights after len(learning_rates) steps.

  params and the gradient of params are dicts of arrays; is_kernel names the
  ones with latents. The others get plain SGD or Adam.
  """
  b1, b2, adam_eps = 0.9, 0.999, 1e-8
  y = {
    name: root(x, k) if is_kernel[name] else np.array(x, np.float64)
    for name, x in params.items()
  }
  first = {name: np.zeros_like(v) for name, v in y.items()}
  second = {name: np.zeros_like(v) for name, v in y.items()}
  weights = params
  for t, rate in enumerate(learning_rates, start=1):
    gradients = gradient(weights)
    for name in y:
      g = gradients[name]
      if is_kernel[name]:
        g = step_scale(y[name], k, m, eps) * g
      if adam:
        first[name] = b1 * first[name] + (1 - b1) * g
        second[name] = b2 * second[name] + (1 - b2) * g**2
        mean = first[name] / (1 - b1**t)
        spread = np.sqrt(second[name] / (1 - b2**t))
        direction = mean / (spread + adam_eps)
      else:
        first[name] = momentum * first[name] + g
        direction = first[name]
        if nesterov:
          direction = momentum * first[name] + g
      decay = weight_decay if is_kernel[name] else 0.0
      y[name] = (1 - rate * decay) * y[name] - rate * direction
    weights = {
      name: power(v, k) if is_kernel[name] else v for name, v in y.items()
    }
  return weights
