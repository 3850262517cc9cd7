"""Makes sparse networks small and fast, and says what that gains.

Trains an MLP and a convolutional network by ReWA, so that single weights
vanish, and by its groups, so that whole units do: on scikit-learn's digits, or
LeNets on MNIST with --data FOLDER, its unpacked IDX files. Or takes a network
that is there: --run RUN, a run of image_classification. Prunes them to several
sparsities, cuts out what has no effect, writes both to files, checks that the
outputs are the same, and measures sizes and latencies. --untrained takes a wide
MLP and ResNet-20, sparse at random: only their sizes and latencies count.

With the extra onnx, onnxruntime is measured too.

Writes sizes.md, latency.md, results.json and the files of weights.
"""

import argparse
import gzip
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import rewa_jax
from rewa_jax import deploy

from .. import kit
from . import networks
from .networks import Network

SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.997)
BATCHES = (1, 256)


def shrink(
  network: Network, sparsity: float, folder: pathlib.Path
) -> tuple[Any, deploy.Compact, dict[str, Any]]:
  """Prunes a network, cuts it, writes both, and reads them again.

  Returns:
    The pruned variables, the smaller network, and what to report of them.
  """
  variables = dict(network.variables)
  variables["params"], _ = rewa_jax.prune(
    variables["params"], sparsity=sparsity
  )
  apply, example = network.model.apply, network.images[:2]
  small = deploy.compact(apply, variables, example)
  sizes = {
    "dense": sum(leaf.nbytes for leaf in jax.tree.leaves(variables)),
    "dense, gzip": len(gzip.compress(_bytes(variables))),
    "entropy bound": entropy_bound(variables),
  }
  name = f"{network.name}_{network.sparse_in}_{sparsity}".replace(" ", "_")
  for form, tree, dtype in (
    ("sparse", variables, None),
    ("compact", small.params, None),
    ("compact, float16", small.params, "float16"),
  ):
    path = folder / f"{name}_{form.replace(', ', '_')}.safetensors"
    deploy.save(path, tree, dtype=dtype)
    sizes[form] = path.stat().st_size
  # What counts is what is in the file.
  read = deploy.load(folder / f"{name}_compact.safetensors")
  wanted = jax.jit(apply)(variables, network.images)
  found = small.apply(read, network.images)
  scale = np.abs(wanted).max()
  return (
    variables,
    small,
    {
      "accuracy": network.accuracy(apply, variables),
      "accuracy of the file": network.accuracy(small.apply, read),
      "largest difference": float(np.abs(found - wanted).max() / scale),
      "entries": _count(variables),
      "entries of compact": _count(small.params),
      "bytes": sizes,
    },
  )


def entropy_bound(tree: Any) -> int:
  """Returns the bytes that values and the positions of zeros take at least."""
  bits = 0.0
  for leaf in jax.tree.leaves(tree):
    nonzero = np.count_nonzero(leaf)
    share = nonzero / leaf.size
    bits += 8 * leaf.dtype.itemsize * nonzero
    if 0 < share < 1:
      entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
      bits += leaf.size * entropy
  return int(np.ceil(bits / 8))


