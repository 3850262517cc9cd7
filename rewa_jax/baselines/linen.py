"""The methods for Flax linen: Factors in the variables, weights in `apply`."""

from typing import Any

import jax
from flax.core.meta import AxisMetadata

from rewa_jax import linen
from rewa_jax.baselines.reparameterization import (
  Factors,
  Reparameterization,
  is_factors,
)
from rewa_jax.masks import Mask, kernels


class Reparameterized(linen.LatentModule):
  """A linen module that stores a method's latents and computes with weights.

  Its variables are the wrapped module's own, with :class:`Factors` in the place
  of the selected weights: ``init`` splits the ordinary initialization, from the
  same random numbers, and ``apply`` joins them inside. Methods of the module
  are methods of this one, and inside a ``compact`` method the variables are
  named after the wrapped module; see :class:`rewa_jax.linen.Reparameterized`.

  Attributes:
    module: the module to wrap.
    method: the method that makes latents, a :class:`Reparameterization`.
    mask: which leaves of ``params`` are replaced: a tree of bools with the
      structure of params or a prefix of it, a function that returns one, or
      None for all.

  Raises:
    ValueError: on ``init``, if the mask does not fit the params or selects
      nothing by name.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> bare = nn.Dense(3)
    >>> model = baselines.linen.Reparameterized(bare, baselines.spred())
    >>> x = jnp.ones((1, 2))
    >>> latents = model.init(jax.random.key(0), x)
    >>> jax.tree.map(jnp.shape, latents["params"])
    {'bias': (3,), 'kernel': Factors(values=((2, 3), (2, 3)))}
    >>> weights = model.to_weights(latents)
    >>> bool(jnp.allclose(model.apply(latents, x), bare.apply(weights, x)))
    True
  """

  method: Reparameterization
  mask: Mask | None = kernels

  def _weights_of(self, latents, mask):
    del mask  # Factors say where they stand.
    weights = self.method.to_weights(latents)
    return jax.tree.map(_box_weight, latents, weights, is_leaf=is_factors)

  def _latents_of(self, weights, mask):
    latents = self.method.to_latents(weights, mask=mask)
    return jax.tree.map(_box_values, weights, latents, is_leaf=_is_box)


# A box names the axes of weights. It fits only those values of Factors that
# have the shape of weights, so there it goes inside.


def _box_values(weight: Any, latent: Any) -> Any:
  if not _is_box(weight):
    return latent
  (node,) = jax.tree.leaves(latent, is_leaf=is_factors)
  if not is_factors(node):
    return latent
  (x,) = jax.tree.leaves(weight)
  return Factors(
    tuple(
      weight.replace_boxed(value) if value.shape == x.shape else value
      for value in node.values
    )
  )


def _box_weight(latent: Any, weight: Any) -> Any:
  boxes = filter(_is_box, latent.values if is_factors(latent) else ())
  box = next(boxes, None)
  return weight if box is None else box.replace_boxed(weight)


def _is_box(node: Any) -> bool:
  return isinstance(node, AxisMetadata)
