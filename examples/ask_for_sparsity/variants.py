"""Decay by rank as it is, and with one thing changed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rewa_jax
from rewa_jax import baselines

from ..compare_methods.methods import MOMENTUM, Run, Setting

# Those of `decay_by_rank`: shares of the steps, updates, a decay budget.
BEGIN, END, EVERY, STRONG = 0.1, 0.7, 50, 10.0

Make = Callable[[jax.Array, Run], Setting]


class Base(NamedTuple):
  """An optimizer of latents without its decay.

  Attributes:
    method: of the latents.
    rule: what becomes of the scaled gradient.
    mild: the default decay of what stays, times the method's degree and the
      root of the share that stays.
    least: the sparsity below which it is the same.
  """

  method: rewa_jax.Method
  rule: optax.GradientTransformation
  mild: float
  least: float = 0.0

  def decay(self, sparsity):
    left = 1 - jnp.maximum(sparsity, self.least)
    return self.mild / (self.method.degree * jnp.sqrt(left))

  def strong(self, run, end=END, budget=STRONG):
    steps = jnp.arange(int(end * run.steps), run.steps)
    rates = jnp.sum(jax.vmap(run.schedule)(steps))
    return budget / (self.method.degree * rates)


def with_sgd(method: rewa_jax.Method) -> Base:
  return Base(method, optax.trace(MOMENTUM), 5.8e-3 * (1 - MOMENTUM))


def with_adam(method: rewa_jax.Method) -> Base:
  return Base(method, optax.scale_by_adam(), 0.14, 0.95)


def on_latents(base: Base, run: Run, decay, scale=None) -> Setting:
  """Trains latents: a step of their own, the rule, the decay, the rate."""
  method = base.method
  optimizer = optax.chain(
    scale or rewa_jax.scale_by_method(method),
    base.rule,
    decay,
    optax.scale_by_learning_rate(run.schedule),
  )
  return Setting(
    optimizer,
    lambda key, weights: method.to_latents(weights),
    lambda latents, state: method.to_weights(latents),
  )


def by_rank(
  base: Base,
  *,
  mild: float = 1.0,
  at: float | None = None,
  released: bool = False,
  end: float = END,
  budget: float = STRONG,
  every: int = EVERY,
  scope: str = "global",
  shares: Callable[[jax.Array], Any] = lambda sparsity: sparsity,
  scale: Callable[[Run], optax.GradientTransformation] | None = None,
) -> Make:
  """Decay by rank.

  Args:
    base: the optimizer.
    mild: times the default mild decay.
    at: the sparsity whose mild decay is taken, or None for the target.
    released: whether the mild decay ends with the schedule.
    end: the share of the steps after which the whole target decays.
    budget: what the strong decay has left from then on.
    every: how many updates apart weights are ranked.
    scope: what the target is a share of.
    shares: from the target to what is asked for.
    scale: makes what takes the place of the method's step.
  """

  def make(sparsity, run):
    low = mild * base.decay(sparsity if at is None else at)
    last = int(end * run.steps)
    decay = rewa_jax.decay_by_rank(
      base.method,
      shares(sparsity),
      run.schedule,
      run.steps,
      low=(lambda count: jnp.where(count < last, low, 0)) if released else low,
      high=base.strong(run, end, budget),
      end=last,
      every=every,
      scope=scope,
    )
    return on_latents(base, run, decay, scale(run) if scale else None)

  return make


def then_hard(make: Make, end: float = END) -> Make:
  """Zero from the end of the schedule on, what decays strongly until then."""

  def cut(latents, state, last):
    # The third of the chain: Adam and the rate count too.
    ranked = state[2]
    over = ranked.count > last
    return jax.tree.map(
      lambda s, y: y if _masked(s) else jnp.where(s & over, 0, y),
      ranked.strong,
      latents,
      is_leaf=_masked,
    )

  def hardened(sparsity, run):
    last = int(end * run.steps)
    return make(sparsity, run)._replace(
      project=lambda latents, state: cut(latents, state, last)
    )

  return hardened


def soft_threshold(make: Make, method: rewa_jax.Method) -> Make:
  """ST-3: weights lose what the largest that decays strongly has.

  Gradients are those of the whole weights.
  """

  def shrunk(latents, state):
    weights = method.to_weights(latents)
    strong = optax.tree.get(state, "strong")
    theta = jnp.max(
      jnp.stack(
        [
          0.0 if _masked(s) else jnp.max(jnp.where(s, jnp.abs(x), 0))
          for s, x in zip(
            jax.tree.leaves(strong, is_leaf=_masked), jax.tree.leaves(weights)
          )
        ]
      )
    )

    def shrink(s, x):
      if _masked(s):
        return x
      less = jnp.sign(x) * jnp.maximum(jnp.abs(x) - theta, 0)
      return x + jax.lax.stop_gradient(less - x)

    return jax.tree.map(shrink, strong, weights, is_leaf=_masked)

  def made(sparsity, run):
    return make(sparsity, run)._replace(to_weights=shrunk)

  return made


def hard(base: Base) -> Make:
  """A mask that follows the same schedule, and the mild decay."""

  def make(sparsity, run):
    decay = optax.add_decayed_weights(
      base.decay(sparsity), base.method.decaying
    )
    setting = on_latents(base, run, decay)
    pruned = optax.chain(setting.optimizer, _masks(sparsity, run))
    return setting._replace(optimizer=pruned)

  return make


def gradual_pruning(rule: optax.GradientTransformation) -> Make:
  """The same masks on weights, without latents or decay."""

  def make(sparsity, run):
    rate = optax.scale_by_learning_rate(run.schedule)
    return Setting(optax.chain(rule, rate, _masks(sparsity, run)))

  return make


class ByScoreState(NamedTuple):
  count: jax.Array
  average: Any
  strong: Any
  inner: Any


def by_score(base: Base, score: Callable[[Any, Any], Any]) -> Make:
  """Decay by the rank of a score of latents and averaged absolute gradients."""
  method = base.method

  def make(sparsity, run):
    low, high = base.decay(sparsity), base.strong(run)
    begin, end = int(BEGIN * run.steps), int(END * run.steps)
    inner = optax.chain(rewa_jax.scale_by_method(method), base.rule)

    def init_fn(params):
      nothing = jax.tree.map(lambda y: jnp.zeros(y.shape, bool), params)
      zeros = jax.tree.map(jnp.zeros_like, params)
      return ByScoreState(
        jnp.zeros([], jnp.int32), zeros, nothing, inner.init(params)
      )

    def update_fn(grads, state, params=None):
      average = jax.tree.map(
        lambda a, g: 0.99 * a + 0.01 * jnp.abs(g), state.average, grads
      )
      u = jnp.clip((state.count - begin) / (end - begin), 0, 1)
      share = sparsity * (1 - (1 - u) ** 3)

      def rank(old):
        del old
        scores = score(params, average)
        _, kept = rewa_jax.prune(scores, sparsity=share)
        # Their masks are False too where a score is zero.
        return jax.tree.map(jnp.logical_not, kept)

      due = (state.count >= begin) & ((state.count - begin) % EVERY == 0)
      strong = jax.lax.cond(due, rank, lambda old: old, state.strong)
      updates, inner_state = inner.update(grads, state.inner, params)
      updates = jax.tree.map(
        lambda u, s, y, chosen: (
          u + jnp.where(s, high, low) * y if chosen else u
        ),
        updates,
        strong,
        params,
        rewa_jax.kernels(params),
      )
      count = optax.safe_increment(state.count)
      return updates, ByScoreState(count, average, strong, inner_state)

    rate = optax.scale_by_learning_rate(run.schedule)
    optimizer = optax.chain(
      optax.GradientTransformation(init_fn, update_fn), rate
    )
    setting = on_latents(base, run, optax.identity())
    return setting._replace(optimizer=optimizer)

  return make


def times_gradient(latents, average):
  return jax.tree.map(lambda y, g: jnp.abs(y) * g, latents, average)


def lamp(method: rewa_jax.Method) -> Callable[[Any, Any], Any]:
  """Squares of weights over the sum of the layer's that are not smaller."""

  def score(x):
    squares = jnp.square(x).ravel()
    order = jnp.argsort(-squares)
    sums = jnp.cumsum(squares[order])
    return (squares.at[order].divide(sums)).reshape(x.shape)

  def scores(latents, average):
    del average
    return jax.tree.map(score, method.to_weights(latents))

  return scores


