"""Times optimizer steps, weights materialized, against optax's and a copy.

Every method takes turns with the plain optimizer on the same tree and with a
copy of memory. From the gradients of the weights it makes those of its latents,
updates them and computes the weights for the next forward pass. The bytes that
must move, every array read once and written once, over the bandwidth of the
copy give the least time; its share of the measured one is the share of the
limit. Prints a table and writes a JSON. PyTorch's rows are left out where torch
is not installed.

  python examples/benchmarks/optimizer_step.py --tree resnet18
"""

import argparse
import functools
import importlib.util
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import save, table, take_turns
from tqdm import tqdm
from trees import TREES, shapes

import rewa_jax
from rewa_jax import baselines

K, M, EPS, RATE, DECAY = 9, 2, 1e-3, 1e-3, 1e-4
ROUNDS = 3  # Each with memory of its own: where arrays lie has its speed.
COLUMNS = ("method", "ms", "times base", "share of limit", "kernels a leaf")


class Method(NamedTuple):
  """How a method stores weights, and its optimizer.

  Attributes:
    base: the name of the optimizer that it is compared with.
    solver: what updates latents.
    to_latents: from weights.
    to_weights: from latents, or None where latents are the weights.
  """

  base: str
  solver: optax.GradientTransformation
  to_latents: Callable[[Any], Any] = lambda params: params
  to_weights: Callable[[Any], Any] | None = None


def methods() -> dict[str, Method]:
  """Returns the methods by name."""
  to_latents = functools.partial(rewa_jax.to_latents, k=K)
  to_weights = functools.partial(rewa_jax.to_weights, k=K, gradient="weight")
  rows = {}
  for base, momentum in (("sgd", None), ("momentum", 0.9)):
    plain = optax.sgd(RATE, momentum)
    decayed = optax.chain(
      optax.identity() if momentum is None else optax.trace(momentum),
      optax.add_decayed_weights(DECAY, rewa_jax.kernels),
      optax.scale_by_learning_rate(RATE),
    )
    solver = rewa_jax.rewa_sgd(
      RATE, K, M, weight_decay=DECAY, momentum=momentum
    )
    rows[base] = Method(base, plain)
    rows[f"rewa_sgd, {base}"] = Method(base, solver, to_latents, to_weights)
    rows[f"drop-in, {base}"] = Method(
      base, rewa_jax.reparameterize(decayed, K, M)
    )
    rows |= {
      f"{name}, {base}": Method(
        base,
        baselines.sgd(RATE, method, strength=DECAY, momentum=momentum),
        method.to_latents,
        method.to_weights,
      )
      for name, method in {
        "spred": baselines.spred(),
        **{
          f"DWF, D = {depth}": baselines.deep_weight_factorization(depth)
          for depth in (2, 3, 4)
        },
      }.items()
    }
  adamw = optax.adamw(RATE, weight_decay=DECAY, mask=rewa_jax.kernels)
  solver = rewa_jax.rewa_adamw(RATE, K, 0, EPS, weight_decay=DECAY)
  rows["adamw"] = Method("adamw", adamw)
  rows["rewa_adamw"] = Method("adamw", solver, to_latents, to_weights)
  rows["drop-in, adamw"] = Method(
    "adamw", rewa_jax.reparameterize(adamw, K, 0, EPS)
  )
  return rows


def compiled(method: Method, params: Any) -> tuple[Any, Any]:
  """Returns the step on gradients and a carry, and what makes the first carry.

  A carry is (latents, state, weights).
  """

  def step(grads, carry):
    latents, state, _ = carry
    if method.to_weights:
      (grads,) = jax.vjp(method.to_weights, latents)[1](grads)
    updates, state = method.solver.update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
    return latents, state, weights_of(latents)

  def weights_of(latents):
    return method.to_weights(latents) if method.to_weights else ()

  def start(params):
    # A copy, since the step donates its carry and reads the gradients.
    latents = method.to_latents(jax.tree.map(jnp.copy, params))
    return latents, method.solver.init(latents), weights_of(latents)

  # Old weights are not read; new ones go where they were.
  jitted = jax.jit(step, donate_argnums=1, keep_unused=True)
  start = jax.jit(start)
  return jitted.lower(params, start(params)).compile(), start


def least_bytes(carry: Any, params: Any) -> int:
  """Returns the bytes of all arrays read and written once."""
  latents, state, weights = carry
  return 2 * nbytes((latents, state)) + nbytes((weights, params))


def nbytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def copy(size: int) -> tuple[Any, Callable[[], Any]]:
  """Returns a step that reads so many floats and writes as many; its start."""

  # Negation, since a copy alone is one thread's memcpy on a CPU.
  @functools.partial(jax.jit, donate_argnums=1, keep_unused=True)
  def negate(source, target):
    del target
    return -source

  def step(pair):
    return pair[0], negate(*pair)

  return step, lambda: (jnp.ones(size), jnp.ones(size))


