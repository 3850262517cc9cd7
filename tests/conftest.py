import os
import pathlib
import tempfile

import hypothesis
import jax
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
EXAMPLE_FOLDERS = {path.name for path in EXAMPLES.glob("[a-z]*/")}

# Eight devices on any machine, set before JAX starts its backend.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# Workers, and the programs that tests start, compile nothing twice.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
  for name, value in {
    "jax_compilation_cache_dir": cache.name,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)

# Compilation takes longer than the default deadline; CI repeats itself.
hypothesis.settings.register_profile("jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jax")


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled(request):
  """Spares examples most optimizations: they compile longer than they run."""
  is_example = request.path.parent.name in EXAMPLE_FOLDERS
  with pytest.MonkeyPatch.context() as patch:
    if is_example:  # Also of the programs that a test starts.
      patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", is_example)
    yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64():
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)
