"""Any method for Flax linen: latents in the variables, weights in `apply`."""

import functools
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import lift
from flax.linen import transforms

from rewa_jax._method import Method, check_method, is_node
from rewa_jax._trees import is_box, unbox, with_paths


class Reparameterized(nn.Module):
  """A linen module that stores latents and computes with weights.

  The variables have the tree and names of the wrapped module's own, with
  latents in the place of the weights that the method selects. ``init`` stores
  the latents of its ordinary initialization, from the same random numbers, and
  ``apply`` computes the weights inside. Where a call changes params, their new
  latents are those of what it left.

  Methods, properties and fields of the module are those of this one too:
  ``apply(..., method="encode")`` works, and a wrapped cell goes into
  ``nn.RNN``. What they return are arrays and other values, no modules. What is
  reached through ``.module`` computes with bare latents. Inside a ``compact``
  method the variables are named after the wrapped module, as they would be
  without the wrapper; if its layers were made there, the mask sees them under
  their names.

  A module in it that is wrapped already cannot be told from a bare one: give
  this wrapper a mask that leaves its params out, and that one a method that
  stores one array for one.

  Nothing in the variables of a method that stores one array for one tells them
  from weights: deploy what :meth:`to_weights` returns, never the variables.

  Attributes:
    module: the module to wrap. A module that it calls is wrapped with it, also
      one that was made elsewhere.
    method: what the latents are, :class:`rewa_jax.Rewa` or another. Its numbers
      are static under ``jax.jit``, unless the module is made inside.

  Raises:
    ValueError: on ``init`` and ``apply``, if the method's mask does not fit the
      params or selects nothing by name, or the variables hold weights or the
      latents of a method that stores another number of arrays. On ``init``,
      the params are those that one method of the module makes.
    TypeError: if a selected leaf is not floating point.

  Examples:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import rewa_jax
    >>> bare = nn.Dense(3)
    >>> model = rewa_jax.linen.Reparameterized(bare, rewa_jax.Rewa(k=3))
    >>> x = jnp.ones((1, 2))
    >>> latents = model.init(jax.random.key(0), x)
    >>> jax.tree.map(jnp.shape, latents)
    {'params': {'bias': (3,), 'kernel': (2, 3)}}
    >>> weights = model.to_weights(latents)
    >>> bool(jnp.allclose(model.apply(latents, x), bare.apply(weights, x)))
    True

  References:
    Xu et al., `ReWA <https://arxiv.org/abs/2605.25134>`_, 2026, Algorithm 1
  """

  module: nn.Module
  method: Method

  def __post_init__(self):
    super().__post_init__()
    check_method(self.method)
    self._share_scope()

  # Flax would record a wrapped call as one more call of the module.
  @nn.nowrap
  def __call__(self, *args, **kwargs):
    return self._forward("__call__", True, *args, **kwargs)

  @nn.nowrap
  def to_weights(self, variables: Any) -> Any:
    """Returns variables for the wrapped module, weights in place of latents."""
    return _map_params(self.method.to_weights, variables)

  @nn.nowrap
  def to_latents(self, variables: Any) -> Any:
    """Returns variables for this module from the wrapped module's own."""
    return _map_params(self.method.to_latents, variables)

  @nn.nowrap
  def apply(self, variables, *args, method=None, **kwargs):
    return super().apply(
      variables, *args, method=self._own_method(method), **kwargs
    )

  @nn.nowrap
  def init_with_output(self, rngs, *args, method=None, **kwargs):
    return super().init_with_output(
      rngs, *args, method=self._own_method(method), **kwargs
    )

  @nn.nowrap
  def __getattr__(self, name: str) -> Any:
    if name.startswith("__") or "module" not in self.__dict__:
      return super().__getattr__(name)
    is_method = name not in self.module.__dataclass_fields__ and (
      inspect.isfunction(getattr(type(self.module), name, None))
    )
    if not is_method:
      return self._forward(name, False)

    def method(self, *args, **kwargs):
      return self._forward(name, True, *args, **kwargs)

    return types.MethodType(method, self)

  @nn.nowrap
  def _share_scope(self):
    """Puts the module in the place of this one, not below it."""
    scope, other = self.scope, self.module.scope
    # Flax checks copies of modules in scopes of their own.
    if scope is None or other is None or scope.root is not other.root:
      return
    # The field's name was taken for a child; the module may have one of it.
    scope.reservations.pop("module", None)
    nn.share_scope(self, self.module)
    if isinstance(self.module, Reparameterized):
      self.module._share_scope()

  @nn.nowrap
  def _forward(self, name: str, is_called: bool, *args, **kwargs):
    """Returns an attribute of the module, or what calling it returns."""

    def forward(module, *args, **kwargs):
      member = getattr(module, name)
      return member(*args, **kwargs) if is_called else member

    if self.scope is None:
      return forward(self.module, *args, **kwargs)
    if self.module.scope != self.scope:  # Someone shares the scope of this one.
      self._share_scope()
    forward.__name__ = name
    # Flax would record the function as a method of the module.
    vars(forward)["method_handler_wrapped"] = True
    lifted = transforms.lift_transform(_with_weights, forward, self.method)
    return lifted(self.module, *args, **kwargs)

  @nn.nowrap
  def _own_method(self, method):
    """Returns the name of a function or method of the wrapped module."""
    name = getattr(method, "__name__", None)
    function = getattr(method, "__func__", method)
    is_wrapped = name and getattr(type(self.module), name, None) is function
    return name if is_wrapped else method


