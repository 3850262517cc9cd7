"""Times optimizer steps, weights materialized, against optax's and a copy.

Every method takes turns with the plain optimizer on the same tree and with a
copy of memory. From the gradients of the weights it makes those of its latents,
updates them and computes the weights for the next forward pass. The bytes that
must move, every array read once and written once, over the bandwidth of the
copy give the least time; its share of the measured one is the share of the
limit. Prints a table and writes a JSON. PyTorch's rows are left out where torch
is not installed.

A GPU is done with a step before Python has started the next one: there
--repeat 20 makes one program of twenty steps.

  python -m examples.benchmarks.optimizer_step --tree resnet18
"""

import functools
import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import rewa_jax
from rewa_jax import baselines

from .. import kit
from .timing import add_options, repeated, take_turns
from .trees import TREES, shapes

SGD_REWA = rewa_jax.Rewa(k=9, m=2)
ADAM_REWA = rewa_jax.Rewa(k=9, eps=1e-3)
RATE, DECAY = 1e-3, 1e-4
ROUNDS = 3  # Each with memory of its own: where arrays lie has its speed.
COLUMNS = ("method", "ms", "times base", "share of limit", "kernels a leaf")


class Row(NamedTuple):
  """What is timed.

  Attributes:
    base: the name of the optimizer that it is compared with.
    solver: what updates latents.
    method: what the latents are, or None where they are the weights.
  """

  base: str
  solver: optax.GradientTransformation
  method: rewa_jax.Method | None = None


def methods() -> dict[str, Row]:
  """Returns the rows by name."""
  rows = {}
  for base, momentum in (("sgd", None), ("momentum", 0.9)):
    decayed = optax.chain(
      optax.identity() if momentum is None else optax.trace(momentum),
      optax.add_decayed_weights(DECAY, SGD_REWA.decaying),
      optax.scale_by_learning_rate(RATE),
    )
    drop_in = rewa_jax.reparameterize(decayed, SGD_REWA)
    rows[base] = Row(base, optax.sgd(RATE, momentum))
    rows[f"rewa_sgd, {base}"] = _latents(base, momentum, SGD_REWA)
    rows[f"drop-in, {base}"] = Row(base, drop_in)
    rows[f"spred, {base}"] = _latents(base, momentum, baselines.spred())
    for depth in (2, 3, 4):
      method = baselines.deep_weight_factorization(depth)
      rows[f"DWF, D = {depth}, {base}"] = _latents(base, momentum, method)
  adamw = optax.adamw(RATE, weight_decay=DECAY, mask=rewa_jax.kernels)
  rewa_adamw = rewa_jax.adamw(RATE, ADAM_REWA, weight_decay=DECAY)
  drop_in = rewa_jax.reparameterize(adamw, ADAM_REWA)
  rows["adamw"] = Row("adamw", adamw)
  rows["rewa_adamw"] = Row("adamw", rewa_adamw, ADAM_REWA)
  rows["drop-in, adamw"] = Row("adamw", drop_in)
  return rows


def _latents(base, momentum, method):
  solver = rewa_jax.sgd(RATE, method, weight_decay=DECAY, momentum=momentum)
  return Row(base, solver, method)


def compiled(row: Row, params: Any, repeat: int = 1) -> tuple[Any, Any]:
  """Returns compiled steps, and what makes their first carry; see step_of."""
  step, start = step_of(row)

  def steps(grads, carry):
    return repeated(functools.partial(step, grads), repeat)(carry)

  # Old weights are not read; new ones go where they were.
  jitted = jax.jit(steps, donate_argnums=1, keep_unused=True)
  start = jax.jit(start)
  return jitted.lower(params, start(params)).compile(), start


