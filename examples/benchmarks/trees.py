"""The parameters of networks, as shapes."""

from typing import Any

import jax
import jax.numpy as jnp

from ..image_classification.models import MODELS
from .transformer import GPT2


def _resnet(name, resolution, **settings):
  images = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
  return MODELS[name](**settings), images


TREES = {
  "resnet20": lambda: _resnet("resnet20", 32, classes=10),
  "resnet18": lambda: _resnet("resnet18", 32, classes=10),
  "resnet50": lambda: _resnet("resnet50", 224, classes=1000, stem="imagenet"),
  "transformer": lambda: (GPT2(), jax.ShapeDtypeStruct((1, 8), jnp.int32)),
}


def shapes(name: str) -> Any:
  """Returns the params of one of TREES as shapes and dtypes."""
  model, inputs = TREES[name]()
  return jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
