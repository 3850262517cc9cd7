import numpy as np
import pytest

from examples.theory import phases, task


@pytest.fixture(scope="module")
def curves():
  part = task.load()["train"]
  both = phases.record((0.0, 18.0), part, 600)
  return [{name: c[i] for name, c in both.items()} for i in range(2)]


def test_phases_begin_where_the_share_made_5_and_95_percent_of_its_way():
  share = np.concatenate(
    [np.full(10, 0.2), np.linspace(0.2, 0.6, 101), np.full(20, 0.6)]
  )
  # Its way starts at step 10 and takes 100 steps.
  second, third = phases.begins(share)
  assert abs(second - 15) <= 1
  assert abs(third - 105) <= 1


def test_a_run_without_sparsity_has_no_phases():
  with pytest.raises(ValueError, match="No sparsity"):
    phases.begins(np.full(10, 0.1))


@pytest.mark.slow
def test_curves_begin_at_the_initial_network(curves):
  layers = task.initial_weights(0)["params"].values()
  x = np.concatenate([np.ravel(w["kernel"]) for w in layers])
  norm = np.sqrt(np.sum(np.abs(x) ** (2 / 9)))
  for run in curves:
    assert run["norm"][0] == pytest.approx(norm, rel=1e-4)
    assert run["share"][0] == pytest.approx(
      np.mean(np.abs(x) <= 1e-3), abs=1e-6
    )
    assert run["loss"].shape == (600,)


@pytest.mark.slow
def test_norm_and_share_hardly_move_without_decay(curves):
  dense, sparse = curves
  assert abs(dense["norm"][-1] / dense["norm"][0] - 1) < 0.05
  assert dense["share"][-1] < 0.05
  assert sparse["norm"][-1] / sparse["norm"][0] < 0.5
  assert sparse["share"][-1] > 0.8


@pytest.mark.slow
def test_loss_falls_before_sparsity_is_complete(curves):
  run = phases.describe(curves[1])
  loss = run["at_bounds"]["loss"]
  assert loss[2] < loss[0] / 2
  assert run["begins"]["2"] < run["begins"]["3"]


@pytest.mark.slow
def test_falls_of_the_norm_add_up(curves):
  run = phases.describe(curves[1])
  assert sum(run["norm_falls"]) == pytest.approx(1)
  norm = run["at_bounds"]["norm"]
  first = (norm[0] - norm[1]) / (norm[0] - norm[3])
  assert run["norm_falls"][0] == pytest.approx(first)


@pytest.mark.parametrize(
  "break_it, phase",
  [
    (lambda c: c.update(loss=np.linspace(2, 1, 101)), "1"),
    (lambda c: c.update(norm=np.linspace(9, 1, 101)), "1"),
    (lambda c: c.update(norm=np.geomspace(9, 1, 101)), "2"),
    (lambda c: c.update(loss=np.r_[2, np.ones(79), np.full(21, 1.5)]), "3"),
  ],
)
def test_each_phase_can_fail_the_description(break_it, phase):
  ramp = np.clip((np.arange(101) - 30) / 50, 0, 1)
  good = {
    "loss": 2 * np.exp(-np.arange(101) / 5),
    "share": ramp,
    "norm": 9 - 8 * ramp,
  }
  assert all(phases.describe(good)["as_described"].values())
  break_it(good)
  assert not phases.describe(good)["as_described"][phase]


@pytest.mark.slow
def test_plot_shows_three_curves(curves):
  figure = phases.plot(curves[1], 18.0)
  assert len(figure.axes) == 3
  drawn = [ax.lines[0].get_ydata() for ax in figure.axes]
  for name, line in zip(("loss", "share", "norm"), drawn):
    np.testing.assert_array_equal(line, curves[1][name])
  second, third = phases.begins(curves[1]["share"])
  for ax in figure.axes:
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [second, third]
