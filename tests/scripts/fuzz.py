"""Feeds the library random trees, types, numbers and hyperparameters.

Every case must either work, with finite numbers in the structure, shapes and
types that went in, or raise an error of the library's own: a ValueError or a
TypeError whose last frame lies in rewa_jax. Two laws hold besides: at k = 1 all
ways in are the bare optimizer inside any wrapper of optax, and what a bare NNX
model keeps between calls the wrapped one keeps. Anything else is printed with
the seed that makes it again, and the exit status is 1.
"""

import argparse
import collections
import functools
import pathlib
import sys
import traceback
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import rewa_jax
from rewa_jax import baselines

from ..test_dropin import WRAPPERS, assert_close, quick_jit
from . import models

PACKAGE = str(pathlib.Path(rewa_jax.__file__).parent)
NAMES = ("kernel", "kernel", "w", "weight", "bias", "scale", "embedding", "x")
DTYPES = ("float32", "float32", "float16", ml_dtypes.bfloat16, "int32", "bool")
# Few, since every new one is compiled.
SHAPES = ((), (0,), (3,), (2, 3), (3, 0), (2, 2, 3), (1, 2, 2, 3))
SIZES = (0.0, 1e-30, 1e-4, 1.0, 10.0)
WRONG = (-1.0, float("nan"), float("inf"), "3", None, np.ones(2), 1j, True)


def pick(random, values):
  return values[random.integers(len(values))]


def draw_leaf(random):
  shape = pick(random, SHAPES)
  values = random.normal(size=shape) * pick(random, SIZES)
  values = np.where(random.random(shape) < 0.2, 0, values)
  dtype = pick(random, DTYPES if random.random() < 0.3 else DTYPES[:4])
  if dtype != "float32":
    values = np.clip(values, -2, 2)  # 10^8, for m = 8, is no float16.
  return jnp.asarray(values.astype(dtype))


def draw_tree(random, depth=2):
  kind = random.integers(4) if depth else 3
  if kind == 3 and depth < 2:
    return draw_leaf(random)
  count = random.integers(0, 3) if random.random() < 0.1 else 2
  children = [draw_tree(random, depth - 1) for _ in range(count)]
  if kind == 0:
    return children
  if kind == 1:
    return tuple(children)
  names = [pick(random, NAMES) for _ in children]
  return dict(zip(names, children))


def draw_number(random, low, high):
  """Returns a number in the range, in some form, seldom a wrong one."""
  if random.random() < 0.03:
    return pick(random, WRONG)
  value = random.uniform(low, high)
  form = random.integers(4)
  if form == 0:
    return int(np.clip(round(value), np.ceil(low), max(np.ceil(low), high)))
  if form == 1:
    return jnp.float32(value)
  return value if form == 2 else np.float64(value)


def draw_mask(random, tree):
  kind = random.integers(7)
  if kind < 3:
    return rewa_jax.kernels
  if kind == 3:
    return None
  if kind == 4:
    return jax.tree.map(lambda _: bool(random.integers(2)), tree)
  if kind == 5:  # A prefix.
    return jax.tree.map(
      lambda _: bool(random.integers(2)),
      tree,
      is_leaf=lambda node: node is not tree,
    )
  return pick(random, (True, False, {"kernel": True}, lambda tree: 3, "kernel"))


def gradients(random, tree):
  return jax.tree.map(
    lambda leaf: jnp.asarray(
      random.normal(size=leaf.shape).astype(np.float32)
    ).astype(leaf.dtype),
    tree,
  )


def finite(gradient):
  """Caps what the chain rule makes of a step that went far."""
  if not jnp.issubdtype(gradient.dtype, jnp.floating):
    return gradient
  largest = jnp.finfo(gradient.dtype).max
  return jnp.clip(gradient, -largest, largest)


def nearer(leaf):
  """Moves back what went far: from there the next step has no number."""
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return leaf
  return jnp.where(jnp.isfinite(leaf), jnp.clip(leaf, -2, 2), leaf)


def optimize(random, solver, params, slope=lambda leaf: 1):
  state = solver.init(params)
  for _ in range(2):
    grads = jax.tree.map(
      lambda g, leaf: finite((g * slope(leaf)).astype(g.dtype)),
      gradients(random, params),
      params,
    )
    updates, state = solver.update(grads, state, params)
    moved = optax.apply_updates(params, updates)
    params = jax.tree.map(nearer, moved)
  return moved


def use_latents(random, tree, k, m, eps, mask):
  rewa = rewa_jax.Rewa(k, m, eps, mask=mask)
  return rewa.to_weights(rewa.to_latents(tree))


def use_scale(random, tree, k, m, eps, mask):
  gradient = pick(random, ("weight", "weight", "latent", "other"))
  solver = rewa_jax.scale_by_rewa(k, m, eps, mask=mask, gradient=gradient)
  solver = optax.chain(solver, optax.scale(-0.01))
  if gradient != "latent":
    return optimize(random, solver, tree)
  # Gradients with respect to latents are as small as the chain rule makes them.
  return optimize(random, solver, tree, lambda y: k * jnp.abs(y) ** (k - 1))


