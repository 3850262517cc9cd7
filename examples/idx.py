"""Reads image data sets in the IDX format: MNIST and its family."""

import math
import pathlib

import numpy as np


def load(folder: pathlib.Path) -> tuple[np.ndarray, ...]:
  """Returns what `load_bytes` does, images as float32 in [0, 1]."""
  images, labels, test_images, test_labels = load_bytes(folder)
  return (
    np.float32(images) / 255,
    labels,
    np.float32(test_images) / 255,
    test_labels,
  )


def load_bytes(folder: pathlib.Path) -> tuple[np.ndarray, ...]:
  """Returns train images, train labels, test images and test labels.

  Args:
    folder: holds the four files of MNIST or of a data set in its format,
      unpacked, with their official names.

  Returns:
    Images as uint8 of shape (n, height, width), labels as int32.

  Raises:
    ValueError: if a file is no IDX file of bytes, has another number of axes or
      is cut off, there are no images, images and labels are not as many, test
      images are of another size than train images or of a class that these have
      not, or all train labels are the same.
    OSError: if a file is missing.
  """
  parts = []
  for part in ("train", "t10k"):
    images = _read(folder / f"{part}-images-idx3-ubyte", 3)
    labels = _read(folder / f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
      raise ValueError(
        f"{folder} has {len(images)} {part} images and {len(labels)} labels."
      )
    if not images.size:
      raise ValueError(f"{folder} has no {part} images.")
    parts += [images, labels.astype(np.int32)]
  images, labels, test_images, test_labels = parts
  if len(np.unique(labels)) < 2:
    raise ValueError(f"{folder} has train labels of one class only.")
  if images.shape[1:] != test_images.shape[1:]:
    raise ValueError(
      f"{folder} has train images of {images.shape[1]} by {images.shape[2]}"
      f" pixels and test images of {test_images.shape[1]} by"
      f" {test_images.shape[2]}."
    )
  classes = labels.max() + 1
  wrong = np.flatnonzero(test_labels >= classes)
  if len(wrong):
    raise ValueError(
      f"{folder / 't10k-labels-idx1-ubyte'} has label {test_labels[wrong[0]]}"
      f" at byte {8 + wrong[0]}, but train labels are below {classes}."
    )
  return images, labels, test_images, test_labels


def _read(path, rank):
  content = path.read_bytes()
  axes = content[3] if len(content) > 3 else 0
  if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * axes:
    raise ValueError(f"{path} is no IDX file of bytes.")
  if axes != rank:
    raise ValueError(f"{path} should have {rank} axes, it has {axes}.")
  shape = np.frombuffer(content, ">u4", axes, 4).tolist()
  values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
  if values.size != math.prod(shape):
    raise ValueError(
      f"{path} should have {math.prod(shape)} bytes after its head, it has"
      f" {values.size}."
    )
  return values.reshape(shape)
