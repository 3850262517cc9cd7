"""The same weights under PyTorch's names and in its layouts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewa_jax._trees import with_paths
from rewa_jax.deploy._checks import check_weights

_NAMES = {
  "kernel": "weight",
  "scale": "weight",
  "embedding": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
_COLLECTIONS = ("params", "batch_stats")
_ATTENTION = ("query", "key", "value", "out")


def to_torch(
  weights: Any, *, flattened: Mapping[str, Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
  """Returns a state dict for PyTorch of weights of Flax.

  Kernels of dense layers become (outputs, inputs), those of convolutions
  (outputs, inputs, ...), and batch statistics running ones. Modules keep their
  names: ``Dense_0/kernel`` is ``Dense_0.weight``.

  Args:
    weights: variables of linen or a state of NNX, of Dense or Linear, Conv,
      Embed, BatchNorm and LayerNorm. Of transposed convolutions kernels would
      have another order, which cannot be told from their names.
    flattened: for a dense layer whose inputs are flattened images, by its path,
      their (height, width, channels): PyTorch flattens channels first.

  Returns:
    NumPy arrays, for ``load_state_dict`` of ``torch.from_numpy`` of each.

  Raises:
    ValueError: if weights are latents or hold NaN, or a leaf has no
      counterpart, the same one as another, or another number of inputs than
      flattened says.

  Examples:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rewa_jax import deploy
    >>> model = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu])
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 2)))
    >>> state = deploy.to_torch(variables)
    >>> {name: array.shape for name, array in state.items()}
    {'layers_0.bias': (4,), 'layers_0.weight': (4, 2, 3, 3)}
  """
  check_weights(weights)
  left, state = dict(flattened or {}), {}
  for path, leaf in with_paths(weights):
    *owners, name = path.split("/")
    if owners and owners[0] in _COLLECTIONS:
      owners = owners[1:]
    array = np.asarray(leaf)
    is_attention = array.ndim == 3 and owners and owners[-1] in _ATTENTION
    if (
      name not in _NAMES or is_attention or (name, array.ndim) == ("kernel", 1)
    ):
      raise ValueError(
        f"{path} of shape {array.shape} has no counterpart: only leaves named"
        f" {', '.join(_NAMES)} have, and not those of attention."
      )
    if name == "kernel":
      if shape := left.pop("/".join(owners), None):
        array = _channels_first(path, array, tuple(shape))
      axes = range(array.ndim)
      array = array.transpose(*axes[:-3:-1], *axes[:-2])
    key = ".".join([*owners, _NAMES[name]])
    if key in state:
      raise ValueError(f"{path} and another leaf would both be {key}.")
    state[key] = np.ascontiguousarray(array)
  if left:
    raise ValueError(f"flattened names {', '.join(left)}, without a kernel.")
  return state


def _channels_first(
  path: str, kernel: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  if len(kernel) != np.prod(shape):
    raise ValueError(
      f"{path} has {len(kernel)} inputs, but flattened images of shape {shape}"
      f" have {np.prod(shape)}."
    )
  images = np.moveaxis(kernel.reshape(*shape, -1), len(shape) - 1, 0)
  return images.reshape(kernel.shape)
