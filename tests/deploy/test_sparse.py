import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import sparse

import rewa_jax
from rewa_jax import deploy

from .sparse import sparsify

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 2, 8))
MODEL = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(8), nn.tanh, nn.Dense(2)])
VARIABLES = sparsify(MODEL.init(KEY, X), density=0.3, dead=0.1)
FORMS = pytest.mark.parametrize("form", [deploy.to_bcoo, deploy.to_bcsr])


def check_same(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@FORMS
def test_a_linen_model_computes_with_sparse_kernels(form):
  params = form(VARIABLES)
  apply = jax.jit(deploy.sparse_apply(MODEL.apply))
  check_same(apply(params, X), MODEL.apply(VARIABLES, X))
  kernel = params["params"]["layers_0"]["kernel"]
  assert isinstance(kernel, sparse.JAXSparse)
  assert kernel.nse == np.count_nonzero(
    VARIABLES["params"]["layers_0"]["kernel"]
  )
  text = str(jax.make_jaxpr(deploy.sparse_apply(MODEL.apply))(params, X))
  assert f"{'bcoo' if form is deploy.to_bcoo else 'bcsr'}_dot_general" in text
  assert " dot_general" not in text


@pytest.mark.parametrize(
  "form",
  [deploy.to_bcsr, pytest.param(deploy.to_bcoo, marks=pytest.mark.slow)],
)
def test_an_nnx_model_computes_with_sparse_kernels(form):
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
      self.out = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
      return self.out(nnx.relu(self.conv(x)))

  images = jax.random.normal(KEY, (2, 4, 4, 2))
  graphdef, state = nnx.split(Net(nnx.Rngs(0)))
  state = sparsify(state)

  def apply(state, x):
    return nnx.merge(graphdef, state)(x)

  params = form(state)
  assert isinstance(params["out"]["kernel"].get_value(), sparse.JAXSparse)
  check_same(deploy.sparse_apply(apply)(params, images), apply(state, images))


@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [
    {"padding": "SAME"},
    {"padding": ((2, 0), (1, 3)), "strides": 2},
    {
      "padding": ((1, 1), (0, 2)),
      "kernel_dilation": (1, 2),
      "input_dilation": 2,
    },
  ],
)
def test_a_convolution_is_a_product_with_patches(options):
  model = nn.Sequential([nn.Conv(4, (2, 3), **options), nn.relu, nn.Dense(3)])
  images = jax.random.normal(KEY, (2, 7, 6, 3))
  variables = sparsify(model.init(KEY, images), dead=0)
  params = deploy.to_bcoo(variables)
  kernel = params["params"]["layers_0"]["kernel"]
  assert isinstance(kernel, sparse.BCOO) and kernel.shape == (2, 3, 3, 4)
  apply = jax.jit(deploy.sparse_apply(model.apply))
  check_same(apply(params, images), model.apply(variables, images))


@pytest.mark.slow
def test_kernels_of_attention_are_matrices_too():
  model = nn.MultiHeadDotProductAttention(2, qkv_features=6)
  variables = sparsify(model.init(KEY, X), dead=0)
  params = deploy.to_bcoo(variables)
  kernel = params["params"]["query"]["kernel"]
  assert isinstance(kernel, sparse.BCOO) and kernel.shape == (8, 2, 3)
  check_same(
    deploy.sparse_apply(model.apply)(params, X), model.apply(variables, X)
  )


@pytest.mark.filterwarnings("ignore:bcsr_dot_general cpu lowering")
@FORMS
def test_kernels_with_outputs_first_and_of_other_types_are_known(form):
  def apply(params, x):
    x = jax.vmap(lambda x: params["a"]["weight"] @ x)(x)
    return x.astype(jnp.float16) @ params["b"]["kernel"].astype(jnp.float16)

  rng = np.random.default_rng(0)
  params = {
    "a": {"weight": rng.normal(size=(5, 5)).astype("f")},
    "b": {"kernel": rng.normal(size=(5, 5)).astype("f")},
  }
  x = rng.normal(size=(3, 5)).astype("f")
  y = deploy.sparse_apply(apply)(form(params), x)
  assert y.dtype == jnp.float16
  np.testing.assert_allclose(y, apply(params, x), rtol=0.01, atol=0.01)


def test_scipy_computes_without_jax():
  params = deploy.to_scipy(VARIABLES)["params"]
  x = np.asarray(X[:, 0])
  for layer, activation in (
    ("layers_0", lambda x: np.maximum(x, 0)),
    ("layers_2", np.tanh),
    ("layers_4", lambda x: x),
  ):
    x = activation(x @ params[layer]["kernel"] + params[layer]["bias"])
  assert type(params["layers_0"]["bias"]) is np.ndarray
  check_same(x, MODEL.apply(VARIABLES, X[:, 0]))


