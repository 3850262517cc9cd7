"""Finds the few genes that tell cell types apart.

The data is scanpy's pbmc68k_reduced, which comes inside the package: 700 blood
cells, the expression of 765 genes in each, scaled, and 10 cell types. A network
with one hidden layer reads the genes; its first layer alone is made sparse, and
a gene counts as used if one of its weights is at least 1e-3. Over random 80/20
splits, every method trains all splits and all strengths of its penalty in one
vmap. Beside them stands scikit-learn's L1 logistic regression, a linear model.

Rates and ranges of strengths come from trials on other splits of the cells. No
strength is chosen: a point of the curves is one strength, its mean number of
genes and its mean accuracy on test cells over splits.

The task is spred's (Ziyin and Wang, 2023, arXiv 2210.01212). Types were told
from expression in the first place, and genes were scaled over all cells before
the split, so the accuracies compare methods and promise nothing for new cells.

Writes genes.csv, genes.md, genes.png and genes.json.
"""

import argparse
import functools
import math
import sys
import time
import warnings
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from tqdm import tqdm

import rewa_jax
from rewa_jax import baselines

from .. import kit

MOMENTUM, BATCH_SIZE, HIDDEN, CLIP = 0.9, 64, 16, 1.0
THRESHOLD = 1e-3
# What the table shows.
GENES = (5, 10, 20, 40, 80)


class Cells(NamedTuple):
  """Expression of genes in cells, and the types of the cells.

  Attributes:
    expression: (cells, genes), float32.
    types: (cells,), int32.
  """

  expression: np.ndarray
  types: np.ndarray


class Network(nn.Module):
  """Genes, a hidden layer, types."""

  types: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(HIDDEN, name="genes")(x))
    return nn.Dense(self.types, name="types")(x)


class Recipe(NamedTuple):
  """A method and what it is run at.

  Attributes:
    method: of the package, for the first layer.
    rate: peak of the learning rate.
    strengths: of its penalty as published.
    decay: the weight decay of latents that is the penalty of strength 1.
  """

  method: rewa_jax.Method
  rate: float
  strengths: tuple[float, ...]
  decay: float = 1.0


def spread(lowest: float, highest: float, count: int) -> tuple[float, ...]:
  return tuple(float(f"{s:.2g}") for s in np.geomspace(lowest, highest, count))


def only_genes(params):
  """The mask that is True on the kernel of the first layer."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path).endswith("['genes']['kernel']"),
    params,
  )


def methods(count: int) -> dict[str, Recipe]:
  """Returns all methods with so many strengths each, by name."""
  return {
    "ReWA": Recipe(
      rewa_jax.Rewa(9, 2, mask=only_genes), 0.1, spread(0.03, 0.3, count)
    ),
    "ReWA in groups": Recipe(
      baselines.GroupedRewa(9, "input", 2, mask=only_genes),
      0.1,
      spread(0.05, 0.8, count),
    ),
    "spred": Recipe(
      baselines.spred(mask=only_genes), 0.2, spread(0.3, 6.0, count)
    ),
    "DWF, D = 3": Recipe(
      baselines.deep_weight_factorization(3, mask=only_genes),
      0.5,
      spread(0.02, 0.6, count),
      decay=2 / 3,
    ),
    "grouped Hadamard": Recipe(
      baselines.Gated("input", mask=only_genes), 0.2, spread(0.8, 5.0, count)
    ),
    "D-Gating, D = 3": Recipe(
      baselines.Gated("input", 3, mask=only_genes),
      0.2,
      spread(0.1, 1.2, count),
      decay=2 / 3,
    ),
  }


def load() -> Cells:
  """Reads the file that lies inside scanpy."""
  with warnings.catch_warnings():
    # The file is older than anndata's present format.
    warnings.simplefilter("ignore")
    import scanpy

    data = scanpy.datasets.pbmc68k_reduced()
  types = data.obs["bulk_labels"].cat.codes
  return Cells(np.float32(data.X), np.int32(types))


def split(cells: Cells, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns indices of training and test cells, types in proportion."""
  splits = StratifiedShuffleSplit(count, test_size=0.2, random_state=0)
  return list(splits.split(cells.expression, cells.types))


def solver_of(method, rate, decay, steps) -> optax.GradientTransformation:
  """Returns the optimizer of latents."""
  shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
  return optax.chain(
    optax.clip_by_global_norm(CLIP),
    rewa_jax.sgd(
      lambda count: rate * shape(count),
      method,
      weight_decay=decay,
      momentum=MOMENTUM,
    ),
  )


