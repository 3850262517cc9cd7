import json

import jax

from examples.hyperparameter_grid import figure1, grid

KEY = jax.random.key(0)


def cells(**more):
  return dict(learning_rate=[0.05], weight_decay=[0.02], seed=[0]) | more


def test_more_shrinkage_than_l1_finds_the_one_coefficient():
  train = figure1.train_linear(200, samples=400, steps=2000)
  settings = grid.product(**cells(k=[5], m=[0, 2]))
  losses = grid.train_grid(train, settings, key=KEY, progress=False).outputs[
    "test loss"
  ]
  above_one, below_one = losses  # p = 1.2 and p = 0.8
  assert below_one < above_one
  assert below_one < 1.3


def test_lenet_trains_in_every_cell():
  train = figure1.train_lenet(figure1.load_digits_split(), epochs=10)
  settings = grid.product(**cells(k=[5], m=[0, 2]))
  result = grid.train_grid(train, settings, key=KEY, progress=False)
  assert not result.diverged.any()
  assert (result.outputs["test accuracy"] > 0.8).all()
  assert (result.outputs["compression"] >= 1).all()


def test_the_program_writes_a_plot_and_numbers(tmp_path, monkeypatch):
  monkeypatch.setattr(figure1, "POWERS", (3, 5))
  monkeypatch.setattr(figure1, "MS", (0, 4))
  monkeypatch.setattr(
    figure1, "train_linear", lambda d: lambda key, h: {"test loss": h["m"] + 1}
  )
  figure1.main(["linear", "--out", str(tmp_path)])
  results = json.loads((tmp_path / "linear.json").read_text())
  assert results["outputs"]["test loss"] == [1, 1, 5]
  assert results["cells"]["k"] == [3, 5, 5]
  assert (tmp_path / "linear.png").read_bytes().startswith(b"\x89PNG")
