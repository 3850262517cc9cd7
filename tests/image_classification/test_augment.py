import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.image_classification import augment

KEY = jax.random.key(0)
IMAGES = jax.random.randint(KEY, (64, 8, 8, 3), 1, 256).astype(jnp.uint8)


def test_a_random_crop_is_a_part_of_the_padded_image():
  crops = augment.random_crop(KEY, IMAGES, 2)
  assert crops.dtype == IMAGES.dtype
  padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
  corners = set()
  for crop, image in zip(np.asarray(crops), padded):
    places = [
      (i, j)
      for i in range(5)
      for j in range(5)
      if np.array_equal(crop, image[i : i + 8, j : j + 8])
    ]
    assert len(places) == 1
    corners |= set(places)
  assert len(corners) > 15  # 64 images, 25 places.


def test_half_of_the_images_are_flipped():
  flipped = augment.random_flip(KEY, IMAGES)
  same = (flipped == IMAGES).all((1, 2, 3))
  mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert 16 < same.sum() < 48


@pytest.mark.slow
def test_resizing_keeps_straight_lines_straight():
  ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (5, 8, 8, 1))
  crops = augment.random_resized_crop(KEY, ramp, 16)
  assert crops.shape == (5, 16, 16, 1)
  # Every crop is a part of the ramp: its rows rise, its columns are equal.
  np.testing.assert_allclose(crops[:, :, :1], crops[:, :, 1:2], atol=1e-4)
  steps = jnp.diff(crops[:, 2:-2, 0, 0], axis=1)
  assert (steps > -1e-5).all()
  assert (crops >= -1e-4).all() and (crops <= 7 + 1e-4).all()


@pytest.mark.slow
def test_crops_have_between_8_and_100_percent_of_the_area():
  rows = jnp.broadcast_to(jnp.arange(100.0)[:, None, None], (500, 100, 100, 1))
  crops = augment.random_resized_crop(KEY, rows, 100)
  # Between the first and last pixel's middles lie 99 of 100 parts.
  heights = np.asarray(crops[:, -1, 0, 0] - crops[:, 0, 0, 0]) * 100 / 99
  assert 20 < heights.min() < 40
  assert 95 < heights.max() <= 101


def test_the_center_is_that_of_the_whole_image():
  images = jnp.arange(64.0).reshape(1, 8, 8, 1)
  center = augment.resized_center(images, 4, 8)
  np.testing.assert_allclose(center, images[:, 2:6, 2:6], atol=1e-5)
  whole = augment.resized_center(images, 16, 16)
  expected = jax.image.resize(images, (1, 16, 16, 1), "linear")
  np.testing.assert_allclose(whole, expected, atol=1e-4)
