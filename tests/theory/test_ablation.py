import math
import re

import jax
import numpy as np
import pytest

from examples.theory import ablation, task


@pytest.fixture(scope="module")
def digits():
  return task.load()


@pytest.mark.slow
@pytest.mark.parametrize("method", ablation.METHODS)
def test_first_step_is_what_the_method_says(digits, method):
  """Against the formulas in NumPy, with JAX for the gradient alone."""
  k, m, rate, decay = 9, 2, 0.02, 0.03
  images, labels = digits["train"]
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)
  batch = jax.random.randint(key, (task.BATCH_SIZE,), 0, labels.size)
  start = task.initial_weights(0)
  grads = jax.grad(task.mean_loss)(start, images[batch], labels[batch])

  def expected(path, x, g):
    x, g = np.float64(x), np.float64(g)
    if "bias" in jax.tree_util.keystr(path) or method == "dense":
      return x - rate * g
    if method == "no power":
      slope = np.sign(x) * np.minimum(np.abs(x) ** (8 / 9 - 1), 2)
      return x - rate * (g + decay * slope)
    y = np.sign(x) * np.abs(x) ** (1 / k)
    if method == "no adaptive step":
      y = y - rate * (k * np.abs(y) ** (k - 1) * g + decay * y)
    else:
      y = y - rate * np.abs(y) ** m * g
      y = y - rate * decay * np.sign(x) * np.abs(x) ** (1 / k) * (
        method == "full"
      )
    return np.sign(y) * np.abs(y) ** k

  setting = (rate, 0.0 if method in ("no decay", "dense") else decay)
  trained = ablation.train(method, [setting], digits["train"], 1, 1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    task.pick(trained, (0, 0)),
    jax.tree_util.tree_map_with_path(expected, start, grads),
  )


def test_methods_with_a_penalty_have_equally_large_grids():
  sizes = [len(ablation.grid_of(m)) for m in ablation.METHODS]
  assert sizes == [27, 27, 3, 27, 3]


@pytest.mark.parametrize(
  ("steps", "said"),
  [
    (ablation.STEPS, r"decay budgets 0\.1 to 4\d\d\.\d, .* weak end"),
    (20, r"warning: decay budgets 0\.0 to 4\.\d, .* takes lambdas up to 1\.\d"),
  ],
)
def test_the_decay_budgets_of_the_grid_are_said(steps, said):
  assert re.match(said, ablation.describe_budgets(steps))


@pytest.mark.slow
def test_without_decay_the_network_stays_dense(digits):
  kept = {}
  for method, decay in (("full", 0.2), ("no decay", 0.0)):
    weights = ablation.train(method, [(0.1, decay)], digits["train"], 200, 1)
    kept[method] = ablation.measure(weights, [(0.1, decay)], digits)[0]
  assert kept["full"]["compression"] > 10
  assert kept["no decay"]["compression"] < 1.05


def test_counts_and_accuracies_are_of_the_pruned_network(digits):
  weights = task.initial_weights(0)
  weights = jax.tree.map(lambda w: 0.01 * w[None, None], weights)
  row = ablation.measure(weights, [(0.1, 0.0)], digits)[0]
  pruned = jax.tree.map(
    lambda w: np.where(np.abs(w[0, 0]) <= 1e-3, 0, w[0, 0]), weights
  )
  layers = pruned["params"].values()
  assert row["nonzero"] == sum(np.count_nonzero(x["kernel"]) for x in layers)
  images, labels = digits["test"]
  first, last = layers
  hidden = np.maximum(np.asarray(images) @ first["kernel"], 0)
  hits = (hidden @ last["kernel"]).argmax(-1) == np.asarray(labels)
  # Sums in another order may turn one image of 400.
  assert row["test_accuracy"] == pytest.approx(hits.mean(), abs=0.0026)


def test_rule_takes_the_sparsest_of_the_accurate_or_the_most_accurate():
  rows = [
    {"validation_accuracy": a, "nonzero": n}
    for a, n in ((0.97, 900), (0.95, 90), (0.5, 1))
  ]
  assert ablation.choose(rows, 0.94)["nonzero"] == 90
  assert ablation.choose(rows, math.inf)["nonzero"] == 900


def test_a_part_is_needed_where_its_loss_costs_weights_or_accuracy():
  chosen = {
    "full": {"nonzero": 100, "validation_accuracy": 0.95},
    "denser": {"nonzero": 200, "validation_accuracy": 0.97},
    "worse": {"nonzero": 50, "validation_accuracy": 0.5},
    "better": {"nonzero": 50, "validation_accuracy": 0.95},
  }
  assert ablation.needed(chosen, "denser", 0.94)
  assert ablation.needed(chosen, "worse", 0.94)
  assert not ablation.needed(chosen, "better", 0.94)
