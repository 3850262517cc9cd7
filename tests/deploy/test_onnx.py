import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rewa_jax import deploy

from .sparse import sparsify

onnxruntime = pytest.importorskip("onnxruntime")
jax2onnx = pytest.importorskip("jax2onnx")


def test_a_smaller_model_runs_in_onnxruntime():
  model = nn.Sequential([nn.Dense(30), nn.relu, nn.Dense(10)])
  x = jax.random.normal(jax.random.key(0), (4, 8))
  variables = sparsify(model.init(jax.random.key(0), x))
  small = deploy.compact(model.apply, variables, x)
  assert small.params["params"]["layers_0"]["kernel"].shape[1] < 30
  shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
  exported = jax2onnx.to_onnx(lambda x: small.apply(small.params, x), [shape])
  session = onnxruntime.InferenceSession(exported.SerializeToString())
  (given,) = session.get_inputs()
  (found,) = session.run(None, {given.name: np.asarray(x)})
  wanted = model.apply(variables, x)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
