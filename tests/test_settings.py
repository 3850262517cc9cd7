"""The file of a run's settings, whatever is in it."""

import dataclasses
import json

import pytest

from examples import settings
from examples.settings import setting


@dataclasses.dataclass(frozen=True)
class Config:
  name: str = setting("a", "a word", ("a", "b"))
  rate: float = setting(0.5, "a number")
  steps: int = setting(3, "a count")
  loud: bool = setting(False, "a switch")


def test_what_is_written_is_read(tmp_path):
  config = Config(name="b", rate=1, steps=7, loud=True)
  settings.write(tmp_path, config)
  assert settings.read(tmp_path, Config) == config


def test_a_setting_that_is_newer_than_the_run_has_its_default(tmp_path):
  (tmp_path / "config.json").write_text('{"steps": 7}')
  assert settings.read(tmp_path, Config) == Config(steps=7)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"steps": "60"}, "steps must be int, got '60'"),
    ({"steps": 200.5}, "steps must be int, got 200.5"),
    ({"steps": True}, "steps must be int, got True"),
    ({"rate": None}, "rate must be float, got None"),
    ({"name": "vgg"}, "name must be a or b, got 'vgg'"),
    ({"other": 1}, "unexpected keyword argument 'other'"),
  ],
)
def test_what_the_program_cannot_have_written_is_named(
  tmp_path, changes, message
):
  values = dataclasses.asdict(Config()) | changes
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(ValueError, match=message):
    settings.read(tmp_path, Config)


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_what_holds_no_settings_is_said(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="does not hold the settings"):
    settings.read(tmp_path, Config)


def test_a_run_of_other_settings_is_refused(tmp_path):
  settings.write(tmp_path, Config())
  settings.write(tmp_path, Config())
  with pytest.raises(ValueError, match="steps was 3 and is 4"):
    settings.write(tmp_path, Config(steps=4))
  settings.check(tmp_path / "none", Config())
