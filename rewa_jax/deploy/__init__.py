"""What a trained sparse network is deployed as: small files, fast models.

`save`, `load` and `to_scipy` need the extra `deploy`, the others do not.
"""

from rewa_jax.deploy._compact import Compact, compact
from rewa_jax.deploy._files import load, save
from rewa_jax.deploy._sparse import sparse_apply, to_bcoo, to_bcsr, to_scipy
from rewa_jax.deploy._torch import to_torch

__all__ = [
  # A smaller dense model with the same outputs.
  "compact",
  "Compact",
  # Sparse weights in one file.
  "save",
  "load",
  # Sparse matrices in the place of kernels.
  "to_bcoo",
  "to_bcsr",
  "sparse_apply",
  "to_scipy",
  # The names and layouts of PyTorch.
  "to_torch",
]
