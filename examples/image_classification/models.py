"""The networks: LeNets for MNIST, ResNets for CIFAR and ImageNet."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def relu(x: jax.Array) -> jax.Array:
  """Returns max(x, 0), with slope 0 at 0."""
  # XLA on a CPU takes `nn.relu` for so cheap that gradients of residual blocks
  # compute it anew, with all blocks before: a third of a step of ResNet-20.
  return jnp.where(x <= 0, 0, x)


class ResNet(nn.Module):
  """A residual network of images (n, height, width, channels) to logits.

  Attributes:
    stages: the number of blocks of each stage.
    block: BasicBlock, NarrowBlock or Bottleneck.
    classes: the number of logits.
    width: channels of the first stage; every later stage has twice as many.
    stem: ``"cifar"``, a 3x3 convolution, or ``"imagenet"``, a 7x7 one of stride
      2 and a max pool.
    dtype: of the computation; parameters and statistics stay float32.
    axis_name: the mapped axis that batch statistics are averaged over.
    momentum: of the batch statistics that tests use.
  """

  stages: Sequence[int]
  block: Callable[..., nn.Module]
  classes: int
  width: int = 64
  stem: str = "cifar"
  dtype: Any = jnp.float32
  axis_name: str | None = None
  momentum: float = 0.9

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    conv = functools.partial(
      nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=HE_NORMAL
    )
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=self.momentum,
      epsilon=1e-5,
      dtype=self.dtype,
      axis_name=self.axis_name if train else None,
    )
    x = images.astype(self.dtype)
    if self.stem == "imagenet":
      x = conv(self.width, (7, 7), 2, padding=3, name="stem")(x)
    else:
      x = conv(self.width, (3, 3), padding=1, name="stem")(x)
    x = relu(norm(name="stem_norm")(x))
    if self.stem == "imagenet":
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, blocks in enumerate(self.stages):
      for index in range(blocks):
        x = self.block(
          self.width * 2**stage,
          2 if stage and not index else 1,
          conv,
          norm,
          name=f"stage{stage}_block{index}",
        )(x)
    x = x.mean((1, 2))
    x = nn.Dense(self.classes, dtype=self.dtype, name="head")(x)
    return x.astype(jnp.float32)


def projected(block: nn.Module, x: jax.Array, like: jax.Array) -> jax.Array:
  """Returns x, by a 1x1 convolution where its shape is not that of `like`."""
  if x.shape == like.shape:
    return x
  filters = like.shape[-1]
  x = block.conv(filters, (1, 1), block.stride, name="projection")(x)
  return block.norm(name="projection_norm")(x)


def padded(block: nn.Module, x: jax.Array, like: jax.Array) -> jax.Array:
  """Returns x with channels of zeros, and every other pixel by stride 2."""
  x = x[:, :: block.stride, :: block.stride]
  new = like.shape[-1] - x.shape[-1]
  return jnp.pad(x, ((0, 0),) * 3 + ((new // 2, new - new // 2),))


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut."""

  filters: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  shortcut: Callable[..., jax.Array] = projected

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.conv(self.filters, (3, 3), self.stride, padding=1)(x)
    y = relu(self.norm()(y))
    y = self.norm()(self.conv(self.filters, (3, 3), padding=1)(y))
    return relu(self.shortcut(self, x, y) + y)


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions; the stride is in the middle."""

  filters: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
    y = self.conv(self.filters, (3, 3), self.stride, padding=1)(y)
    y = relu(self.norm()(y))
    y = self.norm()(self.conv(4 * self.filters, (1, 1))(y))
    return relu(projected(self, x, y) + y)


# Of ResNets for CIFAR: its shortcuts have no parameters.
NarrowBlock = functools.partial(BasicBlock, shortcut=padded)


class LeNet300(nn.Module):
  """LeNet-300-100: two hidden layers."""

  classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    x = images.reshape(len(images), -1).astype(self.dtype)
    for width in (300, 100):
      x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
    return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


class LeNet5(nn.Module):
  """LeNet-5 as of Caffe, with 20 and 50 filters and 500 hidden units."""

  classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    x = images.astype(self.dtype)
    for filters in (20, 50):
      x = nn.Conv(filters, (5, 5), padding="VALID", dtype=self.dtype)(x)
      # A 2x2 max pool; nn.max_pool takes twice as long on a CPU.
      n, height, width, channels = x.shape
      x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
    x = x.reshape(len(images), -1)
    x = nn.relu(nn.Dense(500, dtype=self.dtype)(x))
    return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


_narrow = functools.partial(ResNet, block=NarrowBlock, width=16)
_basic = functools.partial(ResNet, block=BasicBlock)
MODELS = {
  "lenet300": LeNet300,
  "lenet5": LeNet5,
  "resnet8": functools.partial(_narrow, stages=(1, 1, 1)),
  "resnet20": functools.partial(_narrow, stages=(3, 3, 3)),
  "resnet18": functools.partial(_basic, stages=(2, 2, 2, 2)),
  "resnet34": functools.partial(_basic, stages=(3, 4, 6, 3)),
  "resnet50": functools.partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck),
}
