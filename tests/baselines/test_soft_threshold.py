import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewa_jax
from rewa_jax import baselines
from tests.baselines import descent


def sigmoid(s):
  return 1 / (1 + np.exp(-np.asarray(s, np.float64)))


def test_weights_are_soft_thresholded_at_the_logistic_function():
  w = jnp.array([2.0, -2.0, 0.3, 0.0, -0.6])
  method = baselines.SoftThreshold()
  for s in (-20.0, -1.0, 0.0, 3.0):
    expected = np.sign(w) * np.maximum(np.abs(w) - sigmoid(s), 0)
    np.testing.assert_allclose(
      method.join(w, jnp.asarray(s)), expected, rtol=1e-6, atol=1e-7
    )


def test_every_leaf_has_one_threshold():
  params = {"a": {"kernel": jnp.ones((3, 2))}, "b": {"kernel": jnp.ones(4)}}
  latents = baselines.SoftThreshold(-3.0).to_latents(params)
  for name in "ab":
    w, s = jax.tree.leaves(latents[name]["kernel"])
    assert s.shape == (1,) * w.ndim
    assert s.item() == -3
    np.testing.assert_allclose(w, 1 + sigmoid(-3), rtol=1e-6)


def test_latents_of_stacked_layers_are_those_of_each():
  layers = jax.random.normal(jax.random.key(0), (3, 2, 3))
  method = baselines.SoftThreshold(-1.0)
  starts = jax.tree.map(
    lambda *s: jnp.stack(s), *map(baselines.SoftThreshold, (-1.0, 0.0, 1.0))
  )
  latents = jax.vmap(lambda m, x: m.to_latents({"w": x}))(starts, layers)
  together = method.to_weights(latents)["w"]
  one_by_one = jax.vmap(method.to_weights)(latents)["w"]
  np.testing.assert_array_equal(together, one_by_one)


def test_stationary_points_solve_the_equations_of_both_latents(x64):
  """With g the gradient of the loss in x: where x is nonzero

    g + weight_decay w = 0,

  and the threshold takes in what all of them want,

    sum of -sign(w) sigmoid'(s) g + weight_decay s = 0.
  """
  weight_decay = 0.02
  latents, weights = descent.train(
    baselines.SoftThreshold(-2.0), weight_decay, rate=0.5
  )
  w, s = jax.tree.leaves(latents["kernel"])
  x = weights["kernel"]
  alive = x != 0
  assert 0 < alive.sum() < alive.size
  np.testing.assert_array_equal(alive, np.abs(w) > sigmoid(s))
  gradient = descent.logistic_gradient(weights)
  np.testing.assert_allclose(gradient["bias"], 0, atol=1e-9)
  g = gradient["kernel"]
  np.testing.assert_allclose(g[alive], -weight_decay * w[alive], atol=1e-9)
  slope = sigmoid(s) * (1 - sigmoid(s))
  along = -np.sum(np.sign(w[alive]) * g[alive]) * slope
  np.testing.assert_allclose(along, -weight_decay * s, atol=1e-9)
  # Of a dead weight nothing but its decay is left.
  np.testing.assert_allclose(w[~alive], 0, atol=1e-9)


def test_decay_raises_the_threshold():
  method = baselines.SoftThreshold(-8.0)
  latents = method.to_latents({"w": jnp.zeros(3)})

  def thresholds(weight_decay):
    solver = rewa_jax.sgd(0.1, method, weight_decay=weight_decay)

    def step(carry, _):
      latents, state = carry
      grads = jax.tree.map(jnp.zeros_like, latents)
      updates, state = solver.update(grads, state, latents)
      latents = jax.tree.map(jnp.add, latents, updates)
      return (latents, state), jax.nn.sigmoid(latents["w"]["latent_1"][0])

    start = latents, solver.init(latents)
    return np.asarray(jax.lax.scan(step, start, length=100)[1])

  decayed = thresholds(0.5)
  assert (np.diff(decayed) > 0).all()
  steps = np.arange(1, 101)
  np.testing.assert_allclose(decayed, sigmoid(-8 * 0.95**steps), rtol=1e-4)
  np.testing.assert_allclose(thresholds(0.0), sigmoid(-8), rtol=1e-6)


def test_there_is_no_penalty_on_weights_alone():
  with pytest.raises(NotImplementedError, match="threshold is learned"):
    baselines.SoftThreshold().implicit_penalty(jnp.ones(3))


@pytest.mark.parametrize("start", [np.nan, np.inf, -np.inf])
def test_start_is_finite(start):
  with pytest.raises(ValueError, match="start must be a finite real number"):
    baselines.SoftThreshold(start)
