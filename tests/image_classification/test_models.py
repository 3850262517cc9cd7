import jax
import jax.numpy as jnp
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