def describe_budgets(network, recipe, cells, steps) -> str:
  """Says how far decay alone goes at the ends of a method's strengths."""
  weights = jax.eval_shape(network.init, jax.random.key(0), cells.expression)
  latents = jax.eval_shape(recipe.method.to_latents, weights)
  strongest = recipe.strengths[-1]
  budgets = [
    rewa_jax.measure_decay_budget(
      solver_of(recipe.method, recipe.rate, recipe.decay * strength, steps),
      latents,
      steps,
      method=recipe.method,
    )
    for strength in (recipe.strengths[0], strongest)
  ]
  return kit.describe_budgets(
    budgets,
    lambda factor: (
      f"a strength of {factor * strongest:.2g} or"
      f" --steps {math.ceil(factor * steps)}"
    ),
  )


@functools.partial(jax.jit, static_argnames=("network", "method", "steps"))
def train(network, method, rate, decays, cells, splits, *, steps):
  """Trains a network for every split and weight decay.

  Args:
    network: from genes to types.
    method: of the package, for the first layer.
    rate: peak of the learning rate.
    decays: weight decays of latents, (strengths,).
    cells: of all splits.
    splits: indices of training cells and of test cells, each (splits, cells).
    steps: how many.

  Returns:
    Genes used and test accuracy, each (splits, strengths).
  """

  def one(training, test, decay, key):
    init_key, batch_key = jax.random.split(key)
    weights = network.init(init_key, cells.expression[:1])
    latents = method.to_latents(weights)
    solver = solver_of(method, rate, decay, steps)

    def loss(latents, batch):
      weights = method.to_weights(latents)
      logits = network.apply(weights, cells.expression[batch])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, cells.types[batch]
      ).mean()

    def step(carry, count):
      latents, state = carry
      key = jax.random.fold_in(batch_key, count)
      batch = jax.random.choice(key, training, (BATCH_SIZE,))
      grads = jax.grad(loss)(latents, batch)
      updates, state = solver.update(grads, state, latents)
      return (optax.apply_updates(latents, updates), state), None

    carry = latents, solver.init(latents)
    (latents, _), _ = jax.lax.scan(step, carry, jnp.arange(steps))
    weights = method.to_weights(latents)
    kernel = weights["params"]["genes"]["kernel"]
    kernel = jnp.where(jnp.abs(kernel) < THRESHOLD, 0, kernel)
    weights["params"]["genes"]["kernel"] = kernel
    logits = network.apply(weights, cells.expression[test])
    hits = logits.argmax(-1) == cells.types[test]
    return (kernel != 0).any(1).sum(), hits.mean()

  keys = jax.random.split(jax.random.key(0), len(splits[0]))
  over_decays = jax.vmap(one, (None, None, 0, None))
  return jax.vmap(over_decays, (0, 0, None, 0))(*splits, decays, keys)


def logistic_regression(count, cells, splits, advance):
  """Fits scikit-learn's L1 logistic regression to every split and strength.

  Returns:
    Genes used and test accuracy, each (splits, strengths).
  """
  genes, accuracy = np.zeros((2, len(splits[0]), count))
  for i, (training, test) in enumerate(zip(*splits)):
    model = LogisticRegression(
      l1_ratio=1.0, solver="saga", tol=1e-3, max_iter=300, warm_start=True
    )
    # From few genes to many, each fit started at the one before.
    for j, c in enumerate(np.geomspace(0.01, 1, count)):
      model.C = c
      with warnings.catch_warnings():
        # Its last digits do not matter to a count of genes.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(cells.expression[training], cells.types[training])
      genes[i, j] = (np.abs(model.coef_) >= THRESHOLD).any(0).sum()
      accuracy[i, j] = model.score(cells.expression[test], cells.types[test])
    advance()
  return genes, accuracy


def accuracy_at(genes, accuracy, wanted: float) -> float | None:
  """Interpolates mean accuracy over the logarithm of mean genes.

  Args:
    genes: (splits, strengths).
    accuracy: (splits, strengths).
    wanted: a number of genes.

  Returns:
    Accuracy, or None outside of what the strengths reach.
  """
  means = np.maximum(np.mean(genes, 0), 1e-3)
  if not means.min() <= wanted <= means.max():
    return None
  order = np.argsort(means)
  known = np.mean(accuracy, 0)[order]
  return float(np.interp(np.log(wanted), np.log(means[order]), known))


