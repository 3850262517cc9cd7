"""Reads image data sets that lie in folders, with worker processes.

The layout is that of ImageNet and of torchvision's ImageFolder:
ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or .jpeg, or .png. Images are
taken as they are stored; the orientation in EXIF is ignored, as in torchvision.

Workers are spawned: each imports the program anew, so that the program has to
start under ``if __name__ == "__main__"``. Their batches come through /dev/shm,
which needs room for some four batches a worker; containers often have 64 MB.
"""

import functools
import gc
import logging
import math
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from PIL import Image

ENDINGS = (".jpg", ".jpeg", ".png")
# Pillow goes by the content, and would start Ghostscript for PostScript.
FORMATS = ("JPEG", "PNG")
# So many broken images in a row are no accident.
MOST_BROKEN = 10


class Folder(NamedTuple):
  """The images of a split.

  Attributes:
    paths: of the images, class by class.
    labels: (images,), int32, indices into `classes`.
    classes: names of the classes, sorted.
  """

  paths: list[pathlib.Path]
  labels: np.ndarray
  classes: list[str]


def find_images(
  root: str | os.PathLike[str],
  split: str,
  classes: Sequence[str] | None = None,
) -> Folder:
  """Lists the images of a split. Hidden files and folders are ignored.

  Args:
    root: the folder of the data set.
    split: the name of its sub-folder, such as "train".
    classes: the classes that the split must have, those of the training
      images; None takes the names of the sub-folders.

  Returns:
    The images, sorted by class and name.

  Raises:
    FileNotFoundError: if there is no such split.
    ValueError: if it has fewer than two classes, a class without an image, or
      other classes than `classes`.
  """
  folder = pathlib.Path(root) / split
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is no folder.")
  found = [name for name in _visible(folder) if (folder / name).is_dir()]
  if len(found) < 2:
    raise ValueError(
      f"{folder} needs a sub-folder for each of two classes or more, it has"
      f" {found or 'none'}."
    )
  classes = found if classes is None else list(classes)
  if unknown := sorted(set(found) - set(classes)):
    raise ValueError(f"{folder} has classes that are not known: {unknown}.")
  if missing := sorted(set(classes) - set(found)):
    raise ValueError(f"{folder} lacks classes: {missing}.")
  paths, labels = [], []
  for label, name in enumerate(classes):
    images = [
      folder / name / file
      for file in _visible(folder / name)
      if file.lower().endswith(ENDINGS)
    ]
    if not images:
      raise ValueError(
        f"{folder / name} has no image, no file that ends in"
        f" {', '.join(ENDINGS)}."
      )
    paths += images
    labels += [label] * len(images)
  return Folder(paths, np.array(labels, np.int32), classes)


