"""Another library's methods, through its own interface, if it is installed.

  pip install chex ml-collections "jaxpruner @ git+https://github.com/\
google-research/jaxpruner@f133ee50f31a03d0152b8b272edb534065152f5d"
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import optax

from .methods import MOMENTUM, Recipe, Setting, kept

LADDER = kept(0.08)


def peers() -> dict[str, Recipe]:
  """Returns JaxPruner's methods, none where it is not installed."""
  if importlib.util.find_spec("jaxpruner") is None:
    return {}
  jax.tree_map = _tree_map
  return {
    "JaxPruner, magnitude": Recipe(_magnitude, LADDER),
    "JaxPruner, RigL": Recipe(_rigl, LADDER),
  }


def _tree_map(fn, tree, *others):
  """What JaxPruner calls by a name that JAX has given up, None a leaf."""
  return jax.tree.map(
    lambda x, *y: None if x is None else fn(x, *y),
    tree,
    *others,
    is_leaf=lambda x: x is None,
  )


def _setting(updater, schedule):
  return Setting(
    updater.wrap_optax(optax.sgd(schedule, MOMENTUM)),
    to_weights=updater.pre_forward_update,
    project=updater.post_gradient_update,
  )


def _magnitude(sparsity, run):
  import jaxpruner

  # The last update is a multiple of the first and of the steps between.
  every = max(run.steps // 40, 1)
  return _setting(
    jaxpruner.GlobalMagnitudePruning(
      scheduler=jaxpruner.PolynomialSchedule(every, 4 * every, 30 * every),
      sparsity=sparsity,
      filter_fn=jaxpruner.sparsity_distributions.KERNEL_FILTER_FN,
    ),
    run.schedule,
  )


def _rigl(sparsity, run):
  import jaxpruner

  every, end = max(run.steps // 100, 1), run.steps * 3 // 4
  return _setting(
    jaxpruner.RigL(
      scheduler=jaxpruner.PeriodicSchedule(every, every, end),
      drop_fraction_fn=optax.cosine_decay_schedule(0.3, max(end, 1)),
      sparsity_distribution_fn=functools.partial(_erk, sparsity=sparsity),
    ),
    run.schedule,
  )


def _erk(params, sparsity):
  """The Erdos-Renyi kernel distribution over layers, of a traced sparsity."""
  from jaxpruner import sparsity_distributions

  # It computes with Python numbers alone: between rungs by interpolation.
  shares = [LADDER(rung) for rung in range(-3, 16)]
  layers = [
    sparsity_distributions.erk(
      params, share, filter_fn=sparsity_distributions.KERNEL_FILTER_FN
    )
    for share in shares
  ]
  return jax.tree.map(
    lambda *values: jnp.interp(sparsity, jnp.array(shares), jnp.array(values)),
    *layers,
  )
