"""The named prompt formats: one Jinja file each, listed in `templates.tsv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib.resources import files

from swift_core.specs import TemplateSpec


def read_templates() -> Iterator[TemplateSpec]:
    """Yield the specs of the table `templates.tsv`; the Jinja text of NAME is `formats/NAME.jinja`."""
    folder = files("swift_core.cards")
    lines = folder.joinpath("templates.tsv").read_text(encoding="utf-8").splitlines()
    for record in csv.DictReader(lines, delimiter="\t"):
        yield TemplateSpec(
            name=record["name"],
            summary=record["summary"],
            jinja=folder.joinpath("formats", f"{record['name']}.jinja").read_text(encoding="utf-8"),
            stop_words=tuple(record["stop_words"].split()),
            auto_bos=record["auto_bos"] == "1",
        )
