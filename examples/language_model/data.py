"""Text: read, cut into tokens and parts, and drawn from.

A text is train, validation and test in a row, 90, 5 and 5 percent of its bytes.
"""

import io
import pathlib
import pydoc_data.topics
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import kit
from .config import Config

TOKENIZER = "tokenizer.json"
SPLITS = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}


class Vocabulary(NamedTuple):
  """Tokens and the bytes that they stand for.

  Attributes:
    bytes_of: the bytes of every token.
    tokenizer: of the library tokenizers, None where every byte is a token.
  """

  bytes_of: list[bytes]
  tokenizer: Any = None

  def encode(self, text: bytes) -> np.ndarray:
    if self.tokenizer is None:
      return np.frombuffer(text, np.uint8)
    # In parts, so that both cores work; cut where lines end.
    lines = text.decode("utf-8", "replace").splitlines(keepends=True)
    parts = ["".join(lines[i : i + 1000]) for i in range(0, len(lines), 1000)]
    encoded = self.tokenizer.encode_batch_fast(parts)
    return np.concatenate([np.array(e.ids, np.uint16) for e in encoded])

  def decode(self, tokens: np.ndarray) -> str:
    return b"".join(self.bytes_of[i] for i in tokens).decode("utf-8", "replace")


class Source(NamedTuple):
  """What runs on one text share.

  Attributes:
    vocabulary: its tokens.
    parts: the tokens of train, validation and test, and of the text of another
      kind, "other", if there is one.
  """

  vocabulary: Vocabulary
  parts: dict[str, np.ndarray]

  def save_tokenizer(self, folder: pathlib.Path) -> None:
    """Writes the tokenizer, if there is one, for whoever goes on."""
    tokenizer = self.vocabulary.tokenizer
    if tokenizer is not None:
      kit.write(folder / TOKENIZER, tokenizer.to_str())


def read_text(name: str) -> bytes:
  """Returns the text of a file, of all files in a folder, or the default.

  Raises:
    FileNotFoundError: if there is no file.
  """
  if not name:
    topics = pydoc_data.topics.topics
    return "\n".join(topics[key] for key in sorted(topics)).encode()
  path = pathlib.Path(name)
  paths = [path]
  if path.is_dir():
    paths = sorted(p for p in path.rglob("*") if p.is_file())
  if not paths or not paths[0].exists():
    raise FileNotFoundError(f"{name} is no file, and no folder with files.")
  return b"".join(p.read_bytes() for p in paths)


def open_source(config: Config, folder: pathlib.Path) -> Source:
  """Reads the text of a run.

  Args:
    config: its settings.
    folder: where the tokenizer is, if one was trained before.

  Raises:
    FileNotFoundError: if there is no such text.
    ValueError: if a part is shorter than one sequence.
  """
  text = read_text(config.data)
  cuts = {
    name: text[int(a * len(text)) : int(b * len(text))]
    for name, (a, b) in SPLITS.items()
  }
  if config.held_out:
    cuts["other"] = read_text(config.held_out)
  vocabulary = _vocabulary(config, cuts["train"], folder)
  parts = {name: vocabulary.encode(cut) for name, cut in cuts.items()}
  for name, tokens in parts.items():
    if len(tokens) <= config.context:
      raise ValueError(
        f"The part {name} has {len(tokens)} tokens, but a sequence has"
        f" context + 1 = {config.context + 1}. Give a longer text or a smaller"
        " --context."
      )
  return Source(vocabulary, parts)


def batch(
  tokens: np.ndarray, key: jax.Array, step: int, size: int, context: int
) -> np.ndarray:
  """Draws windows at random places that depend on key and step alone.

  Returns:
    Tokens (size, context + 1): inputs and, one further, targets.
  """
  starts = jax.random.randint(
    jax.random.fold_in(key, step), (size,), 0, len(tokens) - context
  )
  places = np.asarray(starts)[:, None] + np.arange(context + 1)
  return tokens[places].astype(np.int32)


def windows(tokens: np.ndarray, context: int, most: int) -> np.ndarray:
  """Returns windows side by side, evenly spread if they are too many.

  Args:
    tokens: of a part.
    context: targets a window.
    most: targets in all, at most.
  """
  count = (len(tokens) - 1) // context
  kept = max(min(count, most // context), 1)
  starts = np.arange(kept) * count // kept * context
  return tokens[starts[:, None] + np.arange(context + 1)].astype(np.int32)


def _vocabulary(config, text, folder):
  if not config.tokenizer:
    return Vocabulary([bytes([i]) for i in range(256)])
  try:
    from tokenizers import Tokenizer
  except ImportError as error:
    raise ValueError(
      "--tokenizer needs the library tokenizers: pip install -e '.[language]'"
    ) from error

  path = folder / TOKENIZER
  if path.exists():
    try:
      tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises no other.
      raise ValueError(f"{path} holds no tokenizer: {error}.") from error
  else:
    tokenizer = _train_tokenizer(text, config.tokenizer)
  byte_of = {letter: byte for byte, letter in enumerate(_letters())}
  return Vocabulary(
    [
      bytes(byte_of[letter] for letter in tokenizer.id_to_token(i))
      for i in range(tokenizer.get_vocab_size())
    ],
    tokenizer,
  )


def _train_tokenizer(text, size):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  if not 256 <= size < 2**16:
    raise ValueError(f"tokenizer must be 256 to {2**16 - 1}, got {size}.")
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  lines = io.StringIO(text.decode("utf-8", "replace"))
  tokenizer.train_from_iterator(lines, trainer)
  return tokenizer


def _letters():
  """Returns the letter that byte-level pairing writes for every byte."""
  shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
  hidden = iter(range(256, 512))
  return [chr(b) if b in shown else chr(next(hidden)) for b in range(256)]
