"""A decoder-only transformer in Flax NNX, and which of its weights are sparse.

Root mean square norms, rotary positions, no biases. Query, key and value are
one kernel, (width, 3, heads, size), and so are the two of SwiGLU, (width, 2,
hidden): fewer, larger products.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Shape(NamedTuple):
  """What decides how large a model is.

  Attributes:
    vocabulary: how many tokens there are.
    layers: how many blocks.
    width: of activations, a multiple of 2 * heads.
    heads: of each attention.
    hidden: width within a feed-forward network.
    activation: "swiglu", a gate and a third kernel, or "gelu".
    tied: whether the head is the embedding.
  """

  vocabulary: int
  layers: int
  width: int
  heads: int
  hidden: int
  activation: str = "swiglu"
  tied: bool = True


def rotate(x: jax.Array) -> jax.Array:
  """Turns pairs of features by angles that grow with the position.

  Args:
    x: queries or keys, (n, length, heads, features), features even.

  Returns:
    The same in float32; products of queries and keys depend on the distance
    of their positions alone.
  """
  length, half = x.shape[1], x.shape[-1] // 2
  speeds = 10_000.0 ** (-jnp.arange(half) / half)
  angles = jnp.arange(length)[:, None, None] * speeds
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Attention(nnx.Module):
  def __init__(self, shape: Shape, linear, rngs: nnx.Rngs):
    each = shape.heads, shape.width // shape.heads
    self.inputs = linear(shape.width, (3, *each), rngs=rngs)
    self.output = linear(each, shape.width, axis=(-2, -1), rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    split = jnp.split(self.inputs(x), 3, axis=2)
    query, key, value = (y.squeeze(2) for y in split)
    query, key = (rotate(y).astype(value.dtype) for y in (query, key))
    y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return self.output(y)


class FeedForward(nnx.Module):
  def __init__(self, shape: Shape, linear, rngs: nnx.Rngs):
    self.gated = shape.activation == "swiglu"
    features = 1 + self.gated, shape.hidden
    self.input = linear(shape.width, features, rngs=rngs)
    self.output = linear(shape.hidden, shape.width, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.input(x)
    if not self.gated:
      return self.output(nnx.gelu(x[..., 0, :]))
    gate, x = (y.squeeze(-2) for y in jnp.split(x, 2, axis=-2))
    return self.output(nnx.silu(gate) * x)


class Block(nnx.Module):
  def __init__(self, shape: Shape, linear, norm, rngs: nnx.Rngs):
    self.attention_norm = norm(shape.width, rngs=rngs)
    self.attention = Attention(shape, linear, rngs)
    self.mlp_norm = norm(shape.width, rngs=rngs)
    self.mlp = FeedForward(shape, linear, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.attention(self.attention_norm(x))
    return x + self.mlp(self.mlp_norm(x))


class Transformer(nnx.Module):
  """Tokens (n, length) to logits (n, length, vocabulary) in float32.

  Args:
    shape: how large it is.
    dtype: of the computation; parameters are float32.
    rngs: of the initial weights.
  """

  def __init__(self, shape: Shape, dtype: Any, rngs: nnx.Rngs):
    linear = functools.partial(nnx.LinearGeneral, use_bias=False, dtype=dtype)
    norm = functools.partial(nnx.RMSNorm, dtype=dtype)
    self.embedding = nnx.Embed(
      shape.vocabulary,
      shape.width,
      dtype=dtype,
      embedding_init=nnx.initializers.normal(shape.width**-0.5),
      rngs=rngs,
    )
    self.blocks = nnx.List(
      [Block(shape, linear, norm, rngs) for _ in range(shape.layers)]
    )
    self.norm = norm(shape.width, rngs=rngs)
    self.head = (
      None if shape.tied else linear(shape.width, shape.vocabulary, rngs=rngs)
    )

  def __call__(self, tokens: jax.Array) -> jax.Array:
    x = self.embedding(tokens)
    for block in self.blocks:
      x = block(x)
    x = self.norm(x)
    logits = self.embedding.attend(x) if self.head is None else self.head(x)
    return logits.astype(jnp.float32)


def kernels(params: Any) -> Any:
  """Selects the kernels of attention and feed-forward networks.

  Embedding, head and norms stay dense: sparsities are of what is selected.
  """

  def is_selected(path, leaf):
    del leaf
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    return "blocks" in names and "kernel" in names

  return jax.tree_util.tree_map_with_path(is_selected, params)


def units(path: str, leaf: Any) -> tuple[int, ...]:
  """Heads and hidden channels as groups, see `baselines.group_axes`."""
  del leaf
  *_, part, side, _ = path.split("/")
  if part == "attention":
    return (2,) if side == "inputs" else (0,)
  return (2,) if side == "input" else (0,)


# What becomes zero together, by the names that settings have.
GROUPS = {"none": None, "units": units}
