import jax.numpy as jnp
import numpy as np
import pytest

from examples.theory import stagnation


@pytest.mark.parametrize(("k", "m"), stagnation.SETTINGS)
def test_without_decay_latents_follow_the_flow_solved_by_hand(k, m, x64):
  path = stagnation.train(k, m, 0.0, steps=20_000, learning_rate=0.01)
  for i, curvature in enumerate(stagnation.CURVATURES):
    for step in (2000, 20_000):
      flow = stagnation.flow_without_decay(k, m, curvature, 0.01 * step)
      assert float(path[step, i]) == pytest.approx(flow, rel=1e-3)


def test_without_curvature_and_decay_a_latent_never_moves(x64):
  assert (stagnation.train(9, 2, 0.0, steps=1000)[:, -1] == 0.5).all()


@pytest.mark.parametrize(("k", "m"), stagnation.SETTINGS)
def test_with_decay_latents_fall_exponentially(k, m, x64):
  path = np.asarray(stagnation.train(k, m, 0.1, steps=8000))
  assert (path[-1] < 1e-30).all()
  for latents in path.T:
    assert stagnation.rate_per_step(latents) == pytest.approx(
      np.log(1 - 0.1 * 0.1), rel=1e-6
    )


@pytest.mark.parametrize("m", [1.5, 2, 4, 6])
def test_a_step_crosses_zero_from_above_the_bound_and_only_there(m, x64):
  ratios = np.array([1e-3, 0.5, 0.999, 1.001, 2.03, 1e3])
  shares = stagnation.crossings(9, m, ratios)
  assert (shares[:3] == 0).all()
  assert (shares[3:] > 0).all()
  # By hand: gradients across zero that exceed B / ratio^(m-1), of 201.
  towards = np.linspace(-1, 1, 201)
  expected = [(towards * r ** (m - 1) > 1).mean() for r in ratios]
  np.testing.assert_allclose(shares, expected, atol=1e-12)


def test_gradients_can_push_out_of_the_bound_but_not_out_of_lambda_over_b(x64):
  assert (stagnation.adversary(9, 2, 0.0202) < 0).any()
  held = stagnation.adversary(9, 2, 0.0198)
  assert (held > 0).all() and (jnp.diff(held) < 0).all()
