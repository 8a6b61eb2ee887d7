"""A renderer for Sphinx: formulas become MathML as the site is built; pages need no script and no network."""

import re

from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOG = logging.getLogger(__name__)
FENCES = re.compile(r'<mo(?: class="math(?:open|close)")?>([‖⌊⌋⌈⌉])</mo>')


def rendered(node, as_block):
    """Return a formula as MathML; a command that is unknown is a warning, and so an error of the build."""
    tex = node.astext()
    if as_block and (r"\\" in tex.partition(r"\begin")[0] or "&=" in tex):
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try:
        # Outside \left and \right a fence has the height of a letter.
        return FENCES.sub(r'<mo stretchy="false">\1</mo>', tex2mathml(tex, as_block=as_block))
    except MathError as error:
        LOG.warning("formula: %s: %s", error, tex, location=node)
        return ""


def visit_inline(self, node):
    """Write a formula within a line."""
    self.body.append(rendered(node, as_block=False))


def visit_block(self, node):
    """Write a formula on lines of its own, which scroll by themselves on a phone."""
    self.body.append(f'<div class="formula">{rendered(node, as_block=True)}</div>')


def depart(self, node):
    """Write nothing more."""


def visit_all(self, node):
    """Skip the node's text, which is written."""
    from docutils import nodes

    visit_block(self, node) if isinstance(node, nodes.math_block) else visit_inline(self, node)
    raise nodes.SkipNode


def setup(app):
    """Add the renderer."""
    app.add_html_math_renderer("mathml", (visit_all, depart), (visit_all, depart))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
