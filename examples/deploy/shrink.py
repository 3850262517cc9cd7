"""Makes sparse networks small and fast, and says what that gains.

Trains an MLP and a convolutional network by ReWA, so that single weights
vanish, and by its groups, so that whole units do: on scikit-learn's digits, or
LeNets on MNIST with --data FOLDER, its unpacked IDX files. Or takes a network
that is there: --run RUN, a run of image_classification. Prunes them, cuts out
what has no effect, writes both to files, checks that the outputs are the same,
and measures sizes and latencies. Of --networks wide_mlp and resnet20 only these
count: they are sparse at random, too large to train here.

With the extra onnx, the smaller networks are written as ONNX files too, and
onnxruntime is measured; with sparse_dot_mkl, MKL is.

Writes sizes.md, latency.md, pays.md, results.json and files of weights; with
--weights FOLDER, what an earlier run trained is not trained again.
"""

import argparse
import gzip
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import rewa_jax
from rewa_jax import deploy

from .. import kit
from . import forms, networks
from .networks import Network

SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.997)
BATCHES = (1, 256)
# The first columns of tables.
FIRST = ("network", "sparse in", "zeros")


def shrink(
  network: Network, pruning: Mapping[str, float], folder: pathlib.Path
) -> tuple[Any, deploy.Compact, dict[str, Any]]:
  """Prunes a network, cuts it, writes both, and reads them again.

  Args:
    network: what is to be smaller.
    pruning: what to prune to, a sparsity or a threshold.
    folder: where the files go.

  Returns:
    The pruned variables, the smaller network, and what to report of them.
  """
  variables = dict(network.variables)
  variables["params"], _ = rewa_jax.prune(variables["params"], **pruning)
  apply, example = network.model.apply, network.images[:2]
  small = deploy.compact(apply, variables, example)
  sizes = {
    "dense": sum(leaf.nbytes for leaf in jax.tree.leaves(variables)),
    "dense, gzip": len(gzip.compress(_bytes(variables))),
    "entropy bound": entropy_bound(variables),
  }
  (limit,) = pruning.items()
  name = "_".join([network.stem, *map(str, limit)])
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
  if forms.found("jax2onnx"):
    one = np.asarray(network.images[:1])
    model = forms.to_onnx(small.apply, small.params, one)
    kit.write(folder / f"{name}_compact.onnx", model)
  wanted = jax.jit(apply)(variables, network.images)
  found = small.apply(read, network.images)
  return (
    variables,
    small,
    {
      "sparsity": float(rewa_jax.sparsity(variables["params"]).sparsity),
      "accuracy": network.accuracy(apply, variables),
      "accuracy of the file": network.accuracy(small.apply, read),
      "largest difference": forms.largest_difference(found, wanted),
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
) -> dict[str, Any]:
  """Returns milliseconds by the batch and the form, and how outputs differ."""
  times, differences = {}, []
  made = forms.forms(network, variables, small)
  for size in BATCHES:
    repeats = -(-size // len(network.images))
    images = np.concatenate([np.asarray(network.images)] * repeats)[:size]
    calls = {name: make(images) for name, make in made.items()}
    wanted = calls["dense"]()
    for call in calls.values():
      differences.append(forms.largest_difference(call(), wanted))
    times[str(size)] = forms.milliseconds(calls, turns)
  return {"largest difference of forms": max(differences), "ms": times}


def _bytes(tree: Any) -> bytes:
  return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def _count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
  """Returns the tables by the names of their files."""
  return {"sizes": sizes(rows), "latency": latency(rows), "pays": pays(rows)}


def sizes(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the table of bytes."""
  lines = []
  for row in rows:
    found, counts = row["accuracy"], row["bytes"].values()
    accuracy = "-" if found is None else f"{100 * found:.1f} %"
    lines.append((*_first(row), accuracy, *(f"{n:,}" for n in counts)))
  return kit.markdown((*FIRST, "accuracy", *rows[0]["bytes"]), lines)


def latency(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the table of milliseconds."""
  lines, ways = [], _ways(rows)
  for row in rows:
    for batch, found in row["ms"].items():
      cells = (f"{found[w]:.3g}" if w in found else "-" for w in ways)
      lines.append((*_first(row), batch, *cells))
  return kit.markdown((*FIRST, "batch", *ways), lines)


def pays(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the table of the zeros from which on a form is faster than dense.

  By a tenth at least, less is noise. Beside them is how many times faster it is
  at the most zeros.
  """
  networks, ways = {}, [way for way in _ways(rows) if way != "dense"]
  for row in rows:
    names = row["network"], row["sparse in"]
    networks.setdefault(names, []).append(row)
  lines = []
  for names, of_one in networks.items():
    for batch in rows[0]["ms"]:
      cells = (_pays(of_one, batch, way) for way in ways)
      lines.append((*names, batch, *cells))
  return kit.markdown((*FIRST[:2], "batch", *ways), lines)


def _first(row: dict[str, Any]) -> tuple[str, str, str]:
  return row["network"], row["sparse in"], f"{100 * row['sparsity']:.3g} %"


def _ways(rows: Sequence[dict[str, Any]]) -> list[str]:
  return list(dict.fromkeys(way for row in rows for way in row["ms"]["1"]))


def _pays(rows: Sequence[dict[str, Any]], batch: str, way: str) -> str:
  times, since = [row["ms"][batch] for row in rows], None
  if way not in times[0]:
    return "-"
  gains = [found["dense"] / found[way] for found in times]
  for row, gain in zip(rows[::-1], gains[::-1]):
    if gain < 1.1:
      break
    since = f"{_first(row)[2]}, {gains[-1]:.3g}x"
  return since or "never"


def parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/deploy")
  add = parser.add_argument
  add("--data", type=pathlib.Path, help="folder of IDX files (default: digits)")
  add("--run", type=pathlib.Path, help="a run of image_classification")
  add(
    "--networks",
    nargs="+",
    choices=["lenet300", "lenet5", "convnet", *networks.UNTRAINED],
    help="what to shrink (default: lenet300, and convnet or MNIST's lenet5)",
  )
  add("--weights", type=pathlib.Path, help="--out of a run that trained them")
  text = "of training (default: %(default)s)"
  add("--steps", type=kit.at_least(1), default=2500, help=text)
  add(
    "--sparsities",
    type=float,
    nargs="+",
    default=SPARSITIES,
    help="shares of kernels to prune (default: 0.9 0.95 0.98 0.99 0.997)",
  )
  text = "prune weights up to it instead"
  add("--threshold", type=kit.at_least(0.0), help=text)
  text = "of timing (default: %(default)s)"
  add("--turns", type=kit.at_least(1), default=20, help=text)
  args = parser.parse_args(argv)
  if not all(0 <= sparsity <= 1 for sparsity in args.sparsities):
    parser.error(f"--sparsities must be shares, got {args.sparsities}")
  if args.networks is None:
    args.networks = ["lenet300", "lenet5" if args.data else "convnet"]
  if "lenet5" in args.networks and not args.data:
    parser.error("lenet5 takes images of MNIST's size: give --data")
  return args


def makers(args: argparse.Namespace) -> Iterator[Callable[[], Network]]:
  """Yields a function for each network that makes it."""
  if args.run:
    yield partial(networks.read, args.run)
    return
  data = networks.load_data(args.data)
  for name in args.networks:
    for kind in networks.METHODS:
      if name in networks.UNTRAINED:
        yield partial(networks.draw, name, kind)
      elif args.weights:
        yield partial(networks.reread, name, kind, data, args.weights)
      else:
        yield partial(networks.train, name, kind, data, args.steps)


def main(argv: Sequence[str]) -> None:
  args = parse(argv)
  prunings = [{"sparsity": share} for share in args.sparsities]
  if args.threshold is not None:
    prunings = [{"threshold": args.threshold}]
  try:
    rows, made = [], list(makers(args))
    with tqdm(total=len(made) * len(prunings), unit="network") as bar:
      for make in made:
        network = make()
        bar.set_description(f"{network.name}, {network.sparse_in}")
        if network.labels is not None:
          weights = args.out / f"{network.stem}.safetensors"
          deploy.save(weights, network.variables)
        for pruning in prunings:
          variables, small, report = shrink(network, pruning, args.out)
          times = latencies(network, variables, small, args.turns)
          first = {"network": network.name, "sparse in": network.sparse_in}
          rows.append(first | report | times)
          bar.update()
  except (OSError, ValueError) as error:
    sys.exit(f"shrink.py: {error}")
  module = "examples.deploy.shrink"
  others = ("onnxruntime", "sparse_dot_mkl")
  results = {
    **kit.provenance(
      module,
      argv,
      *("flax", "numpy", "safetensors", "scipy"),
      *filter(forms.found, others),
    ),
    "rows": rows,
  }
  for name, table in tables(rows).items():
    kit.write(args.out / f"{name}.md", table + kit.made_by(results))
    print(table)
  kit.write_json(args.out / "results.json", results)
  print(f"Written to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c("there are weights of what was trained, and no table.")
  main(sys.argv[1:])
