"""Prints text that a trained run writes.

python -m examples.language_model.sample results/language_tiny --prompt "The "
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .. import kit, settings
from .config import Config
from .data import open_source
from .state import make_setup
from .train import load


def main(argv: Sequence[str]) -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("run", type=pathlib.Path, help="folder of the run")
  add("--prompt", default="\n", help="text to go on from")
  text = "how many (default: %(default)s)"
  add("--tokens", type=kit.at_least(0), default=300, help=text)
  add(
    "--temperature",
    type=kit.at_least(0.0),
    default=0.8,
    help="below 1 likely tokens are likelier; 0 takes the likeliest (default:"
    " %(default)s)",
  )
  text = "default: %(default)s"
  add("--seed", type=kit.at_least(0), default=0, help=text)
  args = parser.parse_args(argv)
  if not args.prompt:
    parser.error("--prompt must have a character to go on from")
  try:
    config = settings.read(args.run, Config)
    source = open_source(config, args.run)
    weights = load(args.run, source)
  except (ValueError, OSError) as error:
    sys.exit(f"sample.py: {error}")
  vocabulary = source.vocabulary
  setup = make_setup(config, len(vocabulary.bytes_of))
  bare = setup._replace(graph=setup.bare, method=None)

  @jax.jit
  def draw(tokens, last, key):
    logits = bare.apply(weights, tokens[None])[0, last]
    if not args.temperature:
      return logits.argmax()
    return jax.random.categorical(key, logits / args.temperature)

  tokens = list(vocabulary.encode(args.prompt.encode()))
  key = jax.random.key(args.seed)
  for step in range(args.tokens):
    seen = tokens[-config.context :]
    padded = np.zeros(config.context, np.int32)
    padded[: len(seen)] = seen
    last = jnp.int32(len(seen) - 1)
    tokens.append(int(draw(padded, last, jax.random.fold_in(key, step))))
  print(vocabulary.decode(np.array(tokens)))


if __name__ == "__main__":
  kit.leave_on_ctrl_c()
  main(sys.argv[1:])
