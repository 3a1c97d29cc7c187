"""How a data set is written: `[hf::|ms::]NAME[:SUBSET/SUBSET|:all][#COUNT][@WEIGHT]`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from swift_core.errors import ConfigError, Problem
from swift_core.hub.local import existing_path

GRAMMAR = "[hf::|ms::]NAME[:subset1/subset2|:all][#count][@weight], where NAME is a file, a folder, a hub id or a known name"
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_COUNT = re.compile(r"[1-9][0-9]*")
_WEIGHT = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.\-]+/[A-Za-z0-9_.\-]+")
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".gz", ".parquet", ".arrow")
_SUBSETS = re.compile(r"[^:#/\\]+(?:/[^:#/\\]+)*")


@dataclass(frozen=True, slots=True)
class DatasetId:
    """A data set as written; `str()` gives the text back.

    Attributes:
        name: path, hub id (with `@revision` where given) or known name.
        hub: `hf` or `ms` where a prefix says so.
        subsets: names after the colon; `("all",)` means every one.
        count: number of rows wanted, or None for as many as there are.
        weight: chance of being drawn from, relative to the other data sets, or None.
    """

    name: str
    hub: Literal["hf", "ms"] | None = None
    subsets: tuple[str, ...] = ()
    count: int | None = None
    weight: float | None = None

    def __str__(self) -> str:
        prefix = f"{self.hub}::" if self.hub else ""
        subsets = f":{'/'.join(self.subsets)}" if self.subsets else ""
        count = "" if self.count is None else f"#{self.count}"
        return f"{prefix}{self.name}{subsets}{count}{'' if self.weight is None else f'@{self.weight!r}'}"


def parse_dataset_id(text: str, *, exists: Callable[[str], bool] | None = None) -> DatasetId:
    """Read the written form of a data set.

    A text that as a whole, or without its count and weight, is a path on this machine is taken literally, so that names of
    files may hold `:`, `#` and `@`. A number right after the `@` of `ORG/NAME@...` is a revision, not a weight; a weight
    comes after a count, a subset, a path or a known name, or after the revision.

    Args:
        text: as the user wrote it.
        exists: says whether a path is there; default: the file system.

    Raises:
        ConfigError: when the text does not follow the grammar.
    """
    there = exists or (lambda path: existing_path(path) is not None)
    if not text.strip():
        raise _problem(text, "is empty")
    if there(text):
        return DatasetId(text)
    text, weight = _split_weight(text, there)
    if there(text):
        return DatasetId(text, weight=weight)
    rest, count = _split_count(text)
    if there(rest):
        return DatasetId(rest, count=count, weight=weight)
    hub, rest = _split_hub(text, rest)
    start = 2 if _DRIVE.match(rest) else 0
    name, colon, subsets = rest[start:].partition(":")
    name = rest[:start] + name
    if colon and not _SUBSETS.fullmatch(subsets):
        raise _problem(text, f"has the subsets {subsets!r}, which are not names joined by '/'")
    if not name:
        raise _problem(text, "has no name")
    return DatasetId(name, hub=hub, subsets=tuple(subsets.split("/")) if colon else (), count=count, weight=weight)


def _split_weight(text: str, there: Callable[[str], bool]) -> tuple[str, float | None]:
    rest, mark, weight = text.rpartition("@")
    if not mark or "#" in weight or ":" in weight or "/" in weight:
        return text, None
    counted = "#" in rest.rpartition("/")[2]
    if not _WEIGHT.fullmatch(weight):
        if counted and not there(rest):
            raise _problem(text, f"has the weight {weight!r}, which is not a positive number", f"for example {rest}@0.5")
        return text, None
    if not counted and _is_repository(rest) and not there(rest):
        return text, None
    if float(weight) <= 0:
        raise _problem(text, f"has the weight {weight!r}, which is not a positive number", f"for example {rest}@0.5")
    return rest, float(weight)


def _is_repository(text: str) -> bool:
    """Say whether a text is `[hub::]ORG/NAME` and nothing more, so that what follows its `@` is a revision."""
    name = text.partition("::")[2] or text
    return bool(_REPOSITORY.fullmatch(name)) and not name.lower().endswith(_FILE_SUFFIXES)


def _split_count(text: str) -> tuple[str, int | None]:
    rest, mark, count = text.rpartition("#")
    if not mark:
        return text, None
    if _COUNT.fullmatch(count):
        return rest, int(count)
    raise _problem(text, f"has the count {count!r}, which is not a positive number", f"for example {rest}#500")


def _split_hub(text: str, rest: str) -> tuple[Literal["hf", "ms"] | None, str]:
    prefix, mark, after = rest.partition("::")
    if not mark:
        return None, rest
    if prefix not in ("hf", "ms"):
        raise _problem(
            text, f"has the prefix {prefix + '::'!r}", "data sets come from hf:: (Hugging Face) or ms:: (ModelScope), or from a path"
        )
    return cast('Literal["hf", "ms"]', prefix), after


def _problem(text: str, what: str, fix: str | None = None) -> ConfigError:
    return ConfigError([Problem(f"data set {text!r}", what, fix or f"write {GRAMMAR}")])
