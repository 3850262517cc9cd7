"""What all programs share and none is about: results, tables, Ctrl-C."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

import jax

import rewa_jax


def command(module: str, argv: Sequence[str] = ()) -> str:
  """Returns the line that starts a program: python -m examples.theory.task."""
  return shlex.join(["python", "-m", module, *argv])


def provenance(*packages: str) -> dict[str, Any]:
  """Returns date, versions and machine, for a JSON of results.

  Args:
    packages: those whose versions matter beside jax and optax.
  """
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  names = [line.split(": ")[1] for line in lines if "model name" in line]
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": {
      "python": platform.python_version(),
      "rewa_jax": rewa_jax.__version__,
      **{
        package: importlib.metadata.version(package)
        for package in ("jax", "optax", *packages)
      },
    },
    "machine": f"{names[0] if names else platform.processor()},"
    f" {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
  }


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file that is there whole or not at all, whatever happens."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + ".part")
  part.write_bytes(content)
  part.replace(path)


def write_json(path: pathlib.Path, results: Any) -> None:
  """Writes results as JSON."""
  write(path, (json.dumps(results, indent=1) + "\n").encode())


def markdown_table(
  columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> str:
  """Returns rows as a Markdown table; floats get three digits."""
  cells = [
    [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
    for row in rows
  ]
  lines = [columns, ["---"] * len(columns), *cells]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def leave_on_ctrl_c(message: str) -> None:
  """Makes Ctrl-C end the program with a sentence instead of a traceback."""

  def leave(*_):
    print(f"\n{message}", file=sys.stderr, flush=True)
    os._exit(130)  # Not sys.exit: XLA's threads may be at work still.

  signal.signal(signal.SIGINT, leave)
