import pathlib
import sys

# The programs import their neighbour report.py, as they do when run.
THEORY = pathlib.Path(__file__).parents[2] / "examples" / "theory"
sys.path.insert(0, str(THEORY))
