"""Reads small image data sets: CIFAR's binary version, IDX files, digits."""

import pathlib
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from .. import idx


class Split(NamedTuple):
  """Images and their classes.

  Attributes:
    images: uint8, shape (n, height, width, channels).
    labels: int32, shape (n,).
  """

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """A data set in memory.

  Attributes:
    train: what to train on.
    validation: what to choose hyperparameters with; may be empty.
    test: what to report.
    classes: the number of classes.
    mean: of the train images by channel, of 1 for white.
    std: likewise.
  """

  train: Split
  validation: Split
  test: Split
  classes: int
  mean: np.ndarray
  std: np.ndarray


def load(
  folder: pathlib.Path | None, held_back: int = 0, seed: int = 0
) -> Dataset:
  """Reads the data set that a folder holds.

  Args:
    folder: holds the unpacked files of CIFAR-10 or CIFAR-100, binary version,
      or of MNIST or a data set in its format, with their official names. None
      for scikit-learn's digits, of which a fifth are the test images.
    held_back: train images that become validation images.
    seed: of the choice of these.

  Returns:
    The data set.

  Raises:
    FileNotFoundError: if the folder holds no such data set.
    ValueError: if a file is cut off or holds a wrong label, a class has no
      train image, or held_back leaves nothing to train on.
  """
  train, test, classes = _read(folder)
  missing = np.setdiff1d(np.arange(classes), train.labels)
  if len(missing):
    raise ValueError(
      f"{folder} has no train image of class {missing[0]}; labels must be 0 to"
      f" {classes - 1}."
    )
  if not 0 <= held_back < len(train.labels):
    raise ValueError(
      f"held_back must be at least 0 and less than the {len(train.labels)}"
      f" train images, got {held_back}."
    )
  order = np.random.default_rng(seed).permutation(len(train.labels))
  chosen, rest = np.sort(order[:held_back]), np.sort(order[held_back:])
  return Dataset(
    Split(train.images[rest], train.labels[rest]),
    Split(train.images[chosen], train.labels[chosen]),
    test,
    classes,
    *_moments(train.images[rest]),
  )


def _read(folder):
  if folder is None:
    return _digits()
  if (folder / "train-images-idx3-ubyte").exists():
    images, labels, test_images, test_labels = idx.load_bytes(folder)
    return (
      Split(images[..., None], labels),
      Split(test_images[..., None], test_labels),
      int(labels.max()) + 1,
    )
  if (folder / "data_batch_1.bin").exists():
    names = sorted(path.name for path in folder.glob("data_batch_*.bin"))
    wanted = [f"data_batch_{i}.bin" for i in range(1, len(names) + 1)]
    if names != wanted:
      raise FileNotFoundError(
        f"{folder} lacks {min(set(wanted) - set(names))}."
      )
    return _cifar(folder, names, "test_batch.bin", 10, label_bytes=1)
  if (folder / "train.bin").exists():
    return _cifar(folder, ["train.bin"], "test.bin", 100, label_bytes=2)
  raise FileNotFoundError(
    f"{folder} holds neither data_batch_1.bin (CIFAR-10) nor train.bin"
    " (CIFAR-100) nor train-images-idx3-ubyte (MNIST and its like) nor a"
    " folder train (images as train/CLASS/*.jpg)."
  )


def _digits():
  images, labels = load_digits(return_X_y=True)
  images = np.uint8(np.round(images * 255 / 16)).reshape(-1, 8, 8, 1)
  order = np.random.default_rng(0).permutation(len(labels))
  images, labels = images[order], labels[order].astype(np.int32)
  test = len(labels) // 5
  return (
    Split(images[test:], labels[test:]),
    Split(images[:test], labels[:test]),
    10,
  )


def _cifar(folder, names, test_name, classes, label_bytes):
  parts = [_cifar_file(folder / name, classes, label_bytes) for name in names]
  train = Split(*map(np.concatenate, zip(*parts)))
  test = _cifar_file(folder / test_name, classes, label_bytes)
  return train, test, classes


def _cifar_file(path, classes, label_bytes):
  content = np.fromfile(path, np.uint8)
  size = label_bytes + 32 * 32 * 3
  whole, rest = divmod(len(content), size)
  if rest or not whole:
    raise ValueError(
      f"{path} is cut off: image {whole} begins at byte {whole * size} and has"
      f" {rest} of {size} bytes."
    )
  records = content.reshape(-1, size)
  # Of CIFAR-100's two labels the second is the class, the first its group.
  labels = records[:, label_bytes - 1].astype(np.int32)
  wrong = np.flatnonzero(labels >= classes)
  if len(wrong):
    raise ValueError(
      f"{path} has label {labels[wrong[0]]} at byte"
      f" {wrong[0] * size + label_bytes - 1}, labels must be below {classes}."
    )
  images = records[:, label_bytes:].reshape(-1, 3, 32, 32)
  return Split(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels)


def _moments(images):
  channels = images.shape[-1]
  if channels == 1:
    # Black stays 0, so that pixels always black give no gradient.
    return np.zeros(1, np.float32), np.ones(1, np.float32)
  values = np.arange(256) / 255
  shares = [
    np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size
    for c in range(channels)
  ]
  mean = [share @ values for share in shares]
  std = [(share @ (values - m) ** 2) ** 0.5 for share, m in zip(shares, mean)]
  return np.float32(mean), np.float32(std)
