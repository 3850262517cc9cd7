"""A decoder-only transformer; its layers are one scanned, rematerialized block.

GPT2: 12 layers of width 768, 124 million parameters
SEVEN_BILLION: 34 layers of width 4,096, 7.06 billion parameters
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
  """Attention and a feed-forward network on activations (n, length, width)."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    mask = nn.make_causal_mask(x[..., 0], dtype=bool)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(
      y, mask=mask
    )
    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(y))
    return x + nn.Dense(width, dtype=self.dtype)(y)


class Layer(nn.Module):
  """A block in the form that scan wants."""

  block: Callable[[], nn.Module]
  constrain: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    return self.constrain(self.block()(self.constrain(x))), None


class Transformer(nn.Module):
  """Tokens (n, length) to logits (n, length, vocabulary).

  Attributes:
    layers: how many blocks.
    heads: of each block's attention.
    width: of activations.
    length: the longest sequence.
    vocabulary: how many tokens there are.
    dtype: of the computation; parameters are float32.
    wrap: what becomes of a block, say a module that reparameterizes it.
    constrain: what becomes of activations, say a constraint of their sharding.
  """

  layers: int
  heads: int
  width: int
  length: int
  vocabulary: int = 50_257
  dtype: Any = jnp.float32
  wrap: Callable[[nn.Module], nn.Module] = lambda block: block
  constrain: Callable[[jax.Array], jax.Array] = lambda x: x

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    embed = functools.partial(nn.Embed, features=self.width, dtype=self.dtype)
    embedding = embed(self.vocabulary, name="tokens")
    positions = embed(self.length, name="positions")
    x = embedding(tokens) + positions(jnp.arange(tokens.shape[-1]))
    layers = nn.scan(
      nn.remat(Layer, prevent_cse=False),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.layers,
    )
    x, _ = layers(
      lambda: self.wrap(Block(self.heads, self.dtype)), self.constrain
    )(x, None)
    x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
    logits = self.constrain(embedding.attend(self.constrain(x)))
    return logits.astype(jnp.float32)


GPT2 = functools.partial(
  Transformer, layers=12, heads=12, width=768, length=1024
)
SEVEN_BILLION = functools.partial(
  Transformer, layers=34, heads=32, width=4096, length=2048
)
