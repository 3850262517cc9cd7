"""The drop-in: latents in the optimizer's state, params stay weights."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rewa_jax._method import Method, is_node
from rewa_jax._power import wide_dtype
from rewa_jax._trees import (
  box_like,
  check_params,
  check_shape,
  flatten_up_to,
  leaf_path,
  path_name,
  unbox,
  with_paths,
)


class ReparameterizeState(NamedTuple):
  """State of :func:`reparameterize`.

  Attributes:
    latents: the latents of the selected leaves, ``optax.MaskedNode`` elsewhere.
    inner_state: the state of the inner optimizer.
    method: the method of the last update, its numbers as arrays.
  """

  latents: optax.Params
  inner_state: optax.OptState
  method: Method


def reparameterize(
  inner: optax.GradientTransformation, method: Method
) -> optax.GradientTransformationExtraArgs:
  r"""Runs an optimizer on latents while the model keeps its weights.

  The params stay the weights x that the model is called with, and the gradients
  those with respect to x. The latents live in the state; the inner optimizer
  sees them in the place of the weights, with gradients scaled by
  :func:`scale_by_method`, so that ``optax.adamw`` decays latents. The updates
  lead from the current params to the weights of the new latents.

  Args:
    inner: the optimizer to run on latents, learning rate and decay included.
      Leaves that the method does not select are as they are for it, and its
      decay reaches them unless it has a mask, such as ``method.decaying``.
    method: what the latents are, :class:`Rewa` or another.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on weights. Latents are
    float32 (float64 where params are) and the truth: what ``update`` gets as
    params only says where the updates start. If params change from outside,
    call :func:`adopt_weights`.

  Raises:
    ValueError: if the method's mask does not fit params or selects nothing by
      name, or params, updates and state do not belong together.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> target = jnp.array([1.0, 0.1])
    >>> loss = lambda params: 0.5 * jnp.sum((params["w"] - target) ** 2)
    >>> momentum = optax.chain(
    ...   optax.trace(0.9),
    ...   optax.add_decayed_weights(0.1),
    ...   optax.scale(-0.1),
    ... )
    >>> rewa = rewa_jax.Rewa(k=3, m=2)
    >>> solver = rewa_jax.reparameterize(momentum, rewa)
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
  inner = optax.with_extra_args_support(inner)

  def init_fn(params: Any) -> Any:
    latents = method.map_weights(
      lambda path, x: _latents_of(method, path, x),
      params,
      otherwise=lambda x: optax.MaskedNode(),
    )
    inner_state = inner.init(_fill(latents, params))
    return ReparameterizeState(latents, inner_state, _numbers_of(method))

  def update_fn(updates: Any, state: Any, params: Any = None, **extra_args):
    check_params(params)
    paths = [path for path, _ in with_paths(state.latents, is_leaf=_is_leaf)]
    nodes, treedef = jax.tree.flatten(state.latents, is_leaf=_is_leaf)
    ours = ("the latents in the state", state.latents, _is_leaf)
    weights = flatten_up_to("params", params, *ours)
    grads = flatten_up_to("updates", updates, *ours)
    moves = [
      not _is_plain(node) and g is not None for node, g in zip(nodes, grads)
    ]

    for i, path in enumerate(paths):
      if moves[i]:
        grads[i] = _pull_back(method, path, nodes[i], grads[i], weights[i])
    latents = _fill(state.latents, params)
    steps, inner_state = inner.update(
      treedef.unflatten(grads), state.inner_state, latents, **extra_args
    )

    steps = treedef.flatten_up_to(steps)
    for i, box in enumerate(weights):
      if moves[i]:
        nodes[i] = jax.tree.map(
          lambda y, u: (y + u).astype(y.dtype), nodes[i], steps[i]
        )
        x, new = (
          jnp.asarray(unbox(box)),
          method.join(*jax.tree.leaves(nodes[i])),
        )
        steps[i] = box_like(box, new.astype(x.dtype) - x)
    new_state: Any = ReparameterizeState(
      treedef.unflatten(nodes), inner_state, _numbers_of(method)
    )
    return treedef.unflatten(steps), new_state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def adopt_weights(
  opt_state: optax.OptState, params: optax.Params
) -> optax.OptState:
  """Makes a drop-in optimizer continue from weights changed from outside.

  Without it, the next update would lead back to the weights of the latents in
  the state. Momentum and moments stay as they are, so pruned weights may move
  again; multiplying updates by the masks of :func:`prune` keeps them zero.

  Args:
    opt_state: a state that holds one or more of :func:`reparameterize`, at any
      depth of optax's wrappers.
    params: the new weights, loaded or pruned, with the tree and shapes of the
      old ones. With ``nnx.Optimizer``, pass ``nnx.state(model, nnx.Param)``,
      and hand the result back by
      ``nnx.update(optimizer.opt_state, nnx.state(result))``.

  Returns:
    The state with latents of the new weights.

  Raises:
    ValueError: if opt_state holds no state of :func:`reparameterize`, or params
      lack a leaf of its latents or have another shape there.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> solver = rewa_jax.reparameterize(optax.sgd(0.1), rewa_jax.Rewa(k=3))
    >>> params = {"w": jnp.array([8.0, 1.0])}
    >>> state = solver.init(params)
    >>> params, _ = rewa_jax.prune(params, threshold=2.0)
    >>> state = rewa_jax.adopt_weights(state, params)
    >>> print(state.latents["w"])
    [2. 0.]
  """
  nodes = jax.tree.leaves(opt_state, is_leaf=_is_ours)
  if not any(map(_is_ours, nodes)):
    raise ValueError(
      "opt_state holds no state of rewa_jax.reparameterize; the other ways in"
      " need no adoption, their params are the latents: call the method's"
      " to_latents."
    )

  # By path, since NNX wraps the leaves of both in Variables of two kinds.
  weights = {
    leaf_path(path): x
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }

  def adopt(node: Any) -> Any:
    if not _is_ours(node):
      return node
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
      node.latents, is_leaf=_is_leaf
    )
    return node._replace(
      latents=treedef.unflatten(
        leaf if _is_plain(leaf) else adopt_leaf(node.method, path, leaf)
        for path, leaf in leaves
      )
    )

  def adopt_leaf(method: Any, path, old):
    method = jax.tree.map(unbox, method, is_leaf=is_node)
    name, x = path_name(path), weights.get(leaf_path(path))
    if x is None:
      raise ValueError(
        f"params have no leaf {name}, of which opt_state has latents. Their"
        f" leaves are {', '.join(map('/'.join, weights))}."
      )
    old_x = jax.eval_shape(method.join, *jax.tree.leaves(old))
    check_shape("params", name, x, "the latents in opt_state", old_x)
    new = jax.tree.leaves(_latents_of(method, name, x))
    return jax.tree.unflatten(jax.tree.structure(old), new)

  return jax.tree.map(adopt, opt_state, is_leaf=_is_ours)


