"""What the methods that train something else than weights have in common."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from rewa_jax.checks import (
  check_number,
  check_shapes,
  leaf_paths,
  path_name,
)
from rewa_jax.masks import Mask, kernels, select


class Factors(NamedTuple):
  """What is trained in the place of one array of weights.

  Attributes:
    values: the arrays that the weights are computed from, in the order of the
      method's ``join``.
  """

  values: tuple[jax.Array, ...]


class Reparameterization:
  """A method by which weights are computed from what is trained.

  Methods are frozen dataclasses of hyperparameters that derive from this class
  and say how one array is stored; the class applies them to trees. A tree of
  latents has :class:`Factors` where the mask selected weights and is the tree
  of params elsewhere, so that only :meth:`to_latents` needs the mask.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.spred(offset=0)
    >>> params = {"kernel": jnp.array([4.0, -1.0]), "bias": jnp.array([3.0])}
    >>> latents = method.to_latents(params)
    >>> jax.tree.map(str, latents)["kernel"]
    Factors(values=('[2. 1.]', '[ 2. -1.]'))
    >>> print(method.to_weights(latents)["kernel"])
    [ 4. -1.]
  """

  @property
  def parts(self) -> int:
    """How many arrays are stored for one array of weights."""
    raise NotImplementedError

  def split(self, path: str, x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns what to store for one array of weights at a path."""
    raise NotImplementedError

  def join(self, *values: jax.Array) -> jax.Array:
    """Returns the weights, by a function to differentiate."""
    raise NotImplementedError

  def smooth_penalty(self, *values: jax.Array) -> jax.Array:
    """Returns the penalty on one array's values, a scalar, for strength 1."""
    raise NotImplementedError

  def implicit_penalty(
    self, x: jax.typing.ArrayLike, path: str = "kernel"
  ) -> jax.Array:
    """Returns the penalty on one array of weights that this amounts to."""
    raise NotImplementedError

  def precondition(self) -> optax.GradientTransformationExtraArgs:
    """Returns what gradients go through before any optimizer."""
    return optax.with_extra_args_support(optax.identity())

  def to_latents(self, params: Any, *, mask: Mask | None = kernels) -> Any:
    """Replaces the selected weights by :class:`Factors` that give the same.

    Args:
      params: a tree of weights.
      mask: which leaves to replace: a tree of bools with the structure of
        params or a prefix of it, a function that returns one, or None for all.

    Returns:
      The tree of params with :class:`Factors` at the selected leaves.

    Raises:
      ValueError: if the mask does not fit params or selects nothing by name.
      TypeError: if a selected leaf is not floating point.
    """
    return jax.tree_util.tree_map_with_path(
      lambda path, selected, x: (
        Factors(self.split(path_name(path), jnp.asarray(x))) if selected else x
      ),
      select(mask, params),
      params,
    )

  def to_weights(self, latents: Any) -> Any:
    """Replaces :class:`Factors` by the weights they stand for.

    Called inside a loss function it makes any model train on latents.

    Args:
      latents: a tree as :meth:`to_latents` returns it.

    Returns:
      A tree of weights.

    Raises:
      ValueError: if :class:`Factors` are not this method's: too many or too few
        arrays, or shapes that do not go together.
    """
    _check_factors(self, latents)
    return jax.tree.map(
      lambda node: (
        self.join(*jax.tree.leaves(node)) if is_factors(node) else node
      ),
      latents,
      is_leaf=is_factors,
    )