class CountState(NamedTuple):
  count: jax.Array


def _scale_by_count(
  step_at: Callable[[jax.Array], optax.GradientTransformation],
) -> optax.GradientTransformation:
  """A step without state that changes with the number of updates."""

  def update_fn(updates, state, params=None):
    step = step_at(state.count)
    updates, _ = step.update(updates, step.init(params), params)
    return updates, CountState(optax.safe_increment(state.count))

  return optax.GradientTransformation(
    lambda params: CountState(jnp.zeros([], jnp.int32)), update_fn
  )


def with_growing_m(run: Run) -> optax.GradientTransformation:
  """ReWA's step, m from 0 to 2 over the first half."""

  def step_at(count):
    m = 2.0 * jnp.minimum(count / (run.steps / 2), 1)
    return rewa_jax.scale_by_rewa(k=9, m=m, mask=rewa_jax.kernels)

  return _scale_by_count(step_at)


def with_floor(delta: float, falls: bool = False):
  """Makes the step (|y| + delta)^2, with a delta that may fall to 0."""

  def scale(run):
    def update_fn(updates, state, params=None):
      left = jnp.maximum(1 - state.count / (END * run.steps), 0)
      floor = delta * left if falls else delta
      updates = jax.tree.map(
        lambda u, y, chosen: u * (jnp.abs(y) + floor) ** 2 if chosen else u,
        updates,
        params,
        rewa_jax.kernels(params),
      )
      return updates, CountState(optax.safe_increment(state.count))

    return optax.GradientTransformation(
      lambda params: CountState(jnp.zeros([], jnp.int32)), update_fn
    )

  return scale


