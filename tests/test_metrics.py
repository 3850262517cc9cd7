"""What runs log, killed and started again."""

import json

import optax
import pytest

from tests.extras import needs

needs("tensorboardX")

from examples.metrics import Metrics


def opened(run, begin):
  return Metrics(run, begin, 100, "images", 8, optax.constant_schedule(0.1))


def steps_of(run):
  lines = (run / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["step"] for line in lines]


def test_a_run_that_goes_on_keeps_what_it_logged_up_to_there(tmp_path):
  first = opened(tmp_path, 0)
  for step in (10, 20, 30):
    first.result(step, "validation", loss=1.0)
  # Killed at any moment, the file is whole: nothing is closed here.
  second = opened(tmp_path, 20)
  assert steps_of(tmp_path) == [10, 20]
  second.result(25, "validation", loss=0.5)
  assert steps_of(tmp_path) == [10, 20, 25]
  first.close()
  second.close()


@pytest.mark.parametrize("ending", ["", '{"step": 30, "ki'])
def test_a_line_that_was_being_written_goes(tmp_path, ending):
  text = '{"step": 10, "kind": "train"}\n' + ending
  (tmp_path / "metrics.jsonl").write_text(text)
  opened(tmp_path, 40).close()
  assert steps_of(tmp_path) == [10]
