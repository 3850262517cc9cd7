import pathlib
import sys

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "sparse_regression"
sys.path.insert(0, str(EXAMPLE))