def with_growing_k(base: Base, first: float = 3.0) -> Make:
  """k from `first` to its own over the first half; weights stay as they are."""
  last, m = base.method.k, base.method.m

  def power(count, run):
    grown = jnp.clip(count / (run.steps / 2), 0, 1)
    return first + (last - first) * grown

  def scale(run):
    return _scale_by_count(
      lambda count: rewa_jax.scale_by_rewa(
        power(count, run), m, mask=rewa_jax.kernels
      )
    )

  def make(sparsity, run):
    def project(latents, state):
      now = state[0].count
      grown = power(now, run) / power(now - 1, run)
      return rewa_jax.Rewa(grown).to_latents(latents)

    def to_weights(latents, state):
      return rewa_jax.Rewa(power(state[0].count, run), m).to_weights(latents)

    return by_rank(base, scale=scale)(sparsity, run)._replace(
      to_params=lambda key, weights: rewa_jax.Rewa(first).to_latents(weights),
      to_weights=to_weights,
      project=project,
    )

  return make


def of_thin_layers_less(template: Any, sparsities) -> Callable:
  """Makes shares by Erdos-Renyi-kernel of the targets that there are."""
  trees = [rewa_jax.erdos_renyi_kernel(template, s) for s in sparsities]
  stacked = jax.tree.map(lambda *shares: jnp.array(shares), *trees)

  def shares(sparsity):
    place = jnp.argmin(jnp.abs(jnp.array(sparsities) - sparsity))
    return jax.tree.map(lambda each: each[place], stacked)

  return shares


def _masks(sparsity, run):
  return baselines.gradual_pruning(
    sparsity,
    begin=int(BEGIN * run.steps),
    end=int(END * run.steps),
    every=EVERY,
  )


def _masked(x):
  return isinstance(x, optax.MaskedNode)
