"""Configuration of Sphinx: ``make docs``, or ``sphinx-build -W -q docs docs/_build``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before hematokit is imported: the reference describes the plugins that ship, not others that are installed.
os.environ["HEMATOKIT_PLUGINS"] = ""
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from hematokit import __version__

project = "hematokit"
author = "The hematokit developers"
copyright = f"{author}. For research use only; not a medical device"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "generated"]
exclude_patterns = ["_build", "_ext"]
default_role = "py:obj"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_typehints = "none"
autodoc_member_order = "bysource"
# Signatures show names as they are written (MATEK_21), not their values.
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "pydata_sphinx_theme"
html_title = f"hematokit {version}"
html_static_path = ["_static"]
html_css_files = ["hematokit.css"]
html_show_sourcelink = False
# Pages without a section of their own have no list of its pages.
html_sidebars = {"results": [], "changelog": [], "architecture": []}
html_theme_options = {
    "logo": {"text": "hematokit"},
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "show_toc_level": 2,
    # Wide tables and long lists of similar headings use the width of the second sidebar.
    "secondary_sidebar_items": {"**": ["page-toc"], "reference/settings": [], "reference/run-and-bundle": []},
    "navigation_with_keys": False,
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
