import os
import sys

# skglm's solvers on problems this small take longer to compile than to run.
# Where a plugin of pytest has imported numba before, that would be half done.
if "numba" not in sys.modules:
  os.environ["NUMBA_DISABLE_JIT"] = "1"
