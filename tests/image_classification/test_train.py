"""Whole runs, tiny: every method, way in and parallelism; stops and resumes."""

import csv
import dataclasses
import functools
import itertools
import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewa_jax
from tests.extras import needs

needs("tensorboardX")
needs("grain")
Image = needs("PIL.Image")

from examples import settings
from examples.image_classification import checkpoints, compress, models, train
from examples.image_classification.config import (
  PRESETS,
  Config,
  from_arguments,
  to_arguments,
)
from examples.image_classification.pipeline import open_data, resolution_of
from examples.metrics import Metrics
from examples.parallel import Jit

# Three epochs of 5 batches of digits.
TINY = Config(epochs=3, batch_size=256, warmup_epochs=1)


# A residual network of a single block.
SMALL = functools.partial(
  models.ResNet, stages=(1,), block=models.NarrowBlock, width=4
)
RESNET = dataclasses.replace(TINY, model="small", ema=0.9, epochs=2)


@pytest.fixture
def small_resnet(monkeypatch):
  monkeypatch.setitem(models.MODELS, "small", SMALL)
  return "small"


@pytest.fixture(autouse=True)
def devices(request, monkeypatch):
  """One device, or so many; eight would wait for each other on two cores."""
  count = getattr(request, "param", 1)
  monkeypatch.setattr(jax, "device_count", lambda: count)
  monkeypatch.setattr(jax, "local_device_count", lambda: count)
  return count


def results_of(run, config):
  assert train.train(config, run, ["--seed", "0"]) == 0
  return json.loads((run / "results.json").read_text())


def begun(run, config):
  settings.write(run, config)
  return run


def trained(run, config):
  """Trains, and returns weights and statistics."""
  train.train(config, begun(run, config), ["--seed", "0"])
  return checkpoints.load(run)[1:]


def lines_of(run):
  text = (run / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def assert_trees_equal(one, other, **tolerance):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
    np.testing.assert_allclose(a, b, **({"rtol": 0} | tolerance))


@pytest.mark.slow
def test_the_program_trains_and_says_what_came_of_it(tmp_path, capsys):
  arguments = ["--epochs", "8", "--warmup-epochs", "1", "--out", str(tmp_path)]
  assert train.main(arguments) == 0
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["test"]["accuracy"] > 0.8
  assert results["command"].endswith(
    f"train --epochs 8 --warmup-epochs 1 --out {tmp_path.name}"
  )
  printed = capsys.readouterr()
  assert json.loads(printed.out) == results
  # Of 200 epochs 8 are too few, and that is said first.
  assert re.search("step 0: warning: .* --epochs [1-9]\\d+ for", printed.err)
  losses = [
    line["loss"] for line in lines_of(tmp_path) if line["kind"] == "test"
  ]
  assert len(losses) == 8
  assert losses[-1] < losses[0]
  assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "l1", "rewa-adamw"])
def test_other_methods_learn_too(method, tmp_path):
  rates = {"rewa-adamw": {"learning_rate": 0.01, "m": 0, "eps": 1e-3}}
  config = dataclasses.replace(
    TINY, method=method, l1=1e-4, epochs=6, **rates.get(method, {})
  )
  assert results_of(tmp_path, config)["test"]["accuracy"] > 0.6


@pytest.mark.slow
def test_every_way_in_gives_the_same_weights(tmp_path):
  ways = {}
  for way in ("linen", "trees", "drop-in"):
    config = dataclasses.replace(TINY, way=way, k=3, epochs=2)
    ways[way], _ = trained(tmp_path / way, config)
  assert_trees_equal(ways["linen"], ways["trees"], atol=1e-6)
  assert_trees_equal(ways["linen"], ways["drop-in"], atol=1e-4)


