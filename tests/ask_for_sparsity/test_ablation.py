import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rewa_jax
from examples.ask_for_sparsity import ablation
from examples.ask_for_sparsity import variants as v
from examples.compare_methods.methods import MOMENTUM, Run

STEPS = 200
RUN = Run(lambda count: 0.05 * (1 - count / STEPS), STEPS, None)
PARAMS = {"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4)}
TARGET = PARAMS["kernel"][::-1]


def trained(optimizer, to_params, to_weights, project=lambda y, state: y):
  """Fits kernels to a target as training does, and returns the weights."""
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)

  def loss(params, state):
    weights = to_weights(params, state)
    return 0.5 * jnp.sum((weights["kernel"] - TARGET) ** 2)

  @jax.jit
  def run(params):
    def step(carry, _):
      params, state = carry
      grads = jax.grad(loss)(params, state[-1])
      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      return (project(params, state[-1]), state), None

    carry = params, optimizer.init(params)
    params, state = jax.lax.scan(step, carry, length=STEPS)[0]
    return to_weights(params, state[-1])["kernel"]

  return run(to_params(None, PARAMS))


def of_setting(setting):
  return trained(
    setting.optimizer, setting.to_params, setting.to_weights, setting.project
  )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_as_it_is_it_is_what_the_optimizers_do(name):
  if name == "sgd":
    base = v.with_sgd(rewa_jax.Rewa(9, 2))
    options = {"momentum": MOMENTUM}
  else:
    base, options = v.with_adam(rewa_jax.Rewa(9, eps=1e-3)), {}
  optimizer = getattr(rewa_jax, name)(
    RUN.schedule, base.method, sparsity=0.5, steps=STEPS, **options
  )
  wanted = trained(
    optimizer,
    lambda key, weights: base.method.to_latents(weights),
    lambda latents, state: base.method.to_weights(latents),
  )
  setting = v.by_rank(base, every=6)(0.5, RUN)
  np.testing.assert_allclose(of_setting(setting), wanted, rtol=1e-5)


@pytest.mark.slow
def test_every_variant_ends_at_the_target_or_is_cut_to_it():
  names = {**ablation.image_variants(lambda s: {"kernel": s})}
  for name, make in names.items():
    kernel = of_setting(make(0.5, RUN))
    left, _ = rewa_jax.finalize({"kernel": kernel}, 0.5)
    assert int(jnp.sum(left["kernel"] != 0)) <= 6, name
    assert jnp.isfinite(kernel).all(), name


def test_masks_from_the_end_of_the_schedule_on_are_zeros():
  plain = v.by_rank(v.with_sgd(rewa_jax.Rewa(9, 2)), budget=4.5, every=5)
  soft, hard = (
    of_setting(plain(0.5, RUN)),
    of_setting(v.then_hard(plain)(0.5, RUN)),
  )
  assert (soft != 0).all()
  assert int((hard == 0).sum()) == 6


def test_weights_stay_as_they_are_while_k_grows():
  setting = v.with_growing_k(v.with_sgd(rewa_jax.Rewa(9, 2)))(0.5, RUN)
  latents = setting.to_params(None, PARAMS)
  state = setting.optimizer.init(latents)
  for count in (0, 1, STEPS // 4, STEPS // 2, STEPS):
    now = (v.CountState(jnp.int32(count)), *state[1:])
    before = (v.CountState(jnp.int32(max(count - 1, 0))), *state[1:])
    weights = setting.to_weights(latents, before)["kernel"]
    latents = setting.project(latents, now)
    after = setting.to_weights(latents, now)["kernel"]
    np.testing.assert_allclose(after, weights, rtol=2e-5)
  exact = jnp.abs(weights) ** (1 / 9)
  np.testing.assert_allclose(jnp.abs(latents["kernel"]), exact, rtol=2e-5)


def test_lamp_is_the_share_of_what_is_not_smaller():
  latents = {"kernel": jnp.array([[1.0, -2.0], [0.0, 3.0]])}
  scores = v.lamp(rewa_jax.Rewa(1))(latents, None)["kernel"]
  wanted = [[1 / 14, 4 / 13], [0, 1]]
  np.testing.assert_allclose(scores, wanted, rtol=1e-6)


ROWS = [
  {"variant": n, "seed": seed, "sparsity": 0.9, "accuracy": a, "loss": 1 - a}
  for n, seed, a in [
    (ablation.BASE, 0, 0.9),
    (ablation.BASE, 1, 0.8),
    ("m = 0", 0, 0.92),
    ("m = 0", 1, 0.84),
  ]
]


def test_gains_are_of_equal_seeds():
  (mean, error) = ablation.gains(ROWS, "accuracy")["m = 0"][0.9]
  assert mean == pytest.approx(0.03)
  assert error == pytest.approx(0.01)
  assert "| m = 0 | +3.00 ± 1.00, -0.030 |" in ablation.table(ROWS)


def test_a_variant_may_lack_sparsities():
  rows = ROWS + [row | {"sparsity": 0.5} for row in ROWS[:2]]
  assert "| m = 0 |  | +3.00 ± 1.00, -0.030 |" in ablation.table(rows)
  assert len(ablation.draw(rows, "").axes) == 1


def test_what_all_are_compared_with_may_stand_alone():
  rows = [row for row in ROWS if row["variant"] == ablation.BASE]
  assert ablation.table(rows).count("\n") == 3
  assert len(ablation.draw(rows, "").axes) == 1


@pytest.mark.slow
def test_what_was_trained_is_not_trained_again(tmp_path, capsys):
  argv = ["--epochs", "1", "--sparsities", "0.5", "--out", str(tmp_path)]
  argv += ["--variants", "m = 0"]
  path = tmp_path / "lenet300" / "results.json"
  ablation.main([*argv, "--seeds", "0"])
  first = json.loads(path.read_text())["rows"]
  ablation.main([*argv, "--seeds", "0", "1"])
  rows = json.loads(path.read_text())["rows"]
  assert rows[:2] == first and len(rows) == 4
  with pytest.raises(SystemExit, match="was made with epochs 1, not 2"):
    ablation.main([*argv, "--epochs", "2"])
  assert (path.parent / "gains.png").exists()


@pytest.mark.parametrize("task", ["lenet300", "lenet5", "text"])
def test_the_readme_has_the_committed_gains(task):
  folder = pathlib.Path(ablation.__file__).parent
  path = folder / f"results/ablation/{task}/results.json"
  rows = json.loads(path.read_text())["rows"]
  assert ablation.table(rows) in (folder / "README.md").read_text()
