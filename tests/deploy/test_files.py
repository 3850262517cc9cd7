import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tracemalloc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

import rewa_jax
from rewa_jax import deploy

from .sparse import sparsify

ROOT = pathlib.Path(__file__).parents[2]


def mlp(density=0.05, dtype=np.float32):
  model = nn.Sequential([nn.Dense(30), nn.relu, nn.Dense(10)])
  weights = model.init(jax.random.key(0), jnp.ones((1, 64)))
  weights = sparsify(weights, density=density, dead=0)
  return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), weights)


def check_same(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(
    jax.tree.leaves(found), map(np.asarray, jax.tree.leaves(wanted))
  ):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    # Of zeros the sign is not kept.
    assert (a + 0).tobytes() == (b + 0).tobytes()


# What a user does.


def test_weights_are_read_back_bit_for_bit_and_the_file_is_small(tmp_path):
  weights, path = mlp(0.02), tmp_path / "weights.safetensors"
  deploy.save(path, weights, method=rewa_jax.Rewa(k=9, m=2))
  check_same(deploy.load(path), weights)
  dense = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
  assert path.stat().st_size < 0.25 * dense
  with safe_open(path, framework="np") as file:
    header = file.metadata()
  assert header["holds"] == "weights" and header["k"] == "9"
  assert header["method"].startswith("Rewa(k=9, m=2")
  assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_every_leaf_has_its_cheapest_layout(tmp_path):
  rng = np.random.default_rng(0)
  weights = {
    str(density): (rng.random((300, 100)) < density).astype(np.float32)
    for density in (1, 0.5, 0.2, 0.01)
  }
  weights |= {"bias": np.zeros(10, np.float32), "number": np.float32(3)}
  path = tmp_path / "weights"
  deploy.save(path, weights)
  with safe_open(path, framework="np") as file:
    leaves = json.loads(file.metadata()["leaves"])
    types = {name: str(file.get_tensor(name).dtype) for name in file.keys()}
  layouts = {name: leaf["layout"] for name, leaf in leaves.items()}
  assert layouts == {
    **{"1": "dense", "0.5": "bitmask", "0.2": "bitmask", "0.01": "csr"},
    **{"bias": "dense", "number": "dense"},
  }
  assert types["0.01.indices"] == "uint16" and types["0.01.starts"] == "uint16"
  check_same(deploy.load(path), weights)


def test_many_columns_take_indices_of_32_bits(tmp_path):
  # A row of 2**16 columns is a candidate, and so are two.
  for columns, expected in ((2**16, "uint16"), (2**16 + 2, "uint32")):
    wide = np.zeros((1, columns), np.float16)
    wide[0, [1, columns - 1]] = 1
    deploy.save(tmp_path / "wide", {"wide": wide})
    check_same(deploy.load(tmp_path / "wide"), {"wide": wide})
    with safe_open(tmp_path / "wide", framework="np") as file:
      assert file.get_tensor("wide.indices").dtype == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_may_be_rounded_to_16_bits(tmp_path, dtype):
  weights = mlp(0.3) | {"steps": np.arange(3)}
  sizes = []
  for kept in (None, dtype):
    deploy.save(tmp_path / "file", weights, dtype=kept)
    sizes.append((tmp_path / "file").stat().st_size)
  wanted = jax.tree.map(
    lambda x: x.astype(dtype).astype(x.dtype) if x.dtype == "float32" else x,
    weights,
  )
  check_same(deploy.load(tmp_path / "file"), wanted)
  assert sizes[1] < 0.7 * sizes[0]


def test_an_nnx_state_comes_back_as_one(tmp_path):
  model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
  state = nnx.state(model)
  deploy.save(tmp_path / "file", state)
  found = deploy.load(
    tmp_path / "file", like=jax.tree.map(jnp.zeros_like, state)
  )
  assert isinstance(found, nnx.State)
  jax.tree.map(np.testing.assert_array_equal, found, state)
  with pytest.raises(
    ValueError, match="has the leaves .*layers/0/kernel, but li"
  ):
    deploy.load(tmp_path / "file", like={"other": np.ones(2)})


def test_the_reader_of_the_docs_needs_nothing_of_this_library(tmp_path):
  page = (ROOT / "docs" / "deploy.md").read_text()
  (reader,) = re.findall(
    r"^```python\n(import json\n.*?)^```", page, re.S | re.M
  )
  assert sum(map(bool, reader.splitlines())) == 20
  assert "rewa_jax" not in reader
  assert set(re.findall(r"^(?:from|import) (\w+)", reader, re.M)) == {
    *("json", "numpy", "safetensors")
  }
  names = {}
  exec(reader, names)
  weights = {"a": mlp(0.01), "b": mlp(0.5), "c": mlp(1)}
  weights |= {"number": np.float32(3), "none": np.zeros((0, 2))}
  for dtype in (None, "float16", "bfloat16"):
    deploy.save(tmp_path / "file", weights, dtype=dtype)
    found = dict(names["read"](tmp_path / "file"))
    wanted = deploy.load(tmp_path / "file")
    flat = {
      "/".join(key.key for key in keys): leaf
      for keys, leaf in jax.tree_util.tree_leaves_with_path(wanted)
    }
    assert found.keys() == flat.keys()
    for name, leaf in flat.items():
      np.testing.assert_array_equal(found[name], leaf, strict=True)


numbers = st.sampled_from(
  ["float32", "float16", "float64", "int8", "uint16", "bool", "complex64"]
)


@given(st.data(), numbers, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=60)
def test_any_array_is_read_back_bit_for_bit(
  tmp_path_factory, data, dtype, share
):
  shape = data.draw(arrays.array_shapes(min_dims=0, min_side=0, max_side=6))
  leaf = data.draw(
    arrays.arrays(
      dtype, shape, elements={"allow_nan": False} if dtype[0] in "fc" else None
    )
  )
  leaf = np.where(np.random.default_rng(0).random(shape) < share, leaf, 0)
  with np.errstate(over="ignore"):  # To infinity, which is kept as well.
    half = leaf.real.astype(jnp.bfloat16)
  weights = {"leaf": leaf.astype(dtype), "half": half}
  path = tmp_path_factory.getbasetemp() / "any"
  deploy.save(path, weights)
  check_same(deploy.load(path), weights)


def test_who_trains_needs_none_of_it_and_what_is_no_file_no_extra():
  code = (
    "import sys, rewa_jax;"
    "assert 'rewa_jax.deploy' not in sys.modules;"
    "import rewa_jax.deploy;"
    "assert 'safetensors' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


# Files that are damaged, or made to harm.


def refused(path, limit=2**20):
  """Whether load refuses a file, without much memory."""
  tracemalloc.start()
  try:
    deploy.load(path)
  except ValueError:
    return True
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < limit, peak
  return False


def mutate(content, rng):
  content = bytearray(content)
  for _ in range(rng.integers(1, 4)):
    at = int(rng.integers(len(content)))
    header = int.from_bytes(content[:8], "little") + 8
    if rng.random() < 0.7:  # The header is what a parser reads.
      at = int(rng.integers(min(header, len(content))))
    kind = rng.integers(5)
    if kind == 0:
      content[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      del content[at:]
    elif kind == 2:
      content[at:at] = content[at : at + int(rng.integers(1, 40))]
    elif kind == 3:
      del content[at : at + int(rng.integers(1, 20))]
    else:
      digits = b"0123456789"
      content[at] = digits[rng.integers(10)]
    if len(content) < 9:
      break
  return bytes(content)


def check_mutations(folder, count, seed):
  rng = np.random.default_rng(seed)
  weights = {"a": {"b": mlp(0.02)}, "c": mlp(0.3)}
  path = folder / "file"
  deploy.save(path, weights)
  content, kept = path.read_bytes(), 0
  for _ in range(count):
    path.write_bytes(mutate(content, rng))
    if not refused(path):
      # A space of the header may be another one, or nothing has changed.
      kept += 1
      check_same(deploy.load(path), weights)
  assert kept < 0.1 * count


def test_a_mutated_file_is_refused_or_the_same(tmp_path):
  check_mutations(tmp_path, 300, seed=0)


@pytest.mark.slow
def test_two_thousand_mutated_files_are_refused_or_the_same(tmp_path):
  check_mutations(tmp_path, 2000, seed=1)


def forge(path, edit):
  """Writes a file with a right checksum that says what it should not."""
  weights = {
    "dense": np.ones((2, 3), np.float32),
    "mask": np.float32(np.arange(64 * 64) % 5 == 0).reshape(64, 64),
    "rows": np.float32(np.arange(512**2) % 99 == 0).reshape(512, 512),
  }
  deploy.save(path, weights)
  with safe_open(path, framework="np") as file:
    header = file.metadata()
    tensors = {name: file.get_tensor(name) for name in file.keys()}
  leaves = json.loads(header["leaves"])
  edit(leaves, tensors)
  header["leaves"] = json.dumps(leaves)
  said = {key: text for key, text in header.items() if key != "checksum"}
  checksum = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
  for name, array in sorted(tensors.items()):
    about = [name, array.dtype.name, array.shape]
    checksum.update(json.dumps(about).encode() + array.tobytes())
  header["checksum"] = checksum.hexdigest()
  path.write_bytes(to_bytes(tensors, header))


def test_a_file_forged_as_it_was_is_read(tmp_path):
  forge(tmp_path / "file", lambda leaves, tensors: None)
  assert deploy.load(tmp_path / "file")["rows"][0, 0] == 1


def says(leaf, **fields):
  return lambda leaves, tensors: leaves[leaf].update(fields)


def sets(name, place, value):
  def edit(leaves, tensors):
    tensors[name] = tensors[name].copy()
    tensors[name][place] = value

  return edit


def renames(new):
  def edit(leaves, tensors):
    leaves[new], tensors[new] = leaves.pop("dense"), tensors.pop("dense")

  return edit


def casts(name, dtype):
  def edit(leaves, tensors):
    tensors[name] = tensors[name].astype(dtype)

  return edit


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (
      says("rows", shape=[2**20, 2**20]),
      "declares 1,099,.* above limit=1,073,",
    ),
    (says("rows", shape=[2**33, 1]), "rows has the shape"),
    (says("rows", shape=[0, -1]), "rows has the shape"),
    (says("rows", shape=[True, 2**18]), "rows has the shape"),
    (says("rows", shape=[1] * 99), "rows has the shape"),
    (says("rows", shape=[262143]), "rows has 512 rows of 262143"),
    (says("rows", dtype="object"), "rows is 'object' stored as 'float32'"),
    (says("rows", stored="float64"), "rows is 'float32' stored as 'float64'"),
    (says("rows", stored="float16"), "values of rows have another shape or t"),
    (says("rows", layout="code"), "rows has the layout 'code'"),
    (says("rows", layout="bitmask"), "holds .*, but declares"),
    (says("rows", more=1), "rows is described by"),
    (says("dense", shape=[3, 2]), "values of dense have another shape"),
    (says("mask", shape=[64, 63]), "bits of mask are not one for each"),
    (sets("rows.indices", 3, 512), "index of rows is out of range"),
    (sets("rows.indices", 1, 0), "rows do not fit their places"),
    (sets("rows.starts", 3, 60), "rows of rows do not follow"),
    (sets("rows.starts", -1, 3), "rows of rows do not follow"),
    (sets("mask.bits", 0, 0), "values of mask do not fit"),
    (casts("rows.indices", np.float32), "indices of rows are no lists"),
    (renames("../../etc"), "named '../../etc', but its keys must be"),
    (renames("a//b"), "named 'a//b'"),
    (renames("mask/part"), "mask/part lies within another leaf"),
    (lambda leaves, tensors: leaves.pop("dense"), "holds .*, but declares"),
    (lambda leaves, tensors: tensors.pop("mask.bits"), "holds .*, but decl"),
  ],
)
def test_a_forged_file_is_refused_before_anything_is_made(
  tmp_path, edit, message
):
  forge(tmp_path / "file", edit)
  with pytest.raises(
    ValueError, match=f"is not as save writes it. .*{message}"
  ):
    deploy.load(tmp_path / "file")
  assert refused(tmp_path / "file")


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(to_bytes({"a": np.ones(3)}))
  with pytest.raises(
    ValueError, match="no file of sparse weights: its format is"
  ):
    deploy.load(path)
  path.write_bytes(b"PK")
  with pytest.raises(ValueError, match="is no safetensors file"):
    deploy.load(path)
  with pytest.raises(FileNotFoundError):
    deploy.load(tmp_path / "none")


def test_more_than_the_limit_is_not_read(tmp_path):
  deploy.save(tmp_path / "file", {"w": np.zeros((100, 100))})
  with pytest.raises(
    ValueError, match="declares 10,000 entries, above limit=99"
  ):
    deploy.load(tmp_path / "file", limit=99)


# Weights that are refused.


@pytest.mark.parametrize(
  ("weights", "error", "message"),
  [
    ({"w": np.array([np.nan])}, ValueError, "w holds NaN"),
    ({"w": jax.random.key(0)}, TypeError, "w is a random key, no weights"),
    ({"w": nn.relu}, TypeError, "w must be an array, got"),
    ({"w": jnp.zeros(3, "float8_e4m3fn")}, TypeError, "w is of type float8"),
    (
      {"a/b": np.ones(2)},
      ValueError,
      "named 'a/b', but its keys must be names",
    ),
    ({"..": np.ones(2)}, ValueError, "named '..', but its keys"),
    ({"__metadata__": np.ones(2)}, ValueError, "safetensors keeps for itself"),
    (np.ones(2), ValueError, "named '', but its keys"),
    (
      rewa_jax.baselines.spred().to_latents({"kernel": jnp.ones(3)}),
      ValueError,
      "kernel holds latents, not weights",
    ),
  ],
)
def test_what_are_no_weights_is_refused(tmp_path, weights, error, message):
  with pytest.raises(error, match=message):
    deploy.save(tmp_path / "file", weights)
  assert not any(tmp_path.iterdir())


def test_values_that_16_bits_cannot_hold_are_refused(tmp_path):
  weights = {"w": np.array([1e6, 0], np.float32)}
  with pytest.raises(
    ValueError, match="w has values that are too large for flo"
  ):
    deploy.save(tmp_path / "file", weights, dtype="float16")
  deploy.save(tmp_path / "file", weights, dtype="bfloat16")
  with pytest.raises(
    ValueError, match="dtype must be None, 'float16' or 'bf.*i8"
  ):
    deploy.save(tmp_path / "file", weights, dtype="i8")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "file"
  deploy.save(path, {"w": np.ones(2)})

  def fail(self, target):
    raise OSError("disk")

  monkeypatch.setattr(pathlib.Path, "replace", fail)
  with pytest.raises(OSError, match="disk"):
    deploy.save(path, {"w": np.zeros(2)})
  assert [file.name for file in tmp_path.iterdir()] == ["file"]
  assert deploy.load(path)["w"].all()
