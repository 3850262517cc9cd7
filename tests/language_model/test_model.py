"""The transformer: what it sees, what of it is sparse, how large it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rewa_jax
from tests.extras import needs

needs("tensorboardX")

from examples.language_model.config import PRESETS, Config
from examples.language_model.model import Shape, Transformer, kernels, rotate
from examples.language_model.state import (
  differentiate,
  init_state,
  make_setup,
  update,
)

SMALL = Shape(vocabulary=11, layers=2, width=8, heads=2, hidden=12)


def model(shape=SMALL, dtype=jnp.float32):
  return Transformer(shape, dtype, nnx.Rngs(0))


def test_a_token_sees_those_before_it_alone():
  tokens = jnp.arange(9)[None] % SMALL.vocabulary
  other = tokens.at[0, 5].set(10)
  before, after = map(nnx.jit(model()), (tokens, other))
  np.testing.assert_array_equal(before[0, :5], after[0, :5])
  assert (before[0, 5:] != after[0, 5:]).any(-1).all()


def test_rotary_positions_are_relative():
  query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 6))
  queries, keys = (
    rotate(jnp.tile(x, (1, 12, 1, 1)))[0, :, 0] for x in (query, key)
  )
  products = np.asarray(queries @ keys.T)
  for distance in range(-11, 12):
    diagonal = np.diagonal(products, distance)
    np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
  assert abs(products[0, 0] - products[0, 3]) > 1e-3


def test_rotary_positions_turn_complex_numbers():
  x = jax.random.normal(jax.random.key(0), (1, 7, 1, 8))
  z = np.asarray(x[..., :4] + 1j * x[..., 4:])
  angle = np.arange(7)[:, None, None] * 10_000.0 ** (-np.arange(4) / 4)
  turned = z * np.exp(1j * angle)
  expected = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(rotate(x), expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_head_and_norms_stay_dense(tied):
  weights = nnx.state(model(SMALL._replace(tied=tied)))
  report = rewa_jax.sparsity(weights, mask=kernels)
  ends = {path.split("/", 2)[-1] for path in report.size}
  assert ends == {
    *("attention/inputs/kernel", "attention/output/kernel"),
    *("mlp/input/kernel", "mlp/output/kernel"),
  }
  assert len(report.size) == 4 * SMALL.layers
  assert report.total_size == 2 * (8 * 24 + 8 * 8 + 8 * 24 + 12 * 8)
  embeddings = 11 * 8 * (1 if tied else 2)
  assert report.uncounted == embeddings + 5 * 8


def test_half_precision_is_of_the_computation_alone():
  half = model(dtype=jnp.bfloat16)
  leaves = jax.tree.leaves(nnx.state(half))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
  tokens = jnp.arange(6)[None]
  logits, whole = nnx.jit(half)(tokens), nnx.jit(model())(tokens)
  assert logits.dtype == jnp.float32
  assert 0 < jnp.abs(logits - whole).max() < 0.3


@pytest.mark.parametrize(
  ("preset", "millions", "in_all"),
  [("tiny", 1.0, 1.04), ("14m", 14.2, 17.3), ("124m", 84.9, 123.6)],
)
def test_presets_have_about_as_many_weights_as_they_say(
  preset, millions, in_all
):
  config = Config(**PRESETS[preset])
  vocabulary = config.tokenizer or 256
  setup = make_setup(config, vocabulary)
  state = jax.eval_shape(
    lambda key: init_state(config, setup, vocabulary, key), jax.random.key(0)
  )
  sizes = jax.tree.map(
    lambda chosen, x: (chosen * x.size, x.size),
    kernels(state.params),
    state.params,
  )
  pairs = jax.tree.leaves(sizes, is_leaf=lambda x: isinstance(x, tuple))
  chosen, whole = np.sum(pairs, axis=0)
  assert chosen == pytest.approx(1e6 * millions, rel=0.01)
  assert whole == pytest.approx(1e6 * in_all, rel=0.01)


@pytest.mark.parametrize(
  ("preset", "changes"),
  [
    ("124m", {"method": "rewa"}),
    ("14m", {"method": "rewa", "way": "drop-in"}),
    ("14m", {"method": "gmp"}),
  ],
)
def test_large_presets_take_a_step(preset, changes):
  # Of layers, which are alike, two.
  changes = {"sparsity": 0.9, "layers": 2, **changes}
  config = Config(**{**PRESETS[preset], **changes})
  setup = make_setup(config, config.tokenizer)

  def step(key, batch):
    state = init_state(config, setup, config.tokenizer, key)
    grads, _ = differentiate(config, setup)(key, state, batch, None)
    return state, update(setup)(state, grads)

  batch = jax.ShapeDtypeStruct(
    (config.batch_size, config.context + 1), jnp.int32
  )
  before, after = jax.eval_shape(step, jax.random.key(0), batch)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
