"""How every program here ends: with a plot and a JSON, named after it."""

import pathlib
import sys
from typing import Any

import matplotlib.pyplot as plt

from .. import kit


def parse_out(description: str) -> pathlib.Path:
  """Reads the command line, and returns the folder to write to."""
  kit.leave_on_ctrl_c()
  return kit.parser(description, "results/theory").parse_args().out


def save(
  out: pathlib.Path, numbers: dict[str, Any], figure: plt.Figure
) -> None:
  """Writes NAME.png and NAME.json."""
  name = pathlib.Path(sys.argv[0]).stem
  made = kit.provenance(f"examples.theory.{name}", sys.argv[1:], "numpy")
  kit.write_figure(out / f"{name}.png", figure)
  kit.write_json(out / f"{name}.json", made | numbers)
  print(f"Written to {out}: {name}.png, {name}.json")
