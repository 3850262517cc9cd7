"""The NNX program, tiny: images of 8x8, its least network or a smaller one."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rewa_jax
from examples.image_classification import data, train_nnx

REWA = train_nnx.REWA


def tiny_dataset(channels=1, count=64, classes=3):
  """Images as bright as their class, and noise."""
  random = np.random.default_rng(0)
  labels = np.arange(count, dtype=np.int32) % classes
  noise = random.integers(0, 60, (count, 8, 8, channels))
  images = np.uint8(80 * labels[:, None, None, None] + noise)
  split = data.Split(images, labels)
  level = np.full(channels, 0.5, np.float32)
  return data.Dataset(split, split, split, classes, level, level / 2)


class Tiny(nnx.Module):
  """A network that compiles in no time."""

  def __init__(self, depth, dataset, rngs):
    self.conv = train_nnx.conv(len(dataset.mean), 4, rngs=rngs)
    self.norm = train_nnx.norm(4, rngs=rngs)
    self.head = nnx.Linear(4, dataset.classes, rngs=rngs)

  def __call__(self, images):
    x = nnx.relu(self.norm(self.conv(images / 255)))
    return self.head(x.mean((1, 2)))


@pytest.fixture
def tiny_network(monkeypatch):
  monkeypatch.setattr(train_nnx, "ResNet", Tiny)


def settings(**more):
  return SimpleNamespace(
    **{"method": "rewa", "depth": 8, "seed": 0, "epochs": 2, "batch_size": 32},
    **{"learning_rate": 0.5, "budget": 1.0, "weight_decay": 5e-4},
    **more,
  )


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_the_network_has_the_published_layers():
  # He et al., section 4.2: a stem, 6 layers of each of 16, 32 and 64 filters,
  # the first of a stage on the channels before it, and 10 logits. Every
  # convolution has two numbers of batch normalization for each of its filters.
  inputs = [3] + [16] * 7 + [32] * 6 + [64] * 5
  filters = [16] * 7 + [32] * 6 + [64] * 6
  published = sum(9 * i * o + 2 * o for i, o in zip(inputs, filters))
  published += 64 * 10 + 10
  assert published == 269_722  # "0.27M" in their table 6.

  images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)
  dataset = tiny_dataset(channels=3, classes=10)
  model = nnx.eval_shape(
    lambda: train_nnx.ResNet(20, dataset, rngs=nnx.Rngs(0))
  )
  sizes = [leaf.size for leaf in jax.tree.leaves(params_of(model))]
  assert sum(sizes) == published
  assert nnx.eval_shape(lambda m, x: m(x), model, images).shape == (2, 10)


def test_a_shortcut_subsamples_and_pads_with_zeros():
  block = train_nnx.Block(16, 32, nnx.Rngs(0))
  block.norm2.scale[...] = jnp.zeros(32)  # Only the shortcut is left.
  x = np.float32(np.random.default_rng(0).uniform(size=(1, 6, 6, 16)))
  y = nnx.jit(lambda block, x: block(x))(block, x)
  assert y.shape == (1, 3, 3, 32)
  np.testing.assert_array_equal(y[..., 8:24], x[:, ::2, ::2])
  assert not y[..., :8].any() and not y[..., 24:].any()


def test_weights_start_as_he_et_al_draw_them():
  model = train_nnx.ResNet(8, tiny_dataset(), nnx.Rngs(0))
  kernel = model.blocks.layers[-1].conv2.kernel[...]
  assert jnp.std(kernel) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.slow
def test_only_photographs_are_mirrored():
  ramp = jnp.broadcast_to(jnp.arange(1.0, 9)[:, None], (64, 8, 8, 1))
  # A crop moves by one pixel; the middle tells the direction.
  augment = jax.jit(train_nnx.augment)
  grey = augment(jax.random.key(0), ramp)
  assert (grey[:, 4, 5] > grey[:, 4, 2]).all()
  color = augment(jax.random.key(0), jnp.repeat(ramp, 3, -1))
  mirrored = (color[:, 4, 5, 0] < color[:, 4, 2, 0]).mean()
  assert 0.2 < mirrored < 0.8


@pytest.mark.slow
def test_steps_are_those_of_the_latents_by_hand(tiny_network):
  dataset = tiny_dataset()
  args = settings()
  model, optimizer, decay = train_nnx.prepare(args, dataset, steps=40)
  # Copies: a step donates the arrays of its model.
  graph, *states = nnx.split(model.weights(), nnx.Param, ...)
  params, rest = jax.tree.map(jnp.copy, states)
  latents = REWA.to_latents(nnx.to_pure_dict(params))
  schedule = optax.warmup_cosine_decay_schedule(0.25, 0.5, 2, 40)
  assert decay == pytest.approx(
    1 / (REWA.k * sum(float(schedule(step)) for step in range(40)))
  )
  solver = optax.chain(
    optax.clip_by_global_norm(1.0),
    rewa_jax.sgd(schedule, REWA, weight_decay=decay, momentum=0.9),
  )
  state = solver.init(latents)
  metrics = nnx.MultiMetric(
    loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy()
  )
  labels = jnp.asarray(dataset.train.labels)

  @jax.jit
  def step(latents, state, key):
    images = train_nnx.augment(key, jnp.asarray(dataset.train.images))

    def loss(latents):
      weights = REWA.to_weights(latents)
      model = nnx.merge(graph, nnx.State(weights), rest, copy=True)
      logits = model(images)
      return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(64), labels])

    value, slopes = jax.value_and_grad(loss)(latents)
    updates, state = solver.update(slopes, state, latents)
    return value, optax.apply_updates(latents, updates), state

  losses = []
  for key in jax.random.split(jax.random.key(0), 4):
    train_nnx.train_step(
      model, optimizer, metrics, key, dataset.train.images, labels
    )
    loss, latents, state = step(latents, state, key)
    losses.append(loss)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    REWA.to_latents(params_of(model.weights())),
    latents,
  )
  assert metrics.compute()["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.slow
def test_pruning_leaves_the_model_and_is_right_about_it(tiny_network):
  dataset = tiny_dataset()
  model, *_ = train_nnx.prepare(settings(), dataset, steps=10)
  bare = model.weights()
  before = jax.tree.map(np.array, params_of(bare))
  rows = train_nnx.prune_and_test(bare, dataset.test)
  jax.tree.map(np.testing.assert_array_equal, params_of(bare), before)
  assert not bare.norm.use_running_average
  bare.eval()
  right = bare(dataset.test.images).argmax(-1) == dataset.test.labels
  assert rows[0]["test_accuracy"] == pytest.approx(right.mean())
  kernels = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(before)
    if "kernel" in jax.tree_util.keystr(path)
  ]
  for row in rows:
    kept = sum((np.abs(kernel) > row["threshold"]).sum() for kernel in kernels)
    assert row["nonzero"] == kept
    total = sum(kernel.size for kernel in kernels)
    assert row["compression"] == pytest.approx(total / kept)


def run(tmp_path, monkeypatch, *options):
  """Returns what the program wrote."""
  monkeypatch.setattr(data, "load", lambda folder: tiny_dataset())
  out = tmp_path / "out"
  size = ["--depth=8", "--batch-size=16", "--epochs=4"]
  train_nnx.main([*options, *size, f"--out={out}"])
  text = (out / "results.json").read_text()
  assert str(tmp_path) not in text
  return json.loads(text)


@pytest.mark.slow
def test_the_program_learns_with_rewa(tmp_path, monkeypatch, capsys):
  results = run(tmp_path, monkeypatch, "--budget=1")
  assert results["settings"]["method"] == "rewa"
  assert "--budget=1 " in results["command"]
  losses = [epoch["loss"] for epoch in results["history"]]
  assert len(losses) == 4 and losses[-1] < 0.8 * losses[0]
  rows = results["thresholds"]
  assert [row["threshold"] for row in rows] == list(train_nnx.THRESHOLDS)
  assert rows[0]["nonzero"] > rows[1]["nonzero"] > rows[-1]["nonzero"]
  printed = capsys.readouterr().out
  assert "stem/kernel" in printed and "compression" in printed


@pytest.mark.slow
def test_a_low_budget_is_warned_of_before_training(
  tmp_path, monkeypatch, tiny_network, capsys
):
  monkeypatch.setattr(train_nnx, "train", lambda *_: [])
  run(tmp_path, monkeypatch, "--budget=1")
  said = capsys.readouterr().out
  found = re.search(r"warning: .* --budget 15, a weight decay of (\S+),", said)
  schedule = optax.warmup_cosine_decay_schedule(1.0, 1.0, 1, 16)
  enough = rewa_jax.weight_decay_for(15, REWA.k, schedule, 16)
  assert float(found[1]) == pytest.approx(float(enough), rel=0.05)
  run(tmp_path, monkeypatch, "--budget=12")
  said = capsys.readouterr().out
  assert "decay budget 1" in said and "warning" not in said


def test_the_program_learns_dense(tmp_path, monkeypatch, tiny_network, capsys):
  results = run(tmp_path, monkeypatch, "--method=dense")
  assert "decay budget" not in capsys.readouterr().out
  assert results["settings"]["weight_decay"] == 5e-4
  losses = [epoch["loss"] for epoch in results["history"]]
  assert losses[-1] < 0.8 * losses[0]


def refusal(capsys, *argv):
  with pytest.raises(SystemExit):
    train_nnx.main([str(word) for word in argv])
  return capsys.readouterr().err


def test_bad_arguments_are_refused(tmp_path, capsys):
  folder = tmp_path / "nothing"
  out = ("--out", tmp_path)
  assert str(folder) in refusal(capsys, "--data", folder, *out)
  assert "not an option of --method dense" in refusal(
    capsys, "--method", "dense", "--budget", 3, *out
  )
  assert "--learning-rate must be" in refusal(
    capsys, "--learning-rate", "-1", *out
  )
  assert "got 100000" in refusal(capsys, "--batch-size", 100_000, *out)
