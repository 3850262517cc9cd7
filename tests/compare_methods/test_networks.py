import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.compare_methods.networks import LeNet5, LeNet300


class ReferenceLeNet5(nn.Module):
  """LeNet-5 by Flax's own convolution and pooling."""

  @nn.compact
  def __call__(self, images):
    x = images[..., None]
    for filters in (20, 50):
      # Its name is that of the layer which does both.
      name = f"ConvAndPool_{filters // 50}"
      x = nn.Conv(filters, (5, 5), padding="VALID", name=name)(x)
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Dense(500)(x.reshape(len(x), -1)))
    return nn.Dense(10)(x)


@pytest.mark.parametrize(
  ("network", "size"), [(LeNet300, 266_610), (LeNet5, 431_080)]
)
def test_networks_have_as_many_parameters_as_published(network, size):
  images = jnp.ones((1, 28, 28))
  params = jax.eval_shape(network(10).init, jax.random.key(0), images)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size


@pytest.mark.slow
def test_lenet5_is_that_of_flax_layers():
  keys = jax.random.split(jax.random.key(0), 3)
  # A tenth of the pixels black, so that pools have ties.
  images = jax.random.uniform(keys[0], (6, 28, 28))
  images = images * jax.random.bernoulli(keys[1], 0.9, images.shape)
  reference, network = ReferenceLeNet5(), LeNet5(10)
  params = network.init(keys[2], images)
  jax.tree.map(
    np.testing.assert_array_equal, params, reference.init(keys[2], images)
  )

  def loss(params, images, model):
    return jnp.sum(jnp.sin(model.apply(params, images)))

  grads = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  for model_value, expected in zip(
    grads(params, images, network), grads(params, images, reference)
  ):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      model_value,
      expected,
    )
