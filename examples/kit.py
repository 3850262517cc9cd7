"""What all programs share: options, results, decay budgets, Ctrl-C."""

import argparse
import contextlib
import csv
import datetime
import io
import json
import math
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")

# Below the first dead weights do not leave the live ones, with the second do.
LEAST_BUDGET, GOOD_BUDGET = 8, 15


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
  """Returns a parser that has --out, the folder of the results."""
  result = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  text = "folder of the results (default: %(default)s)"
  result.add_argument("--out", type=folder, default=out, help=text)
  return result


def folder(name: str) -> Path:
  """Returns a folder to write to: a run should not fail at its end."""
  try:
    Path(name).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=name).close()
  except OSError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return Path(name)


def at_least(least: float) -> Callable[[str], float]:
  """Returns a type of option: numbers, integers where the bound is one."""
  kind = type(least)

  def number(text):
    value = kind(text)
    if not least <= value < math.inf:
      raise argparse.ArgumentTypeError(
        f"must be at least {least:g}, got {text}"
      )
    return value

  # What argparse calls it.
  number.__name__ = kind.__name__
  return number


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
  """Ends the program with what is wrong with settings or files."""
  try:
    yield
  except (OSError, ValueError) as error:
    sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def provenance(module: str, argv: Sequence[str], *packages: str) -> dict:
  """Returns command, date, versions and machine, for a JSON of results."""
  # Of paths the last name: where folders lie is nobody's business.
  words = [re.sub(r"[^=]*/", "", word.rstrip("/")) for word in argv]
  text = "".join(path.read_text() for path in Path("/proc").glob("cpuinfo"))
  name = (re.findall("model name.*: (.*)", text) or [platform.processor()])[0]
  device = jax.devices()[0].device_kind
  return {
    "command": shlex.join(["python", "-m", module, *words]),
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "python": platform.python_version(),
    "versions": {
      p: version(p) for p in ("rewa_jax", "jax", "optax", *packages)
    },
    "machine": f"{name}, {os.cpu_count()} cores, {device}",
  }


def cpu_devices(most: int) -> int:
  """Returns how many devices a CPU should be: a power of two, as batches are.

  Args:
    most: the largest number, a power of two.
  """
  # Where a process is bound to some cores, it has no others.
  bound = getattr(os, "sched_getaffinity", None)
  cores = len(bound(0)) if bound else os.cpu_count() or 1
  return 2 ** (min(cores, most).bit_length() - 1)


def write(path: Path, content: str | bytes) -> None:
  """Writes a file that is there whole or not at all, whatever happens."""
  path.parent.mkdir(parents=True, exist_ok=True)
  # By process, since several may fill one folder.
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  part.write_bytes(content.encode() if isinstance(content, str) else content)
  part.replace(path)


def write_json(path: Path, results: dict) -> None:
  """Writes JSON, a line for each innermost list."""
  text = json.dumps(results, indent=1)
  text = re.sub(r"\[[^][{}\"]*\]", lambda list: " ".join(list[0].split()), text)
  write(path, text + "\n")


def read_json(path: Path, settings: dict) -> dict:
  """Returns the results that are there already, or none.

  Exits where they are of other settings: a run goes on from where it stopped,
  and does not mix.
  """
  if not path.exists():
    return {}
  try:
    results = json.loads(path.read_text())
  except ValueError as error:
    sys.exit(f"{path} is no JSON, {error}: move it away.")
  for name, value in settings.items():
    if results.get(name) != value:
      sys.exit(
        f"{path} was made with {name} {results.get(name)}, not {value}: move it"
        " away, or give another --out."
      )
  return results


def write_csv(path: Path, columns: Sequence[str], rows: Iterable) -> None:
  """Writes a table; floats get six digits."""
  cells = [[f"{x:.6g}" if isinstance(x, float) else x for x in r] for r in rows]
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([columns, *cells])
  write(path, text.getvalue())


def write_figure(path: Path, figure: plt.Figure) -> None:
  """Writes a figure as PNG, and closes it."""
  png = io.BytesIO()
  figure.savefig(png, dpi=150)
  plt.close(figure)
  write(path, png.getvalue())


def markdown(columns: Sequence[str], rows: Iterable) -> str:
  """Returns a table; floats get three digits."""
  cells = [[f"{x:.3g}" if isinstance(x, float) else x for x in r] for r in rows]
  lines = [f"| {' | '.join(map(str, r))} |\n" for r in (columns, *cells)]
  return "".join([lines[0], "|" + "---|" * len(columns) + "\n", *lines[1:]])


def made_by(made: dict) -> str:
  """Returns the line under a table that says where it comes from."""
  return f"\nMade by `{made['command']}` on {made['machine']}.\n"


def describe_budgets(
  budgets: Sequence[float], remedy: Callable[[float], str]
) -> str:
  """Says how far weight decay alone goes, and what to do if it is not enough.

  Args:
    budgets: the decay budget of a run, or those of a grid.
    remedy: from what the largest budget is to be multiplied by to the settings
      that do so, as words.
  """
  low, high = float(min(budgets)), float(max(budgets))
  text = f"decay budget {high:.1f}"
  if len(budgets) > 1:
    text = f"decay budgets {low:.1f} to {high:.1f}"
  if low >= LEAST_BUDGET:
    return text
  text += f", and below {LEAST_BUDGET} a network may stay dense"
  if high >= LEAST_BUDGET:
    return f"{text}: the weak end of this grid will."
  if not high:
    return f"warning: {text}. There is no weight decay."
  ways = remedy(GOOD_BUDGET / high)
  return f"warning: {text}. It takes {ways} for a budget of {GOOD_BUDGET}."


def leave_on_ctrl_c(message: str = "nothing is written.") -> None:
  """Makes Ctrl-C end the program with a sentence instead of a traceback."""

  def leave(*_):
    print(f"\nInterrupted; {message}", file=sys.stderr, flush=True)
    os._exit(130)  # Not sys.exit: XLA's threads may be at work still.

  signal.signal(signal.SIGINT, leave)
