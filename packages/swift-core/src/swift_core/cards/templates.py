"""The named prompt formats, listed in `templates.tsv`.

A line gives a name, the name of an earlier format it is like (or nothing), and as JSON the pieces in which it differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files

from swift_core.cards.pieces import Pieces, to_jinja
from swift_core.specs import TemplateSpec


@cache
def read_pieces() -> dict[str, Pieces]:
    """Return the pieces of every named format."""
    table: dict[str, Pieces] = {}
    text = files("swift_core.cards").joinpath("templates.tsv").read_text(encoding="utf-8")
    for line in text.split("\n")[1:]:
        if line:
            name, like, changes = line.split("\t")
            values = json.loads(changes)
            values.setdefault("summary", "")
            if "stop_words" in values:
                values["stop_words"] = tuple(values["stop_words"])
            table[name] = replace(table[like] if like else Pieces(), **values)
    return table


def read_templates() -> Iterator[TemplateSpec]:
    """Yield the specs of the table."""
    for name, pieces in read_pieces().items():
        yield TemplateSpec(
            name=name,
            summary=pieces.summary or _summary(pieces),
            jinja=to_jinja(pieces),
            stop_words=pieces.ends,
            auto_bos=pieces.auto_bos,
            default_system=pieces.default_system,
            agent=pieces.agent,
            thinks=pieces.thinks,
            hybrid=pieces.think_off is not None,
        )


def _summary(pieces: Pieces) -> str:
    """Return what a question and its answer look like, on one line."""
    text = f"{pieces.user.replace('{{QUERY}}', '...')}{pieces.assistant}...{pieces.suffix.rstrip()}".replace("\n", "\\n")
    return (text if len(text) <= 90 else f"{text[:87]}...") + (" (thinks)" if pieces.thinks else "")
