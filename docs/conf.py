"""Settings of Sphinx for both languages; `tools/docs.py build` says which one by DOCS_LANGUAGE."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
from chinese_search import ChineseSearch

if TYPE_CHECKING:
    from sphinx.application import Sphinx

here = os.environ.get("DOCS_LANGUAGE", "en")
other = {"en": "zh", "zh": "en"}[here]

project = "swift"
author = "The swift developers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["examples/**"]
myst_enable_extensions = ["colon_fence"]
# Headings are link targets by their text, as on code hosts.
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a reference page may go from the title to a third level
html_theme = "furo"
html_title = {"en": "swift", "zh": "swift 文档"}[here]
html_copy_source = False
html_show_sphinx = False
# The theme's own fonts are those of the reader's system: a built site opens no connection.
templates_path = [str(Path(__file__).parent / "templates")]
html_sidebars = {
    "**": [
        "sidebar/scroll-start.html",
        "sidebar/brand.html",
        "sidebar/search.html",
        "language.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_context = {"other_language": other, "other_language_name": {"en": "English", "zh": "中文"}[other]}


def setup(app: Sphinx) -> dict[str, Any]:
    """Let the Chinese site find words inside Chinese text."""
    app.add_search_language(ChineseSearch)
    return {"parallel_read_safe": True}
