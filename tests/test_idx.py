import tracemalloc

import numpy as np
import pytest

from examples import idx

NAMES = [
  f"{part}-{kind}"
  for part in ("train", "t10k")
  for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]
IMAGES = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
LABELS = np.uint8([3, 7])


def write_idx(path, values):
  header = bytes([0, 0, 8, values.ndim])
  header += np.array(values.shape, ">i4").tobytes()
  path.write_bytes(header + values.tobytes())


@pytest.fixture
def folder(tmp_path):
  for name in NAMES:
    write_idx(tmp_path / name, IMAGES if "images" in name else LABELS)
  return tmp_path


def test_images_are_shares_of_white_and_labels_integers(folder):
  images, labels, test_images, test_labels = idx.load(folder)
  np.testing.assert_allclose(images, IMAGES / 255, rtol=1e-6)
  np.testing.assert_array_equal(images, test_images)
  assert labels.tolist() == test_labels.tolist() == [3, 7]
  assert images.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_off_is_named(folder, name):
  path = folder / name
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=f"{name} should have"):
    idx.load(folder)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"PK\x03\x04" * 9])
def test_what_is_no_idx_file_is_named(folder, content):
  (folder / NAMES[0]).write_bytes(content)
  with pytest.raises(ValueError, match=f"{NAMES[0]} is no IDX file"):
    idx.load(folder)


def test_images_without_labels_are_an_error(folder):
  write_idx(folder / "train-labels-idx1-ubyte", LABELS[:1])
  with pytest.raises(ValueError, match="2 train images and 1 labels"):
    idx.load(folder)


def test_labels_of_one_class_are_an_error(folder):
  write_idx(folder / "train-labels-idx1-ubyte", np.uint8([4, 4]))
  with pytest.raises(ValueError, match="train labels of one class only"):
    idx.load(folder)


@pytest.mark.parametrize(
  "shape", [(2**31 - 1, 28, 28), (2**16,) * 4, (-1, -28, 28)]
)
def test_a_head_that_promises_more_than_the_file_costs_no_memory(folder, shape):
  head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
  (folder / NAMES[0]).write_bytes(head + bytes(784))
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=f"{NAMES[0]} should have"):
      idx.load(folder)
    assert tracemalloc.get_traced_memory()[1] < 100_000
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(
  ("name", "values", "message"),
  [
    (NAMES[0], LABELS, "train-images-idx3-ubyte should have 3 axes, it has 1"),
    (NAMES[2], IMAGES[:, :20], "28 by 28 pixels and test images of 20 by 28"),
    (NAMES[3], np.uint8([3, 8]), "has label 8 at byte 9, but train .* below 8"),
  ],
)
def test_what_does_not_go_together_is_named(folder, name, values, message):
  write_idx(folder / name, values)
  with pytest.raises(ValueError, match=message):
    idx.load(folder)


def test_a_data_set_without_test_images_is_an_error(folder):
  write_idx(folder / NAMES[2], IMAGES[:0])
  write_idx(folder / NAMES[3], LABELS[:0])
  with pytest.raises(ValueError, match="has no t10k images"):
    idx.load(folder)
