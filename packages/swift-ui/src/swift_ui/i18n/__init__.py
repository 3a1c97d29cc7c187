"""The page's own texts in each language, from one catalogue."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

LANGUAGES = ("en", "zh")


@cache
def catalogue(lang: str) -> dict[str, dict[str, str]]:
    """Return the texts of a language: `page`, `group` (headings of the schema) and `field` (labels of the basic settings)."""
    return json.loads((files("swift_ui.i18n") / f"{lang}.json").read_text(encoding="utf-8"))


class Texts:
    """Texts in one language.

    Args:
        lang: one of `LANGUAGES`.
    """

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self._texts = catalogue(lang)

    def __call__(self, key: str, **values: object) -> str:
        """Return a text of the page, with its `{names}` filled in."""
        return self._texts["page"][key].format(**values)

    def group(self, heading: str) -> str:
        """Return the heading of a section of settings; a package that is not ours keeps its own."""
        return self._texts["group"].get(heading, heading)

    def field(self, name: str) -> str:
        """Return the label of a setting; settings that are not basic are called by their flag in plain words."""
        return self._texts["field"].get(name, name.replace("_", " ").capitalize())
