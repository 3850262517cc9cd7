"""Says when, where and with what versions a result was made."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax

import rewa_jax


def provenance(*packages: str) -> dict[str, Any]:
  """Returns date, versions and machine, for a JSON of results.

  Args:
    packages: those whose versions matter beside jax and optax.
  """
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  names = [line.split(": ")[1] for line in lines if "model name" in line]
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": {
      "python": platform.python_version(),
      "rewa_jax": rewa_jax.__version__,
      **{
        package: importlib.metadata.version(package)
        for package in ("jax", "optax", *packages)
      },
    },
    "machine": f"{names[0] if names else platform.processor()},"
    f" {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
  }
