"""The site's configuration: ``python -m sphinx -W docs build/site`` builds it, without a network."""

import contextlib
import io
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numba_lamb

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "numba-lamb"
copyright = author = "the numba-lamb authors"
version = release = numba_lamb.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
]
exclude_patterns = ["_*", "**/_*"]
# What stands in backticks in a docstring is linked where the reference has it.
default_role = "py:obj"
smartquotes_action = "D"

html_theme = "furo"
html_title = f"numba-lamb {release}"
html_copy_source = False
# ziamath is installed for the font it brings: phones have none for formulas.
math_font = Path(find_spec("ziamath").submodule_search_locations[0], "fonts", "STIXTwoMath-Regular.ttf")
html_static_path = ["_static", str(math_font)]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 60
napoleon_google_docstring = False
# Types are prose; as links some of their words would lead to methods of that name.
napoleon_use_param = napoleon_use_rtype = False

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def read_markdown(app, docname, content):
    """Have formulas that are written as on GitHub be MyST's, and pages include what is elsewhere."""
    text = re.sub(r"<!-- page (.*?) -->", lambda found: page_of(app, found[1]), content[0])
    text = re.sub(r"<!-- help ?(.*?) -->", lambda found: help_of(found[1].split()), text)
    # The blank line that ends a doctest is no part of it.
    text = re.sub(r"(```python\n(?:(?!```).)*?)\n+```", r"\1\n```", text, flags=re.DOTALL)
    content[0] = re.sub(r"\$`([^`]+)`\$", r"{math}`\1`", text)


def page_of(app, name):
    """Return a page at the root of the repository, with links that lead from docs; those to code are left out."""
    path = Path(app.srcdir).parent / name
    app.env.note_dependency(path)
    text = re.sub(r"\]\(docs/", "](", path.read_text("utf-8"))
    return re.sub(r"\[([^\]]+)\]\((?:src|examples)/[^)]*\)", r"\1", text)


def help_of(words):
    """Return what ``numba-lamb ... --help`` prints."""
    from numba_lamb.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return f"```text\n{text.getvalue()}```"


def link_pages(app, what, name, obj, options, lines):
    """Have the pages that a docstring names be links."""
    lines[:] = [re.sub(r"``docs/([\w/-]+)\.md``", r":doc:`/\1`", line) for line in lines]


def setup(app):
    """Connect what reads the pages."""
    app.connect("source-read", read_markdown)
    app.connect("autodoc-process-docstring", link_pages)
