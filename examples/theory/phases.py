"""The three phases of training that deep weight factorization shows, for ReWA.

Kolb et al., 2025, describe three for factorized networks: the loss falls while
norms change little; sparsity emerges as the norm of the factors falls; the
survivors are tuned at nearly constant sparsity. Looked for here in ReWA (Xu et
al., ReWA, 2026, arXiv 2605.25134, Algorithm 1; k=9, m=2), whose latents take
the place of the factors, on digits with an MLP 64-128-10.

Phases begin by a rule that sees the sparsity alone, the share s of weights with
|x| < 1e-3: phase 2 where s has made 5 % of its way from the first step to the
last, phase 3 where it has made 95 %. So the third's constant sparsity is the
rule's doing; what can fail is the rest:

  1  at least half of the loss's fall from its start to its minimum, at most a
     quarter of the fall of the latents' norm
  2  at least half of the fall of the latents' norm
  3  the loss ends lower than the phase began
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import rewa_jax

from . import report, task

REWA = rewa_jax.Rewa(k=9, m=2)
STEPS = 2000
BUDGETS = (12.0, 18.0, 36.0)
DRAWN = 18.0
THRESHOLD = 1e-3


def record(
  budgets: tuple[float, ...], part: task.Part, steps: int, seed: int = 0
) -> dict[str, np.ndarray]:
  """Returns loss, share of small weights and norm of latents, [run, step]."""
  rates = task.schedule("cosine", steps)

  def watch(latents):
    weights = REWA.to_weights(latents)
    counts = rewa_jax.sparsity(weights, THRESHOLD)
    kernels = jax.tree.map(
      lambda s, y: y if s else None, REWA.decaying(latents), latents
    )
    return {
      "loss": task.mean_loss(weights, *part),
      "share": 1 - counts.total_nonzero / counts.total_size,
      "norm": optax.tree.norm(kernels),
    }

  def one(weight_decay):
    solver = rewa_jax.sgd(
      rates, REWA, weight_decay=weight_decay, momentum=task.MOMENTUM
    )
    return task.train(REWA, solver, part, steps, seed, watch)[1]

  decays = [rewa_jax.weight_decay_for(b, REWA.k, rates, steps) for b in budgets]
  curves = jax.jit(jax.vmap(one))(jnp.stack(decays))
  return {name: np.asarray(curve) for name, curve in curves.items()}


def begins(share: np.ndarray) -> tuple[int, int]:
  """Returns the first steps of phases 2 and 3 by the docstring's rule."""
  way = share[-1] - share[0]
  if way <= 0:
    raise ValueError("No sparsity emerges, so there are no phases to find.")
  first = [int(np.argmax(share >= share[0] + f * way)) for f in (0.05, 0.95)]
  return first[0], first[1]


def describe(curves: dict[str, np.ndarray]) -> dict[str, Any]:
  """Returns what each phase does, and whether it is as described."""
  second, third = begins(curves["share"])
  bounds = [0, second, third, len(curves["share"]) - 1]
  at = {name: [float(c[i]) for i in bounds] for name, c in curves.items()}
  loss, norm = at["loss"], at["norm"]
  loss_fall = (loss[0] - loss[1]) / (loss[0] - float(curves["loss"].min()))
  norm_falls = -np.diff(norm) / (norm[0] - norm[3])
  return {
    "begins": {"2": second, "3": third},
    "at_bounds": at,
    "loss_fall_in_1": loss_fall,
    "norm_falls": norm_falls.tolist(),
    "as_described": {
      "1": bool(loss_fall >= 0.5 and norm_falls[0] <= 0.25),
      "2": bool(norm_falls[1] >= 0.5),
      "3": bool(loss[3] < loss[2]),
    },
  }


def plot(curves: dict[str, np.ndarray], budget: float) -> plt.Figure:
  labels = {
    "loss": "training loss in nats",
    "share": "share of |x| < 0.001",
    "norm": "norm of latents",
  }
  second, third = begins(curves["share"])
  bounds = (0, second, third, len(curves["share"]) - 1)
  fig, axes = plt.subplots(
    3, 1, figsize=(7, 7), sharex=True, layout="constrained"
  )
  for ax, (name, label), color in zip(axes, labels.items(), ("C0", "C1", "C2")):
    ax.plot(curves[name], color=color)
    ax.set_ylabel(label)
    ax.grid(alpha=0.3)
    for step in (second, third):
      ax.axvline(step, color="black", linestyle="--", linewidth=1)
  axes[0].set_yscale("log")
  axes[0].set_title("phases, found from the share alone", pad=20)
  axes[2].set_ylim(bottom=0)
  for i in range(3):
    axes[0].text(
      (bounds[i] + bounds[i + 1]) / 2,
      1.02,
      f"{i + 1}",
      transform=axes[0].get_xaxis_transform(),
      ha="center",
      va="bottom",
    )
  axes[2].set_xlabel(
    f"step of SGD, k={REWA.k}, m={REWA.m}, cosine, B={budget:g}"
  )
  return fig


def main():
  out = report.parse_out(__doc__)
  part = task.load()["train"]
  curves = record(BUDGETS, part, STEPS)
  runs = {}
  for i, budget in enumerate(BUDGETS):
    run = describe({name: curve[i] for name, curve in curves.items()})
    runs[f"B={budget:g}"] = run
    print(
      f"B = {budget:g}, phases begin at steps 0, {[*run['begins'].values()]}"
    )
    for name, values in run["at_bounds"].items():
      print(f"  {name:>5}  " + " -> ".join(f"{value:.3g}" for value in values))
    falls = ", ".join(f"{fall:.0%}" for fall in run["norm_falls"])
    print(f"  of the loss's fall in phase 1: {run['loss_fall_in_1']:.0%}")
    print(f"  of the norm's fall in phases 1, 2, 3: {falls}")
    for phase, holds in run["as_described"].items():
      print(f"  phase {phase} {'is' if holds else 'is NOT'} as described")
  numbers = {
    "claim": "Loss falls at constant norms, then sparsity emerges as the norm"
    " of latents falls, then survivors are tuned at constant sparsity.",
    "as_described": {name: run["as_described"] for name, run in runs.items()},
    "runs": runs,
    "steps": STEPS,
    "threshold": THRESHOLD,
  }
  drawn = BUDGETS.index(DRAWN)
  curves = {name: curve[drawn] for name, curve in curves.items()}
  report.save(out, numbers, plot(curves, DRAWN))


if __name__ == "__main__":
  main()
