"""How Sphinx makes the documentation's pages: `make docs`, offline; a warning is an error.

In: the Markdown beside this file. Out: build/docs/index.html.
"""

import visgraft

project = "visgraft"
author = "the visgraft authors"
release = visgraft.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["results", "notebooks/_*"]
html_theme = "furo"
html_title = f"visgraft {release}"
html_show_sphinx = False
templates_path: list[str] = []
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = True
pygments_style = "friendly"
pygments_dark_style = "monokai"
