"""The settings of a run, and their presets."""

import argparse
import dataclasses
from typing import Any

from .. import settings
from ..settings import setting
from .models import MODELS


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides what a run computes."""

  data: str = setting(
    "",
    "folder of the data set: CIFAR-10 or CIFAR-100 in the binary version, MNIST"
    " or its like as unpacked IDX files, or images as train/CLASS/*.jpg and"
    " val/CLASS/*.jpg; without it, scikit-learn's digits",
  )
  model: str = setting("lenet300", "the network", MODELS)
  stem: str = setting(
    "cifar",
    "first layer of resnet18 to resnet50: 3x3, or 7x7 and max pool",
    ("cifar", "imagenet"),
  )
  method: str = setting(
    "rewa",
    "dense, l1 (proximal SGD), gmp (gradual magnitude pruning), or ReWA by SGD"
    " or AdamW",
    ("dense", "l1", "gmp", "rewa", "rewa-adamw"),
  )
  way: str = setting(
    "linen",
    "ReWA's way in: linen.Reparameterized, to_weights in the loss, or the"
    " drop-in around the optimizer",
    ("linen", "trees", "drop-in"),
  )
  latents: str = setting(
    "power",
    "of rewa: what weights are, a power, or a difference of squares, whose sign"
    " may change",
    ("power", "difference"),
  )
  k: float = setting(9, "ReWA's power", least=1)
  m: float = setting(2, "ReWA's m")
  eps: float = setting(0.0, "ReWA's eps")
  weight_decay: float = setting(
    1e-3,
    "of latents, outside the momentum, and with --sparsity of the latents that"
    " stay, where 0 takes the library's own; of kernels for dense, l1 and gmp",
  )
  sparsity: float = setting(
    0.0,
    "share of zeros to end with: of gmp, and of ReWA, whose decay then goes by"
    " rank; 0 for none asked for",
  )
  l1: float = setting(0.0, "strength of the penalty of method l1")
  learning_rate: float = setting(0.3, "its peak")
  schedule: str = setting(
    "cosine", "how the learning rate falls to 0", ("cosine", "linear")
  )
  warmup_epochs: float = setting(0.0, "epochs of linear warm-up")
  epochs: int = setting(60, "passes over the train images", least=1)
  batch_size: int = setting(128, "of all devices together", least=1)
  momentum: float = setting(0.9, "of SGD")
  clip: float = setting(1.0, "largest global norm of gradients; 0 for any")
  label_smoothing: float = setting(0.0, "0 to less than 1")
  ema: float = setting(
    0.0, "decay of the average of params that is evaluated; 0 for none"
  )
  augment: str = setting(
    "none",
    "random crops; crops and flips; or RandomResizedCrop and flips",
    ("none", "crop", "crop-flip", "resized"),
  )
  resolution: int = setting(
    0, "pixels that images are resized to; 0 for their own"
  )
  final_resolution: int = setting(
    0, "resolution at the end, reached between 3/4 and 7/8 of the epochs"
  )
  test_resolution: int = setting(0, "of tests, when another")
  dtype: str = setting(
    "float32",
    "of the computation; params and statistics stay float32",
    ("float32", "bfloat16"),
  )
  parallelism: str = setting(
    "jit",
    "data parallel by jit or by pmap, or params and optimizer sharded too",
    ("jit", "pmap", "fsdp"),
  )
  start: str = setting("", "a run whose last weights this one starts from")
  prune: float = setting(
    0.0,
    "weights of --start of at most this size become zero and stay it; 0 for"
    " none",
  )
  held_back: int = setting(
    0, "train images that are kept for validation instead"
  )
  seed: int = setting(0, "of initial weights, batches and augmentation")
  threshold: float = setting(
    1e-4, "size up to which a weight counts as zero while training"
  )
  workers: int = setting(2, "processes that decode images of folders")
  skip_broken: bool = setting(
    False, "replace images that cannot be decoded, and count them"
  )
  checkpoint_epochs: int = setting(
    1, "epochs from checkpoint to checkpoint", least=1
  )
  keep: int = setting(2, "checkpoints that are kept, the newest", least=1)


_PAPER = {
  "method": "rewa",
  "clip": 0.0,
  "m": 2,
  "label_smoothing": 0.1,
  "dtype": "bfloat16",
  "augment": "resized",
}

# Rates and decays of the LeNets were chosen on the images held back.
PRESETS: dict[str, dict[str, Any]] = {
  "digits": {
    "epochs": 200,
    "warmup_epochs": 20,
    "weight_decay": 6e-3,
    "checkpoint_epochs": 20,
  },
  "lenet300": {
    "held_back": 5000,
    "warmup_epochs": 6,
    "learning_rate": 0.2,
    "weight_decay": 9e-4,
    "checkpoint_epochs": 10,
  },
  "lenet5": {
    "model": "lenet5",
    "held_back": 5000,
    "epochs": 20,
    "warmup_epochs": 2,
    "learning_rate": 0.6,
    "weight_decay": 1e-3,
    "checkpoint_epochs": 5,
  },
  "resnet20": {
    "model": "resnet20",
    "epochs": 3,
    "warmup_epochs": 0.5,
    "learning_rate": 0.5,
    "weight_decay": 4e-3,
    "augment": "crop-flip",
  },
  "cifar10": {
    "model": "resnet18",
    "epochs": 100,
    "warmup_epochs": 5,
    "batch_size": 256,
    "learning_rate": 0.256,
    "momentum": 0.875,
    "weight_decay": 8e-4,
    "label_smoothing": 0.1,
    "augment": "crop-flip",
    "dtype": "bfloat16",
    # Clipped at 1, the decay would outdo the gradients.
    "clip": 0.0,
    "checkpoint_epochs": 10,
  },
  # The decay of 1e-4 that the authors put inside the momentum of 0.875 is
  # 1e-4 / (1 - 0.875) outside of it.
  "cifar10-paper": {
    **_PAPER,
    "model": "resnet18",
    "stem": "imagenet",
    "resolution": 224,
    "epochs": 100,
    "warmup_epochs": 5,
    "batch_size": 256,
    "learning_rate": 0.256,
    "momentum": 0.875,
    "k": 9,
    "weight_decay": 8e-4,
    "checkpoint_epochs": 10,
  },
  # Likewise 5e-5 / (1 - 0.9).
  "imagenet-paper": {
    **_PAPER,
    "model": "resnet50",
    "stem": "imagenet",
    "resolution": 160,
    "final_resolution": 192,
    "test_resolution": 256,
    "epochs": 88,
    "warmup_epochs": 2,
    "schedule": "linear",
    "batch_size": 2048,
    "learning_rate": 1.0,
    "k": 3,
    "eps": 1e-4,
    "weight_decay": 5e-4,
    "workers": 16,
  },
}


_REWA = {"method": ("rewa", "rewa-adamw")}
_POWER = _REWA | {"latents": ("power",)}
_NEEDS = {
  **dict.fromkeys(("way", "latents"), _REWA),
  **dict.fromkeys(("k", "m", "eps"), _POWER),
  "l1": {"method": ("l1",)},
  "momentum": {"method": ("dense", "l1", "gmp", "rewa")},
}


def check(config: Config) -> None:
  """Raises a ValueError where settings do not go together."""
  method, sparsity = config.method, config.sparsity
  if not 0 <= sparsity < 1:
    raise ValueError(f"sparsity must be 0 to less than 1, got {sparsity}.")
  for name in ("label_smoothing", "ema"):
    value = getattr(config, name)
    if not 0 <= value < 1:
      raise ValueError(f"{name} must be 0 to less than 1, got {value}.")
  if method == "gmp" and not sparsity:
    raise ValueError("method gmp needs a sparsity above 0, got 0.")
  if config.prune and not config.start:
    raise ValueError("prune goes with --start, whose weights it prunes.")
  if not sparsity:
    return
  if method in ("dense", "l1"):
    raise ValueError(
      f"a sparsity goes with methods gmp, rewa and rewa-adamw, got {sparsity}"
      f" with {method}; compress.py prunes what {method} trained."
    )
  if method != "gmp" and config.way == "drop-in":
    raise ValueError(
      "a sparsity goes with the ways linen and trees, got drop-in."
    )
  if config.prune:
    raise ValueError(
      "give sparsity or prune: the zeros that prune begins with are all there"
      f" will be, got {sparsity} and {config.prune}."
    )


def from_arguments(args: argparse.Namespace) -> Config:
  """Returns the preset with what the command line says in place of its own.

  Raises:
    ValueError: if settings do not go together.
  """
  given = settings.given(args, Config)
  config = Config(**{**PRESETS[args.preset], **given})
  by_rank = config.sparsity and config.method.startswith("rewa")
  if by_rank and "weight_decay" not in given:
    # Presets have one that gives zeros by itself: too much of those that stay.
    config = dataclasses.replace(config, weight_decay=0.0)
  settings.check_used(given, config, _NEEDS)
  check(config)
  return config


def to_arguments(config: Config) -> list[str]:
  """Returns the flags by which train.py has these settings."""
  preset = dataclasses.asdict(Config(**PRESETS["digits"]))
  arguments = []
  for name, value in dataclasses.asdict(config).items():
    if value is True:
      arguments.append("--" + name.replace("_", "-"))
    elif value != preset[name] or name == "weight_decay":
      arguments += ["--" + name.replace("_", "-"), str(value)]
  return arguments
