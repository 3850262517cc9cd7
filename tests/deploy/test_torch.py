import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from rewa_jax import deploy

from .sparse import sparsify

KEY = jax.random.key(0)
IMAGES = np.asarray(jax.random.normal(KEY, (2, 6, 6, 2)))


class ConvNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), padding="VALID", name="conv")(x)
    norm = nn.BatchNorm(use_running_average=True, epsilon=1e-5, name="norm")
    x = nn.relu(norm(x))
    grouped = nn.Conv(
      6, (2, 3), padding="VALID", feature_group_count=2, name="grouped"
    )
    x = grouped(x)
    return nn.Dense(3, name="out")(x.reshape(len(x), -1))


VARIABLES = sparsify(ConvNet().init(KEY, IMAGES), dead=0.1)
LOGITS = ConvNet().apply(VARIABLES, IMAGES)
FLATTENED = {"out": (3, 2, 6)}


def conv(x, weight, bias, groups=1):
  """What torch.nn.Conv2d says it computes, in NumPy."""
  windows = np.lib.stride_tricks.sliding_window_view(
    x, weight.shape[2:], axis=(2, 3)
  )
  inputs = np.split(windows, groups, axis=1)
  weights = np.split(weight, groups)
  parts = [
    np.einsum("nihwab,oiab->nohw", *pair) for pair in zip(inputs, weights)
  ]
  return np.concatenate(parts, axis=1) + bias[:, None, None]


def test_its_formulas_give_the_same_outputs():
  state = deploy.to_torch(VARIABLES, flattened=FLATTENED)
  x = conv(
    IMAGES.transpose(0, 3, 1, 2), state["conv.weight"], state["conv.bias"]
  )
  mean, var, scale, bias = (
    state[f"norm.{name}"][:, None, None]
    for name in ("running_mean", "running_var", "weight", "bias")
  )
  x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)
  x = conv(x, state["grouped.weight"], state["grouped.bias"], groups=2)
  y = x.reshape(len(x), -1) @ state["out.weight"].T + state["out.bias"]
  np.testing.assert_allclose(y, LOGITS, rtol=1e-4, atol=1e-4)


def test_a_module_of_torch_loads_it():
  torch = pytest.importorskip("torch", reason="torch is in no extra")
  model = torch.nn.Module()
  model.conv = torch.nn.Conv2d(2, 4, 3)
  model.norm = torch.nn.BatchNorm2d(4)
  model.grouped = torch.nn.Conv2d(4, 6, (2, 3), groups=2)
  model.out = torch.nn.Linear(36, 3)
  state = deploy.to_torch(VARIABLES, flattened=FLATTENED)
  tensors = {name: torch.from_numpy(array) for name, array in state.items()}
  model.load_state_dict(tensors)
  model.eval()
  with torch.no_grad():
    x = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    x = torch.relu(model.norm(model.conv(x)))
    y = model.out(model.grouped(x).flatten(1)).numpy()
  np.testing.assert_allclose(y, LOGITS, rtol=1e-4, atol=1e-4)


def test_a_state_of_nnx_is_named_the_same_way():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.embed = nnx.Embed(5, 4, rngs=rngs)
      self.norm = nnx.BatchNorm(4, rngs=rngs)
      self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs)])

  state = nnx.state(Net(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)[0:2]
  found = {}
  for part in state:
    found |= deploy.to_torch(part)
  assert {name: array.shape for name, array in found.items()} == {
    "embed.weight": (5, 4),
    **{"norm.weight": (4,), "norm.bias": (4,)},
    **{"norm.running_mean": (4,), "norm.running_var": (4,)},
    **{"layers.0.weight": (3, 4), "layers.0.bias": (3,)},
  }


def test_what_torch_has_no_layout_for_is_refused():
  attention = nn.MultiHeadDotProductAttention(2)
  variables = attention.init(KEY, np.ones((1, 3, 4)))
  with pytest.raises(
    ValueError, match="key/kernel of shape .4, 2, 2. has no coun"
  ):
    deploy.to_torch({"params": {"key": variables["params"]["key"]}})
  with pytest.raises(ValueError, match="odd of shape .2,. has no counterpart"):
    deploy.to_torch({"odd": np.ones(2)})
  twice = {"d": {"kernel": np.ones((2, 3)), "scale": np.ones(3)}}
  with pytest.raises(
    ValueError, match="d/scale and another leaf would both be"
  ):
    deploy.to_torch(twice)
  with pytest.raises(ValueError, match="has 36 inputs, but .*1, 1, 6. have 6"):
    deploy.to_torch(VARIABLES, flattened={"out": (1, 1, 6)})
  with pytest.raises(
    ValueError, match="flattened names head, without a kernel"
  ):
    deploy.to_torch(VARIABLES, flattened={"head": (1, 1, 6)})
