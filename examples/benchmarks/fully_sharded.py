"""What a device of 64 holds in a training step of 7 billion parameters.

The step of a transformer in bfloat16, parameters and optimizer state in float32
and spread over 64 simulated devices, is lowered and compiled, and not run: the
compiler says how many bytes a device needs. ReWA stands beside optax.adamw.
Prints a table and writes a JSON.

  python -m examples.benchmarks.fully_sharded
"""

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

# Set before JAX starts.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=64"
)

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import rewa_jax

from .. import kit
from .transformer import GPT2, SEVEN_BILLION

MODELS = {"7b": SEVEN_BILLION, "124m": GPT2}
REWA = rewa_jax.Rewa(k=9, eps=1e-3)
RATE, DECAY = 1e-4, 0.1
COLUMNS = ("way", "GB a device", "arguments", "temporary", "times adamw")


def ways(model: Any) -> dict[str, tuple[Any, optax.GradientTransformation]]:
  """Returns models and optimizers by name."""
  reparameterized = functools.partial(
    rewa_jax.linen.Reparameterized, method=REWA
  )
  adamw = optax.adamw(RATE, weight_decay=DECAY, mask=rewa_jax.kernels)
  rewa = rewa_jax.adamw(RATE, REWA, weight_decay=DECAY)
  return {
    "optax.adamw": (model(), adamw),
    "rewa_adamw, in each block": (model(wrap=reparameterized), rewa),
    "rewa_adamw, around the model": (reparameterized(model()), rewa),
    "drop-in, adamw": (model(), rewa_jax.reparameterize(adamw, REWA)),
  }


def compiled(
  model: Any, solver: Any, mesh: jax.sharding.Mesh, length: int
) -> Any:
  """Returns the compiled step of one sequence a device."""

  def sharding_of(leaf):
    """Spreads the longest axis that the devices divide."""
    axes = [i for i, n in enumerate(leaf.shape) if n % mesh.size == 0]
    spec = [None] * len(leaf.shape)
    if axes:
      spec[max(axes, key=lambda i: leaf.shape[i])] = "devices"
    return NamedSharding(mesh, P(*spec))

  def spread(tree):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x)),
      tree,
    )

  def step(params, state, tokens):
    def loss(params):
      logits = model.apply(params, tokens[:, :-1])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:]
      ).mean()

    grads = jax.grad(loss)(params)
    grads = jax.lax.with_sharding_constraint(
      grads, jax.tree.map(sharding_of, params)
    )
    updates, state = solver.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  tokens = jax.ShapeDtypeStruct(
    (mesh.size, length + 1),
    jnp.int32,
    sharding=NamedSharding(mesh, P("devices")),
  )
  params = spread(
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), int))
  )
  state = spread(jax.eval_shape(solver.init, params))
  outputs = jax.tree.map(lambda x: x.sharding, (params, state))
  jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=outputs)
  return jitted.lower(params, state, tokens).compile()


def main(argv: Sequence[str]) -> None:
  parser = kit.parser(__doc__, "results/benchmarks")
  add = parser.add_argument
  add("--model", choices=MODELS, default="7b")
  add("--length", type=int, help="of sequences (default: the model's)")
  args = parser.parse_args(argv)
  devices = jax.devices("cpu")
  mesh = jax.make_mesh(
    (len(devices),), ("devices",), axis_types=(AxisType.Auto,), devices=devices
  )
  model = functools.partial(
    MODELS[args.model],
    dtype=jnp.bfloat16,
    # Else the compiler spreads each layer's width, and every device computes
    # on the whole batch.
    constrain=functools.partial(
      jax.lax.with_sharding_constraint,
      shardings=NamedSharding(mesh, P("devices")),
    ),
  )
  length = args.length or model().length
  rows = {}
  for name, way in tqdm(ways(model).items(), unit="way"):
    memory = compiled(*way, mesh, length).memory_analysis()
    arguments = memory.argument_size_in_bytes
    temporary = (
      memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    )
    rows[name] = {
      "bytes_per_device": arguments + temporary,
      "arguments": arguments,
      "temporary": temporary,
    }
  least = rows["optax.adamw"]["bytes_per_device"]
  for row in rows.values():
    row["ratio"] = round(row["bytes_per_device"] / least, 4)
  print(
    kit.markdown(
      COLUMNS,
      [
        (name, *(row[key] / 1e9 for key in list(row)[:3]), row["ratio"])
        for name, row in rows.items()
      ],
    )
  )
  made = kit.provenance("examples.benchmarks.fully_sharded", argv, "flax")
  results = {"model": args.model, "devices": mesh.size, "length": length}
  path = args.out / "fully_sharded.json"
  kit.write_json(path, {**made, **results, "ways": rows})


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
