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

_STEPS = 50  # Between lines of train metrics, whose values are waited for.


class Metrics:
  """A progress bar, JSON lines and TensorBoard's files.

  Args:
    run: the folder of the run, for metrics.jsonl and a folder tensorboard.
    begin: the step to go on from; what an earlier start logged beyond it is
      dropped.
    steps: of the whole run.
    batch_size: images a step.
    schedule: the learning rate by step.

  Attributes:
    images_per_second: the median of all that was logged, None of nothing.
  """

  def __init__(
    self,
    run: pathlib.Path,
    begin: int,
    steps: int,
    batch_size: int,
    schedule: optax.Schedule,
  ):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    self._writes = jax.process_index() == 0
    if self._writes:
      self._file = path.open("w")
      self._file.writelines(f"{line}\n" for line in lines if _upto(line, begin))
      self._board = tensorboardX.SummaryWriter(
        str(run / "tensorboard"), purge_step=begin + 1 if begin else None
      )
    self._bar = tqdm(
      total=steps,
      initial=begin,
      unit="step",
      dynamic_ncols=True,
      disable=not self._writes,
    )
    self._batch_size = batch_size
    self._schedule = schedule
    self._shown: dict[str, str] = {}
    self._recent: list[dict[str, jax.Array]] = []
    self._speeds: list[float] = []
    self._since = time.perf_counter()

  @property
  def images_per_second(self) -> float | None:
    return round(float(np.median(self._speeds)), 1) if self._speeds else None

  def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Notes a step, and every so often what the steps since came to.

    Raises:
      FloatingPointError: if the loss is not finite.
    """
    self._recent.append(metrics)
    if step % _STEPS:
      return
    values = {
      name: float(np.mean(jax.device_get([m[name] for m in self._recent])))
      for name in metrics
    }
    now = time.perf_counter()
    speed = self._batch_size * len(self._recent) / (now - self._since)
    self._since = now
    self._recent.clear()
    self._speeds.append(speed)
    self._bar.update(step - self._bar.n)
    self._show(**values, images_per_second=speed)
    values |= {
      "learning_rate": float(self._schedule(step - 1)),
      "images_per_second": speed,
    }
    self.log(step, "train", **values)
    if not math.isfinite(values["loss"]):
      raise FloatingPointError(
        f"the loss is {values['loss']} by step {step}; try a smaller"
        " --learning-rate, or --warmup-epochs or --clip."
      )

  def epoch(self, step: int, split: str, values: dict[str, float]) -> None:
    """Notes what a test at the end of an epoch gave."""
    self._bar.update(step - self._bar.n)
    self._show(**{f"{split} {name}": x for name, x in values.items()})
    self.log(step, split, **values)
    self._since = time.perf_counter()
    self._recent.clear()

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

  def _show(self, **values):
    self._shown |= {name: f"{value:.4g}" for name, value in values.items()}
    self._bar.set_postfix(self._shown)

  def close(self) -> None:
    """Closes files and bar."""
    self._bar.close()
    if self._writes:
      self._file.close()
      self._board.close()


def _upto(line, step):
  try:
    return json.loads(line)["step"] <= step
  except ValueError:
    return False  # The line that was being written when the run was killed.
