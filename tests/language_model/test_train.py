"""Whole runs, tiny: every method and way in; kills, samples, commands."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewa_jax
from tests.extras import needs

needs("tensorboardX")
needs("orbax.checkpoint")

from examples import settings
from examples.language_model import data, sample, train
from examples.language_model.config import (
  PRESETS,
  Config,
  check,
  from_arguments,
)
from examples.language_model.model import kernels
from examples.language_model.state import (
  differentiate,
  init_state,
  make_latents,
  make_optimizer,
  make_setup,
)
from examples.metrics import Metrics

TINY = Config(
  layers=1,
  width=8,
  heads=2,
  hidden=16,
  context=16,
  batch_size=16,
  steps=60,
  evaluate=512,
  evaluate_steps=40,
  checkpoint_steps=20,
  learning_rate=3e-2,
)
BY_RANK = dataclasses.replace(
  TINY, method="rewa", k=9, sparsity=0.75, weight_decay=0.03
)
# Squares fall more slowly than ninth powers: more steps.
DIFFERENCE = dataclasses.replace(
  BY_RANK, latents="difference", steps=300, evaluate_steps=200
)
VOCABULARY = data.Vocabulary([bytes([i]) for i in range(16)])


@pytest.fixture(autouse=True)
def devices(request, monkeypatch):
  """One device, or so many; eight would wait for each other on two cores."""
  count = getattr(request, "param", 1)
  monkeypatch.setattr(jax, "device_count", lambda: count)
  return count


@pytest.fixture(scope="module")
def source():
  random = np.random.default_rng(0)
  # A walk, so that there is something to learn.
  steps = random.integers(1, 4, 9000)
  tokens = (np.cumsum(steps) % 16).astype(np.uint8)
  parts = np.split(tokens, [7000, 8000])
  names = ("train", "validation", "test")
  return data.Source(VOCABULARY, dict(zip(names, parts)))


def zeros_of(run, source):
  report = rewa_jax.sparsity(train.load(run, source), mask=kernels)
  return report.total_size - int(report.total_nonzero), report.total_size


@pytest.mark.parametrize(
  "config",
  [
    BY_RANK,
    dataclasses.replace(BY_RANK, way="drop-in"),
    DIFFERENCE,
    dataclasses.replace(TINY, method="gmp", sparsity=0.75),
  ],
  ids=["nnx", "drop-in", "difference", "gmp"],
)
def test_a_run_has_learned_and_as_many_zeros_as_were_asked_for(
  config, source, tmp_path
):
  results = train.train(config, tmp_path, [], source)
  zeros, size = zeros_of(tmp_path, source)
  assert zeros == 0.75 * size
  assert results["sparsity"] == 0.75
  # Chance is log 16, 2.77; the next step is one of three.
  assert results["test"]["nats_per_byte"] < 2.6
  assert results["test"]["perplexity"] == pytest.approx(
    np.exp(results["test"]["nats_per_byte"])
  )
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  kinds = [json.loads(line)["kind"] for line in lines]
  assert kinds.count("validation") == 2 and kinds[-1] == "test"
  if config.way == "nnx" and config.method == "rewa":
    assert json.loads(lines[-2])["vanished"] == pytest.approx(0.75, abs=0.05)
  assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("method", ["l1", "rewa"])
def test_a_fixed_strength_is_cut_to_nothing(method, source, tmp_path):
  config = dataclasses.replace(TINY, method=method, l1=0.5, steps=20)
  results = train.train(config, tmp_path, [], source)
  assert "cut" not in results
  assert (results["sparsity"] > 0) == (method == "l1")


@pytest.mark.parametrize("method", ["rewa", "gmp"])
def test_a_killed_run_ends_with_the_same_weights(
  method, source, tmp_path, monkeypatch
):
  config = dataclasses.replace(BY_RANK, method=method)
  whole = tmp_path / "whole"
  train.train(config, whole, [], source)
  step = Metrics.step

  def die(self, number, *args):
    if number == 45:
      raise KeyboardInterrupt
    step(self, number, *args)

  killed = tmp_path / "killed"
  with monkeypatch.context() as patched:
    patched.setattr(Metrics, "step", die)
    with pytest.raises(KeyboardInterrupt):
      train.train(config, killed, [], source)
  results = train.train(config, killed, [], source)
  assert results["resumed_at"] == 40
  for one, other in zip(
    *(jax.tree.leaves(train.load(run, source)) for run in (whole, killed))
  ):
    np.testing.assert_array_equal(one, other)
  # And a finished one is left alone.
  assert train.train(config, killed, [], source) == results


@pytest.mark.slow
def test_kill_9_changes_nothing(tmp_path):
  flags = ["--layers", "1", "--width", "16", "--heads", "2", "--hidden", "16"]
  flags += ["--context", "16", "--batch-size", "8", "--steps", "400"]
  flags += ["--checkpoint-steps", "20", "--evaluate", "1024"]

  def start(name):
    command = [sys.executable, "-m", train.PROGRAM, *flags]
    return subprocess.Popen([*command, "--out", tmp_path / name])

  run = start("killed")
  while not (tmp_path / "killed" / "checkpoints" / "20").exists():
    assert run.poll() is None
  run.kill()
  assert run.wait() == -signal.SIGKILL
  assert start("killed").wait() == start("whole").wait() == 0
  results = json.loads((tmp_path / "killed" / "results.json").read_text())
  assert 20 <= results["resumed_at"] < 400
  config = settings.read(tmp_path / "whole", Config)
  text = data.open_source(config, tmp_path)
  weights = [train.load(tmp_path / name, text) for name in ("killed", "whole")]
  for one, other in zip(*map(jax.tree.leaves, weights)):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mesh", ["data", "fsdp"])
@pytest.mark.parametrize("devices", [2], indirect=True)
@pytest.mark.usefixtures("devices")
def test_two_devices_do_what_one_does(mesh, source, monkeypatch):
  config = dataclasses.replace(BY_RANK, mesh=mesh)
  rows = data.batch(source.parts["train"], jax.random.key(0), 1, 16, 16)

  def stepped():
    setup, parallel, state = train.begin_with(config, source)
    step = parallel.train(
      jax.random.key(0), differentiate(config, setup), train.update(setup)
    )
    state, values = step(state, parallel.batch(rows), None)
    return state.params, values["loss"]

  params, loss = stepped()
  spread = [not x.sharding.is_fully_replicated for x in jax.tree.leaves(params)]
  assert any(spread) == (mesh == "fsdp")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  expected, one_loss = stepped()
  assert float(loss) == pytest.approx(float(one_loss), rel=1e-5)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_batch_in_parts_has_the_gradients_of_the_whole(source):
  rows = data.batch(source.parts["train"], jax.random.key(0), 1, 16, 16)
  setup = make_setup(TINY, 16)
  state = init_state(TINY, setup, 16, jax.random.key(0))
  (grads, metrics), (in_parts, others) = (
    jax.jit(differentiate(dataclasses.replace(TINY, accumulate=count), setup))(
      None, state, jnp.asarray(rows), None
    )
    for count in (1, 2)
  )
  assert float(metrics["loss"]) == pytest.approx(
    float(others["loss"]), rel=1e-5
  )
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(in_parts)):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_drop_in_starts_from_a_trained_run(source, tmp_path):
  first = dataclasses.replace(TINY, steps=40)
  train.train(first, tmp_path / "first", [], source)
  config = dataclasses.replace(
    BY_RANK, way="drop-in", start=str(tmp_path / "first")
  )
  _, _, state = train.begin_with(config, source)
  before = train.load(tmp_path / "first", source)
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(before)):
    np.testing.assert_array_equal(a, b)
  train.train(config, tmp_path / "second", [], source)
  zeros, size = zeros_of(tmp_path / "second", source)
  assert zeros == 0.75 * size


def test_the_drop_in_and_latents_in_the_model_are_one_method(source):
  rows = data.batch(source.parts["train"], jax.random.key(0), 1, 16, 16)
  weights = []
  for way in ("nnx", "drop-in"):
    config = dataclasses.replace(BY_RANK, way=way)
    setup, parallel, state = train.begin_with(config, source)
    step = parallel.train(
      jax.random.key(0), differentiate(config, setup), train.update(setup)
    )
    for _ in range(3):
      state, _ = step(state, parallel.batch(rows), None)
    weights.append(setup.to_weights(state.params))
  for a, b in zip(*map(jax.tree.leaves, weights)):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_by_rank_the_decay_is_the_librarys_own_unless_given():
  def updated(decay, config):
    latents = make_latents(config)
    weights = {"blocks": {"kernel": jnp.full((4, 4), 0.1)}}
    params = latents.to_latents(weights)
    solver = rewa_jax.adamw(
      0.1, latents, weight_decay=decay, sparsity=config.sparsity, steps=1000
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    return solver.update(zeros, solver.init(params), params)[0]

  for more in (["--latents", "difference"], ["--k", "3"], ["--k", "9"]):
    for sparsity in ("0.9", "0.98"):
      flags = ["--method", "rewa", "--sparsity", sparsity, *more]
      config = from_arguments(train.parse(flags))
      found, own = (updated(x, config) for x in (config.weight_decay, None))
      for a, b in zip(*map(jax.tree.leaves, (found, own))):
        np.testing.assert_allclose(a, b, rtol=1e-3)
        assert b.all()
  given = train.parse([*flags, "--weight-decay", "0.2"])
  assert from_arguments(given).weight_decay == 0.2
  assert from_arguments(train.parse([])).weight_decay == 0.1


def test_decay_reaches_kernels_alone():
  config = dataclasses.replace(TINY, steps=4, learning_rate=0.5)
  setup = make_setup(config, 16)
  params = init_state(config, setup, 16, jax.random.key(0)).params
  solver = make_optimizer(config, rewa_jax.Rewa(9, mask=kernels))
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(solver.update)(zeros, solver.init(params), params)
  moved = jax.tree.map(lambda u: bool(u.any()), updates)
  assert jax.tree.leaves(moved) == jax.tree.leaves(kernels(params))


def test_settings_that_do_not_go_together_are_named(tmp_path):
  for changes, said in (
    ({"heads": 3}, "a multiple of 2 \\* heads, 6, got 8"),
    ({"sparsity": 1.0}, "0 to below 1, got 1"),
    ({"sparsity": 0.5}, "goes with method gmp or rewa, got method dense"),
    ({"method": "gmp"}, "needs a sparsity above 0"),
    ({"accumulate": 3}, "a multiple of accumulate, 3, got 16"),
  ):
    with pytest.raises(ValueError, match=said):
      check(dataclasses.replace(TINY, **changes))
  settings.write(tmp_path, TINY)
  with pytest.raises(ValueError, match="steps was 60 and is 4"):
    settings.write(tmp_path, dataclasses.replace(TINY, steps=4))
  with pytest.raises(SystemExit, match="--latents goes with --method rewa"):
    train.main(["--latents", "difference", "--out", str(tmp_path / "dense")])
  wide = dataclasses.replace(TINY, width=16, head="own", start=str(tmp_path))
  with pytest.raises(ValueError, match="width is 8, not 16, head is 'tied'"):
    train.train(wide, tmp_path / "wide", [])


def test_a_sample_goes_on_from_the_prompt(tmp_path, capsys):
  config = dataclasses.replace(TINY, steps=2, checkpoint_steps=1)
  train.train(config, tmp_path, [])
  capsys.readouterr()
  arguments = [str(tmp_path), "--prompt", "The ", "--tokens", "30"]
  texts = []
  for more in ([], ["--seed", "1"], ["--temperature", "0"]):
    sample.main([*arguments, *more])
    texts.append(capsys.readouterr().out)
    assert texts[-1].startswith("The ") and len(texts[-1]) > 20
  assert len(set(texts)) == 3
  with pytest.raises(SystemExit, match="holds no run"):
    sample.main([str(tmp_path / "nothing")])


@pytest.mark.parametrize("main", [train.main, sample.main])
def test_help_explains_itself(main, capsys):
  with pytest.raises(SystemExit, match="0"):
    main(["--help"])
  text = capsys.readouterr().out
  assert "examples.language_model" in text and len(text) > 500


def test_no_run_no_weights(source, tmp_path):
  with pytest.raises(FileNotFoundError, match="no config.json"):
    train.load(tmp_path, source)
  settings.write(tmp_path, TINY)
  with pytest.raises(FileNotFoundError, match="no checkpoint"):
    train.load(tmp_path, source)


def test_the_readme_names_every_preset():
  text = pathlib.Path(train.__file__).with_name("README.md").read_text()
  assert all(f"`{preset}`" in text for preset in PRESETS)
