import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rewa_jax
from rewa_jax import baselines
from tests.baselines import descent

# What they solve.


@pytest.mark.parametrize(
  "depth,groups",
  [pytest.param(2, "output", marks=pytest.mark.slow), (3, "input")],
)
def test_stationary_points_are_those_of_the_penalized_loss(depth, groups, x64):
  axis = 0 if groups == "output" else 1
  method = baselines.Gated(groups, depth=depth)
  # The papers' strength of 0.15, at which their penalty has no depth / 2.
  weight_decay = 0.15 * 2 / depth
  _, weights = descent.train(method, weight_decay, rate=0.2)
  x = weights["kernel"]
  norms = np.linalg.norm(x, axis=axis, keepdims=True)
  alive = norms > 1e-4
  assert 0 < alive.sum() < alive.size
  assert norms[~alive].max() < 1e-9
  p = 2 / depth
  with np.errstate(divide="ignore", invalid="ignore"):
    slope = depth / 2 * p * norms ** (p - 1) * x / norms
  descent.assert_stationary(weights, weight_decay, slope, alive)
  np.testing.assert_allclose(
    method.implicit_penalty(x), depth / 2 * np.sum(norms**p), rtol=1e-12
  )


def test_weights_are_groups_times_all_their_gates():
  method = baselines.Gated("output", depth=3)
  u, nu = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, -1.0]])
  np.testing.assert_array_equal(method.join(u, nu, 2 * nu), [[2, 4], [6, 8]])


# Where they start.


@pytest.mark.parametrize("depth", [2, 4])
def test_without_offset_a_group_starts_balanced(depth):
  x = jnp.array([[3.0, 0.0, 1e-3], [-4.0, 0.0, 0.0]])
  method = baselines.Gated("output", depth=depth, offset=0)
  directions, *gates = method.split("kernel", x)
  assert len(gates) == depth - 1
  size = np.array([5, 0, 1e-3]) ** (1 / depth)
  for gate in gates:
    np.testing.assert_allclose(gate, size[None], rtol=1e-6)
  np.testing.assert_allclose(
    np.linalg.norm(directions, axis=0), size, rtol=1e-6
  )


def test_an_offset_keeps_the_gates_of_small_groups_from_zero():
  x = jnp.array([[3.0, 0.0], [0.0, 0.0]])
  directions, gate = baselines.Gated("output", offset=4.0).split("kernel", x)
  np.testing.assert_allclose(gate, [[5**0.5, 2.0]], rtol=1e-6)
  np.testing.assert_allclose(directions * gate, x, rtol=1e-6)


def test_a_group_at_zero_comes_alive_with_an_offset_only():
  def end(offset):
    method = baselines.Gated("output", offset=offset)

    def loss(latents):
      return jnp.sum((method.to_weights(latents)["kernel"] - 1) ** 2) / 2

    latents = method.to_latents({"kernel": jnp.zeros((2, 2))})
    solver = rewa_jax.sgd(0.1, method, weight_decay=0.01)
    latents = jax.jit(lambda y: descent.descend(solver, loss, y, 500))(latents)
    return method.to_weights(latents)["kernel"]

  np.testing.assert_array_equal(end(0), 0)
  assert (end(0.1) > 0.9).all()


def test_heads_of_attention_share_a_gate():
  bare = nn.MultiHeadDotProductAttention(2, qkv_features=8)
  model = rewa_jax.linen.Reparameterized(bare, baselines.Gated("heads"))
  inputs = jax.random.normal(jax.random.key(0), (3, 6))
  latents = model.init(jax.random.key(1), inputs)
  gates = {
    name: layer["kernel"]["latent_1"].shape
    for name, layer in latents["params"].items()
  }
  to_heads = dict.fromkeys(("query", "key", "value"), (1, 2, 1))
  assert gates == to_heads | {"out": (2, 1, 1)}


def test_the_path_tells_groups_where_they_are():
  seen = []

  def groups(path, leaf):
    seen.append((path, leaf.shape))
    return (0,)

  params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
  baselines.Gated(groups).to_latents(params)
  assert seen == [("dense/kernel", (3, 2))]


# Bad input.


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="depth must be .* >= 2, got 1"):
    baselines.Gated("output", depth=1)
  with pytest.raises(TypeError, match=r"depth must be .* >= 2, got 2\.0"):
    baselines.Gated("output", depth=2.0)
  with pytest.raises(ValueError, match="offset must be .* >= 0, got -1"):
    baselines.Gated("output", offset=-1)
  with pytest.raises(ValueError, match="groups must be one of .*'outputs'"):
    baselines.Gated("outputs")
  with pytest.raises(ValueError, match=r"dense/kernel of shape \(3,\)"):
    baselines.Gated("output").to_latents({"dense": {"kernel": jnp.ones(3)}})
