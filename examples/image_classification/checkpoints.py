"""Checkpoints of a run, by Orbax."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from config import Config, read
from pipeline import open_data
from state import State, init_state, make_schedule, make_setup


def open_checkpoints(
  run: pathlib.Path, keep: int | None = None
) -> ocp.CheckpointManager:
  """Opens the checkpoints of a run.

  Args:
    run: the folder of the run.
    keep: how many to keep, the newest, when more are saved; what a kill left
      unfinished is removed. None to read only.
  """
  reads = {"read_only": True, "create": False, "save_interval_steps": 0}
  writes = {"max_to_keep": keep, "cleanup_tmp_directories": True}
  options = ocp.CheckpointManagerOptions(**writes if keep else reads)
  folder = run.absolute() / "checkpoints"
  return ocp.CheckpointManager(folder, options=options)


def save(checkpoints: ocp.CheckpointManager, state: State) -> None:
  """Begins to write a checkpoint; the state may be donated at once."""
  step = int(state.step)
  if step not in checkpoints.all_steps():
    checkpoints.save(step, args=ocp.args.StandardSave(state))


def restore(checkpoints: ocp.CheckpointManager, like: State) -> State:
  """Returns the newest checkpoint, or `like` if there is none.

  Args:
    checkpoints: of the run.
    like: a state whose structure, shapes and shardings are wanted.
  """
  step = checkpoints.latest_step()
  if step is None:
    return like
  args = ocp.args.StandardRestore(
    jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  )
  return checkpoints.restore(step, args=args)


def load(run: pathlib.Path) -> tuple[Config, Any, Any]:
  """Returns the settings, weights and statistics of a run.

  They are those of the newest checkpoint, averaged if the run averages.

  Raises:
    FileNotFoundError: if the folder holds no run, or one without checkpoint.
  """
  config = read(run)
  if not (run / "checkpoints").is_dir():
    raise FileNotFoundError(f"{run} holds no checkpoint.")
  source = open_data(config)
  schedule = make_schedule(config, source.steps_per_epoch)
  setup = make_setup(config, source.classes, schedule)
  like = init_state(config, setup, jax.random.key(0), jnp.zeros(source.shape))
  with open_checkpoints(run) as checkpoints:
    if checkpoints.latest_step() is None:
      raise FileNotFoundError(f"{run} holds no checkpoint.")
    params, statistics = restore(checkpoints, like).evaluated
  # On the host, to go onto however many devices.
  return config, *jax.device_get((setup.to_weights(params), statistics))
