import gc
import os
import tempfile

import hypothesis
import jax
import pytest

from tests import memory

# A program, and of an example that the quick tests cannot import.
collect_ignore = ["scripts/kill.py"]

# Set before JAX starts its backend: eight devices on any machine, and programs
# that compile in a third of the time, since most of them run but once.
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_parallel_codegen_split_count=1",
    # From 0.11 on XLA stops the process: it does not know this any more.
    "--xla_cpu_use_fusion_emitters=false" * (jax.__version_info__ < (0, 11)),
  ]
)

# Workers, and the programs that tests start, compile nothing twice.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
  for name, value in {
    "jax_compilation_cache_dir": cache.name,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_disable_most_optimizations": True,
  }.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)

# However slow the machine, and always the same; x64 holds for all examples.
hypothesis.settings.register_profile(
  "jax",
  deadline=None,
  derandomize=True,
  suppress_health_check=[
    hypothesis.HealthCheck.too_slow,
    hypothesis.HealthCheck.function_scoped_fixture,
  ],
)
hypothesis.settings.load_profile("jax")


def pytest_collection_finish():
  """Spares every later collection what the imports have left."""
  memory.give_back()
  gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
  """Keeps workers below 1.2 GB, at their peaks too."""
  if memory.resident() > 1e9:
    memory.give_back()


@pytest.fixture
def x64():
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)
