"""The networks that methods are compared on."""

import flax.linen as nn
import jax


class LeNet300(nn.Module):
  """LeNet-300-100."""

  classes: int

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = images.reshape(len(images), -1)
    for width in (300, 100):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.classes)(x)


NETWORKS = {"lenet300": LeNet300}
