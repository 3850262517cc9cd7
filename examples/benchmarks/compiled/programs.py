"""The programs: optimizer steps and training steps, compiled for targets."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import rewa_jax

from ...image_classification.models import MODELS
from .. import fully_sharded, training_step
from .. import optimizer_step as plain
from ..trees import shapes
from . import targets

# Names of models, and topologies, by target.
TRAINED = {
  "h100": (("124m", "1x1x1"), ("resnet50", "1x1x1")),
  "v5e": (
    *(("lenet300 by pmap", "2x2"), ("124m", "2x2")),
    *(("resnet50", "2x2"), ("resnet50", "4x4")),
  ),
  "v5p": (("7b", "4x4x4"),),
}


class Step(NamedTuple):
  """An optimizer step.

  Attributes:
    base: the name of the step that it is compared with.
    row: what is updated, and by what.
    dtype: of latents and gradients.
  """

  base: str
  row: plain.Row
  dtype: Any = jnp.float32


def optimizer_steps() -> dict[str, Step]:
  """Returns the steps by name, each after what it is compared with."""
  rewa, rate, decay = plain.SGD_REWA, plain.RATE, plain.DECAY
  # One depth stands for all: each factor more moves an array more, thrice.
  steps = {
    name: Step(row.base, row)
    for name, row in plain.methods().items()
    if "D = 2" not in name and "D = 4" not in name
  }
  sgd = rewa_jax.sgd(rate, rewa, weight_decay=decay)
  by_rank = rewa_jax.sgd(rate, rewa, sparsity=0.99, steps=10_000)
  steps["rewa_sgd by rank"] = Step("sgd", plain.Row("sgd", by_rank, rewa))
  flat = plain.Row("sgd", optax.flatten(optax.sgd(rate)))
  steps["sgd, flattened"] = Step("sgd", flat)
  for dtype in (jnp.bfloat16, jnp.float16):
    base = f"sgd, {dtype.__name__}"
    steps[base] = Step(base, plain.Row(base, optax.sgd(rate)), dtype)
    for impl in ("threefry2x32", "rbg"):
      key = jax.random.key(0, impl=impl)
      solver = optax.chain(sgd, rewa_jax.round_stochastically(key))
      row = plain.Row(base, solver, rewa)
      steps[f"rewa_sgd, {dtype.__name__}, {impl}"] = Step(base, row, dtype)
  return steps


def compile_optimizer_step(step: Step, tree: str, device: Any) -> Any:
  """Returns the step compiled for a device, weights written out."""
  whole, start = plain.step_of(step.row)

  def update(grads, carry):
    latents, state, weights = whole(grads, carry)
    return latents, state, _computed(step.row.method, weights)

  def begin(params):
    latents, state, weights = start(params)
    return latents, state, _computed(step.row.method, weights)

  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, step.dtype), shapes(tree)
  )
  carry = jax.eval_shape(begin, params)
  jitted = jax.jit(update, donate_argnums=1, keep_unused=True)
  there = SingleDeviceSharding(device)
  return jitted.lower(_place(params, there), _place(carry, there)).compile()


def _computed(method, weights):
  """Leaves out what is no latent, and so written already."""
  if method is None:
    return weights
  return method.map_weights(lambda _, x: x, weights, lambda _: None)


def training_steps(target: str) -> dict[str, dict[str, Callable[[], Any]]]:
  """Returns what TRAINED names, in several ways in: functions to compile it.

  ResNet-50 trains in data parallel, transformers fully sharded, in bfloat16
  with parameters of float32.
  """
  ways = training_step.ways()
  del ways["trees"]
  steps = {}
  for what, topology in TRAINED.get(target, ()):
    devices = targets.devices(target, topology)
    if what in fully_sharded.MODELS:
      compilers = _transformer(what, devices)
    else:
      compile_one = compile_resnet50 if what == "resnet50" else compile_pmap
      compilers = {
        name: functools.partial(compile_one, way, devices)
        for name, way in ways.items()
      }
    steps[f"{what}, {len(devices)} devices"] = compilers
  return steps


def compile_resnet50(way: training_step.Way, devices: Any) -> Any:
  """Returns the step of 256 images, spread over the devices."""
  mesh = mesh_of(devices)
  model = MODELS["resnet50"](classes=1000, stem="imagenet", dtype=jnp.bfloat16)
  step, start = training_step.training_step(way, model, {"train": True})
  whole, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("devices"))
  images = jax.ShapeDtypeStruct((256, 224, 224, 3), jnp.float32)
  labels = jax.ShapeDtypeStruct((256,), jnp.int32)
  carry = jax.eval_shape(start, jax.random.key(0), images)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=whole)
  batch = _place((images, labels), spread)
  return jitted.lower(_place(carry, whole), batch).compile()


def compile_pmap(way: training_step.Way, devices: Any) -> Any:
  """Returns the step of LeNet-300-100 under pmap."""
  averaged = optax.chain(_mean_over("devices"), way.solver)
  step, start = training_step.training_step(
    way._replace(solver=averaged), MODELS["lenet300"](classes=10), {}
  )
  each = 128 // len(devices)
  images = jax.ShapeDtypeStruct((each, 28, 28, 1), jnp.float32)
  labels = jax.ShapeDtypeStruct((each,), jnp.int32)
  carry = jax.eval_shape(start, jax.random.key(0), images)
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((len(devices), *x.shape), x.dtype),
    (carry, (images, labels)),
  )
  mapped = jax.pmap(step, "devices", devices=devices, donate_argnums=0)
  return mapped.lower(*stacked).compile()


def _mean_over(axis):
  return optax.stateless(lambda grads, _: jax.lax.pmean(grads, axis))


def _transformer(name, devices):
  mesh = mesh_of(devices)
  model = functools.partial(
    fully_sharded.MODELS[name],
    dtype=jnp.bfloat16,
    constrain=functools.partial(
      jax.lax.with_sharding_constraint,
      shardings=NamedSharding(mesh, P("devices")),
    ),
  )
  return {
    name: functools.partial(fully_sharded.compiled, *way, mesh, model().length)
    for name, way in fully_sharded.ways(model).items()
    if "around" not in name
  }


def mesh_of(devices: Any) -> jax.sharding.Mesh:
  """Returns devices in a row."""
  return jax.sharding.Mesh(
    np.array(devices), ("devices",), axis_types=(AxisType.Auto,)
  )


def _place(tree, sharding):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
