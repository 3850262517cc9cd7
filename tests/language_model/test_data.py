"""Text: its parts, its tokens, the batches drawn from it."""

import jax
import numpy as np
import pytest

from tests.extras import needs

needs("tensorboardX")

from examples.language_model import data
from examples.language_model.config import Config

TEXT = "".join(f"{i} bottles, grün and {i * i} more.\n" for i in range(400))


@pytest.fixture
def text(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text(TEXT)
  return str(path)


def test_parts_are_the_text_in_a_row(text, tmp_path):
  source = data.open_source(Config(data=text, held_out=text), tmp_path)
  parts = [source.parts[name] for name in ("train", "validation", "test")]
  assert np.concatenate(parts).tobytes() == TEXT.encode()
  assert [len(part) // 100 for part in parts] == [124, 6, 6]
  assert source.parts["other"].tobytes() == TEXT.encode()


def test_a_folder_is_all_its_files_by_name(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "c").write_text("second")
  (tmp_path / "a").write_text("first ")
  assert data.read_text(str(tmp_path)) == b"first second"
  with pytest.raises(FileNotFoundError, match="no_such is no file"):
    data.read_text("no_such")


def test_the_default_text_is_in_every_installation():
  assert len(data.read_text("")) > 200_000


def test_a_text_has_to_be_longer_than_a_sequence(text, tmp_path):
  with pytest.raises(ValueError, match="validation has .* --context"):
    data.open_source(Config(data=text, context=5000), tmp_path)


def test_a_step_has_its_batch_whenever_it_comes():
  tokens, key = np.arange(1000, dtype=np.uint16), jax.random.key(0)
  first = [data.batch(tokens, key, step, 64, 10) for step in (1, 2, 3)]
  again = data.batch(tokens, key, 2, 64, 10)
  np.testing.assert_array_equal(first[1], again)
  assert (first[0] != first[1]).any() and (first[1] != first[2]).any()
  other_seed = data.batch(tokens, jax.random.key(1), 2, 64, 10)
  assert (other_seed != again).any()
  # Windows of tokens in a row.
  assert again.shape == (64, 11)
  assert (np.diff(again) == 1).all()


def test_every_window_may_be_drawn():
  tokens = np.arange(14)
  drawn = data.batch(tokens, jax.random.key(0), 0, 500, 10)
  assert set(drawn[:, 0]) == {0, 1, 2, 3}


def test_what_is_judged_lies_side_by_side():
  tokens = np.arange(101)
  rows = data.windows(tokens, 10, most=1000)
  np.testing.assert_array_equal(rows[:, 1:].ravel(), np.arange(1, 101))
  fewer = data.windows(tokens, 10, most=50)
  np.testing.assert_array_equal(fewer[:, 0], [0, 20, 40, 60, 80])


def test_pairs_of_bytes_stand_for_the_same_text(text, tmp_path):
  needs("tokenizers")
  config = Config(data=text, tokenizer=300)
  source = data.open_source(config, tmp_path)
  source.save_tokenizer(tmp_path)
  vocabulary = source.vocabulary
  assert len(vocabulary.bytes_of) == 300
  tokens = vocabulary.encode(TEXT.encode())
  assert len(tokens) < len(TEXT) / 2
  assert vocabulary.decode(tokens) == TEXT
  lengths = [len(vocabulary.bytes_of[i]) for i in tokens]
  assert sum(lengths) == len(TEXT.encode())
  # Trained before: of another text, but the same tokens.
  config = Config(held_out=text, tokenizer=300)
  again = data.open_source(config, tmp_path)
  np.testing.assert_array_equal(again.parts["other"], tokens)


def test_the_size_of_a_vocabulary_is_checked(text, tmp_path):
  needs("tokenizers")
  with pytest.raises(ValueError, match="256 to 65535, got 100"):
    data.open_source(Config(data=text, tokenizer=100), tmp_path)