def _pull_back(method, path, node, gradient, weight):
  """Returns gradients of latents, as the inner optimizer gets them."""
  values, treedef = jax.tree.flatten(node)
  x, pull = jax.vjp(method.join, *values)
  gradient, weight = unbox(gradient), unbox(weight)
  check_shape("params", path, weight, "the latents in the state", x)
  check_shape("updates", path, gradient, "params", x)
  grads = pull(jnp.asarray(gradient).astype(x.dtype))
  return treedef.unflatten(
    method.scale(g, y).astype(y.dtype) if decays else g
    for decays, g, y in zip(method.decays, grads, values)
  )


def _latents_of(method, path, weight):
  # Copies, so that params and state can both be donated.
  x = jnp.asarray(unbox(weight))
  latents = method.latents_of(path, jnp.copy(x.astype(wide_dtype(x))))
  return jax.tree.map(lambda y: box_like(weight, y), latents)


def _numbers_of(method: Method) -> Method:
  return jax.tree.map(jnp.asarray, dataclasses.replace(method, mask=None))


def _fill(latents, params):
  """Puts params where the mask left no latents."""
  return jax.tree.map(
    lambda y, x: x if _is_plain(y) else y, latents, params, is_leaf=_is_leaf
  )


def _is_ours(node: Any) -> bool:
  return isinstance(node, ReparameterizeState)


def _is_plain(node: Any) -> bool:
  return isinstance(node, optax.MaskedNode)


def _is_leaf(node: Any) -> bool:
  return _is_plain(node) or is_node(node)
