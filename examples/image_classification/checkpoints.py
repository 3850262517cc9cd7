"""Checkpoints of a run, by Orbax."""

import contextlib
import dataclasses
import hashlib
import pathlib
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from config import Config, read
from jax.experimental import multihost_utils
from pipeline import open_data
from state import State, init_state, make_schedule, make_setup

_WAY_OUT = (
  "Remove that folder to go on from the checkpoint before it or, if there is"
  " none, from the start."
)


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


def save(
  checkpoints: ocp.CheckpointManager, state: State, config: Config
) -> None:
  """Begins to write a checkpoint; the state may be donated at once."""
  step = int(state.step)
  if step in checkpoints.all_steps():
    return
  # Of large arrays, Orbax does not notice changed bits.
  label = {"settings": dataclasses.asdict(config), "digests": _digests(state)}
  items = {
    "label": ocp.args.JsonSave(label),
    "state": ocp.args.StandardSave(state),
  }
  checkpoints.save(step, args=ocp.args.Composite(**items))


def restore(
  checkpoints: ocp.CheckpointManager, like: State, config: Config
) -> State:
  """Returns the newest checkpoint, or `like` if there is none.

  Args:
    checkpoints: of the run.
    like: a state whose structure, shapes and shardings are wanted.
    config: settings of the run.

  Raises:
    ValueError: if the checkpoint is damaged or of a run with other settings.
  """
  step = checkpoints.latest_step()
  if step is None:
    return like
  folder = checkpoints.directory / str(step)

  def read(**item):
    (name,) = item
    return checkpoints.restore(step, args=ocp.args.Composite(**item))[name]

  with _named(folder):
    label = read(label=ocp.args.JsonRestore())
    settings = dataclasses.asdict(Config(**label["settings"]))
    digests = dict(label["digests"])
  _check_same(folder, "settings", settings, dataclasses.asdict(config))
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  with _named(folder):
    state = read(state=ocp.args.StandardRestore(abstract))
  _check_same(folder, "values", digests, _digests(state))
  return state


@contextlib.contextmanager
def _named(folder):
  try:
    yield
  except Exception as error:  # Orbax and what it stands on raise many kinds.
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
    raise ValueError(
      f"{folder} cannot be read: {reason}. {_WAY_OUT}"
    ) from error


def _check_same(folder, what, saved, wanted):
  changed = [name for name in wanted if saved.get(name) != wanted[name]]
  if changed:
    raise ValueError(
      f"{folder} was saved with other {what} of {', '.join(changed)}."
      f" {_WAY_OUT}"
    )


def _digests(state):
  """Returns the SHA-256 of every leaf, its type and shape included."""
  digests = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
    leaf = np.asarray(leaf)
    content = f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes()
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    digests[name] = hashlib.sha256(content).hexdigest()
  return digests


def load(run: pathlib.Path) -> tuple[Config, Any, Any]:
  """Returns the settings, weights and statistics of a run.

  They are those of the newest checkpoint, averaged if the run averages.

  Raises:
    FileNotFoundError: if the folder holds no run, or one without checkpoint.
    ValueError: if the checkpoint is damaged or of a run with other settings.
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
    params, statistics = restore(checkpoints, like, config).evaluated
  # On the host, to go onto however many devices.
  return config, *jax.device_get((setup.to_weights(params), statistics))
