"""Which runs a comparison has, in the order of what matters most."""

from typing import Any, NamedTuple

from .config import mild_decay

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
# Of whole heads and channels.
OF_UNITS = (0.5, 0.7)
# Those of ReWA are of latents, which are larger than weights.
RATES: dict[str, tuple[float, ...]] = {
  "dense": (2e-3, 4e-3, 8e-3),
  "gmp": (4e-3, 8e-3, 1.6e-2),
  "l1": (2e-3, 4e-3, 8e-3),
  "rank": (5e-3, 1e-2, 2e-2),
  "difference": (5e-3, 1e-2, 2e-2),
  "fixed": (1e-2, 2e-2, 4e-2),
}
STRENGTHS: dict[str, tuple[float, ...]] = {
  "fixed": (0.2, 0.1, 0.4, 0.05, 0.8),
  "l1": (0.05, 0.1, 0.02, 0.2, 0.01),
}
LABELS = {
  "dense": "AdamW, then pruned",
  "gmp": "AdamW, gradual pruning",
  "l1": "AdamW, proximal L1",
  "fixed": "ReWA, fixed decay",
  "rank": "ReWA by rank",
  "difference": "Hadamard difference by rank",
  "drop-in": "trained AdamW, then a short ReWA by rank",
  "dense-units": "units: AdamW, then pruned",
  "gmp-units": "units: AdamW, gradual pruning",
  "rank-units": "units: ReWA by rank",
}
# Trials of a learning rate, and the drop-in after training, have a tenth of the
# steps, but so many at least: with fewer decay by rank has no time. Squares
# take twice as long as fifth powers.
LEAST_STEPS = 120


class Run(NamedTuple):
  """A run of a comparison.

  Attributes:
    name: of its folder.
    method: one of LABELS.
    settings: what it changes in the common ones, but for a learning rate that
      trials choose.
    sparsities: those that it is a candidate for.
    groups: what is zero together, as settings call it.
    tunes: whether it is run at the two best rates of the trials, of which the
      better becomes the method's.
  """

  name: str
  method: str
  settings: dict[str, Any]
  sparsities: tuple[float, ...]
  groups: str = "none"
  tunes: bool = False

  def at(self, rate: float) -> "Run":
    """Returns the run at a learning rate that its folder is named by."""
    settings = {**self.settings, "learning_rate": rate}
    return self._replace(name=f"{self.name}_{rate:g}", settings=settings)

  @property
  def tuned_as(self) -> str:
    """The method whose learning rate it takes."""
    return self.method.removesuffix("-units")


class Plan(NamedTuple):
  """All of a comparison.

  Attributes:
    sparsities: that methods are compared at.
    of_units: those of whole heads and channels.
    rates: to choose from, by method.
    strengths: by method, of those that have one run for each.
    steps: of a run.
    mid: the sparsity that trials have.
    k: ReWA's power.
  """

  sparsities: tuple[float, ...]
  of_units: tuple[float, ...]
  rates: dict[str, tuple[float, ...]]
  strengths: dict[str, tuple[float, ...]]
  steps: int
  mid: float
  k: float

  def runs(self) -> list[Run]:
    """Returns the runs but for trials, the dense one first."""
    seen: set[str] = set()
    runs = []
    for run in self._in_order():
      several = len(self.rates.get(run.method, ())) > 1
      runs.append(run._replace(tunes=several and run.method not in seen))
      seen.add(run.method)
    return runs

  def _in_order(self) -> list[Run]:
    others = [s for s in self.sparsities if s != self.mid]
    near = [s for s in others if s >= 0.8]
    far = [s for s in others if s < 0.8]
    return [
      self._of("dense"),
      self._asked("rank", self.mid),
      self._asked("gmp", self.mid),
      *self._drop_ins(),
      *(self._asked("rank", s) for s in near),
      *(self._asked("gmp", s) for s in near),
      *(self._asked("difference", s) for s in (self.mid, *near)),
      *(self._of("fixed", x) for x in self.strengths["fixed"]),
      *(self._of("l1", x) for x in self.strengths["l1"]),
      *(
        self._asked(name, s)
        for s in far
        for name in ("rank", "gmp", "difference")
      ),
      *self._of_units(),
    ]

  def trials(self, method: str) -> list[Run]:
    """Returns short runs, one for each learning rate, or none if it has one."""
    rates = self.rates.get(method, ())
    judged: tuple[float, ...] = ()
    if method in self.strengths:
      # In fewer steps a strength shrinks less: this comes to as much.
      strength = self.strengths[method][0] * self.steps / self._tenth(method)
      like, judged = self._of(method, strength), (self.mid,)
    elif method == "dense":
      like = self._of(method)
    else:
      like = self._asked(method, self.mid)
    return [
      Run(
        f"rate_{method}_{rate:g}",
        method,
        like.settings | {"steps": self._tenth(method), "learning_rate": rate},
        judged,
      )
      for rate in rates
      if len(rates) > 1
    ]

  def _tenth(self, method: str) -> int:
    least = LEAST_STEPS * (2 if method == "difference" else 1)
    return max(self.steps // 10, least)

  def _of(self, method: str, strength: float = 0.0) -> Run:
    """Returns a run that is cut to every sparsity."""
    if method == "dense":
      return Run(method, method, {"method": method}, self.sparsities)
    settings = {
      "l1": {"method": "l1", "l1": strength},
      "fixed": {"method": "rewa", "weight_decay": strength},
    }[method]
    return Run(f"{method}_{strength:g}", method, settings, self.sparsities)

  def _asked(self, method: str, sparsity: float) -> Run:
    settings: dict[str, Any] = {"method": method, "sparsity": sparsity}
    if method in ("rank", "difference"):
      k = self.k if method == "rank" else 2
      settings |= {"method": "rewa", "weight_decay": mild_decay(sparsity, k)}
    if method == "difference":
      settings["latents"] = "difference"
    return Run(f"{method}_{100 * sparsity:g}", method, settings, (sparsity,))

  def _of_units(self) -> list[Run]:
    """Returns runs whose whole heads and channels vanish."""
    units = {"groups": "units"}
    dense = self._of("dense")._replace(
      method="dense-units", sparsities=self.of_units, **units
    )
    asked = (
      self._asked(method, sparsity)
      for sparsity in self.of_units
      for method in ("rank", "gmp")
    )
    return [
      dense,
      *(
        run._replace(
          name=f"{run.name}_units",
          method=f"{run.method}-units",
          settings=run.settings | units,
          **units,
        )
        for run in asked
      ),
    ]

  def _drop_ins(self) -> list[Run]:
    """Returns one for each learning rate: they are short enough."""
    like = self._asked("rank", self.mid)
    settings = like.settings | {
      "way": "drop-in",
      "steps": self._tenth("drop-in"),
    }
    return [
      Run(
        f"drop-in_{100 * self.mid:g}_{rate:g}",
        "drop-in",
        settings | {"learning_rate": rate},
        like.sparsities,
      )
      for rate in self.rates["rank"]
    ]