def training_batches(
  folder: Folder,
  *,
  batch_size: int,
  seed: int,
  start: int,
  resolution: int,
  workers: int,
  skip_broken: bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, Any]]:
  """Yields batches of random crops, without end.

  Each epoch has ``len(folder.labels) // batch_size`` batches in an order of its
  own; the images that are left over differ from epoch to epoch. A batch is
  determined by the seed and its number: neither `start` nor the number of
  workers or processes changes an image of it.

  An image is cut and resized as by torchvision's RandomResizedCrop, with 8 to
  100 % of the area and an aspect between 3/4 and 4/3, and mirrored by chance.

  Args:
    folder: what to read.
    batch_size: images of a batch, over all processes.
    seed: of order, crops and flips, 0 to 2**32 - 1.
    start: the number of the first batch, >= 0; that of the step where training
      is resumed.
    resolution: height and width of the crops, pixels.
    workers: processes that read; with 0 a thread of this process does.
    skip_broken: put the next image, by index, in the place of a broken one, and
      log a warning.
    process_index: this process's place among `process_count`.
    process_count: processes that share every batch evenly.

  Returns:
    An iterator of dictionaries: "image", uint8 of shape (batch_size /
    process_count, resolution, resolution, 3); "label", int32; and "skipped",
    the number of images that stand in for broken ones. Its ``close`` ends the
    workers; ``contextlib.closing`` does so in any case.

  Raises:
    ValueError: if an argument is out of range or, while iterating, if an image
      is broken, or ten in a row with `skip_broken`.
  """
  images = len(folder.labels)
  _check_sizes(batch_size, resolution, workers, process_index, process_count)
  if batch_size > images:
    raise ValueError(f"batch_size is {batch_size}, of {images} images.")
  if start < 0:
    raise ValueError(f"start must be at least 0, got {start}.")
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed must be in 0 to 2**32 - 1, got {seed}.")
  read = functools.partial(
    _random_crop,
    _with_strings(folder),
    resolution,
    min(MOST_BROKEN, images) if skip_broken else 1,
  )
  examples = (
    grain.MapDataset.range(images).seed(seed).shuffle().random_map(read)
  )
  examples = examples[: images // batch_size * batch_size]
  share = examples[process_index::process_count]
  batches = share.batch(batch_size // process_count).repeat()
  return _iterate(batches[start:], workers)


def evaluation_batches(
  folder: Folder,
  *,
  batch_size: int,
  resolution: int,
  workers: int,
  skip_broken: bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, Any]]:
  """Yields all images once, in order, the same number of batches everywhere.

  The shorter side is resized to 256/224 of the resolution, then the center is
  cut out, as by torchvision's Resize and CenterCrop.

  Args:
    folder: what to read.
    batch_size: images of a batch, over all processes.
    resolution: height and width of the result, pixels.
    workers: processes that read; with 0 a thread of this process does.
    skip_broken: make broken images black, their labels -1, and log a warning.
    process_index: this process's place among `process_count`.
    process_count: processes that share every batch evenly.

  Returns:
    An iterator of dictionaries as of `training_batches`, where "skipped" is the
    number of broken images. The last batch is filled up with black images of
    label -1.

  Raises:
    ValueError: if an argument is out of range or, while iterating, if an image
      is broken.
  """
  _check_sizes(batch_size, resolution, workers, process_index, process_count)
  read = functools.partial(
    _center_crop, _with_strings(folder), resolution, skip_broken
  )
  count = math.ceil(len(folder.labels) / batch_size) * batch_size
  share = grain.MapDataset.range(count)[process_index::process_count]
  batches = share.map(read).batch(batch_size // process_count)
  return _iterate(batches, workers)


def _visible(folder):
  return sorted(n for n in os.listdir(folder) if not n.startswith("."))


def _check_sizes(batch_size, resolution, workers, process_index, process_count):
  sizes = {
    "batch_size": (batch_size, 1),
    "resolution": (resolution, 1),
    "workers": (workers, 0),
    "process_count": (process_count, 1),
    "process_index": (process_index, 0),
  }
  for name, (value, least) in sizes.items():
    if value < least:
      raise ValueError(f"{name} must be at least {least}, got {value}.")
  if process_index >= process_count:
    raise ValueError(
      f"process_index must be below process_count, {process_count}, got"
      f" {process_index}."
    )
  if batch_size % process_count:
    raise ValueError(
      f"batch_size must be a multiple of process_count, {process_count}, got"
      f" {batch_size}."
    )


def _with_strings(folder):
  # Strings, for every worker gets a copy, and a million paths weigh a lot.
  return folder._replace(paths=list(map(os.fspath, folder.paths)))


def _iterate(batches, workers):
  # Only absl.app.run parses flags, which grain 0.2.18 needs (its issue 1355).
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  # By default grain would read 500 batches ahead.
  ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
  iterator = iter(
    batches.to_iter_dataset(ahead).mp_prefetch(
      grain.MultiprocessingOptions(workers), _end_with_parent
    )
  )
  try:
    for batch in iterator:
      broken = [message for message in batch.pop("broken").tolist() if message]
      for message in broken:
        logging.getLogger(__name__).warning("Skipped: %s", message)
      yield {**batch, "skipped": len(broken)}
  finally:
    iterator.close()
    # Cycles hold on to the workers' last batches, and these to /dev/shm.
    del iterator
    gc.collect()


def _end_with_parent(*_):
  # What Ctrl-C means is for the parent to say, and nothing else ends a worker
  # whose parent was killed.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def wait():
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _random_crop(folder, resolution, tries, index, random):
  """Reads an image or, if it is broken, the next of so many that is not."""
  broken = []
  for place in range(index, index + tries):
    place %= len(folder.paths)
    try:
      image = _read(
        folder.paths[place],
        resolution,
        functools.partial(random_box, random),
      )
    except ValueError as error:
      broken.append(str(error))
      continue
    return {
      "image": image[:, ::-1] if random.random() < 0.5 else image,
      "label": folder.labels[place],
      "broken": "\n".join(broken),
    }
  raise ValueError("\n".join(broken))


def _center_crop(folder, resolution, skip_broken, index):
  """Reads an image; black with label -1 are those past the end."""
  image = np.zeros((resolution, resolution, 3), np.uint8)
  example = {"image": image, "label": np.int32(-1), "broken": ""}
  if index >= len(folder.paths):
    return example
  try:
    image = _read(
      folder.paths[index],
      resolution,
      functools.partial(center_box, resolution),
    )
  except ValueError as error:
    if not skip_broken:
      raise
    return {**example, "broken": str(error)}
  return {**example, "image": image, "label": folder.labels[index]}


def random_box(
  random: np.random.Generator, width: int, height: int
) -> tuple[int, int, int, int]:
  """Returns left, top, right and bottom of torchvision's RandomResizedCrop."""
  for _ in range(10):
    area = width * height * random.uniform(0.08, 1)
    aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left = int(random.integers(width - w + 1))
      top = int(random.integers(height - h + 1))
      return left, top, left + w, top + h
  w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def center_box(
  resolution: int, width: int, height: int
) -> tuple[float, float, float, float]:
  """Returns what a resize and a center crop leave of an image, in its pixels.

  Args:
    resolution: of the crop, pixels.
    width: of the image, pixels.
    height: of the image, pixels.

  Returns:
    Left, top, right and bottom.
  """
  short = round(resolution / 224 * 256)
  sides = []
  for side in (width, height):
    resized = int(short * side / min(width, height))
    first = round((resized - resolution) / 2)
    sides.append(
      [edge * side / resized for edge in (first, first + resolution)]
    )
  (left, right), (top, bottom) = sides
  return left, top, right, bottom


def _read(path, resolution, choose):
  """Returns the part of an image that choose(width, height) gives, resized."""
  try:
    with Image.open(path, formats=FORMATS) as image:
      width, height = image.size
      left, top, right, bottom = box = choose(width, height)
      # As Pillow's thumbnail does: a JPEG is decoded smaller where that leaves
      # at least twice the pixels.
      gap = min(right - left, bottom - top) / (2 * resolution)
      small = image.draft(
        None, (math.ceil(width / gap), math.ceil(height / gap))
      )
      if small:
        box = tuple(edge * small[1][2] / width for edge in box)
      image = image.convert("RGB").resize(
        (resolution, resolution), Image.Resampling.BILINEAR, box
      )
      return np.asarray(image)
  except Exception as error:  # Pillow raises many kinds.
    raise ValueError(f"{path} is broken: {error}") from error
