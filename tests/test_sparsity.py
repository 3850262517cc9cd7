import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import rewa_jax
from rewa_jax import baselines

PARAMS = {
  "a": {"kernel": jnp.array([[0.0, 2.0], [-0.5, 0.0]]), "bias": jnp.zeros(2)},
  "b": {"kernel": jnp.array([[3.0], [-1e-7]])},
}


def test_counts_by_leaf_and_in_all():
  report = rewa_jax.sparsity(PARAMS)
  assert report.size == {"a/kernel": 4, "b/kernel": 2}
  assert {k: int(v) for k, v in report.nonzero.items()} == {
    "a/kernel": 2,
    "b/kernel": 2,
  }
  assert (int(report.total_nonzero), report.total_size) == (4, 6)
  assert float(report.sparsity) == pytest.approx(1 / 3)
  assert float(report.compression) == pytest.approx(1.5)
  above = rewa_jax.sparsity(PARAMS, threshold=0.5)
  assert int(above.total_nonzero) == 2


def test_it_prints_a_table():
  table = str(rewa_jax.sparsity(PARAMS))
  assert table.splitlines() == [
    "leaf         nonzero  of  sparsity  compression",
    "a/kernel           2   4    50.00%         2.0x",
    "b/kernel           2   2     0.00%         1.0x",
    "all                4   6    33.33%         1.5x",
    "not counted            2",
  ]
  assert "not counted" not in str(rewa_jax.sparsity(PARAMS, mask=None))


def test_leaves_that_are_no_arrays_are_not_counted():
  params = {"kernel": jnp.ones(3), "activation": jnp.tanh, "bias": jnp.ones(2)}
  assert rewa_jax.sparsity(params).uncounted == 2


def test_reports_stacked_by_vmap_print_one_by_one():
  count = jax.vmap(lambda t: rewa_jax.sparsity(PARAMS, t))
  report = count(jnp.array([0.0, 0.5]))
  first, second = (rewa_jax.sparsity(PARAMS, t) for t in (0.0, 0.5))
  assert str(report) == f"[0]\n{first}\n[1]\n{second}"
  grid = jax.tree.map(lambda x: x.reshape(1, 2), report)
  assert str(grid) == f"[0]\n{report}"


def test_scalars_for_a_log():
  report = rewa_jax.sparsity(PARAMS)
  logged = {name: float(value) for name, value in report.scalars().items()}
  assert logged == {
    "sparsity": pytest.approx(1 / 3),
    "compression": 1.5,
    "nonzero": 4,
    "sparsity/a/kernel": 0.5,
    "sparsity/b/kernel": 0,
  }
  compiled = jax.jit(lambda p: rewa_jax.sparsity(p).scalars("eval/"))(PARAMS)
  assert compiled == {f"eval/{name}": value for name, value in logged.items()}


def test_leaves_whose_paths_print_alike_are_both_counted():
  params = {"a/kernel": jnp.ones(3), "a": {"kernel": jnp.zeros(4)}}
  report = rewa_jax.sparsity(params, mask=None)
  assert report.size == {"['a']['kernel']": 4, "['a/kernel']": 3}
  assert (int(report.total_nonzero), report.total_size) == (3, 7)


def test_counts_under_jit_and_vmap():
  count = jax.jit(jax.vmap(rewa_jax.sparsity, (None, 0)))
  report = count(PARAMS, jnp.array([0.0, 1e-6, 10.0]))
  assert report.total_nonzero.tolist() == [4, 3, 0]
  assert report.compression.tolist() == [1.5, 2.0, float("inf")]


def test_edges():
  empty = rewa_jax.sparsity({})
  assert (float(empty.sparsity), float(empty.compression)) == (0, 1)
  assert rewa_jax.sparsity({"w": jnp.zeros((0, 3))}).compression == 1
  assert "all" in str(empty)
  assert "0x" not in str(rewa_jax.sparsity({"w": jnp.zeros(3)}))
  assert int(rewa_jax.sparsity({"w": jnp.array(jnp.nan)}).total_nonzero) == 1
  assert int(rewa_jax.sparsity({"w": 0.5}).total_nonzero) == 1


def test_latents_are_as_sparse_as_their_weights():
  weights = rewa_jax.sparsity(PARAMS)
  latents = rewa_jax.sparsity(rewa_jax.Rewa(k=9).to_latents(PARAMS))
  assert int(latents.total_nonzero) == int(weights.total_nonzero)


@pytest.mark.parametrize(
  "method",
  [rewa_jax.Rewa(k=9), baselines.spred(), baselines.Gated("output")],
)
@pytest.mark.parametrize("threshold", [0, 1e-6, 0.6])
def test_of_latents_the_weights_are_counted(method, threshold):
  latents = method.to_latents(PARAMS)
  report = rewa_jax.sparsity(latents, threshold, method=method)
  # Factors of a small weight and its zeros start away from zero.
  wanted = rewa_jax.sparsity(method.to_weights(latents), threshold)
  assert report.size == wanted.size
  assert report.nonzero == wanted.nonzero


