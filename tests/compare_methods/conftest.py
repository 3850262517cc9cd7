import pathlib
import sys

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "compare_methods"
sys.path.insert(0, str(EXAMPLE))
