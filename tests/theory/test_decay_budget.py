import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewa_jax
from examples.theory import decay_budget, task


@pytest.fixture(scope="module")
def digits():
  return task.load()


def test_parts_of_digits_share_no_image(digits):
  images = np.concatenate([np.asarray(x) for x, _ in digits.values()])
  assert images.shape == (1797, 64)
  # All images of digits differ from each other.
  assert len(np.unique(images, axis=0)) == len(images)


@pytest.mark.parametrize("k", decay_budget.POWERS)
def test_every_k_has_the_same_penalty_exponent(k):
  penalty = rewa_jax.Penalty(k, decay_budget.same_penalty(k))
  assert penalty.p == pytest.approx(8 / 9)


@pytest.mark.slow
def test_training_is_algorithm_1_with_momentum(digits):
  """An oracle of three steps in NumPy, with JAX for the gradients alone."""
  k, steps, decay = 9, 3, 0.04
  weights = decay_budget.train_group(k, steps, (decay,), digits["train"], 1)
  images, labels = digits["train"]
  key = jax.random.fold_in(jax.random.key(0), 1)
  x = task.initial_weights(0)
  latents = {n: np.float64(w["kernel"]) for n, w in x["params"].items()}
  latents = {n: np.sign(w) * np.abs(w) ** (1 / k) for n, w in latents.items()}
  biases = {n: np.float64(w["bias"]) for n, w in x["params"].items()}
  velocity = {n: [0.0, 0.0] for n in latents}

  def tree():
    layers = {
      n: {"kernel": jnp.float32(latents[n] ** k), "bias": jnp.float32(b)}
      for n, b in biases.items()
    }
    return {"params": layers}

  for count in range(steps):
    batch = jax.random.randint(
      jax.random.fold_in(key, count), (task.BATCH_SIZE,), 0, 1100
    )
    grads = jax.grad(task.mean_loss)(tree(), images[batch], labels[batch])[
      "params"
    ]
    for n, y in latents.items():
      g = np.asarray(grads[n]["kernel"]) * y**2
      velocity[n][0] = 0.9 * velocity[n][0] + g
      velocity[n][1] = 0.9 * velocity[n][1] + np.asarray(grads[n]["bias"])
      latents[n] = (1 - 0.1 * decay) * y - 0.1 * velocity[n][0]
      biases[n] = biases[n] - 0.1 * velocity[n][1]
  constant = decay_budget.SCHEDULES.index("constant")
  result = task.pick(weights, (constant, 0, 0))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    result,
    tree(),
  )


@pytest.mark.slow
def test_equal_budgets_kill_equally_and_equal_lambdas_do_not(digits):
  rows = []
  for k, lambdas in ((9, (0.025,)), (2.25, (0.025, 0.1))):
    weights = decay_budget.train_group(k, 800, lambdas, digits["train"], 1)
    rows += decay_budget.rows_of(weights, k, 800, lambdas, digits["test"])
  constant = [row for row in rows if row["schedule"] == "constant"]
  nine, sibling, equal = constant
  budgets = [row["budget"] for row in constant]
  assert budgets == pytest.approx([18, 4.5, 18])
  # A dead network would be sparse as well.
  assert min(row["accuracy"] for row in constant) > 0.8
  assert nine["below_1e-6"] > 0.9
  assert equal["below_1e-6"] > 0.9
  assert sibling["below_1e-6"] < 0.01


@pytest.mark.slow
def test_dead_weights_decay_as_the_budget_says(digits):
  weights = decay_budget.train_group(9, 200, (0.025,), digits["train"], 1)
  row = decay_budget.rows_of(weights, 9, 200, (0.025,), digits["test"])[0]
  start = decay_budget.sizes(task.initial_weights(0))
  alone = np.mean(start * np.exp(-row["budget"]) < 1e-3)
  assert row["below_1e-3"] == pytest.approx(alone, abs=0.03)


def test_the_smaller_range_governs():
  names = dict.fromkeys(decay_budget.MEASURES, 0.0)
  rows = [
    {**names, "budget": b, "weight_decay": w, "below_1e-6": b, "accuracy": w}
    for b in decay_budget.EQUAL["budget"]
    for w in decay_budget.EQUAL["weight_decay"]
  ]
  assert decay_budget.governs(rows, "below_1e-6") == "B"
  assert decay_budget.governs(rows, "accuracy") == "lambda"
  for row in rows:
    row["survivors"] = row["budget"] / 18 + row["weight_decay"] / 0.04
  assert decay_budget.governs(rows, "survivors") == "neither alone"


def test_published_settings_differ_by_four():
  # Half of lr times steps, 0.256 * 19,600 / 2, times k * 8e-4.
  assert decay_budget.published()["k=9"] == pytest.approx(18.06, abs=0.01)
  assert decay_budget.published()["k=2.25"] == pytest.approx(4.516, abs=0.01)
