"""ReWA around any optimizer: latents in its state, params stay weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from rewa_jax.checks import check_hyperparameters, check_shapes, path_name
from rewa_jax.masks import Mask, kernels, select
from rewa_jax.power import power, root, wide_dtype
from rewa_jax.transform import scale_by_rewa


class ReparameterizeState(NamedTuple):
  """State of :func:`reparameterize`.

  Attributes:
    latents: the latents of the selected leaves, ``optax.MaskedNode`` elsewhere.
    inner_state: the state of the inner optimizer.
  """

  latents: optax.Params
  inner_state: optax.OptState


def reparameterize(
  inner: optax.GradientTransformation,
  k: jax.typing.ArrayLike,
  m: jax.typing.ArrayLike = 0.0,
  eps: jax.typing.ArrayLike = 0.0,
  *,
  mask: Mask | None = kernels,
) -> optax.GradientTransformationExtraArgs:
  r"""Runs an optimizer on latents while the model keeps its weights.

  The params stay the weights x that the model is called with, and the gradients
  those with respect to x. The latents :math:`y = \operatorname{sign}(x)
  |x|^{1/k}` live in the state; the inner optimizer sees them in the place of
  the weights, with gradients scaled by :func:`scale_by_rewa`, so that
  ``optax.adamw`` decays latents. The updates lead from the current params to
  :math:`\operatorname{sign}(y)|y|^k`.

  Args:
    inner: the optimizer to run on latents, learning rate and decay included.
    k: the power, one number >= 1. May be traced, as m and eps may.
    m: 0 <= m <= k - 1; see :func:`scale_by_rewa`.
    eps: >= 0; see :func:`scale_by_rewa`.
    mask: which leaves have latents: a tree of bools with the structure of
      params or a prefix of it, a function that returns one, or None for all.
      The inner optimizer sees the other leaves as they are, and its decay
      reaches them unless it has a mask of its own.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on weights. Latents are
    float32 (float64 where params are) and the truth: what ``update`` gets as
    params only says where the updates start. If params change from outside,
    call :func:`adopt_weights`.

  Raises:
    ValueError: if a hyperparameter is out of range, the mask selects nothing by
      name, or params, updates and state do not belong together.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> target = jnp.array([1.0, 0.1])
    >>> loss = lambda params: 0.5 * jnp.sum((params["w"] - target) ** 2)
    >>> sgd = optax.chain(
    ...   optax.trace(0.9),
    ...   optax.add_decayed_weights(0.1),
    ...   optax.scale(-0.1),
    ... )
    >>> solver = rewa_jax.reparameterize(sgd, k=3, m=2)
    >>> params = {"w": jnp.array([0.5, 0.5])}
    >>> state = solver.init(params)
    >>> @jax.jit
    ... def step(params, state):
    ...   updates, state = solver.update(jax.grad(loss)(params), state, params)
    ...   return optax.apply_updates(params, updates), state
    >>> for _ in range(500):
    ...   params, state = step(params, state)
    >>> print("{:.2f} {:.2f}".format(*params["w"]))
    0.99 0.00

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithms 1
    and 2
  """
  check_hyperparameters(k, m, eps)
  inner = optax.with_extra_args_support(inner)
  scale = scale_by_rewa(k, m, eps, mask=mask)

  def init_with(to_latent, params):
    latents = jax.tree.map(
      lambda selected, x: to_latent(x) if selected else optax.MaskedNode(),
      select(mask, params),
      params,
    )
    return ReparameterizeState(latents, inner.init(_fill(latents, params)))

  def init_fn(params):
    return init_with(lambda x: _latent(x, k), params)

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    # Shapes alone: roots need not be traced in every step.
    expected = jax.eval_shape(lambda x: init_with(jnp.asarray, x), params)
    check_shapes("the optimizer state", state, "that of params", expected)
    latents = _fill(state.latents, params)
    updates, _ = scale.update(updates, optax.EmptyState(), latents)
    updates, inner_state = inner.update(
      updates, state.inner_state, latents, **extra_args
    )
    latents = jax.tree.map(
      lambda y, u: y if _is_plain(y) or u is None else _add(y, u),
      state.latents,
      updates,
      is_leaf=_is_plain,
    )
    updates = jax.tree.map(
      lambda y, u, x: u if _is_plain(y) or u is None else _step_to(y, k, x),
      latents,
      updates,
      params,
      is_leaf=_is_plain,
    )
    return updates, ReparameterizeState(latents, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def adopt_weights(
  opt_state: optax.OptState, params: optax.Params, k: jax.typing.ArrayLike
) -> optax.OptState:
  """Makes a drop-in optimizer continue from weights changed from outside.

  Without it, the next update would lead back to the weights of the latents in
  the state. Momentum and moments stay as they are, so pruned weights may move
  again; multiplying updates by the masks of :func:`prune` keeps them zero.

  Args:
    opt_state: a state that holds the one of :func:`reparameterize`, at any
      depth of optax's wrappers.
    params: the new weights, loaded or pruned, with the tree and shapes of the
      old ones. With ``nnx.Optimizer``, pass ``nnx.state(model, nnx.Param)``,
      and hand the result back by
      ``nnx.update(optimizer.opt_state, nnx.state(result))``.
    k: the power that was passed to :func:`reparameterize`.

  Returns:
    The state with the roots of the new weights as latents.

  Raises:
    ValueError: if opt_state holds no state of :func:`reparameterize`, params
      have another structure or other shapes, or k < 1.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> solver = rewa_jax.reparameterize(optax.sgd(0.1), k=3)
    >>> params = {"w": jnp.array([8.0, 1.0])}
    >>> state = solver.init(params)
    >>> params, _ = rewa_jax.prune(params, threshold=2.0)
    >>> state = rewa_jax.adopt_weights(state, params, k=3)
    >>> print(state.latents["w"])
    [2. 0.]
  """
  check_hyperparameters(k)
  nodes = jax.tree.leaves(opt_state, is_leaf=_is_ours)
  if not any(map(_is_ours, nodes)):
    raise ValueError(
      "opt_state holds no state of rewa_jax.reparameterize; the other ways in"
      " need no adoption, their params are the latents: call"
      " rewa_jax.to_latents."
    )

  # By path, since NNX wraps the leaves of both in Variables of two kinds.
  weights = {
    path_name(path): x
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }

  def adopt(node: Any) -> Any:
    if not _is_ours(node):
      return node
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
      node.latents, is_leaf=_is_plain
    )
    latents = {path_name(path): y for path, y in leaves}
    like = {
      name: weights.get(name, 0) if _is_plain(y) else y
      for name, y in latents.items()
    }
    check_shapes("params", weights, "the latents in opt_state", like)
    adopted = [
      y if _is_plain(y) else _latent(weights[name], k)
      for name, y in latents.items()
    ]
    return node._replace(latents=treedef.unflatten(adopted))

  return jax.tree.map(adopt, opt_state, is_leaf=_is_ours)


def _latent(x, k):
  # A copy, so that params and state can both be donated.
  x = jnp.asarray(x)
  return jnp.copy(root(x.astype(wide_dtype(x)), k))


def _add(y, update):
  return (y + update).astype(y.dtype)


def _step_to(y, k, x):
  x = jnp.asarray(x)
  return power(y, k).astype(x.dtype) - x


def _fill(latents, params):
  """Puts params where the mask left no latents."""
  return jax.tree.map(
    lambda y, x: x if _is_plain(y) else y, latents, params, is_leaf=_is_plain
  )


def _is_ours(node: Any) -> bool:
  return isinstance(node, ReparameterizeState)


def _is_plain(node: Any) -> bool:
  return isinstance(node, optax.MaskedNode)
