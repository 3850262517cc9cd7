"""The pages of docs/: snippets run, tables say what happens, links lead on."""

import inspect
import math
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rewa_jax
from rewa_jax import baselines, deploy
from tests.extras import needs

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}


def snippets(text):
  return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


# Two steps show that a snippet runs.
SETUP = snippets((ROOT / "README.md").read_text())[0]
SETUP = SETUP.replace("range(1000)", "range(2)")


# They train, for seconds each; those of keeping_zeros run in a test below.
SLOW = ("asking.md", "choosing.md", "deploy.md", "number_formats.md")
SLOW += ("other_methods.md", "troubleshooting.md")


@pytest.mark.parametrize(
  "page",
  [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name, text in PAGES.items()
    if snippets(text) and name != "keeping_zeros.md"
  ],
)
def test_the_snippets_of_a_page_run_in_a_row(
  page, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)  # A snippet may write a file.
  names = {}
  exec(SETUP, names)
  for snippet in snippets(PAGES[page]):
    exec(snippet, names)


def test_every_way_in_fine_tunes_and_keeps_the_zeros():
  names, kept = {}, 0
  exec(SETUP, names)
  for snippet in snippets(PAGES["keeping_zeros.md"]):
    exec(snippet, names)
    for tuned, pruned in re.findall(r"^((?:tuned)(\w*)) =", snippet, re.M):
      before = jax.tree.leaves(names["pruned" + pruned])
      after = jax.tree.leaves(names[tuned])
      moved = [a != b for a, b in zip(after, before)]
      assert any(move.any() for move in moved)
      for x, move in zip(before, moved):
        assert x.ndim == 1 or not (move & (x == 0)).any()
      kept += 1
  assert kept == 4


def test_a_step_that_is_not_finite_is_skipped_five_times():
  names = {}
  exec(SETUP, names)
  exec(snippets(PAGES["troubleshooting.md"])[0], names)
  solver, latents = names["solver"], {"kernel": jnp.ones(2)}
  broken = {"kernel": jnp.array([jnp.nan, 1])}
  state = solver.init(latents)
  for _ in range(5):
    updates, state = solver.update(broken, state, latents)
    assert not updates["kernel"].any()
  updates, _ = solver.update(broken, state, latents)
  assert jnp.isnan(updates["kernel"]).any()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("page", "number"),
  [("other_methods.md", 0), ("number_formats.md", 0), ("ways_in.md", 3)],
)
def test_a_snippet_that_trains_ends_sparse_and_accurate(page, number):
  names = {}
  exec(SETUP.replace("range(2)", "range(1000)"), names)
  exec("rewa = rewa_jax.Rewa(k=9, m=2)", names)
  exec(snippets(PAGES[page])[number], names)
  pruned, _ = rewa_jax.prune(names["weights"], threshold=1e-6)
  assert rewa_jax.sparsity(pruned).compression > 5
  logits = names["bare"].apply(pruned, names["images"])
  assert jnp.mean(logits.argmax(-1) == names["labels"]) > 0.9


# A regression in which 3 of 40 weights count.
TRUTH = np.zeros(40, np.float32)
TRUTH[[3, 11, 29]] = 1.0, 0.8, 0.6
FEATURES = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)
START = {"w": jnp.full(40, 0.3)}


def fit(solver, params=START, to_weights=lambda params: params, **state):
  """Returns the share of zeros and the largest error after 1,000 steps."""
  solver = optax.with_extra_args_support(solver)

  def loss(params):
    weights = to_weights(params)["w"].astype(jnp.float32)
    return 0.5 * jnp.mean((FEATURES @ (weights - TRUTH)) ** 2)

  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = solver.update(
      grads, state, params, value=value, grad=grads, value_fn=loss
    )
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def train(params):
    start = optax.tree.set(solver.init(params), **state)
    return jax.lax.scan(step, (params, start), length=1000)[0][0]

  weights = to_weights(train(params))["w"].astype(jnp.float32)
  error = jnp.abs(weights - TRUTH).max()
  return 100 * float((jnp.abs(weights) <= 1e-3).mean()), float(error)


def chain_parts():
  names = {"jax": jax, "optax": optax, "rewa_jax": rewa_jax}
  for snippet in snippets(PAGES["chains.md"]):
    exec(snippet, names)
  return names


PARTS = chain_parts()


