import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rewa_jax
from examples.hyperparameter_grid import grid

KEY = jax.random.key(0)
TARGET = jnp.array([1.0, 0.5, 0.0, 0.0])


def train(key, hyper):
  """A noisy quadratic, trained with ReWA."""
  rewa = rewa_jax.Rewa(hyper["k"], hyper["m"], mask=None)
  solver = rewa_jax.sgd(
    hyper["learning_rate"], rewa, weight_decay=hyper["weight_decay"]
  )
  latents = rewa.to_latents(jax.random.uniform(key, (4,), minval=0.1))

  def step(carry, _):
    latents, state = carry
    grads = rewa.to_weights(latents) - TARGET
    updates, state = solver.update(grads, state, latents)
    return (optax.apply_updates(latents, updates), state), None

  carry = latents, solver.init(latents)
  (latents, _), _ = jax.lax.scan(step, carry, length=50)
  weights = rewa.to_weights(latents)
  return {"weights": weights, "loss": jnp.sum((weights - TARGET) ** 2)}


GRID = grid.product(
  k=[2.25, 3, 5],
  m=[0, 2],
  weight_decay=[0.0, 0.1],
  learning_rate=[0.1],
  seed=[0, 1],
)


def one_by_one(cells):
  rows = []
  for cell in range(len(cells["k"])):
    hyper = {name: values[cell] for name, values in cells.items()}
    rows.append(train(jax.random.fold_in(KEY, hyper.get("seed", 0)), hyper))
  return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def assert_same(result, cells):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    result.outputs,
    one_by_one(cells),
  )


def test_a_grid_equals_its_cells_one_by_one():
  result = grid.train_grid(train, GRID, key=KEY, progress=False)
  assert_same(result, GRID)
  assert not result.diverged.any()


def test_a_traced_k_and_small_chunks_change_nothing():
  result = grid.train_grid(
    train, GRID, key=KEY, static=(), largest_chunk=3, progress=False
  )
  assert_same(result, GRID)


def test_illegal_cells_are_left_out_of_a_product():
  assert grid.product(k=[3, 5], m=[0, 4]) == {"k": [3, 5, 5], "m": [0, 0, 4]}


def test_a_diverged_cell_is_reported_and_disturbs_no_other():
  cells = {name: values[:3] for name, values in GRID.items()}
  wild = cells | {"learning_rate": [0.1, 1e6, 0.1]}
  result = grid.train_grid(train, wild, key=KEY, progress=False)
  assert result.diverged.tolist() == [False, True, False]
  calm = grid.train_grid(train, cells, key=KEY, progress=False)
  for i in (0, 2):
    np.testing.assert_allclose(
      result.outputs["weights"][i], calm.outputs["weights"][i], rtol=1e-6
    )


def counting(train):
  traces = []

  def counted(key, hyper):
    traces.append(hyper["k"])
    return train(key, hyper)

  return counted, traces


def test_an_interrupted_grid_goes_on_where_it_was(tmp_path):
  settings = dict(key=KEY, progress=False, largest_chunk=8)
  whole = grid.train_grid(train, GRID, checkpoints=tmp_path, **settings)
  assert len(list(tmp_path.glob("*.npz"))) == len(GRID["k"])
  for cell in (0, 1, 9):
    (tmp_path / f"{cell}.npz").unlink()
  again = grid.train_grid(train, GRID, checkpoints=tmp_path, **settings)
  jax.tree.map(np.testing.assert_array_equal, again.outputs, whole.outputs)

  counted, traces = counting(train)
  grid.train_grid(counted, GRID, checkpoints=tmp_path, **settings)
  assert len(traces) == 3  # Shapes were looked at, nothing was compiled.


