"""The settings of a run: a dataclass, its command line, its file."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from . import kit

C = TypeVar("C")


def setting(
  default: Any, text: str, choices: Collection[str] = (), least: int = 0
) -> Any:
  """Returns a field of a dataclass of settings.

  Args:
    default: its value where no preset has another.
    text: what --help says of it.
    choices: the words it may be, if only some.
    least: the smallest number it may be.
  """
  return dataclasses.field(
    default=default,
    metadata={"help": text, "choices": choices, "least": least},
  )


def add_arguments(
  parser: argparse.ArgumentParser,
  config: type,
  presets: Mapping[str, Mapping[str, Any]],
  preset: str,
  without: Sequence[str] = (),
) -> None:
  """Adds --preset and a flag for every setting.

  Args:
    parser: of the program.
    config: the dataclass.
    presets: settings by name.
    preset: the default one.
    without: settings that get no flag.
  """
  parser.add_argument(
    "--preset",
    choices=presets,
    default=preset,
    help="settings to start from; flags override them (default: %(default)s)",
  )
  for field in dataclasses.fields(config):
    if field.name in without:
      continue
    flag = "--" + field.name.replace("_", "-")
    text = field.metadata["help"]
    if field.type is bool:
      parser.add_argument(flag, action="store_true", default=None, help=text)
      continue
    default = presets[preset].get(field.name, field.default)
    kind = field.type
    if kind in (int, float):
      kind = kit.at_least(kind(field.metadata["least"]))
    parser.add_argument(
      flag,
      type=kind,
      choices=field.metadata["choices"] or None,
      help=text + (f" (default: {default})" if default != "" else ""),
    )


def given(args: argparse.Namespace, config: type) -> dict[str, Any]:
  """Returns the settings that the command line names."""
  values = {
    field.name: getattr(args, field.name, None)
    for field in dataclasses.fields(config)
  }
  return {name: x for name, x in values.items() if x is not None}


def check_used(
  given: Iterable[str],
  config: Any,
  needs: Mapping[str, Mapping[str, Sequence[str]]],
) -> None:
  """Raises a ValueError if a run has no use for a setting.

  Args:
    given: settings that the command line names.
    config: the settings of the run.
    needs: by setting, others and the values of them that it goes with.
  """
  for name in given:
    for other, values in needs.get(name, {}).items():
      value = getattr(config, other)
      if value not in values:
        raise ValueError(
          f"--{name} goes with --{other} {' or '.join(values)}, got {value}."
        )


def read(run: pathlib.Path, config: type[C]) -> C:
  """Returns the settings of a run.

  Raises:
    FileNotFoundError: if the folder holds no run.
    ValueError: if it is the run of another program.
  """
  path = run / "config.json"
  if not path.exists():
    raise FileNotFoundError(f"{run} holds no run: it has no config.json.")
  try:
    values = json.loads(path.read_text())
    for field in dataclasses.fields(config):
      _check(field, values.get(field.name, field.default))
    return config(**values)
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} does not hold the settings of this program: {error}."
    ) from error


def _check(field: dataclasses.Field, value: Any) -> None:
  """Raises unless a value is of the type and among the words of a field."""
  kinds = (int, float) if field.type is float else (field.type,)
  is_kind = type(value) in kinds
  if not is_kind or value not in (field.metadata["choices"] or (value,)):
    names = " or ".join(field.metadata["choices"]) or field.type.__name__
    raise ValueError(f"{field.name} must be {names}, got {value!r}")


def write(run: pathlib.Path, config: Any) -> None:
  """Notes the settings of a run, or checks them if it was begun before.

  Raises:
    ValueError: if the run was begun with other settings.
  """
  check(run, config)
  path = run / "config.json"
  if not path.exists():
    kit.write_json(path, dataclasses.asdict(config))


def check(run: pathlib.Path, config: Any) -> None:
  """Raises a ValueError if a run was begun with other settings."""
  if not (run / "config.json").exists():
    return
  before, now = map(dataclasses.asdict, (read(run, type(config)), config))
  changed = [
    f"{name} was {before[name]!r} and is {now[name]!r}"
    for name in now
    if before[name] != now[name]
  ]
  if changed:
    raise ValueError(
      f"{run} holds a run with other settings: {', '.join(changed)}. Give"
      " those, or another --out."
    )
