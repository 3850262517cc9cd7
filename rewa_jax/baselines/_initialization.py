"""The random start of deep weight factorization."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfinv
from jax.scipy.stats import norm

from rewa_jax._masks import selected
from rewa_jax._power import wide_dtype
from rewa_jax._trees import box_like, is_box, parts_of, unbox
from rewa_jax.baselines._factorized import FactorProduct

# The published eps is this share of the standard deviation of the weights.
_LEAST = 0.01


def draw_factors(
  key: jax.Array,
  params: Any,
  method: FactorProduct,
  *,
  corrected: bool = False,
) -> Any:
  r"""Draws factors whose product stands for freshly drawn weights.

  Each of D factors is drawn from

  .. math::
    \mathcal N(0, \sigma^{2/D}) \quad\text{given}\quad
    \varepsilon^{1/D} < |w| < \min(1, (2\sigma)^{1/D}), \qquad
    \varepsilon = 0.01\,\sigma

  with :math:`\sigma` the root mean square of the given weights of the leaf.
  The bounds keep products from being almost zero, where they hardly learn, and
  from outliers. They also make the standard deviation of the product smaller
  than :math:`\sigma`: 0.56, 0.40 and 0.31 of it for depth 2, 3 and 4.

  Args:
    key: a PRNG key.
    params: a tree of weights as the network draws them, for shapes and scales.
    method: a product of D factors, :func:`deep_weight_factorization`.
    corrected: whether to scale the factors up so that the product has the
      standard deviation :math:`\sigma`.

  Returns:
    A tree of latents of the method, of params' dtypes and shardings.

  Raises:
    ValueError: if the method's mask does not fit params or selects nothing by
      name.
    TypeError: if method is no product of factors, or a selected leaf is not
      floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> weights = 0.1 * jax.random.normal(jax.random.key(0), (99, 99))
    >>> params = {"kernel": weights}
    >>> method = baselines.deep_weight_factorization(3)
    >>> for corrected in (False, True):
    ...   latents = baselines.draw_factors(
    ...     jax.random.key(1), params, method, corrected=corrected)
    ...   print(f"{method.to_weights(latents)['kernel'].std():.2f}")
    0.04
    0.10

  References:
    Kolb et al., Deep Weight Factorization: Sparse Learning Through the Lens of
    Artificial Symmetries, ICLR 2025
  """
  if not isinstance(method, FactorProduct):
    raise TypeError(f"method must be a product of factors, got {method!r}.")
  leaves, treedef = jax.tree.flatten(params, is_leaf=is_box)
  chosen = selected(method.mask, params)
  keys = jax.random.split(key, max(len(leaves), 1))
  return treedef.unflatten(
    parts_of(
      [
        box_like(box, factor)
        for factor in _draw(
          key, jnp.asarray(unbox(box)), depth=method.depth, corrected=corrected
        )
      ]
    )
    if is_chosen
    else box
    for key, is_chosen, box in zip(keys, chosen, leaves)
  )


@functools.partial(jax.jit, static_argnames=("depth", "corrected"))
def _draw(key, x, *, depth, corrected):
  dtype = wide_dtype(x)
  sigma = jnp.sqrt(jnp.mean(jnp.square(x.astype(dtype))))
  scale = sigma ** (1 / depth)
  low = jnp.asarray(_LEAST ** (1 / depth), dtype)
  high = jnp.minimum(1 / scale, 2 ** (1 / depth))
  # By the inverse of the distribution function of |w|: nothing is rejected.
  below, above = erf(low / math.sqrt(2)), erf(high / math.sqrt(2))
  if corrected:
    edges = 2 * (low * norm.pdf(low) - high * norm.pdf(high))
    scale = scale / jnp.sqrt(1 + edges / (above - below))
  sharding = jax.typeof(x).sharding

  def draw(key):
    share = jax.random.uniform(
      key, x.shape, dtype, -1, 1, out_sharding=sharding
    )
    # What does not depend on x would be drawn whole on every device.
    share = jnp.where(jnp.isnan(x), x.astype(dtype), share)
    sizes = math.sqrt(2) * erfinv(below + (above - below) * jnp.abs(share))
    return (scale * jnp.copysign(sizes, share)).astype(x.dtype)

  return [draw(key) for key in jax.random.split(key, depth)]