def use_sgd(random, tree, k, m, eps, mask):
  solver = rewa_jax.rewa_sgd(
    0.01,
    k,
    m,
    eps,
    weight_decay=draw_number(random, 0, 0.1),
    momentum=pick(random, (None, 0.9)),
    mask=mask,
  )
  return optimize(random, solver, tree)


def use_adamw(random, tree, k, m, eps, mask):
  # Of optax's Adam: in float16 its 1e-8 is 0, as may be what it is added to.
  solver = rewa_jax.rewa_adamw(
    0.01, k, m, eps, weight_decay=0.1, adam_eps=1e-4, mask=mask
  )
  return optimize(random, solver, tree)


def use_drop_in(random, tree, k, m, eps, mask):
  inner = pick(random, (optax.sgd(0.01, 0.9), optax.adam(0.01, eps=1e-4)))
  rewa = rewa_jax.Rewa(k, m, eps, mask=mask)
  solver = rewa_jax.reparameterize(inner, rewa)
  return optimize(random, solver, tree)


def use_prune(random, tree, k, m, eps, mask):
  which = pick(random, ("threshold", "sparsity"))
  pruned, masks = rewa_jax.prune(
    tree, **{which: draw_number(random, 0, 1)}, mask=mask
  )
  report = rewa_jax.sparsity(pruned, mask=mask)
  assert 0 <= int(report.total_nonzero) <= report.total_size
  assert jax.tree.structure(masks) == jax.tree.structure(tree)
  return pruned


def use_baseline(random, tree, k, m, eps, mask):
  groups = pick(random, ("output", "input", "rows", "heads"))
  depth = pick(random, (1, 2, 3))
  method = pick(
    random,
    (
      baselines.spred,
      lambda mask: baselines.deep_weight_factorization(depth, mask=mask),
      lambda mask: baselines.HadamardDifference(depth, mask=mask),
      functools.partial(baselines.Gated, groups, depth),
      functools.partial(baselines.PowerPropagation, k),
      functools.partial(baselines.GroupedRewa, k, groups, m, eps),
      functools.partial(baselines.SoftThreshold, -5.0),
    ),
  )(mask=mask)
  latents = method.to_latents(tree)
  solver = rewa_jax.sgd(0.01, method, weight_decay=0.01)
  latents = optimize(random, solver, latents)
  pruned, _ = rewa_jax.prune(latents, threshold=0.1, method=method)
  report = rewa_jax.sparsity(latents, 0.1, method=method)
  again = rewa_jax.sparsity(pruned, mask=mask)
  assert report.size == again.size
  assert int(report.total_nonzero) == int(again.total_nonzero)
  return method.to_weights(latents)


OUTER = WRAPPERS | {
  "flatten": optax.flatten,
  "partition": lambda solver: optax.partition(
    {"one": solver, "other": solver}, {"w": "one", "b": "other"}
  ),
  "selective_transform": lambda solver: optax.selective_transform(
    solver, freeze_mask={"w": False, "b": True}
  ),
  "conditionally_transform": lambda solver: optax.conditionally_transform(
    solver, lambda count: count % 2 == 0
  ),
  "named_chain": lambda solver: optax.named_chain(
    ("clip", optax.clip_by_global_norm(1.0)), ("solver", solver)
  ),
}


# What may be inside of any of them, too.
INNER = ("scale", "ema", "trace", "clip", "masked", "inject_hyperparams")


def draw_solvers(random, mask):
  """Returns an optimizer of weights, and one with latents that equals it."""
  decay = optax.add_decayed_weights(0.1, mask)
  rewa = rewa_jax.Rewa(pick(random, (1, 1.0, jnp.float32(1))), mask=mask)
  if random.random() < 0.5:
    bare = pick(
      random,
      (
        optax.chain(decay, optax.sgd(0.1, 0.9)),
        optax.adamw(0.1, mask=mask),
        optax.rmsprop(0.1),
        optax.amsgrad(0.1),
        optax.chain(optax.clip_by_global_norm(0.5), optax.nadam(0.1)),
      ),
    )
    return bare, rewa_jax.reparameterize(bare, rewa)
  rule, ours = pick(
    random,
    (
      (optax.identity(), rewa_jax.sgd),
      (optax.trace(0.9), functools.partial(rewa_jax.sgd, momentum=0.9)),
      (optax.scale_by_adam(), rewa_jax.adamw),
    ),
  )
  bare = optax.chain(rule, decay, optax.scale(-0.1))
  return bare, ours(0.1, rewa, weight_decay=0.1)