@pytest.mark.parametrize("devices", [8], indirect=True)
@pytest.mark.usefixtures("devices")
def test_fsdp_spreads_params_over_all_devices():
  parallel = Jit(shard_params=True)
  state = parallel.init(
    lambda: {"kernel": jnp.ones((3, 3, 16, 8)), "bias": jnp.ones(3)}
  )
  assert state["kernel"].addressable_shards[0].data.shape == (3, 3, 2, 8)
  assert state["bias"].sharding.is_fully_replicated


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of a small ResNet that nothing stopped."""
  run = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patched:
    patched.setitem(models.MODELS, "small", SMALL)
    patched.setattr(jax, "device_count", lambda: 1)
    return run, trained(run, RESNET)


@pytest.mark.slow
@pytest.mark.parametrize(
  "parallelism, devices",
  [("jit", 1), ("pmap", 2), ("fsdp", 2)],
  indirect=["devices"],
)
def test_a_stopped_run_continues_however_it_is_spread(
  parallelism, whole, small_resnet, tmp_path, monkeypatch
):
  config = dataclasses.replace(RESNET, parallelism=parallelism)
  step = Metrics.step

  def stop_at_3(self, number, *args):
    if number == 3:
      signal.raise_signal(signal.SIGTERM)
    step(self, number, *args)

  run = begun(tmp_path, config)
  with monkeypatch.context() as patched:
    patched.setattr(Metrics, "step", stop_at_3)
    assert train.train(config, run, ["--seed", "0"]) == 128 + signal.SIGTERM
  assert results_of(run, config)["resumed_at"] == 3
  other, weights = whole
  # Bit for bit, but for the order of sums when it is spread another way.
  tolerance = {} if parallelism == "jit" else {"atol": 1e-3}
  assert_trees_equal(checkpoints.load(run)[1:], weights, **tolerance)
  logs = [
    [line["loss"] for line in lines_of(path) if line["kind"] == "test"]
    for path in (other, run)
  ]
  assert len(logs[0]) == RESNET.epochs
  np.testing.assert_allclose(*logs, rtol=1e-3 if tolerance else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("method", "latents", "epochs"),
  # Squares fall more slowly than ninth powers: more steps.
  [("gmp", "power", 6), ("rewa", "power", 6), ("rewa", "difference", 30)],
)
def test_a_run_ends_with_the_zeros_asked_for_and_says_what_the_cut_cost(
  method, latents, epochs, small_resnet, tmp_path, monkeypatch
):
  config = dataclasses.replace(
    TINY,
    model=small_resnet,
    method=method,
    latents=latents,
    sparsity=0.75,
    weight_decay=0.0,
    schedule="linear",
    epochs=epochs,
    held_back=100,
  )
  step, stop = Metrics.step, 13 * epochs // 6

  def stop_early(self, number, *args):
    if number == stop:  # Of five an epoch, in the midst of pruning.
      signal.raise_signal(signal.SIGTERM)
    step(self, number, *args)

  whole = results_of(begun(tmp_path / "whole", config), config)
  run = begun(tmp_path / "stopped", config)
  with monkeypatch.context() as patched:
    patched.setattr(Metrics, "step", stop_early)
    assert train.train(config, run, ["--seed", "0"]) == 128 + signal.SIGTERM
  results = results_of(run, config)
  assert results["resumed_at"] == stop
  assert results["cut"] == whole["cut"]
  weights, statistics = checkpoints.load(run)[1:]
  assert_trees_equal(weights, checkpoints.load(tmp_path / "whole")[1])
  report = rewa_jax.sparsity(weights)
  assert int(report.total_nonzero) == round(0.25 * report.total_size)
  assert results["cut"]["nonzero"] == int(report.total_nonzero)
  accuracy = compress.testing(config, open_data(config))
  for split in ("validation", "test"):
    expected = pytest.approx(results[split]["accuracy"], abs=0.01)
    assert accuracy(weights, statistics, split) == expected
    assert 0 <= results["cut"]["before"][split]["accuracy"] <= 1
  # GMP has pruned before the end, so that its cut takes nothing.
  assert (results["cut"]["largest_cut"] == 0) == (method == "gmp")


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--method", "gmp"], "gmp needs a sparsity above 0, got 0"),
    (["--sparsity", "1"], "must be 0 to less than 1, got 1"),
    (
      ["--method", "l1", "--sparsity", "0.9"],
      "goes with methods gmp, rewa and rewa-adamw, got 0.9 with l1",
    ),
    (
      ["--way", "drop-in", "--sparsity", "0.9"],
      "ways linen and trees, got drop-in",
    ),
    (
      ["--sparsity", "0.9", "--start", "run", "--prune", "0.1"],
      "give sparsity or prune",
    ),
    (
      ["--method", "dense", "--latents", "difference"],
      "--latents goes with --method rewa or rewa-adamw, got dense",
    ),
    (
      ["--latents", "difference", "--k", "3"],
      "--k goes with --latents power, got difference",
    ),
    (["--l1", "0.1"], "--l1 goes with --method l1, got rewa"),
    (["--prune", "0.1"], "prune goes with --start"),
  ],
)
def test_what_does_not_go_together_is_said_before_a_run_begins(
  arguments, said, tmp_path
):
  with pytest.raises(SystemExit, match=said):
    train.main([*arguments, "--out", str(tmp_path)])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("flag", "value", "least"),
  [
    ("--sparsity", "-0.5", 0),
    ("--keep", "0", 1),
    ("--checkpoint-epochs", "0", 1),
    ("--clip", "nan", 0),
    ("--seed", "-1", 0),
  ],
)
def test_numbers_out_of_range_are_named(flag, value, least, capsys):
  with pytest.raises(SystemExit, match="2"):
    train.parse([flag, value])
  said = f"argument {flag}: must be at least {least}, got {value}"
  assert said in capsys.readouterr().err


def test_help_has_the_defaults_of_the_default_preset(capsys):
  with pytest.raises(SystemExit, match="0"):
    train.parse(["--help"])
  text = " ".join(capsys.readouterr().out.split())
  config = from_arguments(train.parse([]))
  for name in ("epochs", "warmup_epochs", "weight_decay"):
    help_of = text.rpartition(f" --{name.replace('_', '-')} ")[2]
    default = help_of.partition("(default: ")[2].partition(")")[0]
    assert float(default) == getattr(config, name)


def test_with_a_sparsity_the_decay_of_a_preset_does_not_count():
  def decay(*arguments):
    arguments = ["--preset", "resnet20", *arguments]
    return from_arguments(train.parse(arguments)).weight_decay

  assert decay() == 4e-3
  assert decay("--sparsity", "0.9") == 0
  assert decay("--sparsity", "0.9", "--weight-decay", "1e-3") == 1e-3
  assert decay("--sparsity", "0.9", "--method", "gmp") == 4e-3


@pytest.mark.parametrize("preset", PRESETS)
def test_flags_say_settings(preset):
  config = Config(**PRESETS[preset], sparsity=0.9, skip_broken=True)
  arguments = to_arguments(config)
  assert from_arguments(train.parse(arguments)) == config


@pytest.mark.slow
def test_ctrl_c_saves_and_a_finished_run_is_left_alone(tmp_path, monkeypatch):
  result = Metrics.result

  def interrupt(self, *args, **values):
    result(self, *args, **values)
    signal.raise_signal(signal.SIGINT)

  begun(tmp_path, TINY)
  with monkeypatch.context() as patched:
    patched.setattr(Metrics, "result", interrupt)
    # The signal comes after the first epoch and is seen a step later.
    assert train.train(TINY, tmp_path, ["--seed", "0"]) == 130
  results = results_of(tmp_path, TINY)
  assert results["resumed_at"] == 6
  assert results_of(tmp_path, TINY) == results


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept(tmp_path):
  trained(tmp_path, dataclasses.replace(TINY, keep=2))
  names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert names == {"10", "15"}


def test_other_settings_need_another_folder(tmp_path):
  begun(tmp_path, TINY)
  with pytest.raises(ValueError, match="epochs was 3 and is 4"):
    begun(tmp_path, dataclasses.replace(TINY, epochs=4))


@pytest.mark.slow
def test_zeros_stay_zero_when_pruned_weights_train_on(tmp_path):
  first = dataclasses.replace(TINY, weight_decay=0.05)
  before, _ = trained(tmp_path / "first", first)
  for method, way in (
    ("dense", "linen"),
    ("rewa", "linen"),
    ("rewa", "drop-in"),
  ):
    config = dataclasses.replace(
      TINY,
      method=method,
      way=way,
      m=0,
      start=str(tmp_path / "first"),
      prune=0.03,
      learning_rate=0.01,
    )
    after, _ = trained(tmp_path / f"{method}-{way}", config)
    pruned, masks = rewa_jax.prune(before, threshold=0.03)
    nonzero = jax.tree.map(lambda x: x != 0, after["Dense_0"]["kernel"])
    np.testing.assert_array_equal(nonzero, masks["Dense_0"]["kernel"])
    assert 0 < nonzero.sum() < nonzero.size
    moved = after["Dense_0"]["kernel"] != pruned["Dense_0"]["kernel"]
    assert moved.any()


@pytest.mark.slow
def test_a_layer_whose_weights_all_die_is_named_while_training(
  tmp_path, capsys
):
  config = dataclasses.replace(TINY, weight_decay=3.0, epochs=4)
  trained(tmp_path, config)
  assert "every weight of Dense_0/kernel is below" in capsys.readouterr().err
  assert "Dense_0/kernel" in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["linen", "drop-in"])
def test_too_little_decay_is_said_before_training_with_what_would_do(
  way, tmp_path, capsys
):
  low = dataclasses.replace(TINY, epochs=1, way=way)
  results_of(begun(tmp_path / "low", low), low)
  notes = capsys.readouterr().err
  assert "warning: decay budget" in notes and "may stay dense" in notes
  decay = float(re.search(r"--weight-decay (\S+) or", notes)[1])
  enough = dataclasses.replace(low, weight_decay=decay)
  results_of(begun(tmp_path / "enough", enough), enough)
  notes = capsys.readouterr().err
  assert float(re.search(r"decay budget (\S+)", notes)[1]) > 14
  assert "may stay dense" not in notes


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([], "decay budget 20.9"),
    (
      ["--epochs", "12"],
      "warning: decay budget 4.2, and"
      " below 8 a network may stay dense. It takes"
      " --weight-decay 0.0032 or --epochs 44 for a budget of 15.",
    ),
    (["--epochs", "12", "--weight-decay", "0.0032"], "decay budget 14.8"),
  ],
)
def test_lenet300_in_a_fifth_of_its_epochs_is_warned_of(arguments, said):
  parsed = train.parse(["--preset", "lenet300", *arguments])
  config = from_arguments(parsed)
  # Of MNIST, 5,000 held back.
  steps_per_epoch = 55_000 // config.batch_size
  network = train.make_network(config, classes=10)
  setup = train.make_setup(config, network, steps_per_epoch)
  state = jax.eval_shape(
    lambda key: train.init_state(config, setup, key, jnp.zeros((1, 28, 28, 1))),
    jax.random.key(0),
  )
  steps = config.epochs * steps_per_epoch
  budget = rewa_jax.measure_decay_budget(
    setup.optimizer, state.params, steps, method=setup.method
  )
  assert train.advice(config, budget) == said


@pytest.mark.parametrize("devices", [8], indirect=True)
@pytest.mark.usefixtures("devices")
def test_devices_share_a_batch_evenly(tmp_path):
  with pytest.raises(SystemExit, match="a multiple of the 8 devices, got 100"):
    train.main(["--batch-size", "100", "--out", str(tmp_path)])


@pytest.mark.slow
def test_a_run_that_diverges_ends_and_says_so(tmp_path):
  arguments = ["--learning-rate", "1e9", "--clip", "0", "--method", "dense"]
  with pytest.raises(SystemExit, match="the loss is nan by step 50"):
    train.main([*arguments, "--out", str(tmp_path)])


@pytest.mark.slow
def test_half_precision_keeps_params_in_float32(small_resnet, tmp_path):
  config = dataclasses.replace(
    RESNET,
    epochs=1,
    dtype="bfloat16",
    label_smoothing=0.1,
    augment="crop-flip",
  )
  weights, statistics = trained(tmp_path, config)
  leaves = jax.tree.leaves((weights, statistics))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_folders_of_images_train_at_rising_resolution(small_resnet, tmp_path):
  random = np.random.default_rng(0)
  for split in ("train", "val"):
    for label, name in enumerate(("dark", "light")):
      folder = tmp_path / "images" / split / name
      folder.mkdir(parents=True)
      for number in range(8):
        pixels = random.integers(0, 100, (40, 50, 3)) + 150 * label
        image = Image.fromarray(pixels.astype(np.uint8))
        image.save(folder / f"{number}.jpg")
  config = dataclasses.replace(
    TINY,
    data=str(tmp_path / "images"),
    model=small_resnet,
    batch_size=8,
    epochs=8,
    resolution=32,
    final_resolution=64,
    test_resolution=64,
    workers=0,
    learning_rate=0.1,
  )
  run = begun(tmp_path / "run", config)
  assert results_of(run, config)["test"]["accuracy"] > 0.9


def test_the_paper_s_cifar_10_has_a_decay_budget_of_18():
  config = Config(**PRESETS["cifar10-paper"])
  schedule = train.make_schedule(config, 50_000 // config.batch_size)
  steps = config.epochs * (50_000 // config.batch_size)
  budget = rewa_jax.decay_budget(config.k, config.weight_decay, schedule, steps)
  assert budget == pytest.approx(18, abs=1)


def test_imagenet_rises_from_160_to_192_pixels():
  config = Config(**PRESETS["imagenet-paper"])
  pixels = [resolution_of(config, epoch) for epoch in range(config.epochs)]
  assert pixels == sorted(pixels)
  assert set(pixels) == {160, 192}
  assert pixels[60] == 160 and pixels[77] == 192


@pytest.mark.slow
def test_curves_tables_and_pictures_of_runs(tmp_path, capsys):
  config = dataclasses.replace(TINY, held_back=100)
  runs = [tmp_path / "a", tmp_path / "b"]
  for seed, run in enumerate(runs):
    trained(run, dataclasses.replace(config, seed=seed))
  compress.main(["curve", *map(str, runs)])
  with (runs[0] / "curve.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert {row["run"] for row in rows} == {"a", "b"}
  own = [row for row in rows if row["run"] == "a"]
  compressions = [float(row["compression"]) for row in own]
  assert compressions == sorted(compressions)
  # At the smallest threshold, the run itself.
  results = json.loads((runs[0] / "results.json").read_text())
  for split in ("validation", "test"):
    expected = pytest.approx(results[split]["accuracy"], abs=1e-5)
    assert float(own[0][split]) == expected
  compress.main(["table", *map(str, runs), "--tolerance", "0.02"])
  table = json.loads((runs[0] / "table.json").read_text())
  means = {
    threshold: np.mean(
      [
        float(row["validation"])
        for row in rows
        if float(row["threshold"]) == threshold
      ]
    )
    for threshold in compress.THRESHOLDS
  }
  good = [t for t in means if means[t] >= max(means.values()) - 0.02]
  assert [row["threshold"] for row in table["runs"]] == [max(good)] * 2
  tests = [row["test"] for row in table["runs"]]
  assert table["mean"]["test"] == pytest.approx(np.mean(tests), abs=1e-5)
  capsys.readouterr()
  compress.main(["layers", str(runs[0]), "--threshold", "0.1"])
  report = rewa_jax.sparsity(checkpoints.load(runs[0])[1], 0.1)
  assert str(report) in capsys.readouterr().out
  assert (runs[0] / "layers.csv").read_text().startswith("layer,nonzero,of\n")
  for name in ("curve.png", "layers.png"):
    assert (runs[0] / name).stat().st_size > 1000


@pytest.mark.slow
def test_statistics_are_taken_anew_from_train_batches(whole, small_resnet):
  _, (weights, statistics) = whole
  config = dataclasses.replace(RESNET, ema=0.0)
  source = open_data(config)
  recalibrated = compress.recalibration(config, source, 2)
  means = recalibrated(weights, statistics)["stem_norm"]
  outputs = []
  for batch in itertools.islice(source.train_batches(0), 2):
    images, _ = source.to_images(None, batch, source.arrays["train"])
    outputs.append(
      jax.lax.conv_general_dilated(
        images,
        weights["stem"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    )
  by_hand = np.stack(outputs)
  axes = (1, 2, 3)
  np.testing.assert_allclose(
    means["mean"], by_hand.mean(axes).mean(0), rtol=1e-4
  )
  np.testing.assert_allclose(means["var"], by_hand.var(axes).mean(0), rtol=1e-4)


def test_no_run_no_curve(tmp_path):
  with pytest.raises(SystemExit, match="holds no run: it has no config.json"):
    compress.main(["curve", str(tmp_path)])
  begun(tmp_path, TINY)
  with pytest.raises(SystemExit, match="holds no checkpoint"):
    compress.main(["layers", str(tmp_path)])
