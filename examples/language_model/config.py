"""The settings of a run, and their presets."""

import argparse
import dataclasses
from typing import Any

from .. import settings
from ..settings import setting
from .model import Shape


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides what a run computes."""

  data: str = setting(
    "",
    "text to train on, a file or a folder of files; without it, Python's own"
    " help topics",
  )
  held_out: str = setting("", "text of another kind to test on, likewise")
  tokenizer: int = setting(
    0, "size of a byte-pair vocabulary trained on the text; 0 for bytes"
  )
  layers: int = setting(5, "blocks of the transformer", least=1)
  width: int = setting(128, "of activations", least=1)
  heads: int = setting(4, "of each attention", least=1)
  hidden: int = setting(352, "width within a feed-forward network", least=1)
  activation: str = setting(
    "swiglu", "of the feed-forward networks", ("swiglu", "gelu")
  )
  head: str = setting(
    "tied", "the embedding, or weights of its own", ("tied", "own")
  )
  context: int = setting(128, "tokens that a sequence has", least=1)
  dtype: str = setting(
    "float32",
    "of the computation; params stay float32",
    ("float32", "bfloat16"),
  )
  method: str = setting(
    "dense",
    "AdamW; with gradual magnitude pruning; with proximal steps of L1; or ReWA"
    " by AdamW",
    ("dense", "gmp", "l1", "rewa"),
  )
  sparsity: float = setting(
    0.0,
    "share of zeros of attention and feed-forward kernels to end with, of gmp"
    " and rewa; 0 for rewa with a fixed weight decay",
  )
  groups: str = setting(
    "none",
    "what becomes zero together: none, or units, whole heads and hidden"
    " channels; the sparsity is then a share of those",
    ("none", "units"),
  )
  way: str = setting(
    "nnx",
    "ReWA's way in: a model that stores latents, or the drop-in around the"
    " optimizer",
    ("nnx", "drop-in"),
  )
  latents: str = setting(
    "power",
    "of rewa: what weights are, a power, or a difference of squares, whose sign"
    " may change",
    ("power", "difference"),
  )
  k: float = setting(5, "ReWA's power", least=1)
  m: float = setting(0, "ReWA's m")
  eps: float = setting(1e-3, "ReWA's eps")
  weight_decay: float = setting(
    0.1,
    "of kernels, or latents; with --method rewa --sparsity of the latents that"
    " stay, and without this flag the library's own",
  )
  l1: float = setting(0.05, "strength of the penalty of method l1")
  learning_rate: float = setting(2e-3, "its peak")
  warmup: float = setting(0.05, "share of the steps of linear warm-up")
  steps: int = setting(3000, "updates", least=1)
  batch_size: int = setting(
    32, "sequences an update, of all devices together", least=1
  )
  accumulate: int = setting(1, "parts that a batch is computed in", least=1)
  clip: float = setting(1.0, "largest global norm of gradients; 0 for any")
  mesh: str = setting(
    "data", "params on every device, or spread over them", ("data", "fsdp")
  )
  start: str = setting("", "a run whose last weights this one starts from")
  seed: int = setting(0, "of initial weights and batches")
  evaluate: int = setting(
    262_144, "tokens of each part that losses are of", least=1
  )
  evaluate_steps: int = setting(
    500, "updates from validation to validation", least=1
  )
  checkpoint_steps: int = setting(
    250, "updates from checkpoint to checkpoint", least=1
  )


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


_REWA = {"method": ("rewa",)}
_POWER = _REWA | {"latents": ("power",)}
# What train.py has a use for; a comparison has runs of every method.
NEEDS = {
  **dict.fromkeys(("way", "latents"), _REWA),
  **dict.fromkeys(("k", "m", "eps"), _POWER),
  "l1": {"method": ("l1",)},
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
  if config.groups != "none" and not config.sparsity:
    raise ValueError(
      f"groups {config.groups} go with a sparsity above 0, got"
      f" {config.sparsity}."
    )
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


def from_arguments(args: argparse.Namespace) -> Config:
  """Returns the preset with what the command line says in place of its own.

  Raises:
    ValueError: if settings do not go together.
  """
  given = settings.given(args, Config)
  config = Config(**{**PRESETS[args.preset], **given})
  check(config)
  by_rank = config.sparsity and config.method == "rewa"
  if by_rank and "weight_decay" not in given:
    k = config.k if config.latents == "power" else 2
    decay = mild_decay(config.sparsity, k)
    config = dataclasses.replace(config, weight_decay=decay)
  return config


def mild_decay(sparsity: float, k: float) -> float:
  """Returns what `rewa_jax.adamw` takes by itself when asked for a sparsity.

  The drop-in has to be told.
  """
  return round(0.14 / (k * min(1 - sparsity, 0.05) ** 0.5), 4)
