import jax
import numpy as np
import pytest
from flax import linen as nn

from examples.deploy import forms, networks
from rewa_jax import deploy

from .sparse import sparsify

pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")


@pytest.mark.parametrize(
  ("model", "shape"),
  [
    (nn.Sequential([nn.Dense(30), nn.relu, nn.Dense(10)]), (4, 8)),
    (networks.ConvNet(), (4, 8, 8, 1)),
    (networks.make("resnet20"), (2, 8, 8, 3)),
  ],
)
def test_a_smaller_model_runs_in_onnxruntime(model, shape):
  x = np.asarray(jax.random.normal(jax.random.key(0), shape))
  variables = sparsify(model.init(jax.random.key(0), x))
  small = deploy.compact(model.apply, variables, x)
  assert any(before != after for before, after in small.shapes.values())
  wanted = model.apply(variables, x)
  scale = np.abs(wanted).max()
  for apply, params in (
    (model.apply, variables),
    (small.apply, small.params),
  ):
    found = forms.onnx_session(apply, params, x)()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale)
