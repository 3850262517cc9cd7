"""How every program here begins and ends: --out, numbers, a plot, a JSON."""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import platform
import sys
from typing import Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.figure
import matplotlib.pyplot as plt


def parse_out(description: str) -> pathlib.Path:
  """Returns the folder to write to, made if it is not there."""
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default="results/theory",
    help="folder for the plot and the numbers (default: %(default)s)",
  )
  out = parser.parse_args().out
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    parser.error(f"argument --out: {error}")
  return out


def save(
  out: pathlib.Path, numbers: dict[str, Any], figure: matplotlib.figure.Figure
) -> None:
  """Writes NAME.png and NAME.json, named after the program."""
  name = pathlib.Path(sys.argv[0]).stem
  figure.savefig(out / f"{name}.png", dpi=150)
  plt.close(figure)
  packages = ("jax", "optax", "numpy")
  results = {
    "command": f"python examples/theory/{name}.py",
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
    "versions": {p: importlib.metadata.version(p) for p in packages},
    **numbers,
  }
  (out / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
  print(f"Written to {out}: {name}.png, {name}.json")