def _with_weights(fn: Callable, method: Method) -> Callable:
  """Lifts fn to scopes that hold weights where the variables hold latents."""

  def lifted(scope_fn, repack, variables, rngs, *args, **kwargs):
    roots, others = variables
    # Several, where layers were made outside of the module that calls them.
    paths = [s.path for s in scope_fn(variables, rngs) if s.parent is None]
    names = OrderedDict.fromkeys(map("/".join, paths), 0)
    tree = jax.tree.structure(names if len(names) > 1 else 0)

    def split(variables):
      params = tree.flatten_up_to(variables["params"])
      return tuple({"params": each} for each in params)

    def join(roots):
      return {"params": tree.unflatten(r.get("params", {}) for r in roots)}

    latents = join(roots)
    weights = _map_params(method.to_weights, latents)
    scopes = scope_fn((split(weights), others), rngs)
    result = fn(scopes, *args, **kwargs)
    left, others = repack(scopes)
    if any(left):  # Params are mutable.
      keep = functools.partial(_latents_left, method, latents, weights)
      left = split(_map_params(keep, join(left)))
    return result, (left, others)

  filters = ("params", True)
  return lift.pack(
    lifted, filters, filters, (True,), name="to_weights", enable_kwargs=True
  )


def _latents_left(method: Method, latents: Any, before: Any, after: Any) -> Any:
  """Returns the latents of weights after a call, as they were if unchanged."""
  nodes = with_paths(latents["params"], is_leaf=is_node)
  leaves = jax.tree.leaves(before["params"], is_leaf=is_box)
  known = {path: (node, leaf) for (path, node), leaf in zip(nodes, leaves)}

  def node_of(path, weight):
    new = method.latents_of(path, weight)
    if path not in known:
      return new
    old, leaf = known[path]
    if jnp.shape(unbox(leaf)) != jnp.shape(unbox(weight)):
      return new
    same = jnp.array_equal(unbox(leaf), unbox(weight))
    values = zip(jax.tree.leaves(old), jax.tree.leaves(new))
    return jax.tree.unflatten(
      jax.tree.structure(new), [jnp.where(same, *pair) for pair in values]
    )

  return method.map_weights(node_of, after)


def _map_params(fn: Callable[[Any], Any], variables: Any) -> Any:
  params = variables.get("params", {})
  if not jax.tree.leaves(params):
    return variables
  return {**variables, "params": fn(params)}