def test_the_mask_of_the_method_says_what_is_counted():
  rewa = rewa_jax.Rewa(k=3, mask={"a": True, "b": False})
  latents = rewa.to_latents(PARAMS)
  report = rewa_jax.sparsity(latents, method=rewa)
  assert report.size == {"a/kernel": 4, "a/bias": 2}
  with pytest.raises(ValueError, match="mask and method both say .* mask None"):
    rewa_jax.sparsity(latents, mask=None, method=rewa)


@pytest.mark.parametrize(
  "mask", [rewa_jax.kernels, None, {"kernel": True, "bias": False}]
)
@pytest.mark.parametrize("form", [lambda state: state, nnx.to_pure_dict])
def test_latents_of_nnx_are_counted_with_their_method_alone(mask, form):
  rewa = rewa_jax.Rewa(k=9, mask=mask)
  model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  weights = rewa_jax.sparsity(nnx.state(model, nnx.Param), 0.4, mask)
  wrapped = rewa_jax.nnx.reparameterize(model, rewa)
  latents = form(nnx.state(wrapped, nnx.Param))
  report = rewa_jax.sparsity(latents, 0.4, method=rewa)
  assert 0 < int(report.total_nonzero) == int(weights.total_nonzero) < 8
  assert report.total_size == weights.total_size
  for use in (rewa_jax.sparsity, rewa_jax.prune):
    with pytest.raises(ValueError, match="rewa_latents/.* holds latents"):
      use(latents, threshold=0.4)


def test_latents_of_several_arrays_are_refused_without_their_method():
  latents = baselines.spred().to_latents(PARAMS)
  with pytest.raises(ValueError, match="a/kernel holds latents, not weights"):
    rewa_jax.sparsity(latents)
  with pytest.raises(
    ValueError, match="a/kernel holds 2 arrays for one, but R"
  ):
    rewa_jax.sparsity(latents, method=rewa_jax.Rewa(k=3))


def test_a_bad_threshold_for_counting_is_refused():
  with pytest.raises(ValueError, match="threshold must be .* >= 0, got -1"):
    rewa_jax.sparsity(PARAMS, -1)


# Beyond 32 bits.


@pytest.mark.slow
def test_a_leaf_with_more_entries_than_32_bits_count_is_counted_exactly():
  shape = 2**16 + 3, 2**16 + 5

  @jax.jit
  def count(rows):
    # Never in memory.
    return rewa_jax.sparsity({"kernel": jnp.broadcast_to(rows, shape)})

  report = count(jnp.arange(shape[0], dtype=jnp.float32)[:, None])
  size = shape[0] * shape[1]
  nonzero = size - shape[1]
  assert nonzero > 2**32
  assert int(report.total_nonzero) == int(report.nonzero["kernel"]) == nonzero
  assert f"{nonzero:,}  {size:,}     0.00%         1.0x" in str(report)


@pytest.mark.parametrize(
  "leaves",
  [
    [(2**31 - 1, 2**31 - 1), (1, 7)],
    [(2**31, 2**32), (2**31, 2**32), (5, 7)],
    [(3, 2**32), (2**40 + 1, 2**41)],
  ],
)
def test_totals_of_more_than_32_bits_are_exact(leaves):
  counts = {
    f"{i}": (jnp.uint32(n >> 32), jnp.uint32(n & (2**32 - 1)))
    for i, (n, _) in enumerate(leaves)
  }
  sizes = {f"{i}": size for i, (_, size) in enumerate(leaves)}
  report = rewa_jax.Sparsity(counts, sizes)
  nonzero, size = (sum(column) for column in zip(*leaves))
  assert int(report.total_nonzero) == nonzero and report.total_size == size
  assert [int(n) for n in report.nonzero.values()] == [n for n, _ in leaves]
  shares = {"sparsity": 1 - nonzero / size, "compression": size / nonzero}
  for name, share in shares.items():
    assert float(getattr(report, name)) == pytest.approx(share, rel=1e-6)
  # Under a transformation, where they can be float32 alone.
  logged = jax.jit(lambda report: report.scalars())(report)
  for name, share in shares.items():
    assert float(logged[name]) == pytest.approx(share, rel=1e-5, abs=1e-6)
  assert float(logged["nonzero"]) == pytest.approx(nonzero, rel=1e-6)
  stacked = jax.tree.map(lambda x: jnp.stack([x, x]), report)
  assert stacked.total_nonzero.tolist() == [nonzero] * 2
  assert stacked.compression.shape == stacked.sparsity.shape == (2,)
