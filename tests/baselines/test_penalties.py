import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewa_jax.baselines import (
  L1,
  MCP,
  SCAD,
  AdaptiveL1,
  GroupL1,
  SparsePenalty,
)
from tests.extras import needs

RNG = np.random.default_rng(0)
VALUES = np.concatenate([RNG.normal(size=300) * 3, [0.0, 1e-9, -1e3]])
PILOT = RNG.normal(size=VALUES.shape)

# Ours, theirs, and the penalty of one weight from its definition.
PENALTIES = {
  "L1": (
    L1(0.7),
    lambda penalties: penalties.L1(0.7),
    lambda x: 0.7 * np.abs(x),
  ),
  "MCP": (
    MCP(0.7, 2.5),
    lambda penalties: penalties.MCPenalty(0.7, 2.5),
    lambda x: np.where(
      np.abs(x) < 1.75, 0.7 * np.abs(x) - x**2 / 5, 2.5 * 0.49 / 2
    ),
  ),
  "SCAD": (
    SCAD(0.7, 3.5),
    lambda penalties: penalties.SCAD(0.7, 3.5),
    lambda x: np.select(
      [np.abs(x) <= 0.7, np.abs(x) <= 2.45],
      [0.7 * np.abs(x), (4.9 * np.abs(x) - x**2 - 0.49) / 5],
      0.49 * 4.5 / 2,
    ),
  ),
  "AdaptiveL1": (
    AdaptiveL1(0.7, PILOT, gamma=1.5, delta=0.1),
    lambda penalties: penalties.WeightedL1(0.7, (np.abs(PILOT) + 0.1) ** -1.5),
    None,
  ),
}


# What they are: skglm's.


@pytest.mark.parametrize("name", PENALTIES)
def test_value_is_that_of_skglm(name, x64):
  ours, make, _ = PENALTIES[name]
  theirs = make(needs("skglm").penalties)
  np.testing.assert_allclose(
    ours.value(VALUES), theirs.value(VALUES), rtol=1e-12
  )


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("step", [1e-3, 0.3, 1.0, 2.3])
def test_prox_is_that_of_skglm(name, step, x64):
  ours, make, _ = PENALTIES[name]
  theirs = make(needs("skglm").penalties)
  expected = [theirs.prox_1d(v, step, j) for j, v in enumerate(VALUES)]
  np.testing.assert_allclose(ours.prox(VALUES, step), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["L1", "MCP", "SCAD"])
@pytest.mark.parametrize("step", [0.5, 2.5, 3.0, 4.0, 4.5, 20.0])
def test_prox_is_the_best_point_of_a_fine_grid_at_any_step(name, step, x64):
  ours, _, penalty = PENALTIES[name]
  grid = np.linspace(-8, 8, 8001)
  x = VALUES[:100]
  z = np.asarray(ours.prox(x, step))

  def objective(z, x):
    return (z - x) ** 2 / 2 + step * penalty(z)

  best = objective(grid[:, None], x).min(axis=0)
  assert (objective(z, x) <= best + 1e-12).all()
  assert (objective(z, x) >= best - 1e-5).all()


def test_prox_of_groups_is_that_of_skglm(x64):
  prox_funcs = needs("skglm.utils.prox_funcs")
  x = RNG.normal(size=(3, 4, 5))
  for strength, step in [(0.5, 1.0), (3.0, 0.7), (2.0, 2.0)]:
    ours = GroupL1(strength, "output").prox(x, step, "conv/kernel")
    theirs = np.stack(
      [prox_funcs.BST(x[..., j].ravel(), strength * step) for j in range(5)],
      axis=-1,
    )
    np.testing.assert_allclose(ours, theirs.reshape(x.shape), atol=1e-13)
  norms = np.sqrt((x**2).sum(axis=(0, 1)))
  np.testing.assert_allclose(
    GroupL1(2.0, "output").value(x, "conv/kernel"), 2 * norms.sum(), rtol=1e-12
  )


def test_the_path_decides_what_a_group_is():
  x = jnp.array([[3.0, 0.1], [4.0, 0.1]])
  penalty = GroupL1(1.0, "output")
  columns = penalty.prox(x, 1.0, "dense/kernel")
  np.testing.assert_allclose(columns, [[2.4, 0], [3.2, 0]], rtol=1e-6)
  rows = penalty.prox(x, 1.0, "dense/weight")
  assert (rows != 0).all()


def test_adaptive_l1_finds_its_pilot_by_path_and_frees_large_weights():
  pilot = {"a": {"kernel": jnp.array([10.0, 0.1])}, "b": jnp.ones(3)}
  penalty = AdaptiveL1(1.0, pilot)
  x = jnp.array([1.0, 1.0])
  np.testing.assert_allclose(
    penalty.prox(x, 0.5, "a/kernel"), [0.95, 0], rtol=1e-6
  )
  assert penalty.value(x, "a/kernel") == pytest.approx(10.1)