def rows(title):
  """Yields the rows of a section of chains.md, whose first cell is code."""
  section = re.split(r"^## ", PAGES["chains.md"], flags=re.M)
  (section,) = [s for s in section if s.startswith(title + "\n")]
  for line in re.findall(r"^\| `.*$", section, re.M):
    code, *cells = [cell.strip() for cell in line.strip("|").split("|")]
    yield code.strip("`"), *cells


@pytest.mark.parametrize(
  ("title", "code", "zeros", "error"),
  [
    (title, *row[:3])
    for title in (
      *("On latents", "On latents in bfloat16", "On weights"),
      "Around the drop-in",
    )
    for row in rows(title)
    if len(row) == 4
  ],
)
def test_a_chain_does_what_its_row_says(title, code, zeros, error):
  rewa, solver = PARTS["rewa"], eval(code, PARTS)
  if title == "On weights":
    pruned = {"w": START["w"] * (np.arange(40) % 2)}
    found = fit(solver, pruned, trace={"w": jnp.ones(40)})
  elif title == "Around the drop-in":
    found = fit(solver)
  else:
    dtype = jnp.bfloat16 if "bfloat16" in title else jnp.float32
    latents = rewa.to_latents(START)
    latents = jax.tree.map(lambda y: y.astype(dtype), latents)
    found = fit(solver, latents, rewa.to_weights)
  assert found[0] == pytest.approx(float(zeros.strip(" %")), abs=3)
  expected = float(error)
  assert found[1] == pytest.approx(expected, abs=0.02, nan_ok=True)
  assert math.isnan(found[1]) == math.isnan(expected)


REFUSED = [row for row in rows("Around the drop-in") if len(row) == 2]


@pytest.mark.parametrize(("code", "message"), REFUSED)
def test_a_chain_that_is_refused_says_why(code, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    fit(eval(code, PARTS))


def test_chains_shows_what_it_was_asked_for():
  counts = [
    len(list(rows(title)))
    for title in ("On latents", "On latents in bfloat16", "On weights")
  ]
  assert counts == [6, 2, 4] and len(REFUSED) == 2


def test_a_line_search_behind_the_drop_in_runs():
  search = optax.scale_by_backtracking_linesearch(5)
  zeros, error = fit(optax.chain(PARTS["dropin"], search))
  assert zeros < 100 and math.isfinite(error)


@pytest.mark.parametrize(
  "page",
  [
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md")
    for path in sorted(ROOT.glob(pattern))
  ],
)
def test_links_of_a_page_lead_somewhere(page):
  page = ROOT / page
  for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
    if target.startswith("http"):
      continue
    path, _, anchor = target.partition("#")
    path = page.parent / path if path else page
    assert path.exists(), target
    if anchor:
      headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
      anchors = [re.sub(r"[^\w -]", "", title.lower()) for title in headings]
      assert anchor in [title.replace(" ", "-") for title in anchors], target


def test_every_public_name_in_the_pages_exists():
  for text in PAGES.values():
    for name in re.findall(r"rewa_jax\.([\w.]+\w)", text):
      owner = rewa_jax
      for part in name.split("."):
        owner = getattr(owner, part)


def test_the_api_page_has_every_public_name_once():
  owners = {"rewa_jax": [], "rewa_jax.linen": [], "rewa_jax.nnx": []}
  owners |= {"rewa_jax.baselines": [], "rewa_jax.deploy": []}
  for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", PAGES["api.md"], re.M):
    if kind in ("currentmodule", "automodule"):
      module = name
    else:
      owners[module].append(name)
  modules = {"linen", "nnx", "baselines"}
  assert sorted(owners["rewa_jax"]) == sorted({*rewa_jax.__all__} - modules)
  assert sorted(owners["rewa_jax.baselines"]) == sorted(baselines.__all__)
  assert sorted(owners["rewa_jax.deploy"]) == sorted(deploy.__all__)
  for module in ("linen", "nnx"):
    module = getattr(rewa_jax, module)
    public = {
      name
      for name, value in vars(module).items()
      if not name.startswith("_")
      and (inspect.isclass(value) or inspect.isfunction(value))
      and value.__module__ == module.__name__
    }
    assert sorted(owners[module.__name__]) == sorted(public)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
  needs("sphinx")
  command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
  subprocess.run([*command, "-c", "docs", ".", tmp_path], check=True, cwd=ROOT)
  page = (tmp_path / "docs" / "api.html").read_text()
  assert 'id="rewa_jax.Rewa"' in page and "<msup>" in page
  assert "http" not in "".join(re.findall(r'src="(.*?)"', page))
