"""Stochastic rounding: latents of 16 bits that keep the weight decay."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rewa_jax._trees import check_params, check_shapes


class RoundStochasticallyState(NamedTuple):
  """State of :func:`round_stochastically`.

  Attributes:
    key: the key that the next update draws from.
  """

  key: jax.Array


def round_stochastically(
  key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
  r"""Rounds bfloat16 and float16 params up or down at random, right on average.

  Stands last in a chain. With params p, updates u and a <= p + u <= b the
  neighbours of p + u in the dtype of params, ``optax.apply_updates`` gives

  .. math::
    p \leftarrow b \text{ with probability } \frac{p + u - a}{b - a},
    \text{ otherwise } a,

  of mean p + u. Rounded to the nearest, p would not move at all while u is
  below half of b - a, as the weight decay of a bfloat16 latent is: y keeps its
  value where :math:`\eta\lambda < 2^{-9}`.

  The sum is taken in float32. Where new and old params differ by more than a
  factor of 2, their difference may not fit the dtype: it is rounded to the
  nearest, an error of up to :math:`2^{-9}|u|` in bfloat16.

  Args:
    key: a JAX PRNG key, typed or raw. ``jax.random.key(0, impl="rbg")`` draws
      faster on TPUs; on a CPU the default, ``jax.random.key(0)``, does, and on
      a GPU, where the bits of rbg go through memory.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` whose ``update`` needs
    params, and whose updates keep the dtype of params. Updates that are None,
    of integers, or of params of 32 bits and more pass as they are, and so do
    NaN and infinity. What is too large for the dtype becomes its largest
    number.

  Raises:
    TypeError: if key is not a PRNG key.
    ValueError: if key is more than one key; on ``update``, if params are
      missing or updates differ from them in structure or shape.

  Examples:
    A thousand steps of weight decay alone, (1 - 1e-3)^1000 = 0.37:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> rewa = rewa_jax.Rewa(k=3, m=2)
    >>> sgd = rewa_jax.sgd(0.1, rewa, weight_decay=0.01)
    >>> rounded = optax.chain(
    ...   sgd, rewa_jax.round_stochastically(jax.random.key(0)))
    >>> def decay(solver):
    ...   def step(carry, _):
    ...     latents, state = carry
    ...     updates, state = solver.update({"w": zeros}, state, latents)
    ...     return (optax.apply_updates(latents, updates), state), None
    ...   zeros = jnp.zeros(1000, jnp.bfloat16)
    ...   latents = {"w": zeros + 1}
    ...   carry, _ = jax.lax.scan(
    ...     step, (latents, solver.init(latents)), length=1000)
    ...   return carry[0]["w"].mean()
    >>> print(f"{decay(sgd):.2f} {decay(rounded):.2f}")
    1.00 0.37

  References:
    Croci et al., `Stochastic rounding: implementation, error analysis and
    applications <https://doi.org/10.1098/rsos.211631>`_, 2022
  """
  _check_key(key)

  def init_fn(params):
    del params
    # A copy, so that donating the state leaves the caller's key alone.
    return RoundStochasticallyState(jnp.copy(key))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check_params(params)
    leaves, treedef = jax.tree.flatten(params)
    steps = check_shapes("updates", updates, "params", params)
    narrow = [
      i
      for i, (p, u) in enumerate(zip(leaves, steps))
      if u is not None and _is_narrow(p)
    ]
    if not narrow:
      return updates, state
    next_key, *keys = jax.random.split(state.key, len(narrow) + 1)
    for i, leaf_key in zip(narrow, keys):
      steps[i] = _round(leaf_key, jnp.asarray(leaves[i]), jnp.asarray(steps[i]))
    return treedef.unflatten(steps), RoundStochasticallyState(next_key)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _round(key, p, u):
  """Returns the step in p's dtype that leads from p to p + u, rounded."""
  dtype = jnp.finfo(p.dtype)
  largest, smallest_normal = jnp.float32(dtype.max), jnp.float32(dtype.tiny)
  p_wide, u_wide = p.astype(jnp.float32), u.astype(jnp.float32)
  new = jnp.clip(p_wide + u_wide, -largest, largest)
  size = jnp.abs(new)
  # Subnormal numbers are spaced like the normal ones right above them.
  offset = jnp.where(size < smallest_normal, smallest_normal, 0)
  bits = lax.bitcast_convert_type(size + offset, jnp.uint32)
  # The last bits of float32 that the dtype lacks carry with the probability
  # that is wanted. XLA may skip float32 -> bfloat16 -> float32, but not this.
  lacking = jnp.uint32((1 << (jnp.finfo(jnp.float32).nmant - dtype.nmant)) - 1)
  bits += jax.random.bits(key, bits.shape, jnp.uint32) & lacking
  size = lax.bitcast_convert_type(bits & ~lacking, jnp.float32) - offset
  step = jnp.clip(jnp.copysign(size, new) - p_wide, -largest, largest)
  finite = jnp.isfinite(p_wide) & jnp.isfinite(u_wide)
  return jnp.where(finite, step.astype(p.dtype), u.astype(p.dtype))


def _is_narrow(p):
  dtype = jnp.result_type(p)
  return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def _check_key(key):
  wanted = "key must be a JAX PRNG key, such as jax.random.key(0)"
  if not isinstance(key, (jax.Array, np.ndarray)):
    raise TypeError(f"{wanted}, got {key!r} of type {type(key).__name__}.")
  is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  if not is_typed and key.dtype != jnp.uint32:
    raise TypeError(f"{wanted}, got an array of dtype {key.dtype}.")
  if key.ndim != (0 if is_typed else 1):
    raise ValueError(f"{wanted}, got an array of shape {key.shape}.")
