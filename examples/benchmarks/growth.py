"""Time and memory of an optimizer step as parameters and devices grow.

One kernel of --sizes parameters on one device, and one of --shared parameters
over 2 to 8 devices; on a machine with fewer, CPU devices are simulated. ReWA
with weights materialized and the drop-in take turns with optax.sgd. Prints
tables and writes a JSON.

  python -m examples.benchmarks.growth
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

# Set before JAX starts; it concerns CPUs alone.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from .. import kit
from .optimizer_step import compiled, methods
from .timing import take_turns

WAYS = ("sgd", "rewa_sgd, sgd", "drop-in, sgd")
COLUMNS = ("parameters", "devices", "way", "ms", "times sgd", "bytes each")


def measure(size: int, devices: int, turns: int) -> list[dict[str, Any]]:
  """Returns a row for each way, with one kernel over some devices."""
  mesh = jax.make_mesh(
    (devices,),
    ("devices",),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:devices],
  )
  sharding = NamedSharding(mesh, P("devices"))
  rows = methods()
  # Sizes are not exact: 1,024 columns, and as many rows on every device.
  shape = (max(size // 1024 // devices, 1) * devices, 1024)
  ones = jax.jit(functools.partial(jnp.ones, shape), out_shardings=sharding)
  params = {"kernel": 0.5 * ones()}
  base, start_base = compiled(rows["sgd"], params)
  results = []
  for way in WAYS:
    program, start = compiled(rows[way], params)
    memory = program.memory_analysis()
    steps = {
      "sgd": functools.partial(base, params),
      way: functools.partial(program, params),
    }
    # One way beside sgd at a time, since 1e9 parameters fill the memory.
    carries = {"sgd": start_base(params), way: start(params)}
    seconds = take_turns(steps, carries, turns)
    results.append(
      {
        "parameters": params["kernel"].size,
        "devices": devices,
        "way": way,
        "milliseconds": round(1e3 * seconds[way], 4),
        "ratio": round(seconds[way] / seconds["sgd"], 4),
        "bytes_per_device": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
      }
    )
  return results


def main(argv: Sequence[str]) -> None:
  parser = kit.parser(__doc__, "results/benchmarks")
  add = parser.add_argument
  add(
    "--sizes",
    type=float,
    nargs="*",
    default=[1e5, 1e6, 1e7, 1e8, 1e9],
    help="on one device; 1e9 takes 20 GB",
  )
  add("--shared", type=float, default=1e7, help="over 2, 4 and 8 devices")
  add(
    "--turns", type=kit.at_least(1), default=10, help="timed steps, of each way"
  )
  args = parser.parse_args(argv)
  cases = [(int(size), 1) for size in args.sizes]
  cases += [(int(args.shared), devices) for devices in (2, 4, 8)]
  rows = []
  for size, devices in tqdm(cases, unit="case"):
    rows += measure(size, devices, args.turns)
  order = ("parameters", "devices", "way", "milliseconds", "ratio")
  print(
    kit.markdown(
      COLUMNS,
      [[row[key] for key in (*order, "bytes_per_device")] for row in rows],
    )
  )
  made = kit.provenance("examples.benchmarks.growth", argv, "flax")
  kit.write_json(args.out / "growth.json", {**made, "rows": rows})


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
