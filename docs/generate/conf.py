"""Configuration of Sphinx for the site that ``make docs`` builds; ``site.py`` writes the pages it reads."""

project = "lightning-serl"
author = "the authors of lightning-serl"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "lightning-serl"
html_show_copyright = False
html_copy_source = False
myst_heading_anchors = 4
# links between pages are those of the repository's Markdown, and anchors those of its headings
myst_enable_extensions = ["smartquotes"]
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_display_short_literal_types = True
# code blocks hold terminal output, diagrams and placeholders
suppress_warnings = ["misc.highlighting_failure"]