def add_penalty(
  method: Reparameterization, strength: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
  r"""Adds the gradient of a method's smooth penalty to the updates.

  .. math::
    g_i \leftarrow g_i + \lambda\,\partial S / \partial w_i

  for the values :math:`w_i` of all :class:`Factors`; other leaves are left as
  they are.

  Args:
    method: the method that made the latents; S is its ``smooth_penalty``.
    strength: :math:`\lambda` >= 0, a number or a schedule. May be traced.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on latents whose state
    counts the steps.

  Raises:
    ValueError: if strength is out of range, or latents hold no
      :class:`Factors` or those of another method; on ``update``, if params are
      missing or updates differ from them in structure or shape.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.spred(offset=0)
    >>> latents = method.to_latents({"kernel": jnp.array([4.0])})
    >>> solver = baselines.add_penalty(method, 0.1)
    >>> zeros = baselines.Factors((jnp.zeros(1), jnp.zeros(1)))
    >>> updates, _ = solver.update(
    ...   {"kernel": zeros}, solver.init(latents), latents)
    >>> print(*updates["kernel"].values)
    [0.2] [0.2]
  """
  if not callable(strength):
    check_number("strength", strength, at_least=0)

  def init_fn(params):
    if not _check_factors(method, params) and jax.tree.leaves(params):
      raise ValueError(
        "The params hold no Factors, so nothing would be penalized: train what"
        " method.to_latents(params) returns. The leaves are"
        f" {leaf_paths(params)}."
      )
    return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS_MSG)
    check_shapes("updates", updates, "params", params)
    now = strength(state.count) if callable(strength) else strength

    def add(node, update):
      if not is_factors(node):
        return update
      values, treedef = jax.tree.flatten(node)
      slopes = jax.grad(lambda values: method.smooth_penalty(*values))(values)
      return treedef.unflatten(
        u if u is None else (u + now * slope).astype(slope.dtype)
        for u, slope in zip(treedef.flatten_up_to(update), slopes)
      )

    updates = jax.tree.map(add, params, updates, is_leaf=is_factors)
    count = optax.safe_increment(state.count)
    return updates, optax.ScaleByScheduleState(count)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def sgd(
  learning_rate: optax.ScalarOrSchedule,
  method: Reparameterization,
  *,
  strength: optax.ScalarOrSchedule,
  momentum: jax.typing.ArrayLike | None = None,
  nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""SGD on the latents of a method, with its smooth penalty.

  .. math::
    w \leftarrow w - \eta_t\,(\partial f/\partial w
    + \lambda\,\partial S/\partial w)

  on :class:`Factors`, plain SGD on other leaves. The penalty stays outside the
  momentum, which counts the gradient 1 / (1 - momentum) times: the penalty on
  weights then has the strength :math:`(1 - \text{momentum})\lambda`.

  Args:
    learning_rate: :math:`\eta_t`, a number or a schedule.
    method: the method that made the latents.
    strength: :math:`\lambda` >= 0, a number or a schedule.
    momentum: decay of the momentum, or None for none.
    nesterov: whether the momentum is Nesterov's.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on latents.

  Raises:
    ValueError: if strength is out of range, or latents hold no
      :class:`Factors`.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from rewa_jax import baselines
    >>> method = baselines.spred()
    >>> target = jnp.array([1.0, -0.05])
    >>> def loss(latents):
    ...   weights = method.to_weights(latents)
    ...   return 0.5 * jnp.sum((weights["w"] - target) ** 2)
    >>> latents = method.to_latents({"w": jnp.array([0.5, 0.5])})
    >>> solver = baselines.sgd(0.1, method, strength=0.1)
    >>> state = solver.init(latents)
    >>> @jax.jit
    ... def step(latents, state):
    ...   grads = jax.grad(loss)(latents)
    ...   updates, state = solver.update(grads, state, latents)
    ...   return optax.apply_updates(latents, updates), state
    >>> for _ in range(1000):
    ...   latents, state = step(latents, state)
    >>> print("{:.3f} {:.3f}".format(*abs(method.to_weights(latents)["w"])))
    0.900 0.000
  """
  return optax.chain(
    method.precondition(),
    optax.identity()
    if momentum is None
    else optax.trace(decay=momentum, nesterov=nesterov),
    add_penalty(method, strength),
    optax.scale_by_learning_rate(learning_rate),
  )


def adamw(
  learning_rate: optax.ScalarOrSchedule,
  method: Reparameterization,
  *,
  strength: optax.ScalarOrSchedule,
  b1: jax.typing.ArrayLike = 0.9,
  b2: jax.typing.ArrayLike = 0.999,
  eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
  r"""Adam on the latents of a method, its smooth penalty outside the moments.

  .. math::
    w \leftarrow w - \eta_t\,(\mathrm{Adam}(\partial f/\partial w)
    + \lambda\,\partial S/\partial w)

  on :class:`Factors`, plain Adam on other leaves. As with AdamW, what is solved
  is then not the penalized problem itself, since Adam rescales the loss alone.

  Args:
    learning_rate: :math:`\eta_t`, a number or a schedule.
    method: the method that made the latents.
    strength: :math:`\lambda` >= 0, a number or a schedule.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: Adam's term in the denominator.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` on latents.

  Raises:
    ValueError: if strength is out of range, or latents hold no
      :class:`Factors`.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rewa_jax import baselines
    >>> method = baselines.spred(offset=0)
    >>> latents = method.to_latents({"kernel": jnp.array([4.0])})
    >>> solver = baselines.adamw(0.1, method, strength=0.5)
    >>> grads = baselines.Factors((jnp.ones(1), jnp.ones(1)))
    >>> updates, _ = solver.update(
    ...   {"kernel": grads}, solver.init(latents), latents)
    >>> for update in updates["kernel"].values:
    ...   print(f"{update[0]:.3f}")
    -0.200
    -0.200
  """
  return optax.chain(
    method.precondition(),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    add_penalty(method, strength),
    optax.scale_by_learning_rate(learning_rate),
  )


def is_factors(node: Any) -> bool:
  """Whether a node is Factors, or the dicts that NNX's states have for them."""
  if isinstance(node, Mapping) and tuple(node) == Factors._fields:
    values = node["values"]
    return isinstance(values, Mapping) and all(
      isinstance(key, int) and not isinstance(value, Mapping)
      for key, value in values.items()
    )
  return isinstance(node, Factors)


def _check_factors(method: Reparameterization, latents: Any) -> int:
  """Raises unless all Factors are the method's, and returns their number."""
  nodes = jax.tree_util.tree_leaves_with_path(latents, is_leaf=is_factors)
  factors = [(path, node) for path, node in nodes if is_factors(node)]
  for path, node in factors:
    shapes = [jnp.shape(value) for value in jax.tree.leaves(node)]
    if len(shapes) != method.parts:
      raise ValueError(
        f"{path_name(path)} holds {len(shapes)} factors, but {method} has"
        f" {method.parts}. Were the latents made by another method?"
      )
    try:
      jnp.broadcast_shapes(*shapes)
    except ValueError as error:
      raise ValueError(
        f"{path_name(path)} holds factors whose shapes do not go together:"
        f" {', '.join(map(str, shapes))}."
      ) from error
  return len(factors)
