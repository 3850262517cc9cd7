"""From files to batches of images on the devices."""

import functools
import itertools
import pathlib
from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import augment, data, folders
from .config import Config

Batch = dict[str, np.ndarray]

# Of ImageNet's images by channel, of 1 for white.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def open_data(config: Config) -> "Memory | Folders":
  """Returns the data set of a run."""
  folder = pathlib.Path(config.data) if config.data else None
  if folder is not None and (folder / "train").is_dir():
    return Folders(config, folder)
  return Memory(config, folder)


def _normalized(images, mean, std):
  return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)


class Memory:
  """A small data set, which lies on the devices as bytes.

  Attributes:
    classes: the number of classes.
    steps_per_epoch: full batches of the train images.
    arrays: images and labels of each split, for `to_images`.
    splits: those that can be tested.
  """

  def __init__(self, config: Config, folder: pathlib.Path | None):
    if config.final_resolution or config.test_resolution:
      raise ValueError(
        "final_resolution and test_resolution are for folders of images."
      )
    dataset = data.load(folder, config.held_back)
    self._config = config
    self._mean, self._std = dataset.mean, dataset.std
    self.classes = dataset.classes
    self.arrays = {
      "train": dataset.train,
      "validation": dataset.validation,
      "test": dataset.test,
    }
    self.splits = ["validation", "test"] if config.held_back else ["test"]
    self.steps_per_epoch = len(dataset.train.labels) // config.batch_size
    if not self.steps_per_epoch:
      raise ValueError(
        f"batch_size must be at most the {len(dataset.train.labels)} train"
        f" images, got {config.batch_size}."
      )
    height, width = dataset.train.images.shape[1:3]
    if height != width:
      raise ValueError(
        f"images must be squares, got {height} by {width} pixels."
      )
    size = config.resolution or height
    self.shape = (1, size, size, dataset.train.images.shape[3])

  def train_batches(self, start: int) -> Generator[Batch, None, None]:
    """Returns this process's part of the batches from one step onwards."""
    size = self._config.batch_size
    first, skip = divmod(start, self.steps_per_epoch)
    for epoch in itertools.count(first):
      random = np.random.default_rng((self._config.seed, epoch))
      order = random.permutation(len(self.arrays["train"].labels))
      order = order[: self.steps_per_epoch * size].astype(np.int32)
      for batch in order.reshape(-1, size)[skip:]:
        yield {"index": _own_part(batch)}
      skip = 0

  def test_batches(self, split: str) -> Iterator[Batch]:
    """Returns this process's part of all images; -1 fills the last batch."""
    size = self._config.batch_size
    count = len(self.arrays[split].labels)
    index = np.full(-(-count // size) * size, -1, np.int32)
    index[:count] = np.arange(count)
    for batch in index.reshape(-1, size):
      yield {"index": _own_part(batch)}

  def to_images(
    self, key: jax.Array | None, batch: Any, split: data.Split
  ) -> tuple[jax.Array, jax.Array]:
    """Inside a step: returns images and labels, augmented if there is a key."""
    index = batch["index"]
    images = jnp.asarray(split.images)[index]
    labels = jnp.where(index < 0, -1, jnp.asarray(split.labels)[index])
    kind, resolution = self._config.augment, self._config.resolution
    if key is not None and kind in ("crop", "crop-flip"):
      images = augment.random_crop(
        jax.random.fold_in(key, 0), images, images.shape[1] // 8
      )
    images = _normalized(images, self._mean, self._std)
    if key is not None and kind == "resized":
      images = augment.random_resized_crop(
        jax.random.fold_in(key, 0), images, self.shape[1]
      )
    elif resolution:
      # As usual with ImageNet: 256 pixels, of which the middle 224.
      resized = (
        round(resolution * 256 / 224) if kind == "resized" else resolution
      )
      images = augment.resized_center(images, resolution, resized)
    if key is not None and kind in ("crop-flip", "resized"):
      images = augment.random_flip(jax.random.fold_in(key, 1), images)
    return images, labels


class Folders:
  """A data set of image files, which processes of their own decode.

  The attributes and methods are those of `Memory`.
  """

  def __init__(self, config: Config, folder: pathlib.Path):
    if not config.resolution:
      raise ValueError("folders of images need a resolution.")
    if config.held_back:
      raise ValueError(
        "held_back is for data sets in memory; the images in val are tested."
      )
    self._config = config
    self._train = folders.find_images(folder, "train")
    self._test = folders.find_images(folder, "val", classes=self._train.classes)
    self.classes = len(self._train.classes)
    self.arrays = {"train": (), "test": ()}
    self.splits = ["test"]
    self.steps_per_epoch = len(self._train.labels) // config.batch_size
    if not self.steps_per_epoch:
      raise ValueError(
        f"batch_size must be at most the {len(self._train.labels)} train"
        f" images, got {config.batch_size}."
      )
    self.shape = (1, config.resolution, config.resolution, 3)

  def train_batches(self, start: int) -> Generator[Batch, None, None]:
    config = self._config
    by_resolution = itertools.groupby(
      range(config.epochs), functools.partial(resolution_of, config)
    )
    for resolution, epochs in by_resolution:
      numbers = list(epochs)
      begin = max(start, numbers[0] * self.steps_per_epoch)
      count = (numbers[-1] + 1) * self.steps_per_epoch - begin
      if count <= 0:
        continue
      batches = folders.training_batches(
        self._train,
        batch_size=config.batch_size,
        seed=config.seed,
        start=begin,
        resolution=resolution,
        workers=config.workers,
        skip_broken=config.skip_broken,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      )
      yield from itertools.islice(batches, count)

  def test_batches(self, split: str) -> Iterator[Batch]:
    config = self._config
    yield from folders.evaluation_batches(
      self._test,
      batch_size=config.batch_size,
      resolution=config.test_resolution or config.resolution,
      workers=config.workers,
      skip_broken=config.skip_broken,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def to_images(self, key, batch, arrays):
    del key, arrays  # Workers have augmented the images.
    images = _normalized(batch["image"], IMAGENET_MEAN, IMAGENET_STD)
    return images, batch["label"]


def resolution_of(config: Config, epoch: int) -> int:
  """Returns the resolution of an epoch, in steps of 32 pixels.

  It rises from resolution to final_resolution between 3/4 and 7/8 of all
  epochs.
  """
  first, last = config.resolution, config.final_resolution
  if not last:
    return first
  begin, end = config.epochs * 3 / 4, config.epochs * 7 / 8
  share = min(max((epoch - begin) / (end - begin), 0), 1)
  return first + round(share * (last - first) / 32) * 32


def _own_part(batch):
  return np.split(batch, jax.process_count())[jax.process_index()]
