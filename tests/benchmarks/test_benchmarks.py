"""What the benchmarks compute; how fast it is, a test cannot say."""

import importlib
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from examples.benchmarks import (
  asking,
  check,
  grids,
  optimizer_step,
  timing,
  training_step,
  transformer,
)

with pytest.MonkeyPatch.context() as patch:
  # They ask for devices of their own when a user starts them.
  patch.setattr(os, "environ", dict(os.environ))
  from examples.benchmarks import fully_sharded, growth

README = check.COMMITTED.with_name("README.md").read_text()
PARAMS = {"kernel": jnp.array([[0.3, -0.5], [0.01, 0.9]]), "bias": jnp.ones(2)}
GRADS = {"kernel": jnp.array([[1.0, 2.0], [-3.0, 0.5]]), "bias": jnp.ones(2)}


def steps_of(name, count=3):
  """Returns the weights after some steps of a method."""
  row = optimizer_step.methods()[name]
  program, start = optimizer_step.compiled(row, PARAMS)
  carry = start(PARAMS)
  for _ in range(count):
    carry = program(GRADS, carry)
  latents, _, weights = carry
  return weights or latents


def by_hand(momentum, count=3):
  """Returns the weights after some steps of ReWA by SGD, in NumPy."""
  rate, decay = optimizer_step.RATE, optimizer_step.DECAY
  k, m = optimizer_step.SGD_REWA.k, optimizer_step.SGD_REWA.m
  x, b = (np.float64(PARAMS[name]) for name in ("kernel", "bias"))
  y = np.sign(x) * np.abs(x) ** (1 / k)
  velocity = np.zeros_like(y), np.zeros_like(b)
  for _ in range(count):
    scaled = np.abs(y) ** m * np.float64(GRADS["kernel"])
    velocity = (momentum * velocity[0] + scaled, momentum * velocity[1] + 1)
    y = y - rate * (velocity[0] + decay * y)
    b = b - rate * velocity[1]
  return {"kernel": np.sign(y) * np.abs(y) ** k, "bias": b}


@pytest.mark.parametrize("way", ["rewa_sgd", "drop-in"])
@pytest.mark.parametrize(
  ("base", "momentum"), [("sgd", 0.0), ("momentum", 0.9)]
)
def test_both_ways_in_take_the_steps_of_rewa(way, base, momentum):
  expected = by_hand(momentum)
  for name, weights in steps_of(f"{way}, {base}").items():
    np.testing.assert_allclose(weights, expected[name], rtol=1e-5)


