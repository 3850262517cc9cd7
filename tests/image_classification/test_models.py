import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.image_classification import models

# The published counts; ResNet-20's shortcuts have no parameters.
PUBLISHED = [
  ("lenet300", (28, 28, 1), {"classes": 10}, 266_610),
  ("lenet5", (28, 28, 1), {"classes": 10}, 431_080),
  ("resnet20", (32, 32, 3), {"classes": 10}, 269_722),
  ("resnet18", (32, 32, 3), {"classes": 10}, 11_173_962),
  ("resnet34", (32, 32, 3), {"classes": 10}, 21_282_122),
  ("resnet18", (224, 224, 3), {"classes": 1000}, 11_689_512),
  ("resnet34", (224, 224, 3), {"classes": 1000}, 21_797_672),
  ("resnet50", (224, 224, 3), {"classes": 1000}, 25_557_032),
]


def init(name, shape, **settings):
  if shape[0] == 224:
    settings["stem"] = "imagenet"
  model = models.MODELS[name](**settings)
  images = jnp.zeros((2, *shape))
  return model, jax.eval_shape(model.init, jax.random.key(0), images), images


@pytest.mark.parametrize("name, shape, settings, count", PUBLISHED)
def test_parameters_are_as_many_as_published(name, shape, settings, count):
  _, variables, _ = init(name, shape, **settings)
  leaves = jax.tree.leaves(variables["params"])
  assert sum(leaf.size for leaf in leaves) == count


@pytest.mark.parametrize("name, shape, settings, _", PUBLISHED)
def test_bfloat16_computes_on_float32_params(name, shape, settings, _):
  model, variables, images = init(name, shape, **settings, dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
    jnp.dtype("float32")
  }
  program = str(jax.make_jaxpr(model.apply)(variables, images))
  assert "bf16" in program
  logits = jax.eval_shape(model.apply, variables, images)
  assert logits.shape == (2, settings["classes"])
  assert logits.dtype == jnp.float32


def test_relu_has_values_and_slopes_of_flax_s():
  x = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf, jnp.nan])
  np.testing.assert_array_equal(models.relu(x), nn.relu(x))
  for slope in (1.0, -2.0):
    np.testing.assert_array_equal(
      jax.vjp(models.relu, x[:-1])[1](jnp.full(7, slope))[0],
      jax.vjp(nn.relu, x[:-1])[1](jnp.full(7, slope))[0],
    )


@pytest.mark.slow
@pytest.mark.parametrize("block", [models.NarrowBlock, models.Bottleneck])
def test_values_gradients_and_statistics_are_those_with_flax_s_relu(
  block, monkeypatch
):
  network = models.ResNet(stages=(1, 1), block=block, classes=3, width=4)
  images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  variables = jax.jit(network.init)(jax.random.key(1), images)

  def everything():
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, statistics):
      logits, changed = network.apply(
        {"params": params, "batch_stats": statistics},
        images,
        train=True,
        mutable=["batch_stats"],
      )
      return jnp.sum(jnp.sin(logits)), (logits, changed)

    return run(variables["params"], variables["batch_stats"])

  fast = everything()
  monkeypatch.setattr(models, "relu", nn.relu)
  plain = everything()
  assert jnp.abs(jax.tree.leaves(plain[1])[0]).max() > 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    fast,
    plain,
  )
