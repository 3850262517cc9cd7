"""Sphinx: the pages of docs/ and the examples' READMEs, as one site.

The sources are the whole repository, so that links and pictures lead where they
lead in any viewer of Markdown.
"""

import latex2mathml.converter
from docutils import nodes

import rewa_jax

project = "rewa_jax"
version = release = rewa_jax.__version__
root_doc = "docs/index"
include_patterns = ["docs/*.md", "examples/*/README.md", "[A-Z]*.md"]
exclude_patterns = [".*", "build"]
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
# What is not a page, such as a folder, is no link here. Tests follow all links.
suppress_warnings = ["myst.xref_missing"]
nitpicky = True
# Without a network nothing says where the names of others lead.
nitpick_ignore_regex = [
  ("py:.*", r"(collections|flax|jax|numpy|nnx|optax)\..*|ArrayTree"),
]

# Types are in the docstrings.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"rewa_jax {version}"
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"


def setup(app):
  # Browsers draw MathML themselves: no script, nothing to load.
  app.add_html_math_renderer("mathml", (_inline, None), (_block, None))


def _inline(translator, node):
  translator.body.append(_mathml(node, "inline"))
  raise nodes.SkipNode


def _block(translator, node):
  # Room for what sticks out, or the theme draws a scroll bar.
  formula = f'<div style="padding: 0.5em 0">{_mathml(node, "block")}</div>'
  translator.body.append(formula)
  raise nodes.SkipNode


def _mathml(node, display):
  formula = latex2mathml.converter.convert(node.astext(), display=display)
  # Bars of absolute values have no room around them, unlike those of "divides".
  tight = 'stretchy="false" lspace="0" rspace="0"'
  return formula.replace('stretchy="false"', tight)
