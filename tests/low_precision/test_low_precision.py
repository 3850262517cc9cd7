import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.low_precision import low_precision
from examples.low_precision.low_precision import FORMATS, Format

QUICK = ("bfloat16 weights, drop-in", "bfloat16 latents, stochastic rounding")
WIDTHS = (8,)
IMAGES = jax.random.uniform(jax.random.key(1), (32, 16))
LABELS = jnp.arange(32) % 10


def start(chosen):
  """Returns the network, the optimizer and the first state of a tiny run."""
  network = low_precision.MLP(WIDTHS, chosen.compute)
  optimizer = low_precision.optimizer_of(
    chosen, optax.constant_schedule(0.1), 0.01, jax.random.key(0)
  )
  weights = low_precision.draw_weights(jnp.arange(1), WIDTHS, 16)
  weights = jax.tree.map(lambda leaf: leaf[0], weights)
  return network, optimizer, low_precision.start(chosen, optimizer, weights)


def step(chosen, network, optimizer, state):
  return jax.jit(
    lambda state: low_precision.step(
      chosen, network, optimizer, state, IMAGES, LABELS
    )
  )(state)


@pytest.mark.parametrize(
  "name",
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in FORMATS
  ],
)
def test_every_format_stores_what_it_says_and_keeps_it(name):
  chosen = FORMATS[name]
  network, optimizer, state = start(chosen)
  after = step(chosen, network, optimizer, state)
  for params in (state.params, after.params):
    layer = params["params"]["Dense_0"]
    assert layer["kernel"].dtype == chosen.stored
    assert layer["bias"].dtype == jnp.float32
  kernels = [
    leaf.dtype
    for leaf in jax.tree.leaves(after.opt_state)
    if leaf.shape == (16, 8)
  ]
  # The drop-in's state holds latents and momentum, wide, and the weights.
  wide = ["float32"] * 2 if chosen.drop_in else []
  assert sorted(map(str, kernels)) == [chosen.stored, *wide]
  assert not jnp.array_equal(
    after.params["params"]["Dense_0"]["kernel"],
    state.params["params"]["Dense_0"]["kernel"],
  )
  logits = network.apply(low_precision.weights_of(chosen, after.params), IMAGES)
  assert logits.dtype == chosen.compute


def test_the_scale_of_the_loss_does_not_reach_clipping_or_rewa():
  plain = step(Format(), *start(Format()))
  chosen = Format(loss_scaling=True)
  scaled = step(chosen, *start(chosen))
  # A power of two: in float32 nothing is rounded differently.
  jax.tree.map(np.testing.assert_array_equal, scaled.params, plain.params)
  assert scaled.skipped == 0


def test_a_step_that_overflows_is_skipped_counted_and_halves_the_scale():
  chosen = FORMATS["float16 latents, stochastic rounding, loss scaling"]
  network, optimizer, state = start(chosen)
  state = state._replace(scale=state.scale.replace(scale=jnp.float32(2**30)))
  after = step(chosen, network, optimizer, state)
  assert after.skipped == 1 and after.scale.scale == 2**29
  jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
  assert after.opt_state[-1].key == state.opt_state[-1].key


def test_batches_are_drawn_anew_for_every_epoch_and_seed():
  seeds = jnp.arange(2)
  first = low_precision.draw_batches(seeds, 0, 300)
  assert first.shape == (2, 2, 128)
  assert len(np.unique(first[0])) == 256
  assert not jnp.array_equal(first[0], first[1])
  assert not jnp.array_equal(first, low_precision.draw_batches(seeds, 1, 300))


@pytest.mark.slow
def test_the_program_writes_a_table_and_numbers(tmp_path, monkeypatch, capsys):
  names = "float32", "bfloat16 latents, stochastic rounding"
  few = {name: FORMATS[name] for name in names}
  monkeypatch.setattr(low_precision, "FORMATS", few)
  argv = ["--epochs", "60", "--seeds", "2", "--out", str(tmp_path)]
  low_precision.main(argv)
  results = json.loads((tmp_path / "results.json").read_text())
  first, second = (results["rows"][name] for name in names)
  assert min(first["test_accuracy"] + second["test_accuracy"]) > 0.85
  assert min(first["compression"] + second["compression"]) > 5
  assert len(set(first["test_accuracy"])) == 2
  assert first["bytes_per_weight"] == pytest.approx(8, abs=0.01)
  assert 4 < second["bytes_per_weight"] < 4.2
  # Fewer epochs with more weight decay: the budget is that of the default.
  settings = results["settings"]
  assert settings["decay_budget"] == pytest.approx(13.5, rel=0.02)
  table = (tmp_path / "table.md").read_text()
  budget, printed = capsys.readouterr().out.split("\n", 1)
  assert budget == "decay budget 13.5"
  assert table.startswith(printed.split("\n\n")[0])
  assert "| float32 |" in table and "| +0.00 |" in table


@pytest.mark.parametrize(
  ("decay", "said"),
  [
    (1.5e-2, r"decay budget 13\.\d\n"),
    (1.5e-3, r"warning: .* takes a weight decay of 0\.017 for a budget of 15"),
  ],
)
def test_the_decay_budget_is_said_before_training(
  decay, said, tmp_path, monkeypatch, capsys
):
  task = low_precision.DIGITS._replace(weight_decay=decay)
  monkeypatch.setattr(low_precision, "DIGITS", task)
  monkeypatch.setattr(low_precision, "train", interrupted)
  with pytest.raises(KeyboardInterrupt):
    low_precision.main(["--out", str(tmp_path)])
  assert re.match(said, capsys.readouterr().out)


def interrupted(*args, **kwargs):
  raise KeyboardInterrupt


def write_mnist(folder, count):
  for part, size in (("train", count), ("t10k", 50)):
    images = np.full((size, 28, 28), 255, np.uint8)
    labels = np.uint8(np.arange(size) % 10)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
      head = np.array(array.shape, ">i4").tobytes()
      head = bytes([0, 0, 8, array.ndim]) + head
      path = folder / f"{part}-{name}-ubyte"
      path.write_bytes(head + array.tobytes())


def test_mnist_is_read_from_idx_files(tmp_path):
  write_mnist(tmp_path, 200)
  data = low_precision.load_data(tmp_path)
  assert data.images.shape == (200, 784) and data.images.max() == 1
  assert data.test_images.shape == (50, 784)
  assert data.test_labels.tolist() == [i % 10 for i in range(50)]


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--epochs", "0"], "--epochs: must be at least 1, got 0"),
    (["--seeds", "-1"], "--seeds: must be at least 1, got -1"),
    (["--threshold", "-1"], "--threshold: must be at least 0, got -1"),
  ],
)
def test_numbers_out_of_range_are_refused(argv, message, capsys):
  with pytest.raises(SystemExit):
    low_precision.main(argv)
  assert message in capsys.readouterr().err


def test_a_folder_that_does_not_do_is_named(tmp_path):
  argv = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
  with pytest.raises(SystemExit, match="No such file.*train-images"):
    low_precision.main(argv)
  write_mnist(tmp_path, 100)
  with pytest.raises(SystemExit, match="has 100 train images, .* at least 128"):
    low_precision.main(argv)


def test_the_table_of_the_readme_is_that_of_the_results():
  folder = pathlib.Path(low_precision.__file__).parent
  made = (folder / "results" / "table.md").read_text()
  rows = [line for line in made.splitlines() if line.startswith("| ")]
  assert len(rows) == 1 + len(FORMATS)
  readme = (folder / "README.md").read_text()
  for line in rows:
    assert line in readme, line
