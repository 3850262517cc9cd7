import pathlib
import sys

EXAMPLE = (
  pathlib.Path(__file__).parents[2] / "examples" / "image_classification"
)
sys.path.insert(0, str(EXAMPLE))
