"""Optimizer steps in eager PyTorch, on the arrays of a tree."""

from collections.abc import Callable, Sequence

import numpy as np
import torch


def sgd(
  shapes: Sequence[Sequence[int]], rate: float, momentum: float
) -> Callable[[None], None]:
  """Returns a step of torch.optim.SGD."""
  params = _params(shapes)
  optimizer = torch.optim.SGD(params, rate, momentum)

  def step(carry: None) -> None:
    optimizer.step()

  return step


def rewa(
  shapes: Sequence[Sequence[int]],
  rate: float,
  momentum: float,
  k: int,
  m: int,
  weight_decay: float,
) -> Callable[[None], None]:
  """Returns a step of ReWA that stores weights and takes roots every time."""
  params = _params(shapes)
  buffers = [torch.zeros_like(x) for x in params]

  @torch.no_grad()
  def step(carry: None) -> None:
    for x, buffer in zip(params, buffers):
      y = x.sign() * x.abs() ** (1 / k)
      direction = y.abs() ** m * x.grad
      if momentum:
        direction = buffer.mul_(momentum).add_(direction)
      y = y - rate * (direction + weight_decay * y)
      x.copy_(y.sign() * y.abs() ** k)

  return step


def _params(shapes):
  random = np.random.default_rng(0)
  params = []
  for shape in shapes:
    x, gradient = random.standard_normal((2, *shape), np.float32)
    param = torch.nn.Parameter(torch.from_numpy(x))
    param.grad = torch.from_numpy(0.01 * gradient)
    params.append(param)
  return params
