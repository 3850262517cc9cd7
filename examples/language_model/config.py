"""The settings of a run, its presets, and their command line."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from .. import kit
from .model import Shape


def _setting(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
  return dataclasses.field(
    default=default, metadata={"help": text, "choices": choices}
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides what a run computes."""

  data: str = _setting(
    "",
    "text to train on, a file or a folder of files; without it, Python's own"
    " help topics",
  )
  held_out: str = _setting("", "text of another kind to test on, likewise")
  tokenizer: int = _setting(
    0, "size of a byte-pair vocabulary trained on the text; 0 for bytes"
  )
  layers: int = _setting(5, "blocks of the transformer")
  width: int = _setting(128, "of activations")
  heads: int = _setting(4, "of each attention")
  hidden: int = _setting(352, "width within a feed-forward network")
  activation: str = _setting(
    "swiglu", "of the feed-forward networks", ("swiglu", "gelu")
  )
  head: str = _setting(
    "tied", "the embedding, or weights of its own", ("tied", "own")
  )
  context: int = _setting(128, "tokens that a sequence has")
  dtype: str = _setting(
    "float32",
    "of the computation; params stay float32",
    ("float32", "bfloat16"),
  )
  method: str = _setting(
    "dense",
    "AdamW; with gradual magnitude pruning; with proximal steps of L1; or ReWA"
    " by AdamW",
    ("dense", "gmp", "l1", "rewa"),
  )
  sparsity: float = _setting(
    0.0,
    "share of zeros of attention and feed-forward kernels to end with, of gmp"
    " and rewa; 0 for rewa with a fixed weight decay",
  )
  way: str = _setting(
    "nnx",
    "ReWA's way in: a model that stores latents, or the drop-in around the"
    " optimizer",
    ("nnx", "drop-in"),
  )
  k: float = _setting(5, "ReWA's power")
  m: float = _setting(0, "ReWA's m")
  eps: float = _setting(1e-3, "ReWA's eps")
  weight_decay: float = _setting(
    0.1, "of kernels, or latents; of rewa asked for a sparsity the mild one"
  )
  l1: float = _setting(0.05, "strength of the penalty of method l1")
  learning_rate: float = _setting(2e-3, "its peak")
  warmup: float = _setting(0.05, "share of the steps of linear warm-up")
  steps: int = _setting(3000, "updates")
  batch_size: int = _setting(32, "sequences an update, of all devices together")
  accumulate: int = _setting(1, "parts that a batch is computed in")
  clip: float = _setting(1.0, "largest global norm of gradients; 0 for any")
  mesh: str = _setting(
    "data", "params on every device, or spread over them", ("data", "fsdp")
  )
  start: str = _setting("", "a run whose last weights this one starts from")
  seed: int = _setting(0, "of initial weights and batches")
  evaluate: int = _setting(262_144, "tokens of each part that losses are of")
  evaluate_steps: int = _setting(500, "updates from validation to validation")
  checkpoint_steps: int = _setting(250, "updates from checkpoint to checkpoint")


PRESETS: dict[str, dict[str, Any]] = {
  "tiny": {},
  "14m": {
    "tokenizer": 8192,
    "layers": 8,
    "width": 384,
    "heads": 6,
    "hidden": 1024,
    "context": 512,
    "dtype": "bfloat16",
    "steps": 10_000,
    "batch_size": 64,
    "learning_rate": 1e-3,
  },
  # GPT-2's shape, but for norms, positions and biases.
  "124m": {
    "tokenizer": 50_257,
    "layers": 12,
    "width": 768,
    "heads": 12,
    "hidden": 3072,
    "activation": "gelu",
    "context": 1024,
    "dtype": "bfloat16",
    "steps": 20_000,
    "batch_size": 480,
    "accumulate": 15,
    "learning_rate": 6e-4,
  },
}


def shape_of(config: Config, vocabulary: int) -> Shape:
  return Shape(
    vocabulary,
    config.layers,
    config.width,
    config.heads,
    config.hidden,
    config.activation,
    config.head == "tied",
  )


def check(config: Config) -> None:
  """Raises ValueError where settings do not go together."""
  if config.width % (2 * config.heads):
    raise ValueError(
      f"width must be a multiple of 2 * heads, {2 * config.heads}, got"
      f" {config.width}."
    )
  if not 0 <= config.sparsity < 1:
    raise ValueError(f"sparsity must be 0 to below 1, got {config.sparsity}.")
  if config.sparsity and config.method not in ("gmp", "rewa"):
    raise ValueError(
      f"sparsity goes with method gmp or rewa, got method {config.method}."
    )
  if config.method == "gmp" and not config.sparsity:
    raise ValueError("method gmp needs a sparsity above 0.")
  if config.batch_size % config.accumulate:
    raise ValueError(
      f"batch_size must be a multiple of accumulate, {config.accumulate}, got"
      f" {config.batch_size}."
    )


def check_start(config: Config, start: Config) -> None:
  """Raises ValueError where a run's weights are not those of the model."""
  other = [
    f"{name} is {getattr(start, name)!r}, not {getattr(config, name)!r}"
    for name in ("tokenizer", *Shape._fields[1:-1], "head")
    if getattr(start, name) != getattr(config, name)
  ]
  if other:
    raise ValueError(
      f"{config.start} holds another model: {', '.join(other)}. Give the same."
    )


def add_arguments(
  parser: argparse.ArgumentParser, without: Sequence[str] = ()
) -> None:
  """Adds --preset and a flag for every setting, but for some."""
  parser.add_argument(
    "--preset",
    choices=PRESETS,
    default="tiny",
    help="settings to start from; flags override them (default: %(default)s)",
  )
  for field in dataclasses.fields(Config):
    if field.name in without:
      continue
    default = f" (default: {field.default})" if field.default != "" else ""
    parser.add_argument(
      "--" + field.name.replace("_", "-"),
      type=field.type,
      choices=field.metadata["choices"] or None,
      help=field.metadata["help"] + default,
    )


def from_arguments(args: argparse.Namespace) -> Config:
  """Returns the preset with what the command line says in place of its own."""
  given = {
    field.name: getattr(args, field.name)
    for field in dataclasses.fields(Config)
    if getattr(args, field.name, None) is not None
  }
  return Config(**{**PRESETS[args.preset], **given})


def read(run: pathlib.Path) -> Config:
  """Returns the settings of a run.

  Raises:
    FileNotFoundError: if the folder holds no run.
  """
  path = run / "config.json"
  if not path.exists():
    raise FileNotFoundError(f"{run} holds no run: it has no config.json.")
  return Config(**json.loads(path.read_text()))


def write(run: pathlib.Path, config: Config) -> None:
  """Notes the settings of a run, or checks them if it was begun before.

  Raises:
    ValueError: if settings do not go together, or the run was begun with other
      ones.
  """
  check(config)
  path = run / "config.json"
  if not path.exists():
    kit.write_json(path, dataclasses.asdict(config))
    return
  before, now = dataclasses.asdict(read(run)), dataclasses.asdict(config)
  changed = [
    f"{name} was {before[name]!r} and is {now[name]!r}"
    for name in now
    if before[name] != now[name]
  ]
  if changed:
    raise ValueError(
      f"{run} holds a run with other settings: {', '.join(changed)}. Give"
      " those, or another --out."
    )
