"""Soft threshold reparameterization: a learned threshold for every layer."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from rewa_jax.baselines.reparameterization import Reparameterization
from rewa_jax.checks import check_number


@dataclasses.dataclass(frozen=True)
class SoftThreshold(Reparameterization):
  r"""STR: weights are soft-thresholded at a learned level.

  .. math::
    x = \operatorname{sign}(w)\max(|w| - \sigma(s), 0), \qquad
    S(w, s) = \frac12\left(\|w\|^2 + s^2\right)

  with one number s for each array and the logistic function
  :math:`\sigma`. The decay of s towards 0 raises the threshold from
  :math:`\sigma(\text{start})`. There is no penalty on weights alone that this
  amounts to.

  Attributes:
    start: s at the start, in -20 to 0 as a rule. It may be traced.

  Raises:
    ValueError: if start is not finite.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.SoftThreshold(start=-1.0)
    >>> latents = method.to_latents({"kernel": jnp.array([0.5, -0.1, 0.0])})
    >>> w, s = latents["kernel"].values
    >>> print("{:.3f} {:.3f} {:.3f}".format(*w))
    0.769 -0.369 0.000

  References:
    Kusupati et al., `Soft Threshold Weight Reparameterization for Learnable
    Sparsity <https://arxiv.org/abs/2002.03231>`_, 2020
  """

  start: jax.typing.ArrayLike = -5.0

  def __post_init__(self):
    check_number("start", self.start, at_least=-math.inf)

  @property
  def parts(self):
    return 2

  def split(self, path, x):
    del path
    s = jnp.asarray(self.start, x.dtype)
    return x + jnp.sign(x) * jax.nn.sigmoid(s), s

  def join(self, *values):
    w, s = values
    return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(s))

  def smooth_penalty(self, *values):
    return optax.tree.norm(values, squared=True) / 2

  def implicit_penalty(self, x, path="kernel"):
    raise NotImplementedError(
      "The threshold is learned with the weights, so no penalty on the weights"
      " alone stands for it."
    )
