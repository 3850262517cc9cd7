"""Shows and writes what happens in a run."""

import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
import optax
import tensorboardX
from tqdm import tqdm

from . import kit

_STEPS = 50  # Between lines of train metrics, whose values are waited for.


class Metrics:
  """A progress bar, JSON lines and TensorBoard's files.

  Args:
    run: the folder of the run, for metrics.jsonl and a folder tensorboard.
    begin: the step to go on from; what an earlier start logged beyond it is
      dropped.
    steps: of the whole run.
    unit: what is counted a second, as images or tokens.
    size: how many of them a step has.
    schedule: the learning rate by step.
  """

  def __init__(
    self,
    run: pathlib.Path,
    begin: int,
    steps: int,
    unit: str,
    size: int,
    schedule: optax.Schedule,
  ):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    self._writes = jax.process_index() == 0
    if self._writes:
      # Whole at any moment: a run may be killed again before it logs a line.
      kept = [f"{line}\n" for line in lines if _upto(line, begin)]
      kit.write(path, "".join(kept))
      self._file = path.open("a")
      self._board = tensorboardX.SummaryWriter(
        str(run / "tensorboard"), purge_step=begin + 1 if begin else None
      )
    self._bar = tqdm(
      total=steps,
      initial=begin,
      unit="step",
      desc=run.name,
      dynamic_ncols=True,
      disable=not self._writes,
    )
    self._speed = f"{unit}_per_second"
    self._size = size
    self._schedule = schedule
    self._shown: dict[str, str] = {}
    self._recent: list[dict[str, jax.Array]] = []
    self._speeds: list[float] = []
    self._since = time.perf_counter()

  @property
  def speed(self) -> dict[str, float | None]:
    """The median of what was logged, by its name; None of nothing."""
    median = round(float(np.median(self._speeds)), 1) if self._speeds else None
    return {self._speed: median}

  def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Notes a step, and every so often what the steps since came to.

    Raises:
      FloatingPointError: if the loss is not finite.
    """
    self._recent.append(metrics)
    self._bar.update(step - self._bar.n)
    if step % _STEPS and step != self._bar.total:
      return
    values = {
      name: float(np.mean(jax.device_get([m[name] for m in self._recent])))
      for name in metrics
    }
    now = time.perf_counter()
    speed = self._size * len(self._recent) / (now - self._since)
    self._speeds.append(speed)
    values[self._speed] = speed
    self._show(**values)
    rate = float(self._schedule(step - 1))
    self.log(step, "train", **values, learning_rate=rate)
    self._rest()
    if not math.isfinite(values["loss"]):
      raise FloatingPointError(
        f"the loss is {values['loss']} by step {step}; try a smaller"
        " --learning-rate, a longer warm-up or a smaller --clip."
      )

  def result(self, step: int, kind: str, **values: float) -> None:
    """Notes what was computed between steps: losses of a split."""
    self._show(**{f"{kind} {name}": x for name, x in values.items()})
    self.log(step, kind, **values)
    self._rest()

  def warn(self, step: int, text: str) -> None:
    """Warns without waiting for the end of the run."""
    self.say(step, text, "warning")

  def say(self, step: int, text: str, kind: str = "note") -> None:
    """Says something without waiting for the end of the run."""
    if self._writes:
      tqdm.write(f"step {step}: {text}", file=sys.stderr)
      self.log(step, kind, text=text)

  def log(self, step: int, kind: str, **values: Any) -> None:
    """Writes values of one kind: train, the name of a split, a warning."""
    if not self._writes:
      return
    line = {"step": step, "kind": kind, **values}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    for name, value in values.items():
      if isinstance(value, float) and math.isfinite(value):
        self._board.add_scalar(f"{kind}/{name}", value, step)

  def close(self) -> None:
    """Closes files and bar."""
    self._bar.close()
    if self._writes:
      self._file.close()
      self._board.close()

  def _show(self, **values):
    self._shown |= {name: f"{value:.4g}" for name, value in values.items()}
    self._bar.set_postfix(self._shown, refresh=False)

  def _rest(self):
    """Begins to measure anew."""
    self._since = time.perf_counter()
    self._recent.clear()


def _upto(line, step):
  try:
    return json.loads(line)["step"] <= step
  except ValueError:
    return False  # The line that was being written when the run was killed.
