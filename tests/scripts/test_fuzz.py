"""The fuzzer sees a law that is broken."""

import optax
import pytest
from flax import nnx

import rewa_jax
from rewa_jax import _dropin

from . import fuzz, models

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings("ignore:(?s).*nnx.capture:DeprecationWarning"),
]


def outcomes(law, seeds, monkeypatch):
  """Runs a law alone, as the fuzzer does."""
  monkeypatch.setattr(fuzz, "USES", (law,))
  return [fuzz.run(seed) for seed in seeds]


@pytest.mark.parametrize("law", fuzz.LAWS)
def test_laws_hold(law, monkeypatch):
  assert outcomes(law, range(3), monkeypatch) == ["worked"] * 3


def test_weights_that_are_not_adopted_break_the_law_of_wrappers(monkeypatch):
  monkeypatch.setattr(fuzz, "OUTER", {"scale": fuzz.OUTER["scale"]})
  monkeypatch.setattr(fuzz, "INNER", ())
  monkeypatch.setattr(_dropin, "_adopt", lambda _, leaves, nodes, new: nodes)
  monkeypatch.setattr(fuzz, "draw_solvers", drop_in)
  (outcome,) = outcomes(fuzz.use_wrapper, [0], monkeypatch)
  assert outcome.startswith("use_wrapper: AssertionError")


def drop_in(random, mask):
  bare = optax.sgd(0.1)
  return bare, rewa_jax.reparameterize(bare, rewa_jax.Rewa(1, mask=mask))


def test_a_refusal_breaks_a_law_too(monkeypatch):
  def refuse(random, mask):
    return optax.sgd(0.1), rewa_jax.reparameterize(
      rewa_jax.scale_by_rewa(3), rewa_jax.Rewa(1, mask=mask)
    )

  monkeypatch.setattr(fuzz, "draw_solvers", refuse)
  (outcome,) = outcomes(fuzz.use_wrapper, [0], monkeypatch)
  assert "scales gradients by a method" in outcome


@pytest.mark.parametrize("layer", [models.Sows, models.Flips])
def test_a_copy_for_every_call_breaks_the_law_of_models(layer, monkeypatch):
  run = rewa_jax.nnx.Reparameterized._run

  def run_on_a_copy(self, name, fn):
    return run(self, name, lambda model: fn(nnx.clone(model)))

  monkeypatch.setattr(rewa_jax.nnx.Reparameterized, "_run", run_on_a_copy)
  monkeypatch.setattr(models, "LAYERS", (layer,))
  monkeypatch.setattr(models, "ACTIONS", (models.call,))
  found = outcomes(fuzz.use_model, range(3), monkeypatch)
  assert any(each.startswith("use_model: AssertionError") for each in found)