@pytest.mark.parametrize("name", ["rewa_sgd, momentum", "drop-in, adamw"])
def test_a_program_of_several_steps_does_what_they_do_one_by_one(name):
  row = optimizer_step.methods()[name]
  program, start = optimizer_step.compiled(row, PARAMS, repeat=3)
  latents, _, weights = program(GRADS, start(PARAMS))
  for leaf, expected in steps_of(name).items():
    np.testing.assert_allclose((weights or latents)[leaf], expected, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_eager_torch_takes_the_same_steps(momentum, monkeypatch):
  torch = pytest.importorskip("torch", reason="torch is in no extra")
  from examples.benchmarks import eager_torch

  x = torch.nn.Parameter(torch.tensor(np.array(PARAMS["kernel"])))
  x.grad = torch.tensor(np.array(GRADS["kernel"]))
  monkeypatch.setattr(eager_torch, "_params", lambda shapes: [x])
  step = eager_torch.rewa(
    [x.shape],
    *(optimizer_step.RATE, momentum),
    *(optimizer_step.SGD_REWA.k, optimizer_step.SGD_REWA.m),
    optimizer_step.DECAY,
  )
  for _ in range(3):
    step(None)
  np.testing.assert_allclose(
    x.detach().numpy(), by_hand(momentum)["kernel"], rtol=1e-5
  )


@pytest.mark.parametrize(
  "name",
  [
    name if "rewa" in name else pytest.param(name, marks=pytest.mark.slow)
    for name in optimizer_step.methods()
  ],
)
def test_every_method_steps_and_knows_the_bytes_it_must_move(name):
  row = optimizer_step.methods()[name]
  program, start = optimizer_step.compiled(row, PARAMS)
  least = optimizer_step.least_bytes(start(PARAMS), PARAMS)
  # Arrays of parameters read and written, of 24 bytes each.
  arrays = {"sgd": 3, "rewa_sgd, sgd": 4, "momentum": 5, "adamw": 7}
  if name in arrays:
    assert 24 * arrays[name] <= least <= 24 * arrays[name] + 16
  weights = steps_of(name)
  assert jax.tree.structure(weights) == jax.tree.structure(PARAMS)
  for leaf, before in zip(jax.tree.leaves(weights), jax.tree.leaves(PARAMS)):
    assert jnp.isfinite(leaf).all() and not jnp.array_equal(leaf, before)
  assert optimizer_step.kernels_per_leaf(program, 2) > 0


def test_an_unknown_row_is_named(capsys):
  with pytest.raises(SystemExit):
    optimizer_step.main(["--method", "magic"])
  assert "no methods ['magic']; there are ['DWF" in capsys.readouterr().err


def test_turns_are_counted_and_medians_taken(monkeypatch):
  clock = iter(np.cumsum([0, 9, 0, 9, 0, 1, 0, 2, 0, 6]))
  monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
  carries = {"one": 0}
  seen = []

  def step(carry):
    seen.append(carry)
    return carry + 1

  # Two turns that do not count take 9 seconds each.
  assert timing.take_turns({"one": step}, carries, 3) == {"one": 2}
  assert seen == [0, 1, 2, 3, 4] and not carries


@pytest.mark.parametrize(
  ("model", "parameters"),
  [
    (transformer.GPT2, 124_439_808),  # As published.
    (transformer.SEVEN_BILLION, 7_061_164_032),
  ],
)
def test_transformers_have_as_many_parameters_as_they_say(model, parameters):
  for wrap in (lambda block: block, training_step.ways()["linen"].wrap):
    shapes = jax.eval_shape(
      model(wrap=wrap).init, jax.random.key(0), jnp.zeros((1, 8), int)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def small_transformer(**more):
  return transformer.Transformer(2, 2, 16, 8, vocabulary=11, **more)


@pytest.mark.slow
def test_a_transformer_does_not_look_ahead():
  model, tokens = small_transformer(), jnp.arange(8)[None]
  params = model.init(jax.random.key(0), tokens)
  one = model.apply(params, tokens)
  other = model.apply(params, tokens.at[0, 5].set(9))
  np.testing.assert_allclose(one[:, :5], other[:, :5], atol=1e-6)
  assert not jnp.allclose(one[:, 5:], other[:, 5:])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_a_device_holds_its_share_of_latents_and_state(number):
  mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
  name, way = list(fully_sharded.ways(small_transformer).items())[number]
  memory = fully_sharded.compiled(*way, mesh, 8).memory_analysis()
  # Params, two moments and the drop-in's latents, in float32; 16 of width.
  kernels = 2 * 12 * 16 * 16
  others = (11 + 8) * 16 + 2 * 13 * 16 + 2 * 16
  copies = 3 * (kernels + others) + kernels * name.startswith("drop-in")
  spread = memory.argument_size_in_bytes
  assert 4 * copies / 8 < spread < 4 * copies / 8 + 4 * 3 * others + 200


@pytest.mark.slow
def test_growth_writes_time_and_memory(tmp_path, capsys):
  argv = ["--sizes", "2e4", "--shared", "2e4", "--turns", "1"]
  growth.main([*argv, "--out", str(tmp_path)])
  rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
  assert len(rows) == 3 * (1 + 3)
  by_devices = {
    row["devices"]: row["bytes_per_device"]
    for row in rows
    if row["way"] == "rewa_sgd, sgd"
  }
  # Latents and gradients, weights before and after in one place.
  assert by_devices[1] == pytest.approx(3 * 4 * 19 * 1024, rel=0.01)
  assert by_devices[8] == pytest.approx(3 * 4 * 2 * 1024, rel=0.1)
  assert "drop-in" in capsys.readouterr().out


@pytest.mark.slow
def test_a_grid_gives_what_the_sequence_gives():
  rows = grids.measure(steps=5, turns=1)  # It compares the losses itself.
  assert rows["sequence"]["ratio"] == 1
  assert rows["grid"]["settings_per_second"] > 0


@pytest.mark.slow
def test_training_steps_are_measured(tmp_path, capsys):
  argv = ["--model", "lenet300", "--resolution", "8", "--batch-size", "4"]
  argv += ["--turns", "1", "--compilations", "1", "--out", str(tmp_path)]
  training_step.main(argv)
  path = tmp_path / "training_step_lenet300.json"
  results = json.loads(path.read_text())
  ways = results["ways"]
  assert list(ways) == ["dense", "linen", "trees", "drop-in"]
  assert ways["dense"]["time_ratio"] == ways["dense"]["memory_ratio"] == 1
  # One array more for every kernel.
  kernels = 4 * (8 * 8 * 3 * 300 + 300 * 100 + 100 * 10)
  assert ways["drop-in"]["bytes"] >= ways["dense"]["bytes"] + kernels
  assert ways["linen"]["bytes"] < ways["dense"]["bytes"] + kernels
  assert "linen" in capsys.readouterr().out
  assert {"command", "date", "machine", "versions"} <= set(results)


def test_the_check_fails_where_a_ratio_is_worse_by_a_quarter(
  monkeypatch, capsys
):
  before = check.committed(check.COMMITTED)
  monkeypatch.setattr(check, "measured", lambda: before)
  assert check.main([]) == 0
  worse = json.loads(json.dumps(before))
  worse["optimizer"]["rewa_sgd, sgd"]["ratio"] *= 1.3
  monkeypatch.setattr(check, "measured", lambda: worse)
  assert check.main([]) == 1
  assert "| worse |" in capsys.readouterr().out


def test_commands_of_the_readme_explain_themselves(capsys):
  programs = re.findall(r"^python -m (examples\.benchmarks\.\w+)", README, re.M)
  assert len(programs) == 7
  for program in programs:
    with pytest.raises(SystemExit, match="0"):
      importlib.import_module(program).main(["--help"])
    text = capsys.readouterr().out
    assert f"python -m {program}" in text and len(text) > 400


def results(name):
  return json.loads((check.COMMITTED / f"{name}.json").read_text())


def rows_of(text):
  """Returns the cells of every row of the tables, by the first."""
  rows = [line.strip("| \n").split(" | ") for line in text.splitlines()]
  return {tuple(row[:2]): row[2:] for row in rows if len(row) > 2}


def test_tables_of_the_readme_are_those_of_the_results():
  rows = rows_of(README)
  trees = results("optimizer_step")["trees"]
  assert list(trees) == ["resnet18", "resnet50", "transformer"]
  for name, first in trees["resnet18"]["methods"].items():
    methods = [tree["methods"][name] for tree in trees.values()]
    wanted = [f"{row['ratio']:.2f}" for row in methods]
    assert rows[name, first["base"]] == wanted, name
    if "share_of_limit" in first:
      shares = [f"{100 * row['share_of_limit']:.0f} %" for row in methods]
      kernels = f"{first['kernels_per_leaf']:.1f}"
      assert rows[name, shares[0]] == [*shares[1:], kernels], name
  for base in ("sgd", "momentum", "adamw"):
    before, now = (
      [tree["methods"][f"drop-in, {base}"]["ratio"] for tree in each.values()]
      for each in (trees, results("optimizer_step_drop_in")["trees"])
    )
    first, *others = (f"{ratio:.2f}" for ratio in now)
    past = ", ".join(f"{ratio:.2f}" for ratio in before)
    assert rows[base, first] == [*others, past]
  for way, row in results("training_step_resnet20")["ways"].items():
    keys = ("time_ratio", "memory_ratio", "compile_ratio")
    wanted = [f"{row[key]:.{3 - (key == keys[2])}f}" for key in keys]
    assert rows[way, f"{row['milliseconds']:.0f}"] == wanted
  growth_rows = results("growth")["rows"]
  for base, ours, drop_in in zip(*(growth_rows[i::3] for i in range(3))):
    assert rows[f"{base['parameters']:,}", str(base["devices"])] == [
      f"{base['milliseconds']:.3g}",
      f"{ours['ratio']:.2f}",
      f"{drop_in['ratio']:.2f}",
      f"{ours['bytes_per_device']:,}",
    ]
  for name, row in results("fully_sharded")["ways"].items():
    gigabytes = f"{row['bytes_per_device'] / 1e9:.2f}"
    assert rows[name, gigabytes] == [f"{row['ratio']:.2f}"]
  grid = results("grids")["ways"]["grid"]["ratio"]
  assert f"{grid:.2f} of the time" in " ".join(README.split())


def test_tables_of_the_gpu_are_those_of_the_results():
  rows = rows_of(README)
  trees = results("optimizer_step_h100")["trees"]
  few = trees["resnet50"]["methods"]
  for name, row in trees["transformer"]["methods"].items():
    cells = f"{row['ratio']:.2f}", f"{100 * row['share_of_limit']:.0f} %"
    other = f"{few[name]['milliseconds']:.3f}", f"{few[name]['ratio']:.2f}"
    assert rows[name, f"{row['milliseconds']:.3f}"] == [*cells, *other]


def test_what_ranking_adds_is_spread_over_the_steps_between(monkeypatch):
  monkeypatch.setattr(asking, "shapes", lambda tree: PARAMS)
  monkeypatch.setattr(asking, "training_milliseconds", lambda tree: 1e3)
  row = asking.measure("any", turns=1)
  assert row["weights"] == 6
  expected = (49 * row["not ranking"] + row["ranking"]) / 50
  assert row["mean"] == pytest.approx(expected)


@pytest.mark.parametrize(
  ("name", "where"), [("asking", ""), ("asking_h100", ", H100")]
)
def test_what_asking_costs_is_as_the_readme_says(name, where):
  for tree, row in results(name)["trees"].items():
    cells = [f"{value:.3g}" for value in list(row.values())[1:-1]]
    line = " | ".join([tree + where, str(row["weights"]), *cells])
    assert f"| {line} | {row['training_ratio']:.4f} |" in README