def step_of(row: Row) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Returns the step on gradients and a carry, and what makes the first carry.

  A carry is (latents, state, weights).
  """

  def step(grads, carry):
    latents, state, _ = carry
    if row.method:
      (grads,) = jax.vjp(row.method.to_weights, latents)[1](grads)
    updates, state = row.solver.update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
    return latents, state, weights_of(latents)

  def weights_of(latents):
    return row.method.to_weights(latents) if row.method else ()

  def start(params):
    # A copy, since the step donates its carry and reads the gradients.
    latents = jax.tree.map(jnp.copy, params)
    if row.method:
      latents = row.method.to_latents(latents)
    return latents, row.solver.init(latents), weights_of(latents)

  return step, start


def least_bytes(carry: Any, params: Any) -> int:
  """Returns the bytes of all arrays read and written once."""
  latents, state, weights = carry
  return 2 * nbytes((latents, state)) + nbytes((weights, params))


def nbytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def copy(size: int, repeat: int) -> tuple[Any, Callable[[], Any]]:
  """Returns a step that reads so many floats and writes as many; its start."""

  # Negation, since a copy alone is one thread's memcpy on a CPU.
  @functools.partial(jax.jit, donate_argnums=1, keep_unused=True)
  def negate(source, target):
    del target
    return -source

  def step(pair):
    return pair[0], negate(*pair)

  if repeat > 1:
    # In place: a loop would negate a source that stays the same only once.
    in_place = jax.jit(repeated(jnp.negative, repeat), donate_argnums=0)
    return in_place, lambda: jax.random.normal(jax.random.key(0), (size,))
  return step, lambda: (jnp.ones(size), jnp.ones(size))


def kernels_per_leaf(program: Any, leaves: int) -> float:
  """Returns how many computations the compiled program starts for each leaf."""
  text = program.as_text()
  entry = text[text.index("ENTRY") :].splitlines()
  started = [
    line for line in entry if "fusion(" in line or "custom-call" in line
  ]
  return len(started) / leaves


def measure(
  tree: str, names: Sequence[str], turns: int, repeat: int = 1
) -> dict[str, Any]:
  """Returns what was measured of each method on one tree."""
  leaves = shapes(tree)
  params = _draw(leaves)
  size, count = nbytes(params) // 4, len(jax.tree.leaves(params))
  rows = methods()
  copied, start_copy = copy(size, repeat)
  bases = {
    name: compiled(row, params, repeat)
    for name, row in rows.items()
    if name == row.base
  }
  torch_rows = _torch_rows(leaves)
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
      program, start = bases.get(name) or compiled(rows[name], params, repeat)
      steps[name] = functools.partial(program, params)
      starts[name] = functools.partial(start, params)
    rounds = []
    for _ in range(ROUNDS):
      carries = {key: begin() for key, begin in starts.items()}
      taken = take_turns(steps, carries, turns, progress=progress.update)
      rounds.append({key: value / repeat for key, value in taken.items()})

    result[name] = {"base": base, **_medians(rounds, name, nbytes(params))}
    if name in rows:
      least = least_bytes(jax.eval_shape(start, params), params)
      bandwidth = 1e9 * result[name]["copy_gigabytes_per_second"]
      limit = 1e3 * least / bandwidth
      result[name] |= {
        "least_bytes": least,
        "share_of_limit": round(limit / result[name]["milliseconds"], 4),
      }
    if name in rows and repeat == 1:
      accessed = program.cost_analysis()["bytes accessed"]
      result[name] |= {
        "bytes_of_compiler": int(accessed),
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
  if not _has_torch():
    return {}
  from . import eager_torch

  sizes = [leaf.shape for leaf in jax.tree.leaves(leaves)]
  rows = {}
  for base, momentum in (("sgd", 0.0), ("momentum", 0.9)):
    rows[f"torch.optim.SGD, {base}"] = (
      base,
      functools.partial(eager_torch.sgd, sizes, RATE, momentum),
    )
    rows[f"eager torch ReWA, {base}"] = (
      base,
      functools.partial(
        eager_torch.rewa,
        sizes,
        *(RATE, momentum, SGD_REWA.k, SGD_REWA.m, DECAY),
      ),
    )
  return rows


def main(argv: Sequence[str]) -> None:
  parser = kit.parser(__doc__, "results/benchmarks")
  add = parser.add_argument
  add("--tree", choices=TREES, nargs="+", default=["resnet18"])
  add("--method", nargs="+", default=[], help="names of rows (default: all)")
  add_options(parser, 10, "timed programs of each round")
  args = parser.parse_args(argv)
  known = {*methods(), *_torch_rows({})} if args.method else set()
  if unknown := set(args.method) - known:
    parser.error(f"no methods {sorted(unknown)}; there are {sorted(known)}")
  trees = {}
  for tree in args.tree:
    trees[tree] = measure(tree, args.method, args.turns, args.repeat)
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
    print(kit.markdown(COLUMNS, rows), flush=True)
  made = kit.provenance("examples.benchmarks.optimizer_step", argv, "flax")
  kit.write_json(args.out / "optimizer_step.json", {**made, "trees": trees})


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
