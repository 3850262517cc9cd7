import jax
import numpy as np
import pytest

import rewa_jax
from examples.theory import implicit_penalty
from examples.theory.implicit_penalty import ZERO

SIZES = np.linspace(0, 3, 30_001)


@pytest.mark.slow
def test_training_stops_where_the_penalty_balances_the_loss(x64):
  decay, settings = 0.05, implicit_penalty.SETTINGS
  for loss, shapes in implicit_penalty.losses().values():
    x, g = implicit_penalty.train(
      loss, shapes, settings, decay, 0.05, 10_000, seeds=1
    )
    assert np.isfinite(x).all()
    for (k, m, eps), weights, grads in zip(settings, x, g):
      nonzero = np.abs(weights) >= ZERO
      assert nonzero.any()
      size = np.abs(weights[nonzero])
      # y^(1-m) + eps y^(2-m-k) of the latent, from the update by hand.
      y = size ** (1 / k)
      pull = decay * (y ** (1 - m) + eps * y ** (2 - m - k))
      np.testing.assert_allclose(
        grads[nonzero], -np.sign(weights[nonzero]) * pull, rtol=1e-3
      )


def test_residuals_see_another_decay_and_another_m(x64):
  loss, shapes = implicit_penalty.losses()["quadratic"]
  setting, decay = (3, 2, 0.0), 0.05
  x, g = implicit_penalty.train(loss, shapes, [setting], decay, 0.05, 10_000, 1)
  worst = [
    implicit_penalty.residuals(x[0], g[0], *other).max()
    for other in [(setting, decay), (setting, 0.04), ((3, 1, 0.0), decay)]
  ]
  assert worst[0] < 1e-6
  assert min(worst[1:]) > 0.01


def test_shrinkage_curves_are_the_closed_forms(x64):
  lam = 0.5
  curves = implicit_penalty.penalties(lam, SIZES)
  gamma, a = 3.0, 3.7

  def soft(z, by):
    return max(z - by, 0)

  def scad(z):
    if z <= 2 * lam:
      return soft(z, lam)
    return z if z > a * lam else ((a - 1) * z - a * lam) / (a - 2)

  expected = {
    "soft threshold": lambda z: soft(z, lam),
    "hard threshold": lambda z: z if z > lam else 0,
    "MCP (gamma = 3)": lambda z: (
      z if z > gamma * lam else soft(z, lam) / (1 - 1 / gamma)
    ),
    "SCAD (a = 3.7)": scad,
  }
  for name, closed_form in expected.items():
    for z in (0.2, 0.45, 0.7, 1.1, 1.4, 2.2):
      shrunk = implicit_penalty.shrink(z, SIZES, curves[name])
      assert shrunk == pytest.approx(closed_form(z), abs=2e-4), (name, z)


@pytest.mark.parametrize(("k", "m"), [(9, 2), (9, 4), (9, 6)])
def test_jump_of_a_single_power_is_the_closed_form(k, m, x64):
  lam = 0.5
  curves = implicit_penalty.penalties(lam, SIZES)
  z, x = implicit_penalty.jump(SIZES, curves[f"ReWA A: k={k}, m={m}"])
  # Of (x - z)^2 / 2 + c x^p: zero derivative, and the value of x = 0.
  p, c = 1 + (1 - m) / k, lam * k / (k + 1 - m)
  leaves_for = (2 * c * (1 - p)) ** (1 / (2 - p))
  assert x == pytest.approx(leaves_for, abs=2e-3)
  at = leaves_for + c * p * leaves_for ** (p - 1)
  assert z == pytest.approx(at, abs=1e-4)


def test_config_b_jumps_and_the_convex_penalties_do_not(x64):
  curves = implicit_penalty.penalties(0.5, SIZES)
  for name, penalty in curves.items():
    _, x = implicit_penalty.jump(SIZES, penalty)
    jumps = name.startswith(("ReWA", "hard"))
    assert (x > 0.1) == jumps, name


def test_argmin_is_zero_where_the_penalty_falls_to_minus_infinity(x64):
  for m in (2, 4):
    penalty = jax.vmap(rewa_jax.Penalty(9, m, 1e-3).value)(SIZES)
    assert implicit_penalty.shrink(2.5, SIZES, 0.5 * np.asarray(penalty)) == 0
