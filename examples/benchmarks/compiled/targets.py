"""Devices that are not here: what their compilers ask to know of them.

The compilers of TPUs and of NVIDIA's GPUs run on any machine. TPU's knows its
topologies by name; the GPU's asks for the numbers of a card. Bandwidths are of
the data sheets.
"""

from typing import Any, NamedTuple

from jax.experimental import topologies


class Tpu(NamedTuple):
  """A kind of TPU.

  Attributes:
    name: as its compiler calls it, before the colon.
    topology: the smallest.
    bandwidth: of a device's memory, bytes a second.
  """

  name: str
  topology: str
  bandwidth: float


class Gpu(NamedTuple):
  """A card, by what the compiler asks for.

  Attributes:
    name: of the product.
    capability: major of the CUDA compute capability.
    cores: multiprocessors.
    fpus: float32 units of each.
    shared: bytes of shared memory of each.
    cache: bytes of the second level.
    clock: gigahertz.
    bandwidth: of the memory, bytes a second.
    memory: bytes.
  """

  name: str
  capability: int
  cores: int
  fpus: int
  shared: int
  cache: int
  clock: float
  bandwidth: float
  memory: float


TARGETS = {
  "v5e": Tpu("v5e", "2x2", 819e9),
  "v5p": Tpu("v5p", "2x2x1", 2765e9),
  "v6e": Tpu("v6e", "2x2", 1600e9),
  "a100": Gpu("A100", 8, 108, 64, 164, 40, 1.41, 2039e9, 80e9),
  "h100": Gpu("H100", 9, 132, 128, 228, 50, 1.98, 3352e9, 80e9),
  "h200": Gpu("H200", 9, 132, 128, 228, 50, 1.98, 4800e9, 141e9),
  "b200": Gpu("B200", 10, 148, 128, 228, 126, 1.965, 7700e9, 180e9),
}


def devices(target: str, topology: str = "") -> list[Any]:
  """Returns devices to compile for.

  Args:
    target: one of TARGETS.
    topology: how many there are, ``"4x4"`` (default: as few as can be).
  """
  kind = TARGETS[target]
  if isinstance(kind, Tpu):
    name = f"{kind.name}:{topology or kind.topology}"
    return topologies.get_topology_desc(name, "tpu").devices
  return topologies.get_topology_desc(
    "",
    "cuda",
    target_config=target_config(kind),
    topology=topology or "1x1x1",
  ).devices


def target_config(card: Gpu) -> str:
  """Returns what XLA calls a GPU's target config, as a text protocol buffer."""
  fields = {
    "threads_per_warp": 32,
    "threads_per_block_limit": 1024,
    "threads_per_core_limit": 2048,
    "core_count": card.cores,
    "fpus_per_core": card.fpus,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "shared_memory_per_block": 48 * 1024,
    # One kilobyte of each is the system's.
    "shared_memory_per_block_optin": (card.shared - 1) * 1024,
    "shared_memory_per_core": card.shared * 1024,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "l2_cache_size": card.cache * 2**20,
    "clock_rate_ghz": card.clock,
    "memory_bandwidth": int(card.bandwidth),
    "device_memory_size": int(card.memory),
  }
  lines = [f"  {name}: {value}" for name, value in fields.items()]
  capability = f"  cuda_compute_capability {{ major: {card.capability} }}"
  return "\n".join(
    [
      "gpu_device_info {",
      *lines,
      capability,
      "}",
      'platform_name: "CUDA"',
      "dnn_version_info { major: 9 minor: 10 }",
      f'device_description_str: "NVIDIA {card.name}"',
    ]
  )
