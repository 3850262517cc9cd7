import numpy as np
import pytest

from examples import idx
from examples.image_classification import data

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
LABELS = np.arange(20) % 10


def write_cifar(path, images=IMAGES, labels=LABELS, coarse=None):
  pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
  columns = [labels[:, None], pixels]
  if coarse is not None:
    columns.insert(0, coarse[:, None])
  path.write_bytes(np.concatenate(columns, 1).astype(np.uint8).tobytes())


@pytest.fixture
def cifar10(tmp_path):
  for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
    write_cifar(tmp_path / name)
  return tmp_path


@pytest.fixture
def mnist(tmp_path):
  for part, count in (("train", 20), ("t10k", 10)):
    write_idx(tmp_path / f"{part}-images-idx3-ubyte", IMAGES[:count, ..., 0])
    write_idx(tmp_path / f"{part}-labels-idx1-ubyte", LABELS[:count])
  return tmp_path


def write_idx(path, values):
  header = bytes([0, 0, 8, values.ndim])
  header += np.array(values.shape, ">i4").tobytes()
  path.write_bytes(header + values.astype(np.uint8).tobytes())


def test_digits_need_no_folder():
  digits = data.load(None)
  assert digits.train.images.shape[1:] == (8, 8, 1)
  assert digits.train.images.max() == 255
  count = len(digits.train.labels) + len(digits.test.labels)
  assert (count, digits.classes) == (1797, 10)


def test_cifar_10(cifar10):
  dataset = data.load(cifar10)
  np.testing.assert_array_equal(dataset.train.images[20:], IMAGES)
  np.testing.assert_array_equal(dataset.test.labels, LABELS)
  share = np.concatenate([IMAGES, IMAGES]) / 255
  np.testing.assert_allclose(dataset.mean, share.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(dataset.std, share.std((0, 1, 2)), rtol=1e-5)


def test_the_second_label_of_cifar_100_counts(tmp_path):
  images = np.resize(IMAGES, (100, 32, 32, 3))
  for name in ("train.bin", "test.bin"):
    write_cifar(tmp_path / name, images, np.arange(100), np.arange(100) // 5)
  dataset = data.load(tmp_path)
  assert dataset.classes == 100
  np.testing.assert_array_equal(dataset.train.labels, np.arange(100))


def test_idx_files(mnist):
  dataset = data.load(mnist)
  np.testing.assert_array_equal(dataset.train.images, IMAGES[..., :1])
  assert (dataset.mean, dataset.std) == (0, 1)
  np.testing.assert_allclose(
    idx.load(mnist)[0], dataset.train.images[..., 0] / 255, rtol=1e-6
  )


def test_images_held_back_are_no_train_images(cifar10):
  # The second file has other images than the first.
  write_cifar(cifar10 / "data_batch_2.bin", 255 - IMAGES)
  dataset = data.load(cifar10, held_back=5, seed=1)
  counts = len(dataset.train.labels), len(dataset.validation.labels)
  assert counts == (35, 5)
  both = np.concatenate([dataset.train.images, dataset.validation.images])
  assert len(np.unique(both, axis=0)) == 40
  again = data.load(cifar10, held_back=5, seed=1).validation.images
  np.testing.assert_array_equal(dataset.validation.images, again)
  other = data.load(cifar10, held_back=5, seed=2).validation.images
  assert not np.array_equal(dataset.validation.images, other)


def test_a_file_that_is_cut_off_is_named_with_the_place(cifar10):
  path = cifar10 / "data_batch_2.bin"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(
    ValueError, match=r"data_batch_2.bin is cut off: image 19 .* byte 58387"
  ):
    data.load(cifar10)


def test_an_empty_file_is_named(cifar10):
  (cifar10 / "test_batch.bin").write_bytes(b"")
  with pytest.raises(ValueError, match="test_batch.bin is cut off"):
    data.load(cifar10)


def test_a_wrong_label_is_named_with_the_place(cifar10):
  write_cifar(cifar10 / "test_batch.bin", labels=np.full(20, 10))
  with pytest.raises(ValueError, match="test_batch.bin has label 10 at byte 0"):
    data.load(cifar10)


def test_a_test_label_that_was_never_trained_is_named(mnist):
  write_idx(mnist / "t10k-labels-idx1-ubyte", np.append(LABELS[:9], 77))
  with pytest.raises(
    ValueError, match="t10k-labels-idx1-ubyte has label 77 at byte 17"
  ):
    data.load(mnist)


def test_a_class_without_images_is_named(mnist):
  labels = np.where(LABELS == 4, 5, LABELS)
  write_idx(mnist / "train-labels-idx1-ubyte", labels)
  with pytest.raises(ValueError, match="no train image of class 4"):
    data.load(mnist)


def test_a_file_that_is_missing_between_others_is_named(cifar10):
  (cifar10 / "data_batch_2.bin").rename(cifar10 / "data_batch_3.bin")
  with pytest.raises(FileNotFoundError, match="lacks data_batch_2.bin"):
    data.load(cifar10)


def test_a_folder_without_a_data_set_says_what_was_looked_for(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"data_batch_1.bin \(CIFAR-10"):
    data.load(tmp_path)


@pytest.mark.parametrize("held_back", [-1, 40])
def test_something_must_be_left_to_train_on(cifar10, held_back):
  with pytest.raises(ValueError, match=f"the 40 train images, got {held_back}"):
    data.load(cifar10, held_back)