def latencies(
  network: Network, variables: Any, small: deploy.Compact, turns: int
) -> dict[str, dict[str, float]]:
  """Returns the milliseconds of the fastest call, by the batch and the form.

  All forms take turns: whatever else the machine does delays each of them.
  """
  apply = network.model.apply
  sparse = jax.jit(deploy.sparse_apply(apply))
  forms: dict[str, tuple[Callable[..., Any], Any]] = {
    "dense": (jax.jit(apply), variables),
    "compact": (small.apply, small.params),
  }
  if network.name in ("lenet300", "wide MLP"):
    forms["BCSR"] = sparse, deploy.to_bcsr(variables)
    forms["BCOO"] = sparse, deploy.to_bcoo(variables)
    forms["SciPy"] = mlp, deploy.to_scipy(variables)
    forms["compact, SciPy"] = mlp, deploy.to_scipy(small.params)
  result = {}
  for size in BATCHES:
    repeats = -(-size // len(network.images))
    images = np.concatenate([np.asarray(network.images)] * repeats)[:size]
    if size > 1:
      forms.pop("BCOO", None)  # Far slower than dense: nobody wants to wait.
    if "SciPy" in forms and find_spec("jax2onnx"):
      forms["compact, ONNX"] = onnx(small, images), None
    seconds = dict.fromkeys(forms, math.inf)
    for turn in range(-2, turns):
      for name, (call, params) in forms.items():
        begin = time.perf_counter()
        jax.block_until_ready(call(params, images))
        if turn >= 0:
          took = time.perf_counter() - begin
          seconds[name] = min(seconds[name], took)
    result[str(size)] = {name: 1e3 * s for name, s in seconds.items()}
  return result


def onnx(small: deploy.Compact, images: np.ndarray) -> Callable[..., Any]:
  """Returns the smaller network as onnxruntime runs it."""
  import onnxruntime
  from jax2onnx import to_onnx

  # Traced now: the exporter replaces functions of Flax while it traces.
  small.apply(small.params, images)
  shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
  model = to_onnx(lambda x: small.apply(small.params, x), [shape])
  session = onnxruntime.InferenceSession(model.SerializeToString())
  (given,) = session.get_inputs()
  return lambda _, images: session.run(None, {given.name: images})[0]


def mlp(variables: Any, images: np.ndarray) -> np.ndarray:
  """Computes an MLP in NumPy, its kernels sparse matrices of SciPy."""
  x = images.reshape(len(images), -1)
  layers = [layer for _, layer in sorted(variables["params"].items())]
  for layer in layers[:-1]:
    x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
  return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def _bytes(tree: Any) -> bytes:
  return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def _count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def tables(rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
  """Returns the tables of sizes and of latencies."""
  first = ("network", "sparse in", "zeros")
  sizes, times = [], []
  forms = list(dict.fromkeys(f for r in rows for f in r["ms"]["1"]))
  for row in rows:
    name = row["network"], row["sparse in"], f"{100 * row['sparsity']:g} %"
    accuracy = row["accuracy"]
    sizes.append(
      (
        *name,
        "-" if accuracy is None else f"{100 * accuracy:.1f} %",
        f"{row['entries']:,}",
        f"{row['entries of compact']:,}",
        *(f"{size:,}" for size in row["bytes"].values()),
      )
    )
    for batch, found in row["ms"].items():
      cells = (f"{found[f]:.3g}" if f in found else "-" for f in forms)
      times.append((*name, batch, *cells))
  columns = (*first, "accuracy", "entries", "of compact")
  return (
    kit.markdown((*columns, *rows[0]["bytes"]), sizes),
    kit.markdown((*first, "batch", *forms), times),
  )


def parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/deploy")
  add = parser.add_argument
  add("--data", type=pathlib.Path, help="folder of IDX files (default: digits)")
  add("--run", type=pathlib.Path, help="a run of image_classification")
  add("--untrained", action="store_true", help="a wide MLP and ResNet-20")
  add("--steps", type=int, default=2500, help="of training (default: 2500)")
  add(
    "--sparsities",
    type=float,
    nargs="+",
    default=SPARSITIES,
    help="shares of kernels to prune (default: 0.9 0.95 0.98 0.99 0.997)",
  )
  add("--turns", type=int, default=50, help="of timing (default: 50)")
  args = parser.parse_args(argv)
  for name in ("steps", "turns"):
    if getattr(args, name) < 1:
      parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
  if not all(0 <= sparsity <= 1 for sparsity in args.sparsities):
    parser.error(f"--sparsities must be shares, got {args.sparsities}")
  return args


def main(argv: Sequence[str]) -> None:
  args = parse(argv)
  try:
    if args.run:
      makers = [partial(networks.read, args.run)]
    elif args.untrained:
      makers = [
        partial(networks.draw, name, kind)
        for name in ("wide MLP", "resnet20")
        for kind in networks.METHODS
      ]
    else:
      data = networks.load_data(args.data)
      makers = [
        partial(networks.train, name, kind, data, args.steps)
        for name in ("lenet300", "lenet5" if args.data else "convnet")
        for kind in networks.METHODS
      ]
    rows = []
    with tqdm(total=len(makers) * len(args.sparsities), unit="network") as bar:
      for make in makers:
        network = make()
        bar.set_description(f"{network.name}, {network.sparse_in}")
        for sparsity in args.sparsities:
          variables, small, report = shrink(network, sparsity, args.out)
          rows.append(
            {
              "network": network.name,
              "sparse in": network.sparse_in,
              "sparsity": sparsity,
              **report,
              "ms": latencies(network, variables, small, args.turns),
            }
          )
          bar.update()
  except (OSError, ValueError) as error:
    sys.exit(f"shrink.py: {error}")
  module = "examples.deploy.shrink"
  results = {
    **kit.provenance(module, argv, "flax", "numpy", "safetensors", "scipy"),
    "rows": rows,
  }
  for name, table in zip(("sizes", "latency"), tables(rows)):
    kit.write(args.out / f"{name}.md", table + kit.made_by(results))
    print(table)
  kit.write_json(args.out / "results.json", results)
  print(f"Written to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
