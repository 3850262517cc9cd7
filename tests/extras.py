"""Libraries that the tests of the extra test-examples need."""

import pytest


def needs(library):
  """Imports a library; without it, skips the test or the file that asks."""
  return pytest.importorskip(
    library, reason=f"{library} is in rewa_jax[test-examples]"
  )