def test_checkpoints_of_another_grid_or_function_are_refused(tmp_path):
  settings = dict(checkpoints=tmp_path, progress=False)
  grid.train_grid(train, GRID, key=KEY, **settings)
  other = GRID | {"weight_decay": [0.2] * len(GRID["k"])}
  with pytest.raises(ValueError, match="of another grid or key"):
    grid.train_grid(train, other, key=KEY, **settings)
  with pytest.raises(ValueError, match="of another grid or key"):
    grid.train_grid(train, GRID, key=jax.random.key(1), **settings)
  with pytest.raises(ValueError, match="does not hold what train_fn returns"):
    grid.train_grid(
      lambda key, hyper: train(key, hyper)["weights"], GRID, key=KEY, **settings
    )


def test_chunks_fit_into_the_memory_that_is_given():
  def hungry(key, hyper):
    x = jax.random.normal(key, (256, 256)) * hyper["scale"]
    return jnp.linalg.matrix_power(x, 5).sum()

  cells = {"scale": np.linspace(0.1, 1, 64)}
  counts = []

  def counted(key, hyper):
    return hungry(key, hyper)

  everything = grid.train_grid(counted, cells, key=KEY, progress=False)
  bar_updates = grid.tqdm.update
  try:
    grid.tqdm.update = lambda self, n=1: counts.append(n)
    little = grid.train_grid(counted, cells, key=KEY, memory=2e6)
  finally:
    grid.tqdm.update = bar_updates
  assert max(counts) < 64 and sum(counts) == 64
  np.testing.assert_allclose(little.outputs, everything.outputs, rtol=1e-4)
  with pytest.raises(ValueError, match="One cell per device needs"):
    grid.train_grid(counted, cells, key=KEY, memory=1e3, progress=False)


@pytest.mark.parametrize(
  ("cells", "message"),
  [
    ({}, "grid is empty"),
    ({"k": [], "m": []}, "grid is empty"),
    ({"k": [3, 5], "m": [0]}, "need one length, got {'k': 2, 'm': 1}"),
    ({"k": [3, 3], "m": [0, 4]}, r"at most k - 1, in cell 1 \(k=3, m=4\)"),
  ],
)
def test_a_grid_that_is_none_is_refused(cells, message):
  with pytest.raises(ValueError, match=message):
    grid.train_grid(train, cells, key=KEY)


def test_a_train_function_that_does_not_return_arrays_is_refused():
  cells = {"k": [3], "m": [0]}
  with pytest.raises(
    TypeError, match=r"got 0\.5 of type float, in cell 0 \(k=3"
  ):
    grid.train_grid(lambda key, hyper: 0.5, cells, key=KEY, progress=False)
  with pytest.raises(ValueError, match=r"same shapes .* in cell 1 \(k=5\)"):
    grid.train_grid(
      lambda key, hyper: jnp.ones(hyper["k"]),
      {"k": [3, 5]},
      key=KEY,
      progress=False,
    )


WORKER = """
import sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np, test_grid, grid
result = grid.train_grid(
  test_grid.train, test_grid.GRID, key=jax.random.key(0), progress=False,
  checkpoints=sys.argv[3], largest_chunk=4)
assert jax.process_count() == 2 and jax.device_count() == 4
np.save(sys.argv[3] + f"/result{sys.argv[2]}.npy", result.outputs["weights"])
"""


def test_two_processes_share_a_grid(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  here = pathlib.Path(__file__).parent
  paths = [here, *sys.path]
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "JAX_PLATFORMS": "cpu",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "PYTHONPATH": os.pathsep.join(map(str, paths)),
  }
  workers = [
    subprocess.Popen(
      [sys.executable, "-c", WORKER, address, str(i), str(tmp_path)],
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for worker in workers:
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0, errors
  alone = grid.train_grid(train, GRID, key=KEY, progress=False)
  for i in range(2):
    together = np.load(tmp_path / f"result{i}.npy")
    np.testing.assert_allclose(
      together, alone.outputs["weights"], rtol=1e-4, atol=1e-6
    )
  assert len(list(tmp_path.glob("*.npz"))) == len(GRID["k"])
