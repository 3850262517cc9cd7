"""Random crops and flips of batches of images, on the device."""

import functools

import jax
import jax.numpy as jnp


def random_crop(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
  """Moves every image by up to `pad` pixels each way; what is new is black.

  Args:
    key: a PRNG key.
    images: shape (n, height, width, channels).
    pad: pixels, >= 0.

  Returns:
    An array of the same shape and dtype.
  """
  size = images.shape[1:]
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  corners = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)

  def crop(image, corner):
    return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), size)

  return jax.vmap(crop)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors every other image, left to right, by chance."""
  flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
  return jnp.where(flipped, images[:, :, ::-1], images)


def random_resized_crop(
  key: jax.Array, images: jax.Array, resolution: int
) -> jax.Array:
  """Cuts out a random part of every image and resizes it, bilinearly.

  The part has 8 to 100 % of the area and an aspect between 3/4 and 4/3, as in
  torchvision's RandomResizedCrop; where it would not fit, it is cut to fit.

  Args:
    key: a PRNG key.
    images: shape (n, height, width, channels), floating point.
    resolution: height and width of the result, pixels.

  Returns:
    An array of shape (n, resolution, resolution, channels).
  """
  n, height, width, channels = images.shape
  area_key, aspect_key, corner_key = jax.random.split(key, 3)
  area = jax.random.uniform(area_key, (n,), minval=0.08) * height * width
  log_aspect = jax.random.uniform(
    aspect_key, (n,), minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3)
  )
  whole = jnp.array([height, width])
  root = jnp.exp(log_aspect / 2)
  part = jnp.sqrt(area)[:, None] * jnp.stack([1 / root, root], -1)
  part = jnp.clip(jnp.round(part), 1, whole)
  room = whole - part + 1
  corner = jnp.floor(jax.random.uniform(corner_key, (n, 2)) * room)
  return _resize(images, corner, part, (resolution, resolution, channels))


def resized_center(
  images: jax.Array, resolution: int, resized: int
) -> jax.Array:
  """Resizes every image to `resized` pixels, and takes the center.

  Args:
    images: shape (n, size, size, channels), floating point.
    resolution: height and width of the result, pixels.
    resized: height and width of the whole image, pixels, >= resolution.

  Returns:
    An array of shape (n, resolution, resolution, channels).
  """
  n, size, _, channels = images.shape
  part = jnp.full((n, 2), size * resolution / resized)
  corner = (size - part) / 2
  return _resize(images, corner, part, (resolution, resolution, channels))


def _resize(images, corner, part, shape):
  scale = shape[0] / part
  resize = functools.partial(
    jax.image.scale_and_translate,
    shape=shape,
    spatial_dims=(0, 1),
    method="linear",
  )
  return jax.vmap(
    lambda image, scale, move: resize(image, scale=scale, translation=move)
  )(images, scale, -corner * scale)
