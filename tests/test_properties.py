"""Laws that hold for any legal hyperparameters and any finite numbers."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import rewa_jax

SIZE = 6
NUMBERS = arrays(
  np.float32,
  SIZE,
  elements=st.floats(-4, 4, width=32, allow_subnormal=False),
)
# Away from zero, where signs and relative errors are clear.
CLEAR = arrays(
  np.float32, SIZE, elements=st.floats(0.25, 4, width=32)
) | arrays(np.float32, SIZE, elements=st.floats(-4, -0.25, width=32))
POWERS = st.integers(1, 9) | st.floats(1, 9, width=32)
RATES = st.floats(2**-10, 0.125, width=32)
DECAYS = st.floats(0, 1, width=32)
DTYPES = st.sampled_from(["float16", "bfloat16", "float32"])


@st.composite
def hyperparameters(draw, *, eps=None):
  """Draws legal k, m and eps."""
  k = draw(POWERS)
  m = draw(st.floats(0, 1, width=32)) * (k - 1)
  if eps is None:
    eps = draw(st.just(0.0) | st.floats(2**-20, 1, width=32))
  return {"k": k, "m": m, "eps": eps}


def law(**strategies):
  """A property, of few enough examples that all laws together stay quick."""

  def decorate(test):
    few = hypothesis.settings(max_examples=30)
    return few(hypothesis.given(**strategies)(test))

  return decorate


@functools.partial(jax.jit, static_argnames=("count", "momentum", "mask"))
def train(
  hyper, rate, decay, latents, grads, *, count=1, momentum=None, mask=None
):
  """Returns latents after equal gradients in each step."""
  rewa = rewa_jax.Rewa(**hyper, mask=mask)
  solver = rewa_jax.sgd(rate, rewa, weight_decay=decay, momentum=momentum)
  state = solver.init(latents)
  for _ in range(count):
    updates, state = solver.update(grads, state, latents)
    latents = optax.apply_updates(latents, updates)
  return latents


@jax.jit
def scale(hyper, latents, grads):
  solver = rewa_jax.scale_by_rewa(**hyper)
  return solver.update(grads, solver.init(latents), latents)[0]


# The power.


@law(y=NUMBERS, k=POWERS)
def test_the_power_is_odd(y, k):
  assert jnp.array_equal(rewa_jax.power(-y, k), -rewa_jax.power(y, k))


@law(y=NUMBERS, k=POWERS)
def test_the_power_keeps_order(y, k):
  assert (jnp.diff(rewa_jax.power(np.sort(y), k)) >= 0).all()


@law(y=NUMBERS)
def test_the_power_1_is_the_identity(y):
  assert jnp.array_equal(rewa_jax.power(y, 1), y)
  assert jnp.array_equal(rewa_jax.root(y, 1), y)


@law(y=CLEAR, k=st.integers(1, 5), n=st.integers(1, 3))
def test_the_power_of_a_power_multiplies_exponents(y, k, n):
  twice = rewa_jax.power(rewa_jax.power(y, k), n)
  np.testing.assert_allclose(twice, rewa_jax.power(y, k * n), rtol=1e-5)


@law(y=CLEAR, z=CLEAR, k=POWERS)
def test_the_power_of_a_product_is_the_product_of_powers(y, z, k):
  product = rewa_jax.power(y, k) * rewa_jax.power(z, k)
  np.testing.assert_allclose(rewa_jax.power(y * z, k), product, rtol=1e-5)


@law(y=NUMBERS, k=POWERS, dtype=DTYPES)
def test_power_and_root_keep_the_dtype(y, k, dtype):
  y = jnp.asarray(y / 4, dtype)
  assert rewa_jax.power(y, k).dtype == rewa_jax.root(y, k).dtype == y.dtype


@law(y=st.floats(-2, 2), k=POWERS)
def test_a_python_number_does_not_widen_what_it_meets(y, k):
  half = jnp.ones(2, jnp.bfloat16)
  assert (rewa_jax.power(half, k) * y).dtype == jnp.bfloat16
  assert rewa_jax.power(jnp.bfloat16(y), k).dtype == jnp.bfloat16


@law(y=CLEAR, t=NUMBERS, c=NUMBERS, k=POWERS)
def test_forward_and_reverse_mode_are_transposes(y, t, c, k):
  power = functools.partial(rewa_jax.power, k=k)
  forward = jnp.vdot(c, jax.jvp(power, (y,), (t,))[1])
  reverse = jnp.vdot(jax.vjp(power, y)[1](c)[0], t)
  size = jnp.abs(c * t * k * jnp.abs(y) ** (k - 1)).sum()
  np.testing.assert_allclose(forward, reverse, atol=1e-5 * float(size) + 1e-30)


# Trees.


@law(x=NUMBERS, k=POWERS)
def test_weights_come_back_from_their_latents(x, k):
  params = {"kernel": x, "bias": x}
  rewa = rewa_jax.Rewa(k)
  back = rewa.to_weights(rewa.to_latents(params))
  assert jax.tree.structure(back) == jax.tree.structure(params)
  np.testing.assert_allclose(back["kernel"], x, rtol=1e-5, atol=1e-30)


@law(x=NUMBERS, k=POWERS)
def test_leaves_outside_the_mask_are_untouched(x, k):
  params = {"kernel": x, "bias": x, "scale": x}
  latents = rewa_jax.Rewa(k).to_latents(params)
  for name in ("bias", "scale"):
    np.testing.assert_array_equal(latents[name], x)


@law(names=st.permutations(["kernel", "bias", "scale", "w", "embedding"]))
def test_a_mask_is_made_by_names_and_not_by_their_order(names):
  params = {name: jnp.ones((2, 2)) for name in names}
  chosen = {name for name, is_in in rewa_jax.kernels(params).items() if is_in}
  assert chosen == {"kernel", "w"}


@law(x=NUMBERS, k=st.integers(1, 9), hyper=hyperparameters())
def test_a_tree_trains_as_its_leaves_do_apart(x, k, hyper):
  whole = train(hyper, 0.1, 0.1, x, x[::-1])
  parts = {"a": [x[:2]], "b": (x[2:],)}
  grads = {"a": [x[::-1][:2]], "b": (x[::-1][2:],)}
  parts = train(hyper, 0.1, 0.1, parts, grads)
  apart = jnp.concatenate([parts["a"][0], parts["b"][0]])
  np.testing.assert_allclose(apart, whole, rtol=1e-6, atol=1e-30)


# The adaptive step.


@law(y=NUMBERS, g=NUMBERS, k=POWERS)
def test_without_m_and_eps_the_gradient_is_left_as_it_is(y, g, k):
  scaled = scale({"k": k, "m": 0.0, "eps": 0.0}, y, g)
  np.testing.assert_array_equal(scaled, g)


@law(y=NUMBERS, g=NUMBERS, hyper=hyperparameters())
def test_the_step_is_at_most_y_to_the_m_times_the_gradient(y, g, hyper):
  bound = np.abs(np.float64(y)) ** hyper["m"] * np.abs(g)
  scaled = np.abs(scale(hyper, y, g))
  assert (scaled <= bound * (1 + 1e-5) + 1e-37).all()


@law(y=NUMBERS, g=NUMBERS, hyper=hyperparameters())
def test_the_step_never_turns_a_gradient_around(y, g, hyper):
  assert (scale(hyper, y, g) * g >= 0).all()


@law(
  y=NUMBERS, g=NUMBERS, c=st.sampled_from([-2.0, 0.5, 4]), h=hyperparameters()
)
def test_the_step_is_linear_in_the_gradient(y, g, c, h):
  np.testing.assert_allclose(
    scale(h, y, np.float32(c * g)), c * scale(h, y, g), rtol=1e-6, atol=1e-37
  )


@law(y=NUMBERS, g=NUMBERS, hyper=hyperparameters())
def test_the_step_depends_on_the_size_of_a_latent_alone(y, g, hyper):
  np.testing.assert_array_equal(scale(hyper, -y, g), scale(hyper, y, g))


@law(y=CLEAR, g=NUMBERS, hyper=hyperparameters(eps=0.0), more=RATES)
def test_more_eps_is_a_smaller_step(y, g, hyper, more):
  slowed = jnp.abs(scale({**hyper, "eps": more}, y, g))
  assert (slowed <= jnp.abs(scale(hyper, y, g)) * (1 + 1e-6)).all()


# The optimizers.


@law(y=NUMBERS, g=NUMBERS, hyper=hyperparameters(), rate=RATES, decay=DECAYS)
def test_a_mirrored_problem_has_mirrored_steps(y, g, hyper, rate, decay):
  there = train(hyper, rate, decay, y, g, count=3, momentum=0.9)
  mirrored = train(hyper, rate, decay, -y, -g, count=3, momentum=0.9)
  np.testing.assert_array_equal(mirrored, -there)


@law(
  y=NUMBERS,
  g=NUMBERS,
  hyper=hyperparameters(),
  order=st.permutations(range(SIZE)),
)
def test_the_order_of_weights_does_not_matter(y, g, hyper, order):
  order = np.array(order)
  moved = train(hyper, 0.1, 0.1, y[order], g[order], count=2)
  expected = train(hyper, 0.1, 0.1, y, g, count=2)[order]
  np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-30)


@law(y=NUMBERS, g=NUMBERS, rate=RATES, decay=DECAYS)
def test_at_power_1_it_is_sgd_with_decoupled_decay(y, g, rate, decay):
  ours = train({"k": 1, "m": 0.0, "eps": 0.0}, rate, decay, y, g)
  np.testing.assert_allclose(
    ours, y - rate * (g + decay * y), rtol=1e-6, atol=1e-6
  )


@law(y=NUMBERS, g=NUMBERS, rate=RATES, decay=DECAYS)
def test_at_power_1_it_is_adamw(y, g, rate, decay):
  ours = rewa_jax.adamw(rate, rewa_jax.Rewa(1, mask=None), weight_decay=decay)
  theirs = optax.adamw(rate, weight_decay=decay)
  for _ in range(2):
    (mine, _), (expected, _) = (
      solver.update(g, solver.init(y), y) for solver in (ours, theirs)
    )
    np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-7)


@jax.jit
def train_behind(x, aim, factor):
  """Trains bare and by the drop-in, in front of what shortens their steps."""
  bare = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))
  params = []
  for inner in (
    bare,
    rewa_jax.reparameterize(bare, rewa_jax.Rewa(1, mask=None)),
  ):
    solver = optax.chain(inner, optax.scale(factor), optax.ema(0.5))

    def step(carry, _, solver=solver):
      x, state = carry
      updates, state = solver.update(x - aim, state, x)
      return (optax.apply_updates(x, updates), state), None

    params.append(jax.lax.scan(step, (x, solver.init(x)), length=5)[0][0])
  return params


@law(x=NUMBERS, aim=NUMBERS, factor=st.floats(0, 1, width=32))
def test_at_power_1_the_drop_in_is_the_bare_optimizer(x, aim, factor):
  bare, ours = train_behind(x, aim, factor)
  np.testing.assert_allclose(ours, bare, rtol=1e-5, atol=1e-6)


@law(y=NUMBERS, hyper=hyperparameters(), rate=RATES, decay=DECAYS)
def test_decay_alone_shrinks_every_weight_by_the_budget(y, hyper, rate, decay):
  steps = 20
  shrunk = train(hyper, rate, decay, y, jnp.zeros(SIZE), count=steps)
  factor = (1 - np.float64(rate) * decay) ** steps
  np.testing.assert_allclose(shrunk, y * factor, rtol=1e-5, atol=1e-35)
  # exp(-B) is a little more: 1 - a < exp(-a).
  budget = rewa_jax.decay_budget(hyper["k"], decay, rate, steps)
  assert factor ** float(hyper["k"]) <= np.exp(-float(budget)) * (1 + 1e-5)


@law(
  y=arrays(np.float32, SIZE, elements=st.floats(-1e4, 1e4, width=32)),
  g=arrays(np.float32, SIZE, elements=st.floats(-1e4, 1e4, width=32)),
  hyper=hyperparameters(),
)
def test_finite_numbers_give_finite_steps(y, g, hyper):
  # |y|^m |g| <= 1e36 is within float32.
  assert jnp.isfinite(train(hyper, 0.1, 0.1, y, g)).all()


@law(g=NUMBERS, hyper=hyperparameters(), rate=RATES)
def test_zeros_stay_for_positive_m_and_leave_for_none(g, hyper, rate):
  zeros = jnp.zeros(SIZE)
  stays = {**hyper, "k": hyper["k"] + 1, "m": max(hyper["m"], 0.5)}
  assert (train(stays, rate, 0.1, zeros, g, count=3) == 0).all()
  leaves = train({"k": hyper["k"], "m": 0.0, "eps": 0.0}, rate, 0.1, zeros, g)
  # XLA takes steps below the smallest normal number for zero.
  none = np.abs(np.float32(rate) * g) < np.finfo(np.float32).tiny
  np.testing.assert_array_equal(leaves == 0, none)


@law(y=CLEAR, g=NUMBERS, hyper=hyperparameters())
def test_both_conventions_of_the_gradient_take_the_same_step(y, g, hyper):
  weight = rewa_jax.scale_by_rewa(**hyper)
  latent = rewa_jax.scale_by_rewa(**hyper, gradient="latent")
  chain = np.float32(hyper["k"] * np.abs(np.float64(y)) ** (hyper["k"] - 1)) * g
  state = weight.init(y)
  ours, _ = weight.update(g, state, y)
  # The latent convention has no factor |y|^m of its own to lose.
  theirs, _ = latent.update(chain, state, y)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-30)


@law(y=NUMBERS, g=NUMBERS, hyper=hyperparameters(), dtype=DTYPES)
def test_updates_keep_the_dtype_of_params(y, g, hyper, dtype):
  y = jnp.asarray(y, dtype)
  rewa = rewa_jax.Rewa(**hyper, mask=None)
  solver = rewa_jax.sgd(0.1, rewa, weight_decay=0.1)
  updates, _ = solver.update(jnp.float32(g), solver.init(y), y)
  assert updates.dtype == y.dtype


@law(y=NUMBERS, g=NUMBERS, hyper=hyperparameters(), rate=RATES)
def test_leaves_outside_the_mask_get_the_base_optimizer(y, g, hyper, rate):
  params, grads = {"kernel": y, "bias": y}, {"kernel": g, "bias": g}
  ours = train(
    hyper, rate, 0.5, params, grads, momentum=0.9, mask=rewa_jax.kernels
  )
  np.testing.assert_allclose(ours["bias"], y - rate * g, rtol=1e-6, atol=1e-6)


# What JAX does to functions.


@law(y=NUMBERS, g=NUMBERS, hyper=hyperparameters())
def test_compiled_and_eager_steps_agree(y, g, hyper):
  compiled = train(hyper, 0.1, 0.1, y, g, count=2)
  with jax.disable_jit():
    eager = train(hyper, 0.1, 0.1, y, g, count=2)
  np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-30)


@law(
  y=NUMBERS,
  g=NUMBERS,
  cells=st.lists(hyperparameters(), min_size=3, max_size=3),
)
def test_a_vmap_over_hyperparameters_is_a_loop(y, g, cells):
  stacked = {
    name: jnp.float32([cell[name] for cell in cells]) for name in cells[0]
  }
  together = jax.vmap(lambda cell: train(cell, 0.1, 0.1, y, g))(stacked)
  for cell, result in zip(cells, together):
    alone = train(cell, 0.1, 0.1, y, g)
    np.testing.assert_allclose(result, alone, rtol=1e-4, atol=1e-30)


@law(y=NUMBERS, g=NUMBERS, hyper=hyperparameters())
def test_a_scan_is_a_loop(y, g, hyper):
  @jax.jit
  def scanned(hyper, y, g):
    rewa = rewa_jax.Rewa(**hyper, mask=None)
    solver = rewa_jax.sgd(0.1, rewa, weight_decay=0.1, momentum=0.5)

    def step(carry, _):
      y, state = carry
      updates, state = solver.update(g, state, y)
      return (optax.apply_updates(y, updates), state), None

    return jax.lax.scan(step, (y, solver.init(y)), length=3)[0][0]

  looped = train(hyper, 0.1, 0.1, y, g, count=3, momentum=0.5)
  np.testing.assert_allclose(
    scanned(hyper, jnp.asarray(y), g), looped, rtol=1e-5, atol=1e-30
  )


# Counting and pruning.


@law(x=NUMBERS, low=RATES, more=RATES)
def test_pruning_more_leaves_a_part_of_what_less_leaves(x, low, more):
  few, _ = rewa_jax.prune(x, threshold=low + more, mask=None)
  many, _ = rewa_jax.prune(x, threshold=low, mask=None)
  np.testing.assert_array_equal(few, jnp.where(few != 0, many, 0))


@law(x=NUMBERS, threshold=RATES)
def test_pruning_twice_is_pruning_once(x, threshold):
  once, masks = rewa_jax.prune(x, threshold=threshold, mask=None)
  twice, same = rewa_jax.prune(once, threshold=threshold, mask=None)
  np.testing.assert_array_equal(once, twice)
  np.testing.assert_array_equal(masks, same)
  np.testing.assert_array_equal(once, x * masks)


@law(x=NUMBERS, order=st.permutations(range(SIZE)))
def test_counting_does_not_depend_on_order_or_signs(x, order):
  counted = rewa_jax.sparsity(x, mask=None).total_nonzero
  assert int(counted) == np.count_nonzero(x)
  moved = rewa_jax.sparsity(-x[np.array(order)], mask=None)
  assert int(moved.total_nonzero) == int(counted)


# Penalties, and the other methods.


@law(x=CLEAR, hyper=hyperparameters())
def test_the_gradient_of_the_penalty_is_that_of_its_value(x, hyper):
  hypothesis.assume(abs(hyper["m"] - 2) > 0.05)
  hypothesis.assume(abs(hyper["k"] + 1 - hyper["m"]) > 0.05)
  penalty = rewa_jax.Penalty(**hyper)
  np.testing.assert_allclose(
    penalty.gradient(x), jax.grad(penalty.value)(x), rtol=1e-4
  )


@law(x=CLEAR, hyper=hyperparameters())
def test_the_penalty_adds_up_over_weights_and_ignores_signs(x, hyper):
  penalty = rewa_jax.Penalty(**hyper)
  parts = [float(penalty.value(x[i : i + 1])) for i in range(SIZE)]
  size = np.abs(parts).sum()
  np.testing.assert_allclose(penalty.value(-x), np.sum(parts), atol=1e-4 * size)