def kernels_per_leaf(program: Any, leaves: int) -> float:
  """Returns how many computations the compiled program starts for each leaf."""
  text = program.as_text()
  entry = text[text.index("ENTRY") :].splitlines()
  started = [
    line for line in entry if "fusion(" in line or "custom-call" in line
  ]
  return len(started) / leaves


def measure(tree: str, names: Sequence[str], turns: int) -> dict[str, Any]:
  """Returns what was measured of each method on one tree."""
  leaves = shapes(tree)
  params = _draw(leaves)
  size, count = nbytes(params) // 4, len(jax.tree.leaves(params))
  rows = methods()
  copied, start_copy = copy(size)
  bases = {
    name: compiled(row, params)
    for name, row in rows.items()
    if name == row.base
  }
  torch_rows = _torch_rows(leaves) if _has_torch() else {}
  chosen = [name for name in (*rows, *torch_rows) if not names or name in names]
  total = len(chosen) * ROUNDS * (turns + 2)
  progress = tqdm(total=total, desc=tree, unit="turn")
  result = {}
  for name in chosen:
    base = rows[name].base if name in rows else torch_rows[name][0]
    program, start = bases[base]
    steps = {"copy": copied, "base": functools.partial(program, params)}
    starts = {"copy": start_copy, "base": functools.partial(start, params)}
    if name in torch_rows:
      steps[name], starts[name] = torch_rows[name][1](), lambda: None
    else:
      program, start = bases.get(name) or compiled(rows[name], params)
      steps[name] = functools.partial(program, params)
      starts[name] = functools.partial(start, params)
    rounds = []
    for _ in range(ROUNDS):
      carries = {key: begin() for key, begin in starts.items()}
      rounds.append(take_turns(steps, carries, turns, progress=progress.update))

    result[name] = {"base": base, **_medians(rounds, name, nbytes(params))}
    if name in rows:
      least = least_bytes(jax.eval_shape(start, params), params)
      accessed = program.cost_analysis()["bytes accessed"]
      bandwidth = 1e9 * result[name]["copy_gigabytes_per_second"]
      limit = 1e3 * least / bandwidth
      result[name] |= {
        "least_bytes": least,
        "bytes_of_compiler": int(accessed),
        "share_of_limit": round(limit / result[name]["milliseconds"], 4),
        "kernels_per_leaf": round(kernels_per_leaf(program, count), 3),
      }
  progress.close()
  return {"parameters": size, "leaves": count, "methods": result}


def _medians(rounds, name, copied):
  """Returns medians over rounds; a copy reads and writes so many bytes."""

  def median(values):
    return round(statistics.median(values), 4)

  return {
    "milliseconds": median(1e3 * seconds[name] for seconds in rounds),
    "ratio": median(seconds[name] / seconds["base"] for seconds in rounds),
    "copy_gigabytes_per_second": median(
      2e-9 * copied / seconds["copy"] for seconds in rounds
    ),
  }


def _has_torch():
  # Its rows are of the CPU.
  on_cpu = jax.default_backend() == "cpu"
  return on_cpu and importlib.util.find_spec("torch") is not None


def _draw(leaves):
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(random.standard_normal(x.shape, np.float32)), leaves
  )


def _torch_rows(leaves):
  import eager_torch

  sizes = [leaf.shape for leaf in jax.tree.leaves(leaves)]
  rows = {}
  for base, momentum in (("sgd", 0.0), ("momentum", 0.9)):
    rows[f"torch.optim.SGD, {base}"] = (
      base,
      functools.partial(eager_torch.sgd, sizes, RATE, momentum),
    )
    rows[f"eager torch ReWA, {base}"] = (
      base,
      functools.partial(eager_torch.rewa, sizes, RATE, momentum, K, M, DECAY),
    )
  return rows


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program, and returns its exit status."""
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--tree", choices=TREES, nargs="+", default=["resnet18"])
  add("--method", nargs="+", default=[], help="names of rows (default: all)")
  add("--turns", type=int, default=10, help="timed steps of each round")
  add(
    "--out",
    type=pathlib.Path,
    default="results/benchmarks",
    help="folder of optimizer_step.json (default: %(default)s)",
  )
  args = parser.parse_args(argv)
  known = {*methods(), *_torch_rows({})} if args.method else set()
  if unknown := set(args.method) - known:
    parser.error(f"no methods {sorted(unknown)}; there are {sorted(known)}")
  trees = {}
  try:
    for tree in args.tree:
      trees[tree] = measure(tree, args.method, args.turns)
      rows = [
        (
          name,
          row["milliseconds"],
          row["ratio"],
          row.get("share_of_limit", ""),
          row.get("kernels_per_leaf", ""),
        )
        for name, row in trees[tree]["methods"].items()
      ]
      print(f"\n{tree}, {trees[tree]['parameters']:,} parameters")
      print(table(COLUMNS, rows), flush=True)
  except KeyboardInterrupt:
    return 130
  save(
    args.out / "optimizer_step.json",
    "optimizer_step.py",
    argv,
    {"trees": trees},
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