def use_wrapper(random, tree, k, m, eps, mask):
  """At k = 1 every way in is the bare optimizer, inside any wrapper."""
  outer = pick(random, sorted(OUTER))
  inner = pick(random, (None, *INNER))
  mask = pick(random, (None, rewa_jax.kernels))
  if outer == "flatten":  # It leaves no names.
    inner = mask = None
  params = jax.tree.map(
    lambda leaf: leaf.astype(jnp.float32),
    {
      name: {"kernel": draw_leaf(random), "x": draw_tree(random, depth=1)}
      for name in ("w", "b")
    },
  )
  aim = gradients(random, params)
  if outer == "lookahead":
    params = optax.LookaheadParams.init_synced(params)

  def descend(solver):
    if inner:
      solver = OUTER[inner](solver)
    solver = OUTER[outer](solver)

    def step(carry, _):
      params, state = carry
      # Of lookahead's pair, gradients are those of the fast one.
      at = getattr(params, "fast", params)
      grads = jax.tree.map(jnp.subtract, at, aim)
      updates, state = solver.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    carry = params, solver.init(params)
    return jax.lax.scan(step, carry, length=7)[0][0]

  solvers = draw_solvers(random, mask)
  bare, ours = quick_jit(lambda: [descend(solver) for solver in solvers])()
  assert_close(ours, bare)
  return tree


def use_model(random, tree, k, m, eps, mask):
  """What a bare NNX model keeps between calls, the wrapped one keeps."""
  mask = pick(random, (rewa_jax.kernels, None))
  method = pick(
    random,
    (
      rewa_jax.Rewa(1, mask=mask),
      rewa_jax.Rewa(3, 1, mask=mask),
      baselines.spred(mask=mask),
    ),
  )
  bare = models.Model(random, nnx.Rngs(int(random.integers(1000))))
  ours = rewa_jax.nnx.reparameterize(bare, method)
  for _ in range(random.integers(1, 4)):
    act = pick(random, models.ACTIONS)
    bare, wanted = act(bare, models.INPUTS)
    ours, outputs = act(ours, models.INPUTS)
    assert_close(outputs, wanted)
  # The keys of random streams are no numbers.
  (graphdef, _, state), (wanted_graphdef, _, wanted) = (
    nnx.split(model, nnx.RngKey, ...) for model in (ours.weights(), bare)
  )
  assert graphdef == wanted_graphdef
  assert_close(nnx.to_pure_dict(state), nnx.to_pure_dict(wanted))
  return tree


LAWS = (use_wrapper, use_model)
# Laws are seldom drawn: their programs are compiled anew in every case.
USES = LAWS + 3 * (
  use_latents,
  use_scale,
  use_sgd,
  use_adamw,
  use_drop_in,
  use_prune,
  use_baseline,
)


def run(seed: int) -> str:
  """Runs one case, and returns "worked", "refused" or what went wrong."""
  random = np.random.default_rng(seed)
  tree = draw_tree(random)
  k = draw_number(random, 1, 9)
  highest = k - 1 if isinstance(k, (int, float)) and 1 <= k <= 9 else 1
  m, eps = draw_number(random, 0, highest), draw_number(random, 0, 0.1)
  mask, use = draw_mask(random, tree), pick(random, USES)
  try:
    result = use(random, tree, k, m, eps, mask)
  except (TypeError, ValueError) as error:
    last = traceback.extract_tb(error.__traceback__)[-1]
    # What works without us is not ours to refuse.
    if last.filename.startswith(PACKAGE) and str(error) and use not in LAWS:
      return "refused"
    return f"{use.__name__}: {error!r} at {last.filename}:{last.lineno}"
  except Exception as error:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{use.__name__}: {error!r} at {last.filename}:{last.lineno}"
  if jax.tree.structure(result) != jax.tree.structure(tree):
    return f"{use.__name__}: another structure"
  for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(result)):
    if (before.shape, before.dtype) != (after.shape, after.dtype):
      return (
        f"{use.__name__}: {before.dtype}{before.shape} became {after.dtype}"
      )
    if not jnp.isfinite(after.astype(jnp.float32)).all():
      return f"{use.__name__}: not finite, k={k}, m={m}, eps={eps}"
  return "worked"


def main(argv) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--count", type=int, default=10_000, help="cases (default: 10,000)")
  add("--seed", type=int, default=0, help="of the first case (default: 0)")
  args = parser.parse_args(argv)
  counts = collections.Counter()
  # Most programs run but once.
  jax.config.update("jax_disable_most_optimizations", True)
  # NNX has another way to sow by now.
  warnings.filterwarnings("ignore", category=DeprecationWarning)
  for seed in tqdm(range(args.seed, args.seed + args.count), unit="case"):
    if seed % 2000 == 0:
      jax.clear_caches()  # Ten thousand cases' programs fill the memory.
    outcome = run(seed)
    known = outcome in ("worked", "refused")
    counts[outcome if known else "failed"] += 1
    if not known:
      tqdm.write(f"--seed {seed} --count 1: {outcome}")
  print(", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))
  sys.exit(bool(counts["failed"]))


if __name__ == "__main__":
  main(sys.argv[1:])
