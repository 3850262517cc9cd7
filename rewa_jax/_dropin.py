"""The drop-in: latents in the optimizer's state, params stay weights."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from rewa_jax._method import (
  Method,
  check_method,
  holds_latents,
  is_node,
  maps_of,
)
from rewa_jax._power import wide_dtype
from rewa_jax._transformations import ScaleByMethodState
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
    weights: what the last updates led params to, in the same places.
    inner_state: the state of the inner optimizer.
    method: the method of the last update, its numbers as arrays.
  """

  latents: optax.Params
  weights: optax.Params
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

  Latents are float32 (float64 where params are), and the truth while params
  are what the updates led them to: the state keeps a copy of those weights.
  Entries that are not, moved by a wrapper, a later part of a chain or the user,
  get latents anew, and all of them do where the method's numbers have changed,
  such as k. So it trains inside any wrapper of optax.

  Args:
    inner: the optimizer to run on latents, learning rate and decay included.
      Leaves that the method does not select are as they are for it, and its
      decay reaches them unless it has a mask, such as ``method.decaying``.
      Without enough decay training stays dense in silence:
      :func:`measure_decay_budget` says how much there is.
    method: what the latents are, :class:`Rewa` or another.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on weights. Extra arguments
    of ``update`` are passed on, but inner must not call functions among them,
    which are of weights: a line search follows the drop-in in a chain. A rule
    that sets the value of the loss against gradients, such as
    ``optax.polyak_sgd``, gets the scaled ones.

  Raises:
    ValueError: if the method's mask does not fit params or selects nothing by
      name, inner scales gradients by a method itself, as :func:`sgd` does, or
      calls a function of weights, params, updates and state do not belong
      together, or the state is of another method.
    TypeError: if a selected leaf is not floating point, or method is none.

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
  check_method(method)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params: Any) -> Any:
    latents = method.map_weights(
      lambda path, x: _latents_of(method, path, x),
      params,
      otherwise=lambda x: optax.MaskedNode(),
    )
    # Copies, so that params and state can both be donated.
    weights = jax.tree.map(
      lambda y, x: y if _is_plain(y) else jax.tree.map(jnp.copy, x),
      latents,
      params,
      is_leaf=_is_leaf,
    )
    inner_state = inner.init(_fill(latents, params))
    _check_scales_once(inner_state)
    return ReparameterizeState(
      latents, weights, inner_state, _numbers_of(method)
    )

  def update_fn(updates: Any, state: Any, params: Any = None, **extra_args):
    check_params(params)
    paths = [path for path, _ in with_paths(state.latents, is_leaf=_is_leaf)]
    nodes, treedef = jax.tree.flatten(state.latents, is_leaf=_is_leaf)
    ours = ("the latents in the state", state.latents, _is_leaf)
    boxes = flatten_up_to("params", params, *ours)
    grads = flatten_up_to("updates", updates, *ours)
    weights = treedef.flatten_up_to(state.weights)
    chosen = [i for i, node in enumerate(nodes) if not _is_plain(node)]
    moving = [i for i in chosen if grads[i] is not None]

    leaves = {}
    for i in chosen:
      x, led_to = unbox(boxes[i]), unbox(weights[i])
      check_shape("params", paths[i], x, ours[0], led_to)
      leaves[i] = paths[i], jnp.asarray(x), led_to
    is_new = _has_other_numbers(method, state.method)
    adopted = _adopt(method, leaves, {i: nodes[i] for i in chosen}, is_new)
    nodes = [adopted.get(i, node) for i, node in enumerate(nodes)]
    for i in moving:
      grads[i] = _pull_back(method, paths[i], nodes[i], grads[i])
    steps, inner_state = inner.update(
      treedef.unflatten(grads),
      state.inner_state,
      _fill(treedef.unflatten(nodes), params),
      **{name: _not_of_latents(name, arg) for name, arg in extra_args.items()},
    )

    steps = treedef.flatten_up_to(steps)
    for i in moving:
      _, x, led_to = leaves[i]
      nodes[i] = jax.tree.map(
        lambda y, u: (y + u).astype(y.dtype), nodes[i], steps[i]
      )
      step = _difference(method.exact_join(*jax.tree.leaves(nodes[i])), x)
      steps[i] = box_like(boxes[i], step)
      weights[i] = box_like(weights[i], (x + step).astype(led_to.dtype))
    new_state: Any = ReparameterizeState(
      treedef.unflatten(nodes),
      treedef.unflatten(weights),
      inner_state,
      _numbers_of(method),
    )
    return treedef.unflatten(steps), new_state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def adopt_weights(
  opt_state: optax.OptState, params: optax.Params
) -> optax.OptState:
  """Makes latents of weights changed from outside, in a drop-in's state.

  The next update would do so by itself where weights differ. Momentum and
  moments stay as they are, so pruned weights may move again: a
  :func:`keep_zeros` in the chain keeps them zero.

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
    method = jax.tree.map(unbox, node.method, is_leaf=is_node)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
      node.latents, is_leaf=_is_leaf
    )
    xs, ys = treedef.flatten_up_to(node.weights), [y for _, y in leaves]
    for i, (path, y) in enumerate(leaves):
      if not _is_plain(y):
        x = weight_at(path, xs[i])
        new = jax.tree.leaves(_latents_of(method, path_name(path), x))
        xs[i] = box_like(xs[i], jnp.array(x, unbox(xs[i]).dtype))
        ys[i] = jax.tree.unflatten(jax.tree.structure(y), new)
    return node._replace(
      latents=treedef.unflatten(ys), weights=treedef.unflatten(xs)
    )

  def weight_at(path, old):
    name, x = path_name(path), weights.get(leaf_path(path))
    if x is None:
      raise ValueError(
        f"params have no leaf {name}, of which opt_state has latents. Their"
        f" leaves are {', '.join(map('/'.join, weights))}."
      )
    check_shape("params", name, x, "the latents in opt_state", unbox(old))
    return x

  return jax.tree.map(adopt, opt_state, is_leaf=_is_ours)


def _has_other_numbers(method, of_state):
  """Whether latents in the state stand for other weights by the method."""
  of_state = jax.tree.map(unbox, of_state, is_leaf=is_node)
  pairs = maps_of(of_state, method)
  if pairs is None:
    raise ValueError(
      f"The state holds latents of {of_state}, but the optimizer is of"
      f" {method}. Give both the same method, or make a new state by init."
    )
  return functools.reduce(jnp.logical_or, (a != b for a, b in pairs), False)


def _adopt(method, leaves, nodes, is_new):
  """Returns nodes, latents anew where weights are not what updates led to.

  Args:
    method: of the latents.
    leaves: paths, params and what updates led them to.
    nodes: latents in the state.
    is_new: whether all of them are to be made anew.
  """

  def adopt(nodes):
    return {i: adopt_leaf(leaves[i], node) for i, node in nodes.items()}

  def adopt_if_any(nodes):
    changes = [jnp.any(x != led_to) for _, x, led_to in leaves.values()]
    any_change = functools.reduce(jnp.logical_or, changes, is_new)
    if isinstance(any_change, Tracer):
      return lax.cond(any_change, adopt, lambda nodes: nodes, nodes)
    return adopt(nodes) if any_change else nodes

  def adopt_leaf(leaf, node):
    path, x, led_to = leaf
    values, treedef = jax.tree.flatten(node)
    changed, x = (x != led_to) | is_new, x.astype(wide_dtype(x))
    if any(jnp.shape(y) != x.shape for y in values):
      # Weights share latents: the others go along, with all their digits.
      x = jnp.where(changed, x, method.exact_join(*values))
      changed = changed.any()
    new = method.split(path, x)
    return treedef.unflatten(
      jnp.where(changed, a, y).astype(y.dtype) for a, y in zip(new, values)
    )

  # On a CPU a root costs more than all the rest, and a cond without jit even
  # more. Elsewhere memory does: branches copy what they hand through.
  if any(isinstance(x, Tracer) for x in jax.tree.leaves((leaves, nodes))):
    return lax.platform_dependent(nodes, cpu=adopt_if_any, default=adopt)
  return adopt_if_any(nodes)


def _difference(new, x):
  """Returns new - x, both in the dtype of x, which it is rounded to."""
  wide = wide_dtype(x)
  difference = new.astype(x.dtype).astype(wide) - x.astype(wide)
  # Not by astype alone: XLA may keep more digits in one use than in another.
  bits = jnp.finfo(wide).nexp, jnp.finfo(x.dtype).nmant
  return lax.reduce_precision(difference, *bits).astype(x.dtype)


def _not_of_latents(name: str, arg: Any) -> Any:
  """Returns an extra argument that says so if inner calls it with latents."""
  if not callable(arg):
    return arg

  @functools.wraps(arg)
  def refuse(*args, **kwargs):
    del args, kwargs
    raise ValueError(
      f"The optimizer inside rewa_jax.reparameterize calls {name}, a function"
      " of weights, but its params are latents. Put a line search behind:"
      " optax.chain(rewa_jax.reparameterize(optimizer, method), line_search)."
      " Any optimizer trains method.to_latents(params) by itself, with"
      " method.to_weights in the loss."
    )

  return refuse


def _check_scales_once(inner_state: Any) -> None:
  def scales(node):
    return isinstance(node, ScaleByMethodState)

  if any(map(scales, jax.tree.leaves(inner_state, is_leaf=scales))):
    raise ValueError(
      "The optimizer inside rewa_jax.reparameterize scales gradients by a"
      " method, as rewa_jax.sgd, adamw and scale_by_rewa do, and they are"
      " scaled already. Pass one of optax, such as optax.adamw(learning_rate,"
      " weight_decay=0.1, mask=method.decaying)."
    )


def _pull_back(method, path, node, gradient):
  """Returns gradients of latents, as the inner optimizer gets them."""
  values, treedef = jax.tree.flatten(node)
  x, pull = jax.vjp(method.join, *values)
  gradient = unbox(gradient)
  check_shape("updates", path, gradient, "params", x)
  grads = pull(jnp.asarray(gradient).astype(x.dtype))
  return treedef.unflatten(
    method.scale(g, y).astype(y.dtype) if decays else g
    for decays, g, y in zip(method.decays, grads, values)
  )


def _latents_of(method, path, weight):
  if holds_latents(tuple(path.split("/")), weight):
    raise ValueError(
      f"{path} holds latents of an NNX model, but params of reparameterize are"
      " weights. For latents take rewa_jax.sgd, adamw or scale_by_method."
    )
  # Copies, so that params and state can both be donated.
  x = jnp.asarray(unbox(weight))
  latents = method.latents_of(path, jnp.copy(x.astype(wide_dtype(x))))
  return jax.tree.map(lambda y: box_like(weight, y), latents)


def _numbers_of(method: Method) -> Method:
  # Copies, so that donating the state leaves the numbers of the method alone.
  return jax.tree.map(jnp.array, dataclasses.replace(method, mask=None))


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