@pytest.mark.parametrize(
  "form",
  [
    deploy.to_bcsr,
    deploy.to_scipy,
    pytest.param(deploy.to_bcoo, marks=pytest.mark.slow),
  ],
)
def test_sparsity_counts_sparse_matrices_as_what_they_are_dense(form):
  dense = rewa_jax.sparsity(VARIABLES, 0.5)
  found = rewa_jax.sparsity(form(VARIABLES), 0.5)
  assert found.size == dense.size and found.uncounted == dense.uncounted
  assert found.nonzero == dense.nonzero
  assert 0 < int(found.total_nonzero) < found.total_size


def test_a_mask_says_what_is_replaced():
  mask = {"params": {name: name == "layers_2" for name in VARIABLES["params"]}}
  params = deploy.to_bcoo(VARIABLES, mask=mask)
  check_same(
    deploy.sparse_apply(MODEL.apply)(params, X), MODEL.apply(VARIABLES, X)
  )
  kinds = {
    name: isinstance(layer["kernel"], sparse.BCOO)
    for name, layer in params["params"].items()
  }
  assert kinds == mask["params"]


@FORMS
def test_what_is_no_product_with_an_array_is_named(form):
  params = form({"kernel": np.eye(3, dtype="f")})
  for apply, name in (
    (lambda params, x: params["kernel"] + x, "add"),
    (lambda params, x: params["kernel"].sum() + x, "reduce_sum"),
    (lambda params, x: params["kernel"] @ params["kernel"] @ x, "dot_general"),
    (lambda params, x: jnp.where(x > 0, params["kernel"], 0) @ x, "select_n"),
    (
      lambda params, x: jax.lax.cond(
        x[0, 0] > 0, lambda k: k @ x, lambda k: x, params["kernel"]
      ),
      "cond",
    ),
  ):
    with pytest.raises(
      ValueError, match=f"A sparse matrix goes into {name}, bu"
    ):
      deploy.sparse_apply(apply)(params, jnp.ones((3, 3)))


@FORMS
def test_a_sparse_matrix_is_no_output(form):
  params = form({"kernel": np.eye(3, dtype="f")})
  with pytest.raises(ValueError, match="apply returns a sparse matrix as it"):
    deploy.sparse_apply(lambda params, x: params)(params, jnp.ones(3))


@FORMS
@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_products_of_sixteen_bits_are_summed_in_more(form, dtype):
  def apply(params, x):
    return jnp.einsum(
      "bi,io->bo", x, params["kernel"], preferred_element_type=dtype
    )

  kernel, x = jax.random.normal(KEY, (2, 512, 4), jnp.bfloat16)
  exact = np.float64(x).T @ np.float64(kernel)
  found = deploy.sparse_apply(apply)(form({"kernel": kernel}), x.T)
  assert found.dtype == dtype or jnp.bfloat16
  step = 2**-9 if dtype is None else 1e-6
  scale = np.abs(exact).max()
  np.testing.assert_allclose(found, exact, rtol=step, atol=step * scale)


def test_convolutions_have_the_dtype_that_is_asked_for():
  def apply(params, x):
    return jax.lax.conv_general_dilated(
      x,
      params["kernel"],
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      preferred_element_type=jnp.float32,
    )

  images = jax.random.normal(KEY, (2, 5, 5, 3), jnp.bfloat16)
  params = {"kernel": jax.random.normal(KEY, (3, 3, 3, 4), jnp.bfloat16)}
  found = deploy.sparse_apply(apply)(deploy.to_bcoo(params), images)
  assert found.dtype == jnp.float32
  check_same(found, apply(params, images))


def test_a_convolution_in_groups_is_named():
  model = nn.Conv(4, (2, 2), feature_group_count=2)
  images = jnp.ones((1, 4, 4, 2))
  params = deploy.to_bcoo(model.init(KEY, images))
  with pytest.raises(
    ValueError, match="goes into conv_general_dilated in Conv"
  ):
    deploy.sparse_apply(model.apply)(params, images)


@pytest.mark.parametrize(
  "form", [deploy.to_bcoo, deploy.to_bcsr, deploy.to_scipy]
)
def test_what_are_no_weights_is_refused(form):
  with pytest.raises(ValueError, match="kernel holds NaN"):
    form({"kernel": jnp.full((2, 2), jnp.nan)})
  latents = rewa_jax.baselines.spred().to_latents({"kernel": jnp.ones((2, 2))})
  with pytest.raises(ValueError, match="kernel holds latents, not weights"):
    form(latents)
