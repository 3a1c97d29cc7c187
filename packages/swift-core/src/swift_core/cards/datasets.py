"""The table of known data sets, and finding one by any of its names."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from io import StringIO
from typing import Literal

from swift_core.registry import DATASETS
from swift_core.specs import DatasetSpec

_SUBSET = re.compile(r"(?P<name>[^?~=]+)(?P<weak>\?)?(?:(?P<kind>[~=])(?P<hub>.+))?")
_BUILT_IN = {"self-cognition": "swift_core.data.self_cognition:rows"}
_DEFAULT_TARGET = "swift_core.data.sources:load_dataset"


def read_datasets() -> Iterator[DatasetSpec]:
    """Yield the specs of the table `datasets.tsv`.

    In its column `subsets`, `a?` is left out by `:all`, `a=b` is called `b` on the hub, and `a~b` is a view of `b` that
    only code could make. Empty `rows` means unknown, `huge` more than fits into memory.
    """
    text = files("swift_core.cards").joinpath("datasets.tsv").read_text(encoding="utf-8")
    for record in csv.DictReader(StringIO(text), delimiter="\t"):
        yield _spec(record)


def _spec(record: dict[str, str]) -> DatasetSpec:
    found = [match for match in map(_SUBSET.fullmatch, record["subsets"].split(",")) if match]
    rows = f"{int(record['rows']):,} rows" if record["rows"].isdigit() else record["rows"]
    name = record["name"]
    built_in = name in _BUILT_IN
    return DatasetSpec(
        name=name,
        summary="who the assistant is, in Chinese and English; comes with swift"
        if built_in
        else ", ".join(filter(None, (record["task"], rows))),
        target=_BUILT_IN.get(name, _DEFAULT_TARGET),
        ms_id=record["ms_id"],
        hf_id=record["hf_id"],
        subsets=tuple(match["name"] for match in found),
        hub_subsets={} if built_in else {match["name"]: match["hub"] for match in found if match["kind"] == "="},
        weak_subsets=tuple(match["name"] for match in found if match["weak"]),
        views=() if built_in else tuple(match["name"] for match in found if match["kind"] == "~"),
        split=tuple(record["splits"].split(",")),
        columns=json.loads(record["columns"] or "{}"),
        task=record["task"],
        tags=tuple(filter(None, record["tags"].split(","))),
    )


def plain_name(name: str) -> str:
    """Return a name as it is compared: without case, and with `_` as `-`."""
    return name.lower().replace("_", "-")


def find_dataset(name: str, *, hub: Literal["hf", "ms"] | None = None) -> DatasetSpec | None:
    """Return the known data set of a short name, of an id on either hub, or of the last part of such an id; else None.

    Args:
        name: as the user wrote it; case and `_` against `-` do not matter.
        hub: look at the ids of this hub only.
    """
    wanted = plain_name(name)
    specs = list(DATASETS)
    if "/" in name:
        return next((spec for spec in specs if wanted in [plain_name(repo) for repo in _ids(spec, hub)]), None)
    by_name = next((spec for spec in specs if plain_name(spec.name) == wanted), None)
    if by_name is not None:
        return by_name
    tails = [spec for spec in specs if wanted in [plain_name(repo).rpartition("/")[2] for repo in _ids(spec, hub)]]
    return tails[0] if len(tails) == 1 else None


def _ids(spec: DatasetSpec, hub: str | None) -> list[str]:
    ids = {"hf": spec.hf_id, "ms": spec.ms_id}
    return [repo for key, repo in ids.items() if repo and hub in (None, key)]