def test_a_pilot_of_zero_is_fatal_without_delta_but_never_nan():
  penalty = AdaptiveL1(1.0, jnp.zeros(2), gamma=2.0)
  x = jnp.array([1.0, 0.0])
  np.testing.assert_array_equal(penalty.prox(x, 1e-3), [0, 0])
  np.testing.assert_array_equal(penalty.prox(x, 0.0), x)
  assert penalty.value(x[1:] * jnp.ones(2)) == 0
  spared = AdaptiveL1(1.0, jnp.zeros(2), delta=1.0)
  np.testing.assert_allclose(spared.prox(x, 0.25), [0.75, 0])


# Limits.


def test_large_gamma_is_l1(x64):
  for penalty in (MCP(0.7, 1e9), SCAD(0.7, 1e9)):
    expected = L1(0.7).prox(VALUES, 0.5)
    np.testing.assert_allclose(penalty.prox(VALUES, 0.5), expected, atol=1e-5)


def test_gammas_at_the_end_of_their_range_have_their_limits(x64):
  x = jnp.array([0.3, 0.69, 0.71, -5.0])
  # Scad becomes L1, capped at strength squared.
  capped = SCAD(0.7, 1.0)
  assert capped.value(x) == pytest.approx(0.7 * 0.99 + 2 * 0.49)
  np.testing.assert_allclose(
    capped.prox(jnp.array([0.3, 1.0, 1.2, -5.0]), 1.0), [0, 0.3, 1.2, -5.0]
  )
  assert MCP(0.7, 0.0).value(x) == 0
  np.testing.assert_array_equal(MCP(0.7, 0.0).prox(x, 1.0), x)


EVERY = [
  L1(0.5),
  MCP(0.5),
  SCAD(0.5),
  AdaptiveL1(0.5, jnp.ones((2, 3))),
  GroupL1(0.5),
]


@pytest.mark.parametrize("penalty", EVERY, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_prox_keeps_the_dtype_and_makes_exact_zeros(penalty, dtype, x64):
  x = jnp.array([[0.1, -0.1, 0.0], [0.1, 0.2, 5.0]], dtype)
  z = penalty.prox(x, 0.5)
  assert z.dtype == x.dtype
  np.testing.assert_array_equal(z[:, :2], 0)
  assert 4.5 < z[1, 2] <= 5
  assert (penalty.prox(x, 0.0) == x).all()


@pytest.mark.parametrize("penalty", EVERY, ids=lambda p: type(p).__name__)
def test_nan_is_not_swallowed(penalty):
  x = jnp.ones((2, 3)).at[0, 0].set(jnp.nan)
  assert jnp.isnan(penalty.prox(x, 0.5)[0, 0])
  assert jnp.isnan(penalty.value(x))


def test_a_grid_of_hyperparameters_is_one_vmap():
  x = jnp.linspace(-3, 3, 12).reshape(4, 3)
  grid = jnp.array([[0.2, 2.0, 0.5], [0.8, 3.0, 1.0], [0.5, 1.5, 4.0]])
  makers = [
    lambda s, g: L1(s),
    MCP,
    SCAD,
    lambda s, g: AdaptiveL1(s, x, g),
    lambda s, g: GroupL1(s),
  ]
  for make in makers:

    def run(strength, gamma, step, make=make):
      penalty = make(strength, gamma)
      return penalty.prox(x, step), penalty.value(x)

    together = jax.jit(jax.vmap(run))(*grid.T)
    for row, proxes, value in zip(grid.tolist(), *together):
      one_prox, one_value = run(*row)
      np.testing.assert_allclose(proxes, one_prox, rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(value, one_value, rtol=1e-5)


def test_every_penalty_has_the_interface_and_a_number_has_not():
  assert all(isinstance(penalty, SparsePenalty) for penalty in EVERY)
  assert not isinstance(0.5, SparsePenalty)


# Errors.


@pytest.mark.parametrize("make", [L1, MCP, SCAD, GroupL1])
@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_strength_out_of_range_is_named(make, strength):
  with pytest.raises(ValueError, match="strength must be a finite .* >= 0"):
    make(strength)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (functools.partial(MCP, 1.0, -0.5), "gamma must .* >= 0, got -0.5"),
    (functools.partial(SCAD, 1.0, 0.5), "gamma must .* >= 1, got 0.5"),
    (functools.partial(AdaptiveL1, 1.0, 1, -1.0), "gamma must .* >= 0"),
    (functools.partial(AdaptiveL1, 1.0, 1, 1.0, -1.0), "delta must .* >= 0"),
    (functools.partial(GroupL1, 1.0, "columns"), "got 'columns'"),
  ],
)
def test_other_hyperparameters_out_of_range_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_strength_must_be_a_number():
  with pytest.raises(TypeError, match="strength must .* of type str"):
    L1("1")


def test_a_pilot_that_does_not_fit_is_named():
  penalty = AdaptiveL1(1.0, {"a": {"kernel": jnp.ones(3)}})
  with pytest.raises(ValueError, match="no leaf b/kernel, only a/kernel.*mask"):
    penalty.prox(jnp.ones(3), 1.0, "b/kernel")
  with pytest.raises(ValueError, match=r"at a/kernel: pilot has shape \(3,\)"):
    penalty.value(jnp.ones(4), "a/kernel")


def test_a_leaf_without_groups_is_named():
  with pytest.raises(ValueError, match="dense/bias .* 2 axes"):
    GroupL1(1.0).prox(jnp.ones(3), 1.0, "dense/bias")
