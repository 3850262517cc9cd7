"""The ways to run a sparse network, and how long each takes."""

import importlib
import math
import operator
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import jax
import numpy as np

from rewa_jax import deploy

from .networks import Network

# Calls of a form in a row, and seconds after which it is called no more.
IN_A_ROW, ENOUGH = 10, 1.0


def forms(
  network: Network, variables: Any, small: deploy.Compact
) -> dict[str, Callable[[np.ndarray], Callable[[], Any]]]:
  """Returns the forms by their names: from images to a function to logits.

  Args:
    network: says what the model is.
    variables: its weights, pruned.
    small: the smaller network.
  """
  apply = network.model.apply
  sparse = jax.jit(deploy.sparse_apply(apply))
  result = {
    "dense": partial(partial, jax.jit(apply), variables),
    "compact": partial(partial, small.apply, small.params),
    "BCSR": partial(partial, sparse, deploy.to_bcsr(variables)),
  }
  # Of convolutions nothing sparse pays: BCSR leaves them dense.
  if all(leaf.ndim < 3 for leaf in jax.tree.leaves(variables)):
    result["BCOO"] = partial(partial, sparse, deploy.to_bcoo(variables))
    kernels = deploy.to_scipy(variables)
    result["SciPy"] = partial(partial, mlp, operator.matmul, kernels)
    if mkl := found("sparse_dot_mkl"):

      def product(x, kernel):
        # Rows of outputs times columns of images is what MKL is good at.
        return mkl.dot_product_mkl(kernel.T, np.ascontiguousarray(x.T)).T

      kernels = jax.tree.map(
        lambda leaf: leaf.tocsc() if hasattr(leaf, "tocsc") else leaf, kernels
      )
      result["MKL"] = partial(partial, mlp, product, kernels)
  if found("jax2onnx") and found("onnxruntime"):
    result["ONNX"] = partial(onnx_session, apply, variables)
    result["compact, ONNX"] = partial(onnx_session, small.apply, small.params)
  return result


def found(name: str) -> ModuleType | None:
  """Returns a library, or None where it is not installed or does not load."""
  try:
    return importlib.import_module(name)
  except ImportError:
    return None


def mlp(
  product: Callable[[Any, Any], np.ndarray], variables: Any, images: np.ndarray
) -> np.ndarray:
  """Computes an MLP without JAX, its kernels sparse matrices of SciPy."""
  x = images.reshape(len(images), -1)
  layers = [layer for _, layer in sorted(variables["params"].items())]
  for layer in layers[:-1]:
    x = np.maximum(product(x, layer["kernel"]) + layer["bias"], 0)
  return product(x, layers[-1]["kernel"]) + layers[-1]["bias"]


def to_onnx(
  apply: Callable[..., Any], params: Any, images: np.ndarray
) -> bytes:
  """Returns the content of an ONNX file of a network with its weights."""
  import jax2onnx

  # Traced now: the exporter replaces functions of Flax while it traces.
  jax.eval_shape(apply, params, images)
  shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
  model = jax2onnx.to_onnx(lambda x: apply(params, x), [shape])
  return model.SerializeToString()


def onnx_session(
  apply: Callable[..., Any], params: Any, images: np.ndarray
) -> Callable[[], np.ndarray]:
  """Returns a function that runs a network on images in onnxruntime."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # It warns of layouts that it mends.
  model = to_onnx(apply, params, images)
  session = onnxruntime.InferenceSession(model, options)
  (given,) = session.get_inputs()
  return lambda: session.run(None, {given.name: images})[0]


def largest_difference(found: Any, wanted: Any) -> float:
  """Returns how far outputs are apart, relative to the largest, if not 0."""
  found, wanted = np.asarray(found), np.asarray(wanted)
  return float(np.abs(found - wanted).max() / (np.abs(wanted).max() or 1))


def milliseconds(
  calls: Mapping[str, Callable[[], Any]], turns: int
) -> dict[str, float]:
  """Returns how long the fastest call of each form takes.

  They take turns of a few calls, the first of which finds the caches and the
  threads of another form; slow forms are called less often.
  """
  fastest, spent = dict.fromkeys(calls, math.inf), dict.fromkeys(calls, 0.0)
  for _ in range(turns):
    for name, call in calls.items():
      for _ in range(IN_A_ROW):
        if spent[name] < ENOUGH:
          begin = time.perf_counter()
          jax.block_until_ready(call())
          took = time.perf_counter() - begin
          fastest[name] = min(fastest[name], took)
          spent[name] += took
  return {name: 1e3 * seconds for name, seconds in fastest.items()}