def to_markdown(results) -> str:
  rows = []
  for name, result in results.items():
    found = [accuracy_at(result["genes"], result["accuracy"], n) for n in GENES]
    shown = ["" if a is None else f"{a:.1%}" for a in found]
    rows.append((name, *shown, f"{result['seconds']:.0f}"))
  columns = [f"{n} genes" for n in GENES]
  return kit.markdown(("method", *columns, "seconds"), rows)


def to_rows(results) -> list[tuple[Any, ...]]:
  """Returns method, strength, split, genes and accuracy of every run."""
  return [
    (name, strength, i, int(genes[j]), accuracy[j])
    for name, result in results.items()
    for j, strength in enumerate(result["strengths"])
    for i, (genes, accuracy) in enumerate(
      zip(result["genes"], result["accuracy"])
    )
  ]


def plot(results, splits) -> plt.Figure:
  fig, ax = plt.subplots(figsize=(8, 5), layout="constrained")
  for name, result in results.items():
    genes = np.mean(result["genes"], 0)
    mean = 100 * np.mean(result["accuracy"], 0)
    error = 100 * np.std(result["accuracy"], 0, ddof=1) / np.sqrt(splits)
    linear = name == "L1 logistic regression"
    ax.errorbar(
      genes,
      mean,
      error,
      label=name,
      marker="o",
      ms=4,
      capsize=2,
      lw=2.5 if name.startswith("ReWA") else 1.2,
      **({"color": "black", "ls": "--"} if linear else {}),
    )
  ax.set_xscale("log")
  ax.set_xlim(left=1)
  ax.xaxis.set_major_formatter("{x:g}")
  ax.set_xlabel("genes used, of 765; mean over splits")
  ax.set_ylabel("accuracy on test cells in %, mean and standard error")
  ax.set_title(f"Cell types from few genes, {splits} random 80/20 splits")
  ax.grid(alpha=0.3)
  ax.legend()
  return fig


def parse(argv) -> argparse.Namespace:
  parser = kit.parser(__doc__, "results/sparse_regression")
  add = parser.add_argument
  add("--splits", type=int, default=20, help="how many (default: 20)")
  add("--strengths", type=int, default=12, help="a method (default: 12)")
  add("--steps", type=int, default=2000, help="of training (default: 2000)")
  args = parser.parse_args(argv)
  for name, least in {"splits": 2, "strengths": 2, "steps": 10}.items():
    if getattr(args, name) < least:
      given = getattr(args, name)
      parser.error(f"--{name} must be at least {least}, got {given}")
  return args


def main(argv) -> None:
  args = parse(argv)
  cells = load()
  splits = tuple(map(np.stack, zip(*split(cells, args.splits))))
  network = Network(int(cells.types.max()) + 1)
  known = methods(args.strengths)
  results: dict[str, Any] = {}
  bar = tqdm(total=len(known) + args.splits)
  for name, recipe in known.items():
    bar.set_description(name)
    text = describe_budgets(network, recipe, cells, args.steps)
    bar.write(f"{name}: {text}")
    begin = time.perf_counter()
    genes, accuracy = train(
      network,
      recipe.method,
      recipe.rate,
      recipe.decay * jnp.array(recipe.strengths),
      cells,
      splits,
      steps=args.steps,
    )
    results[name] = {
      "rate": recipe.rate,
      "strengths": recipe.strengths,
      "genes": np.asarray(genes).tolist(),
      "accuracy": np.asarray(accuracy).tolist(),
      "seconds": time.perf_counter() - begin,
    }
    bar.update()
  name = "L1 logistic regression"
  bar.set_description(name)
  begin = time.perf_counter()
  genes, accuracy = logistic_regression(
    args.strengths, cells, splits, bar.update
  )
  results[name] = {
    "strengths": np.geomspace(0.01, 1, args.strengths).tolist(),
    "genes": genes.tolist(),
    "accuracy": accuracy.tolist(),
    "seconds": time.perf_counter() - begin,
  }
  bar.close()
  module = "examples.sparse_regression.genes"
  made = kit.provenance(module, argv, "scikit-learn", "scanpy")
  table = to_markdown(results) + kit.made_by(made)
  columns = ("method", "strength", "split", "genes", "accuracy")
  kit.write_csv(args.out / "genes.csv", columns, to_rows(results))
  kit.write(args.out / "genes.md", table)
  kit.write_json(args.out / "genes.json", {**made, "results": results})
  kit.write_figure(args.out / "genes.png", plot(results, args.splits))
  print(f"{table}Written to {args.out}.")


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
