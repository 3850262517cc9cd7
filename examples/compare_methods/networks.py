"""The networks that methods are compared on: images (n, 28, 28) to logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class LeNet300(nn.Module):
  """LeNet-300-100."""

  classes: int

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = images.reshape(len(images), -1)
    for width in (300, 100):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.classes)(x)


class LeNet5(nn.Module):
  """LeNet-5 as of Caffe, with 20 and 50 filters and 500 hidden units."""

  classes: int

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    # Images last: then every copy of a window is of contiguous numbers.
    x = images.transpose(1, 2, 0)[None]
    for filters in (20, 50):
      x = ConvAndPool(filters)(x)
    x = x.transpose(3, 1, 2, 0).reshape(len(images), -1)
    x = nn.relu(nn.Dense(500)(x))
    return nn.Dense(self.classes)(x)


class ConvAndPool(nn.Module):
  """`nn.Conv(filters, (5, 5), padding="VALID")`, then a 2x2 max pool.

  As matrix products: with one set of kernels for each model, which is what
  `jax.vmap` makes of `nn.Conv`, XLA's convolutions on a CPU take some fifty
  times longer.
  """

  filters: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (_SIZE, _SIZE, len(x), self.filters)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.filters,))
    return conv_and_pool(x, kernel) + bias[:, None, None, None]


_SIZE = 5
_SPAN = _SIZE + 1  # What the 2x2 outputs under one pool see along an axis.


@jax.custom_vjp
def conv_and_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves x (channels, n, n, images) and pools, n even."""
  return _forward(x, kernel)[0]


def _forward(x, kernel):
  size = (x.shape[1] - _SIZE + 1) // 2
  windows = _windows(x)
  four = _four_kernels(kernel) @ windows
  four = four.reshape(4, -1, size, size, x.shape[3])
  pooled = four.max(0)
  # Of equals the first takes the gradient, as in `nn.max_pool`.
  return pooled, (windows, kernel, four.argmax(0), jnp.zeros((0, *x.shape)))


def _backward(saved, slopes):
  windows, kernel, first, like = saved
  place = jnp.arange(4).reshape(4, 1, 1, 1, 1)
  slopes = jnp.where(first == place, slopes, 0)
  slopes = slopes.reshape(4 * kernel.shape[3], -1)
  return (
    _add_windows(_four_kernels(kernel).T @ slopes, like.shape[1:]),
    _add_kernels(slopes @ windows.T, kernel.shape[2]),
  )


conv_and_pool.defvjp(_forward, _backward)


def _windows(x):
  """Returns the 6x6 values under every pool, (36 channels, pools)."""
  last = x.shape[1] - _SIZE
  return jnp.stack(
    [
      x[:, i : i + last : 2, j : j + last : 2]
      for i in range(_SPAN)
      for j in range(_SPAN)
    ]
  ).reshape(_SPAN * _SPAN * len(x), -1)


def _add_windows(values, shape):
  """The transpose of `_windows`."""
  channels, n, _, images = shape
  size = (n - _SIZE + 1) // 2
  values = values.reshape(3, 2, 3, 2, channels, size, size, images)
  rows = sum(
    jnp.pad(values[i], ((0, 0),) * 4 + ((i, 2 - i), (0, 0), (0, 0)))
    for i in range(3)
  )
  x = sum(
    jnp.pad(rows[:, j], ((0, 0),) * 4 + ((j, 2 - j), (0, 0))) for j in range(3)
  )
  return x.transpose(2, 3, 0, 4, 1, 5).reshape(shape)


def _four_kernels(kernel):
  """Returns a kernel for each of the four values that are pooled."""
  shifted = jnp.stack(
    [
      jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)))
      for i in range(2)
      for j in range(2)
    ]
  )
  return shifted.transpose(0, 4, 1, 2, 3).reshape(4 * kernel.shape[3], -1)


def _add_kernels(kernels, channels):
  """The transpose of `_four_kernels`."""
  kernels = kernels.reshape(2, 2, -1, _SPAN, _SPAN, channels)
  total = sum(
    kernels[i, j, :, i : i + _SIZE, j : j + _SIZE]
    for i in range(2)
    for j in range(2)
  )
  return total.transpose(1, 2, 3, 0)


NETWORKS = {"lenet300": LeNet300, "lenet5": LeNet5}
