"""Damaged and foreign checkpoints: an error that says so, never a wrong model.

States are small, but for a kernel that Orbax stores in a file of its own.
"""

import dataclasses
import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.extras import needs

needs("grain")

from examples.image_classification import checkpoints
from examples.image_classification.config import Config
from examples.image_classification.state import State

CONFIG = Config()

# What Orbax leaves behind when it fails to read.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def nothing_left_to_other_tests():
  yield
  gc.collect()


def make_state(step=5, seed=0, shape=(32, 16), dtype="float32"):
  kernel = jax.random.normal(jax.random.key(seed), shape).astype(dtype)
  params = {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(shape[1])}}
  mask = {"Dense_0": {"kernel": kernel > 0, "bias": jnp.ones((), bool)}}
  return State(jnp.int32(step), params, {}, (mask,), None)


def save(run, *states, config=CONFIG):
  with checkpoints.open_checkpoints(run, keep=2) as opened:
    for state in states:
      checkpoints.save(opened, state, config)
  return run


def restore(run):
  with checkpoints.open_checkpoints(run) as opened:
    return checkpoints.restore(opened, make_state(0, seed=1), CONFIG)


def same(one, other):
  return all(
    a.dtype == b.dtype and np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


def files_of(run):
  """The smallest first; in the last one is the kernel."""
  files = [path for path in run.rglob("*") if path.is_file()]
  return sorted(files, key=lambda path: path.stat().st_size)


def cut(content, random):
  return content[: len(content) // 2]


def remove(content, random):
  return None


def flip_a_bit(content, random):
  changed = bytearray(content)
  changed[random.integers(len(changed))] ^= 1 << random.integers(8)
  return changed


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, remove, flip_a_bit])
def test_a_damaged_file_is_an_error_or_does_not_matter(damage, tmp_path):
  run, refused = save(tmp_path, make_state()), set()
  random = np.random.default_rng(0)
  for path in files_of(run):
    content = path.read_bytes()
    for _ in range(5 if damage is flip_a_bit else 1):
      damaged = damage(content, random)
      path.unlink() if damaged is None else path.write_bytes(damaged)
      try:
        assert same(restore(run), make_state()), path
      except ValueError as error:
        assert "checkpoints/5 " in str(error)
        assert "Remove that folder to go on from" in str(error)
        refused.add(path)
      path.write_bytes(content)
  assert {files_of(run)[-1], run / "checkpoints/5/label/metadata"} <= refused
  assert same(restore(run), make_state())


def test_a_changed_bit_of_a_kernel_is_named(tmp_path):
  file = files_of(save(tmp_path, make_state()))[-1]
  content = bytearray(file.read_bytes())
  content[1000] ^= 1
  file.write_bytes(content)
  with pytest.raises(ValueError, match="other values of params/Dense_0/kernel"):
    restore(tmp_path)


def test_without_the_damaged_checkpoint_the_one_before_is_taken(tmp_path):
  save(tmp_path, make_state(5), make_state(10, seed=2))
  (tmp_path / "checkpoints" / "10" / "label" / "metadata").write_text("")
  with pytest.raises(ValueError, match="checkpoints/10 cannot be read"):
    restore(tmp_path)
  shutil.rmtree(tmp_path / "checkpoints" / "10")
  assert same(restore(tmp_path), make_state(5))


@pytest.mark.parametrize(
  ("name", "value"), [("k", 3), ("method", "dense"), ("model", "lenet5")]
)
def test_a_checkpoint_of_other_settings_is_refused(name, value, tmp_path):
  # Trees and shapes tell nothing: "dense" has weights in place of latents.
  config = dataclasses.replace(CONFIG, **{name: value})
  save(tmp_path, make_state(), config=config)
  with pytest.raises(ValueError, match=f"other settings of {name}. Remove"):
    restore(tmp_path)


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
  save(tmp_path, make_state(shape=(16, 32)))
  with pytest.raises(ValueError, match="checkpoints/5 cannot be read: .*shape"):
    restore(tmp_path)


def test_a_checkpoint_of_another_type_is_refused(tmp_path):
  save(tmp_path, make_state(dtype="bfloat16"))
  with pytest.raises(ValueError, match="other values of params/Dense_0/kernel"):
    restore(tmp_path)


def test_a_folder_of_another_library_is_refused(tmp_path):
  save(tmp_path, make_state())
  other = tmp_path / "checkpoints" / "20"
  other.mkdir()
  (other / "model.pt").write_bytes(b"PK\3\4")
  with pytest.raises(ValueError, match="checkpoints/20 cannot be read"):
    restore(tmp_path)
