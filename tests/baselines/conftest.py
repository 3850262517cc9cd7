import os

# skglm's solvers on problems this small take longer to compile than to run.
os.environ["NUMBA_DISABLE_JIT"] = "1"
