"""Checkpoints of a run, by Orbax."""

import pathlib

import jax
import orbax.checkpoint as ocp

from .state import State

KEPT = 2


def open_checkpoints(run: pathlib.Path) -> ocp.CheckpointManager:
  """Opens the checkpoints of a run; what a kill left unfinished is removed."""
  options = ocp.CheckpointManagerOptions(
    max_to_keep=KEPT, cleanup_tmp_directories=True
  )
  return ocp.CheckpointManager(run.absolute() / "checkpoints", options=options)


def save(checkpoints: ocp.CheckpointManager, state: State) -> None:
  """Begins to write a checkpoint; the state may be donated at once."""
  checkpoints.save(int(state.step), args=ocp.args.StandardSave(state))


def restore(checkpoints: ocp.CheckpointManager, like: State) -> State:
  """Returns the newest checkpoint, or `like` if there is none.

  Args:
    checkpoints: of the run.
    like: a state whose structure, shapes and shardings are wanted.

  Raises:
    ValueError: if the checkpoint cannot be read.
  """
  step = checkpoints.latest_step()
  if step is None:
    return like
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  try:
    return checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
  except Exception as error:  # Orbax and what it stands on raise many kinds.
    raise ValueError(
      f"{checkpoints.directory / str(step)} cannot be read: {error}. Remove"
      " that folder to go on from the checkpoint before it or, if there is"
      " none, from the start."
    ) from error
