"""Soft threshold reparameterization: a learned threshold for every layer."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from rewa_jax._checks import check_number
from rewa_jax._method import NOT_THE_MAP, Method


@dataclasses.dataclass(frozen=True)
class SoftThreshold(Method):
  r"""STR: weights are soft-thresholded at a learned level.

  .. math::
    x = \operatorname{sign}(w)\max(|w| - \sigma(s), 0)

  with one number s for each array and the logistic function
  :math:`\sigma`. Weight decay reaches both w and s: the decay of s towards 0
  raises the threshold from :math:`\sigma(\text{start})`. There is no penalty on
  weights alone that this amounts to.

  Attributes:
    start: s at the start, in -20 to 0 as a rule. It may be traced.
    mask: which leaves have latents; see :class:`rewa_jax.Method`.

  Raises:
    ValueError: if start is not finite.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.SoftThreshold(start=-1.0)
    >>> latents = method.to_latents({"kernel": jnp.array([0.5, -0.1, 0.0])})
    >>> print("{:.3f} {:.3f} {:.3f}".format(*latents["kernel"]["latent_0"]))
    0.769 -0.369 0.000

  References:
    Kusupati et al., `Soft Threshold Weight Reparameterization for Learnable
    Sparsity <https://arxiv.org/abs/2002.03231>`_, 2020
  """

  start: jax.typing.ArrayLike = dataclasses.field(
    default=-5.0, metadata=NOT_THE_MAP
  )

  def __post_init__(self):
    check_number("start", self.start, at_least=-math.inf)

  @property
  def decays(self):
    return (True, True)

  @property
  def degree(self):
    return 1  # Of the larger ones: the threshold itself hardly moves.

  def split(self, path, x):
    del path
    # As many axes as the weights have, so that stacked latents broadcast.
    s = jnp.full((1,) * x.ndim, self.start, x.dtype)
    return x + jnp.sign(x) * jax.nn.sigmoid(s), s

  def join(self, *values):
    w, s = values
    return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(s))

  def implicit_penalty(self, x, path="kernel"):
    raise NotImplementedError(
      "The threshold is learned with the weights, so no penalty on the weights"
      " alone stands for it."
    )
