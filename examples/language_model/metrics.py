"""Shows and writes what happens in a run."""

import json
import math
import pathlib
import time

import jax
import numpy as np
import optax
import tensorboardX
from tqdm import tqdm

_STEPS = 25  # Between lines of train metrics, whose values are waited for.


class Metrics:
  """A progress bar, JSON lines and TensorBoard's files.

  Args:
    run: the folder of the run, for metrics.jsonl and a folder tensorboard.
    begin: the step to go on from; what an earlier start logged beyond it is
      dropped.
    steps: of the whole run.
    tokens: a step has.
    schedule: the learning rate by step.

  Attributes:
    tokens_per_second: the median of all that was logged, None of nothing.
  """

  def __init__(
    self,
    run: pathlib.Path,
    begin: int,
    steps: int,
    tokens: int,
    schedule: optax.Schedule,
  ):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    self._file = path.open("w")
    self._file.writelines(f"{line}\n" for line in lines if _upto(line, begin))
    self._board = tensorboardX.SummaryWriter(
      str(run / "tensorboard"), purge_step=begin + 1 if begin else None
    )
    self._bar = tqdm(
      total=steps,
      initial=begin,
      unit="step",
      desc=run.name,
      dynamic_ncols=True,
      mininterval=1,
    )
    self._tokens = tokens
    self._schedule = schedule
    self._shown: dict[str, str] = {}
    self._recent: list[jax.Array] = []
    self._speeds: list[float] = []
    self._since = time.perf_counter()

  @property
  def tokens_per_second(self) -> float | None:
    return round(float(np.median(self._speeds)), 1) if self._speeds else None

  def step(self, step: int, loss: jax.Array) -> None:
    """Notes a step, and every so often what the steps since came to.

    Raises:
      FloatingPointError: if the loss is not finite.
    """
    self._recent.append(loss)
    self._bar.update(step - self._bar.n)
    if step % _STEPS:
      return
    mean = float(np.mean(jax.device_get(self._recent)))
    now = time.perf_counter()
    speed = self._tokens * len(self._recent) / (now - self._since)
    self._speeds.append(speed)
    rate = float(self._schedule(step - 1))
    self.log(
      step, "train", loss=mean, learning_rate=rate, tokens_per_second=speed
    )
    self._show(loss=mean, tokens_per_second=speed)
    self.rest()
    if not math.isfinite(mean):
      raise FloatingPointError(
        f"the loss is {mean} by step {step}; try a smaller --learning-rate, or"
        " a longer --warmup."
      )

  def rest(self) -> None:
    """Begins to measure anew, after work that was no training."""
    self._since = time.perf_counter()
    self._recent.clear()

  def log(self, step: int, kind: str, **values: float) -> None:
    """Writes values of one kind: train, validation, cut."""
    line = {"step": step, "kind": kind, **values}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    for name, value in values.items():
      if math.isfinite(value):
        self._board.add_scalar(f"{kind}/{name}", value, step)
    if kind != "train":
      self._show(**{f"{kind} {name}": x for name, x in values.items()})

  def _show(self, **values):
    self._shown |= {name: f"{value:.4g}" for name, value in values.items()}
    self._bar.set_postfix(self._shown, refresh=False)

  def close(self) -> None:
    """Closes files and bar."""
    self._bar.close()
    self._file.close()
    self._board.close()


def _upto(line, step):
  try:
    return json.loads(line)["step"] <= step
  except ValueError:
    return False  # The line that was being written when the run was killed.
