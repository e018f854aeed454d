"""Sphinx builds these pages: `sphinx-build -j 16 -W docs docs/_build/html`.

Theme: furo. It has dark mode, works on phones and without JavaScript, and adds nothing to learn to Sphinx's own markup.
The pages of the reference are generated in each build from docstrings, from the parsers of the command line and
from its configuration keys.
"""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from reference.pages import write_reference  # noqa: E402

import plif_lightning  # noqa: E402
from plif_lightning.dynamics.firing import Firing  # noqa: E402

project = "plif_lightning"
author = "the authors of plif_lightning"
copyright = "2026, the authors of plif_lightning"  # noqa: A001
version = release = plif_lightning.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"plif_lightning {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"source_directory": "docs/"}
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "paper.md"]  # JOSS builds the paper, with its citations

myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline", "deflist"]
myst_heading_anchors = 3
# Notebooks run with every build: a page that does not work is an error. No cache: its database, shared by parallel
# processes, can fail when they make it at once, and it would show old outputs after a change of the package.
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures say them
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False  # Lightning's docstrings refer to Lightning's pages
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"  # docstrings have single backquotes for code
intersphinx_mapping = {}  # builds without a network
suppress_warnings = ["config.cache"]
linkcheck_ignore = [r"http://127\.0\.0\.1.*", r"#.*"]


def _as_rst(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn what docstrings have of Markdown into Sphinx's markup: tables, and stars of shapes."""
    found: list[str] = []
    rows: list[list[str]] = []
    for line in [*lines, ""]:
        line = re.sub(r"(?<=[\[(, ])\*(?=[\]),])", r"\*", line)  # [T, N, *] is no emphasis
        cells = re.fullmatch(r"\s*\|(.*)\|\s*", line)
        if cells:
            rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", cells[1])])
            continue
        if rows:
            found += ["", ".. list-table::", "   :header-rows: 1", ""]
            for row in (row for row in rows if set("".join(row)) - set("-: ")):
                found += [f"   {'* ' if i == 0 else '  '}- {cell}" for i, cell in enumerate(row)]
            found.append("")
            rows = []
        found.append(line)
    lines[:] = found[:-1]


def _neuron_signature(
    app: object, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Show every argument of a neuron: declared parameters with their initial values, then those of all neurons."""
    if not isinstance(obj, type) or not issubclass(obj, plif_lightning.Neuron):
        return signature, returned
    shared = {"tau_per": "layer", "channels": None, "learn_threshold": False}
    firing = {constant.name: constant.default for constant in dataclasses.fields(Firing)}
    arguments = [
        a for a in inspect.signature(obj).parameters.values() if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)
    ]
    named = {argument.name: argument.default for argument in arguments} or {"learn": None}
    return f"({', '.join(f'{name}={value!r}' for name, value in {**named, **shared, **firing}.items())})", returned


def setup(app: object) -> None:
    write_reference(HERE / "reference")
    app.connect("autodoc-process-signature", _neuron_signature)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", _as_rst)  # type: ignore[attr-defined]
