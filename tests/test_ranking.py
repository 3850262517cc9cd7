"""What a sparsity is a share of, wherever one is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rewa_jax
from rewa_jax import baselines

PARAMS = {
  "conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 8, 4))},
  "out": {
    "kernel": 0.01 * jax.random.normal(jax.random.key(1), (8, 6)),
    "bias": jnp.ones(6),
  },
}


def zeros(params):
  return [int(jnp.sum(params[n]["kernel"] == 0)) for n in ("conv", "out")]


def test_of_every_four_inputs_the_two_largest_stay():
  pruned, masks = rewa_jax.prune(PARAMS, sparsity=0.5, scope="2:4")
  for name in ("conv", "out"):
    size, left = (np.abs(p[name]["kernel"]) for p in (PARAMS, pruned))
    # (..., blocks, 4, outputs)
    size, left = (
      x.reshape(*x.shape[:-2], -1, 4, x.shape[-1]) for x in (size, left)
    )
    second = np.sort(size, axis=-2)[..., 2:3, :]
    np.testing.assert_array_equal(left, np.where(size >= second, size, 0))
    np.testing.assert_array_equal(
      masks[name]["kernel"], pruned[name]["kernel"] != 0
    )


def test_blocks_of_equal_weights_and_zeros_keep_exactly_n():
  params = {"kernel": jnp.zeros((8, 3)).at[5].set(1.0).at[:4].set(-2.0)}
  pruned, _ = rewa_jax.prune(params, sparsity=0.75, scope="1:4")
  np.testing.assert_array_equal((pruned["kernel"] != 0).sum(0), [2, 2, 2])
  # Of equal ones the last stays.
  np.testing.assert_array_equal(pruned["kernel"][3], [-2, -2, -2])


def test_of_infinite_weights_a_block_keeps_n_too():
  inf = jnp.inf
  params = {"kernel": jnp.array([inf, -inf, jnp.nan, 1.0, 1, 2, 3, 4])[:, None]}
  pruned, _ = rewa_jax.prune(params, sparsity=0.5, scope="2:4")
  kept = (pruned["kernel"] != 0).reshape(2, 4)
  np.testing.assert_array_equal(kept.sum(1), [2, 2])


def test_channels_go_together_the_weakest_per_weight_first():
  pruned, _ = rewa_jax.prune(PARAMS, sparsity=0.6, groups="output")
  # Ten channels: the small kernel's six go, however few weights they are.
  assert zeros(pruned) == [0, 48]
  pruned, _ = rewa_jax.prune(
    PARAMS, sparsity=0.5, scope="leaf", groups="output"
  )
  norms = np.sqrt(np.sum(PARAMS["conv"]["kernel"] ** 2, axis=(0, 1, 2)))
  alive = (pruned["conv"]["kernel"] != 0).all((0, 1, 2))
  np.testing.assert_array_equal(alive, norms >= np.sort(norms)[2])
  assert zeros(pruned) == [144, 24]


def test_a_tree_of_shares_is_one_for_each_leaf():
  shares = {"conv": 0.25, "out": {"kernel": 0.5, "bias": 0.0}}
  pruned, _ = rewa_jax.prune(PARAMS, sparsity=shares, scope="leaf")
  assert zeros(pruned) == [72, 24]


def test_gradual_pruning_takes_the_same_words():
  def end(sparsity, **options):
    solver = baselines.gradual_pruning(
      sparsity, begin=0, end=4, every=1, **options
    )
    params, state, update = PARAMS, solver.init(PARAMS), jax.jit(solver.update)
    for _ in range(5):
      still = jax.tree.map(jnp.zeros_like, params)
      updates, state = update(still, state, params)
      params = optax.apply_updates(params, updates)
    return params

  for sparsity, options in [
    (0.5, {"scope": "2:4"}),
    (0.6, {"groups": "output"}),
    ({"conv": 0.25, "out": 0.5}, {"scope": "leaf"}),
  ]:
    expected, _ = rewa_jax.prune(PARAMS, sparsity=sparsity, **options)
    jax.tree.map(
      np.testing.assert_array_equal, end(sparsity, **options), expected
    )


def test_erdos_renyi_kernel_spares_thin_layers():
  shares = rewa_jax.erdos_renyi_kernel(PARAMS, 0.75)
  sizes = np.array([288, 48])
  kept = sizes * (1 - np.array([shares[n]["kernel"] for n in ("conv", "out")]))
  np.testing.assert_allclose(kept.sum(), 0.25 * sizes.sum(), rtol=1e-6)
  # Density goes with the sum of the sizes over their product.
  np.testing.assert_allclose(kept[0] / kept[1], (3 + 3 + 8 + 4) / (8 + 6))
  assert shares["out"]["bias"] == 0
  # A layer that would keep more than all keeps all.
  shares = rewa_jax.erdos_renyi_kernel(PARAMS, 0.2)
  assert shares["out"]["kernel"] == 0
  np.testing.assert_allclose(
    288 * (1 - shares["conv"]["kernel"]), 0.8 * 336 - 48
  )


def test_erdos_renyi_kernel_spares_scalars_and_what_is_empty():
  params = {"a": jnp.ones(()), "b": jnp.ones((0, 4)), "c": jnp.ones((10, 10))}
  shares = rewa_jax.erdos_renyi_kernel(params, 0.5, mask=None)
  assert shares["a"] == shares["b"] == 0
  assert 100 * (1 - shares["c"]) + 1 == pytest.approx(101 / 2)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(scope="4:2"), "0 < n <= m.*'4:2'"),
    (dict(scope="2:4", sparsity=0.75), "a sparsity of 0.5, got sparsity=0.75"),
    (dict(scope="4:8", groups="rows"), "exclude each other"),
    (dict(groups="layers"), "groups must be one of"),
    (dict(sparsity={"conv": 0.5, "out": 0.5}), "scope must be 'leaf'"),
    (dict(sparsity={"conv": 0.5}, scope="leaf"), "sparsity has the leaves"),
    (dict(sparsity={"conv": 1.5}, scope="leaf"), "sparsity at conv must be"),
    (dict(scope="3:5", sparsity=0.4), "conv/kernel .*8 inputs.* blocks of 5"),
  ],
)
def test_what_does_not_fit_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    rewa_jax.prune(PARAMS, **({"sparsity": 0.5} | options))


@pytest.mark.parametrize(
  "method",
  [rewa_jax.Rewa(k=3), baselines.HadamardDifference(2), baselines.spred()],
  ids=str,
)
def test_erdos_renyi_kernel_takes_the_state_of_an_nnx_model(method):
  bare = nnx.Sequential(
    nnx.Linear(40, 50, rngs=nnx.Rngs(0)), nnx.Linear(50, 2, rngs=nnx.Rngs(1))
  )
  wanted = rewa_jax.erdos_renyi_kernel(nnx.state(bare, nnx.Param), 0.8)
  model = rewa_jax.nnx.reparameterize(bare, method)
  shares = rewa_jax.erdos_renyi_kernel(nnx.state(model, nnx.Param), 0.8)
  assert sorted(jax.tree.leaves(shares)) == sorted(jax.tree.leaves(wanted))
  decay = rewa_jax.decay_by_rank(
    method, shares, 0.1, 200, low=0.1, scope="leaf"
  )
  nnx.Optimizer(model, decay, wrt=nnx.Param)
