"""Weight decay that is strong on the smallest weights: ask for a sparsity."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from rewa_jax._checks import Scalar, check_number
from rewa_jax._decay_budget import rates_of_steps, sum_of_steps
from rewa_jax._groups import Groups
from rewa_jax._method import Method, check_method
from rewa_jax._power import wide_dtype
from rewa_jax._quantile import as_float, count
from rewa_jax._ranking import (
  Scope,
  check_ranking,
  cubic_progress,
  largest,
  when_due,
)
from rewa_jax._trees import (
  box_like,
  check_params,
  check_shapes,
  for_all,
  is_box,
  unbox,
)

# The decay budget that the strong decay has from its last new target on.
STRONG = 10.0
# And at least so many times the mild one, however long training is: with less,
# weights that the target wants gone are held by their gradients.
_STRONGER = 10.0
# A weight has vanished below this share of the others' root mean square.
_VANISHED = 1e-3
# The mild decay rests where less than this share of what should be left is.
_LEFT = 0.7
# How often weights are ranked, at least, until the last new target.
_RANKINGS = 20
# The least budget of the strong decay.
_ENOUGH = 4.0


class DecayByRankState(NamedTuple):
  """State of :func:`decay_by_rank`.

  ``optax.tree.get(opt_state, "vanished")`` finds a number to log at any depth
  of wrappers.

  Attributes:
    count: the number of updates so far, a scalar int32.
    strong: bool arrays for the weights of the selected leaves, True where the
      decay is strong, ``optax.MaskedNode`` elsewhere.
    scheduled: the share of zeros that was due when weights were last ranked.
    vanished: the share of weights that had vanished by then, below a
      thousandth of the root mean square of those that decay mildly.
  """

  count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
  strong: optax.Params
  scheduled: jax.Array
  vanished: jax.Array


def decay_by_rank(
  method: Method,
  sparsity: Any,
  learning_rate: "optax.ScalarOrSchedule",
  steps: int,
  *,
  low: "optax.ScalarOrSchedule",
  high: "Scalar | None" = None,
  begin: int | None = None,
  end: int | None = None,
  every: int | None = None,
  scope: "Scope" = "global",
  groups: Groups | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Weight decay by which a network ends at a sparsity that is asked for.

  .. math::
    u + \lambda(y)\,y, \qquad \lambda(y) = \begin{cases}
    \lambda_\text{high} & \text{among the smallest } s_t \text{ of all weights}
    \\ \lambda_\text{low} & \text{else}\end{cases}, \qquad
    s_t = s\left(1 - \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^3\right)

  In a chain it stands where ``optax.add_decayed_weights`` does. Weights are
  ranked anew every so many updates; nothing is cut, and a weight that its
  gradient holds leaves the smallest again. At the end the smallest s of the
  weights have all but vanished: :func:`finalize` cuts them off. While less
  than seven tenths of the weights are left that should be, those do not decay.

  Args:
    method: the method that made the latents, any whose strength is a weight
      decay.
    sparsity: s, the share of zeros in the end, 0 <= s < 1. May be traced. Or a
      tree of shares, of the structure of the weights or a prefix of it, with
      the scope ``"leaf"``; :func:`erdos_renyi_kernel` makes one.
    learning_rate: :math:`\eta_t` of the optimizer, a number or a schedule,
      from which low and high are computed; not applied here.
    steps: how many updates there will be, >= 2. In ``optax.MultiSteps`` those
      of the optimizer inside.
    low: :math:`\lambda_\text{low}` >= 0, a number or a schedule: about half the
      weight decay that would give this sparsity by itself.
    high: :math:`\lambda_\text{high}`, no less than low. By default that of a
      budget of 10 between end and the last update, or ten times low if that is
      more, as in long runs.
    begin: :math:`t_0`, the update at which the first weights are ranked; by
      default a tenth of the steps.
    end: :math:`t_1` > begin, the update from which on all of s decays strongly;
      by default seven tenths of the steps.
    every: how many updates apart weights are ranked, >= 1; by default 50, or
      fewer where begin and end are close.
    scope: what sparsity is a share of: ``"global"``, all weights together,
      ``"leaf"``, each leaf on its own, or ``"n:m"``, such as ``"2:4"``: of
      every m weights along the input axis all but the n largest go.
    groups: what lives and dies together, see :func:`baselines.group_axes`;
      sparsity is then a share of groups. None for single weights.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` whose ``update`` needs
    params, the latents, and whose updates keep the dtype of params.

  Raises:
    ValueError: if an argument is out of range, the strong decay is too weak or
      too strong for the steps that are left for it, the mask selects nothing,
      or params hold no latents of the method; on ``update``, if params are
      missing or updates differ from them in structure or shape.
    TypeError: if a selected leaf is not floating point, or steps are traced.

  Examples:
    Any optimizer of one's own, here with AdaBelief's rule:

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rewa_jax
    >>> rewa = rewa_jax.Rewa(k=9, eps=1e-3)
    >>> rate = optax.cosine_decay_schedule(1e-2, 2000)
    >>> solver = optax.chain(
    ...   rewa_jax.scale_by_method(rewa),
    ...   optax.scale_by_belief(),
    ...   rewa_jax.decay_by_rank(rewa, 0.75, rate, 2000, low=0.1),
    ...   optax.scale_by_learning_rate(rate),
    ... )
    >>> latents = rewa.to_latents({"w": jnp.array([3.0, 0.1, -2.0, 0.2])})
    >>> state = solver.init(latents)
    >>> optax.tree.get(state, "strong")["w"]
    Array([False, False, False, False], dtype=bool)
  """
  check_method(method)
  check_ranking(sparsity, scope, groups)
  for share in jax.tree.leaves(sparsity):
    if not isinstance(share, Tracer) and share == 1:
      raise ValueError("sparsity must be below 1, or nothing is left, got 1.")
  if isinstance(steps, Tracer):
    raise TypeError(
      "steps must be a Python integer, got a traced one. Under"
      " optax.inject_hyperparams name steps in its static_args."
    )
  check_number("steps", steps, at_least=2)
  begin = steps // 10 if begin is None else begin
  end = max(7 * steps // 10, begin + 1) if end is None else end
  check_number("begin", begin, at_least=0)
  check_number("end - begin", end - begin, at_least=1)
  check_number("steps - end", steps - end, at_least=1)
  if every is None:
    every = min(max((end - begin) // _RANKINGS, 1), 50)
  check_number("every", every, at_least=1)
  if not callable(low):
    check_number("low", low, at_least=0)
  most_low = jnp.max(rates_of_steps(low, begin, steps))
  if high is None:
    high = _decay_for(STRONG, method, sum_of_steps(learning_rate, end, steps))
    high = jnp.maximum(high, _STRONGER * most_low)
  check_number("high", high, at_least=0)
  _check_strength(method, most_low, high, learning_rate, begin, end, steps)

  def rank(sizes, progress):
    chosen = [True] * len(jax.tree.leaves(sizes))
    kept = largest(sizes, chosen, sparsity, scope, groups, progress)
    return [~k for k in kept]

  def init_fn(params):
    sizes = _sizes(method, params, groups)
    if jax.tree.leaves(params) and not jax.tree.leaves(sizes):
      raise ValueError(
        "The method's mask selects nothing, so there are no weights to rank."
      )
    strong = jax.tree.map(lambda x: jnp.zeros_like(x, bool), sizes)
    # Leaves that cannot be ranked are named here, before any training.
    jax.eval_shape(lambda sizes: rank(sizes, 0.0), sizes)
    # Arrays of their own, so that the state can be donated.
    shares = jnp.zeros([], jnp.float32), jnp.zeros([], jnp.float32)
    return DecayByRankState(jnp.zeros([], jnp.int32), strong, *shares)

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    check_params(params)
    steps_ahead = check_shapes("updates", updates, "params", params)
    since = state.count - begin

    def rank_anew(latents, _):
      progress = cubic_progress(state.count, begin, end)
      strong = rank(_sizes(method, latents, groups), progress)
      return strong, *_shares(method, latents, strong)

    strong, treedef = jax.tree.flatten(state.strong)
    due = (since >= 0) & ((since % every == 0) | (state.count == end))
    strong, scheduled, vanished = when_due(
      due, rank_anew, params, (strong, state.scheduled, state.vanished)
    )
    mild = low(state.count) if callable(low) else low
    # In a long run the mild decay alone would bring too many weights to zero.
    too_few = 1 - vanished < _LEFT * (1 - scheduled)
    rates = _rates(method, params, strong, jnp.where(too_few, 0, mild), high)
    ahead = [
      u if u is None or rate is None else _decay(u, rate, y)
      for u, rate, y in zip(steps_ahead, rates, jax.tree.leaves(params))
    ]
    count = jnp.asarray(optax.safe_increment(state.count))
    return (
      jax.tree.unflatten(jax.tree.structure(params), ahead),
      DecayByRankState(count, treedef.unflatten(strong), scheduled, vanished),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _decay_for(budget, method, sum_of_rates):
  """Returns the weight decay of a budget, 0 where an injected rate is 0."""
  whole = method.degree * sum_of_rates
  return jnp.where(whole > 0, budget / jnp.where(whole > 0, whole, 1), 0)


def _sizes(method: Method, latents: Any, groups: Groups | None) -> Any:
  """Returns what orders weights by size, ``optax.MaskedNode`` elsewhere."""
  # Groups are those of weights: norms of latents would be others.
  size = method.join if groups is not None else method.size

  def of_one(path, node):
    del path
    boxes = jax.tree.leaves(node, is_leaf=is_box)
    x = size(*(jnp.asarray(unbox(box)) for box in boxes))
    return box_like(boxes[0], x)

  return method.map_latents(of_one, latents, lambda _: optax.MaskedNode())


def _rates(method, latents, strong, low, high):
  """Returns the decay of every array, None where there is none."""
  masks = iter(strong)

  def of_one(path, node):
    del path
    mask, values = next(masks), jax.tree.leaves(node)
    # An array that many weights share decays strongly where all of them do.
    return [
      jnp.where(for_all(mask, jnp.shape(y)), high, low) if decays else None
      for decays, y in zip(method.decays, values)
    ]

  rates: list[Any] = []
  method.map_latents(
    lambda path, node: rates.extend(of_one(path, node)),
    latents,
    lambda node: rates.extend([None] * len(jax.tree.leaves(node))),
  )
  return rates


def _decay(update, rate, y):
  y = jnp.asarray(y)
  return (update + rate.astype(y.dtype) * y).astype(y.dtype)


def _shares(method, latents, strong):
  """Returns the shares of weights that decay strongly, and that vanished."""
  weights: list[jax.Array] = []
  method.map_latents(
    lambda _, node: weights.append(jnp.asarray(unbox(method.weights_of(node)))),
    latents,
  )
  if not weights:
    # The part of a partitioned tree that has none of them.
    return jnp.zeros([], jnp.float32), jnp.zeros([], jnp.float32)
  weights = [x.astype(wide_dtype(x)) for x in weights]
  size = float(sum(x.size for x in weights))
  left, squares = map(sum, zip(*map(_number_and_squares, strong, weights)))
  level = _VANISHED * jnp.sqrt(squares / jnp.maximum(left, 1))
  gone = as_float(count([jnp.abs(x) <= level for x in weights]))
  return jnp.asarray(1 - left / size, jnp.float32), gone / size


def _number_and_squares(strong, x):
  """Returns how many decay mildly, and the sum of their squares."""
  # Row by row, since float32 has no room for many; both in one pass.
  number, squares = jax.lax.reduce(
    ((~strong).astype(x.dtype), jnp.where(strong, 0, x * x)),
    (x.dtype.type(0), x.dtype.type(0)),
    lambda a, b: (a[0] + b[0], a[1] + b[1]),
    range(1, x.ndim),
  )
  return jnp.sum(number), jnp.sum(squares)


def _check_strength(method, low, high, learning_rate, begin, end, steps):
  """Raises where the strong decay cannot do its work in the steps left."""
  if not any(isinstance(x, Tracer) for x in (low, high)) and high < low:
    raise ValueError(
      f"high = {high:.2g} is below low = {low:.2g}: the smallest weights would"
      " decay less than the others. By default high is at least"
      f" {_STRONGER:g} times low."
    )
  # An array may be what a schedule is at this update.
  if isinstance(learning_rate, jax.Array):
    return
  budget = method.degree * high * sum_of_steps(learning_rate, end, steps)
  peak = jnp.max(rates_of_steps(learning_rate, begin, steps))
  # Under jit the rates of a schedule are traced, too.
  if any(isinstance(x, Tracer) for x in (high, budget, peak)):
    return
  budget = float(budget)
  if not budget and float(high):
    raise ValueError(
      f"The learning rates of the {steps - end} updates from end = {end} on are"
      " all 0, so no weight would vanish. Is the schedule shorter than steps?"
    )
  if budget < _ENOUGH:
    raise ValueError(
      f"high = {high:.2g} has a decay budget of {budget:.2g} in the"
      f" {steps - end} updates from end = {end} on, too little for the smallest"
      f" weights to vanish: at least {_ENOUGH:g} are needed, that is high ="
      f" {high * STRONG / budget if budget else math.inf:.2g}, more steps, or"
      " higher learning rates."
    )
  if float(high * peak) >= 1:
    raise ValueError(
      f"high = {high:.2g} times the learning rate {float(peak):.2g} is"
      f" {float(high * peak):.2g}, but must be below 1: one update would take"
      f" more than all of a weight. There are {steps - end} updates from end ="
      f" {end} on; more of them need less."
    )
