"""Runs the tests with the oldest and with the newest versions of everything.

  pip install uv
  python -m tests.scripts.versions [--resolution R] [arguments of pytest]

"lowest-direct" takes the lowest versions that pyproject.toml allows, "highest"
the newest there are. uv installs each into a fresh environment in a temporary
folder; without arguments for pytest, all tests run in it. The exit status is 1
if a test fails or versions do not go together.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
RESOLUTIONS = ("lowest-direct", "highest")
SHOWN = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


def main(argv) -> int:
  """Runs the program, and returns its exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--resolution",
    choices=RESOLUTIONS,
    help="only this one (default: one after the other)",
  )
  args, tests = parser.parse_known_args(argv)
  if importlib.util.find_spec("uv") is None:
    parser.error("uv is not installed: pip install uv")
  wanted = [args.resolution] if args.resolution else RESOLUTIONS
  tests = tests or ["-q", "-n", "auto", "-m", ""]
  passed = {name: passes(name, tests) for name in wanted}
  for name in wanted:
    print(f"{name}: {'passed' if passed[name] else 'failed'}")
  return 0 if all(passed.values()) else 1


def passes(resolution: str, tests: list[str]) -> bool:
  """Runs pytest in a fresh environment; returns whether all went well."""
  with tempfile.TemporaryDirectory() as folder:
    python = pathlib.Path(folder) / "bin" / "python"
    into = "-q", "--python", python
    try:
      uv("venv", "-q", "--clear", "--python", sys.executable, folder)
      package = ".[test-examples]"
      uv("pip", "install", *into, "--resolution", resolution, "-e", package)
      listed = uv("pip", "list", *into, "--format", "json")
    except subprocess.CalledProcessError:
      return False  # uv has said why.
    found = {each["name"]: each["version"] for each in json.loads(listed)}
    versions = ", ".join(f"{name} {found[name]}" for name in SHOWN)
    print(f"{resolution}: {versions}", flush=True)
    # Old versions of libraries warn of each other.
    pytest = python, "-m", "pytest", "-W", "ignore::DeprecationWarning"
    ran = subprocess.run([*pytest, *tests], cwd=ROOT)
  return not ran.returncode


def uv(*arguments) -> str:
  """Runs uv, and returns what it prints."""
  command = [sys.executable, "-m", "uv", *arguments]
  return subprocess.run(
    command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
  ).stdout


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
