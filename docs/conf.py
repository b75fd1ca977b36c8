"""The site: `make docs` builds it, without a network, into `docs/_build/html`."""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import sb3_reinforce  # noqa: E402

project = "sb3-reinforce"
author = "The sb3-reinforce developers"
copyright = author
version = release = sb3_reinforce.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "mathml"]
exclude_patterns = ["_build", "_ext", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"sb3-reinforce {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
# Notebooks hold their outputs; `make notebooks` runs them anew
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Else a first line such as "REINFORCE (Monte Carlo policy gradient)" is taken for one
autodoc_docstring_signature = False
autodoc_default_options = {"members": True, "show-inheritance": True}


def without_aliases(app: object, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what Python writes itself of the fields of named tuples: they stand among the parameters."""
    return True if str(getattr(obj, "__doc__", None)).startswith("Alias for field number") else None


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", without_aliases)
