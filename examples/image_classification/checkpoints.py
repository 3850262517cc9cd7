"""Checkpoints of a run, by Orbax."""

import contextlib
import dataclasses
import functools
import pathlib
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

import rewa_jax

from .. import settings
from .config import Config
from .pipeline import open_data
from .state import (
  State,
  init_state,
  make_network,
  make_setup,
)

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
  """Returns a checksum of every leaf, its type and shape included."""
  sums = jax.jit(lambda leaves: [_sum(leaf) for leaf in leaves])
  paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(state))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{leaf.dtype}{leaf.shape} {int(sum_):08x}"
    )
    for path, leaf, sum_ in zip(paths, leaves, sums(leaves))
  }


def _sum(leaf):
  """Adds up a hash of every word and its place: each device its own shard."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == bool:
    leaf = leaf.astype(jnp.uint8)
  bits = jnp.iinfo(f"int{min(8 * leaf.dtype.itemsize, 32)}").bits
  words = jax.lax.bitcast_convert_type(leaf, f"uint{bits}").astype(jnp.uint32)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place = _mix(place * jnp.uint32(size % 2**32) + index)
  return jnp.sum(_mix(words ^ _mix(place + 1)), dtype=jnp.uint32)


def _mix(word):
  """Returns a word of 32 bits in which each depends on all of the given one."""
  for factor in (0x85EBCA6B, 0xC2B2AE35):
    word = (word ^ (word >> 15)) * jnp.uint32(factor)
  return word ^ (word >> 16)


def load(run: pathlib.Path) -> tuple[Config, Any, Any]:
  """Returns the settings, weights and statistics of a run.

  They are those of the newest checkpoint, averaged if the run averages, and cut
  to the sparsity it was asked for if it is over.

  Raises:
    FileNotFoundError: if the folder holds no run, or one without checkpoint.
    ValueError: if the checkpoint is damaged or of a run with other settings.
  """
  config = settings.read(run, Config)
  if not (run / "checkpoints").is_dir():
    raise FileNotFoundError(f"{run} holds no checkpoint.")
  source = open_data(config)
  network = make_network(config, source.classes)
  setup = make_setup(config, network, source.steps_per_epoch)
  init = jax.jit(functools.partial(init_state, config, setup))
  like = init(jax.random.key(0), jnp.zeros(source.shape))
  with open_checkpoints(run) as checkpoints:
    if checkpoints.latest_step() is None:
      raise FileNotFoundError(f"{run} holds no checkpoint.")
    state = restore(checkpoints, like, config)
  params, statistics = state.evaluated
  is_over = state.step == config.epochs * source.steps_per_epoch

  @jax.jit
  def weights_of(params):
    weights = setup.to_weights(params)
    if config.sparsity and is_over:
      weights, _ = rewa_jax.prune(weights, sparsity=config.sparsity)
    return weights

  # On the host, to go onto however many devices.
  return config, *jax.device_get((weights_of(params), statistics))
