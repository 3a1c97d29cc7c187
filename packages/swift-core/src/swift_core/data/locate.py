"""Where a written data set lives: a file, a folder, the table of known data sets, or a hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from swift_core.cards.datasets import find_dataset, plain_name
from swift_core.config.sections import DataSection, ModelSection
from swift_core.data.dataset_id import DatasetId
from swift_core.data.registered import is_repeatable, loader_of, made_rows, reworked
from swift_core.data.report import BadRow, RowReport
from swift_core.data.rows import SUFFIXES, Row, read_rows, suffix_of
from swift_core.data.turns import rename_turns
from swift_core.errors import DataError, NotFoundError
from swift_core.hub.cache import env_flag
from swift_core.hub.local import existing_path, looks_like_path, missing_path
from swift_core.hub.resolve import resolve
from swift_core.registry import DATASETS, import_target, nearest
from swift_core.specs import DatasetSpec

RowMaker = Callable[[str, DataSection], Iterator[Row | BadRow]]
"""The `target` of a `DatasetSpec` that makes its rows itself: called with the subset and the data section."""

_FROM_FILES = DatasetSpec.__dataclass_fields__["target"].default


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that is found and not read yet.

    Attributes:
        rows: its rows; nothing is read before the first is asked for.
        columns: renaming that its table entry asks for.
        files: what the rows are read from; None when code makes them, which may give others the next time.
    """

    rows: Iterator[Row | BadRow]
    columns: Mapping[str, str]
    files: tuple[Path, ...] | None = None


def find_rows(wanted: DatasetId, *, data: DataSection, loading: ModelSection, report: RowReport) -> Source:
    """Return the rows of a written data set: a local path first, then a known data set, then a hub id.

    Raises:
        NotFoundError: when there is no such file, known name or repository.
        DataError: when the file or folder cannot be read as rows, or has no such subset.
    """
    path = existing_path(wanted.name) if wanted.hub is None else None
    if path is not None:
        return _local(path, wanted, report)
    if wanted.hub is None and (looks_like_path(wanted.name) or suffix_of(Path(wanted.name))):
        raise missing_path(wanted.name, kind="dataset")
    hub: Literal["hf", "ms"] = wanted.hub or ("hf" if loading.use_hf or env_flag("USE_HF") else "ms")
    name, at, revision = wanted.name.partition("@")
    spec = find_dataset(name, hub=wanted.hub)
    if spec is not None and spec.obstacle:
        raise DataError(f"data set {spec.name!r} cannot be read: {spec.obstacle}", location=spec.source or None, fix="describe it anew")
    if spec is not None and (spec.target != _FROM_FILES or loader_of(spec) is not None):
        return _made(spec, wanted, data)
    if spec is not None and spec.path and wanted.hub is None:
        return _at_path(spec, wanted, report)
    if spec is None and "/" not in name:
        near = nearest(name, DATASETS.names())
        advice = f"did you mean {' or '.join(near)}? " if near else ""
        raise NotFoundError(
            f"data set {name!r} is neither a path nor a known name", fix=f"{advice}See `swift list datasets`, or give a path or ORG/NAME"
        )
    hub, repo = _repo(spec, hub, explicit=wanted.hub is not None, report=report) if spec else (hub, name)
    subsets = _hub_subsets(spec, wanted.subsets) if spec else wanted.subsets
    folder = resolve(f"{hub}::{repo}{at}{revision}", kind="dataset", offline=loading.offline, token=loading.hub_token)
    return _folder(folder, repo, subsets, spec, report)


def _repo(spec: DatasetSpec, hub: Literal["hf", "ms"], *, explicit: bool, report: RowReport) -> tuple[Literal["hf", "ms"], str]:
    """Return hub and id of a known data set; one that is on the other hub only is taken from there unless a prefix says where."""
    here, there = (spec.hf_id, spec.ms_id) if hub == "hf" else (spec.ms_id, spec.hf_id)
    if here:
        return hub, here
    this, other, prefix = ("Hugging Face", "ModelScope", "ms") if hub == "hf" else ("ModelScope", "Hugging Face", "hf")
    if explicit:
        raise NotFoundError(f"data set {spec.name!r} is on {other}, not on {this}", fix=f"write {prefix}::{there}")
    report.note(f"{spec.name} is taken from {other} ({there}): it is not on {this}")
    return ("ms" if hub == "hf" else "hf"), there


def _made(spec: DatasetSpec, wanted: DatasetId, data: DataSection) -> Source:
    if wanted.hub is not None:
        raise NotFoundError(
            f"data set {spec.name!r} does not come from a hub: it is made by {spec.source}", fix=f"write --dataset {spec.name}"
        )
    subsets = wanted.subsets or spec.subsets[:1] or ("default",)
    if subsets == ("all",) and "all" not in spec.subsets:
        subsets = tuple(name for name in spec.subsets if name not in spec.weak_subsets)
    if loader_of(spec) is not None:
        return Source(reworked(spec, (row for subset in subsets for row in made_rows(spec, subset))), spec.columns)
    make: RowMaker = import_target(spec.target, needed_for=f"data set {spec.name!r}", install=spec.install)
    rows = (row for subset in subsets for row in make(subset, data))
    # The rows of swift's own makers depend on their settings and on files that come with swift.
    files = () if spec.target.startswith("swift_core.data.") and is_repeatable(spec) else None
    return Source(reworked(spec, rows), spec.columns, files)


def _at_path(spec: DatasetSpec, wanted: DatasetId, report: RowReport) -> Source:
    path = existing_path(spec.path)
    if path is None:
        raise missing_path(spec.path, kind="dataset")
    found = _local(path, DatasetId(spec.path, subsets=wanted.subsets), report)
    return _of_spec(found, spec)


def _of_spec(found: Source, spec: DatasetSpec | None) -> Source:
    """Return a source with what was registered for its data set."""
    if spec is None:
        return found
    rows = reworked(spec, _with_turn_names(found.rows, spec.turn_names))
    return Source(rows, {**found.columns, **spec.columns}, found.files if is_repeatable(spec) else None)


def _with_turn_names(rows: Iterator[Row | BadRow], names: Mapping[str, str]) -> Iterator[Row | BadRow]:
    for row in rows:
        yield Row(rename_turns(row.values, names), row.origin) if names and isinstance(row, Row) else row


def _local(path: Path, wanted: DatasetId, report: RowReport) -> Source:
    if path.is_file():
        if wanted.subsets:
            raise DataError(f"{wanted.name} is a file, which has no subset {'/'.join(wanted.subsets)!r}", fix=f"write {wanted.name}")
        if not suffix_of(path):
            raise DataError(f"cannot tell the format of {wanted.name}", fix=f"use one of {', '.join(SUFFIXES)}")
        return Source(read_rows(path, name=wanted.name), {}, (path,))
    twin = next((spec for spec in DATASETS if plain_name(path.name) in _tails(spec)), None)
    if twin is not None and (twin.columns or twin.split != ("train",) or twin.hub_subsets):
        report.note(f"{wanted.name} is read as a copy of the known data set {twin.name!r}")
    return _folder(path, wanted.name, _hub_subsets(twin, wanted.subsets) if twin else wanted.subsets, twin, report)


def _tails(spec: DatasetSpec) -> set[str]:
    return {plain_name(repo).rpartition("/")[2] for repo in (spec.ms_id, spec.hf_id) if repo}


def _folder(folder: Path, shown: str, subsets: tuple[str, ...], spec: DatasetSpec | None, report: RowReport) -> Source:
    # Imported here: `datasets` takes two seconds to import, and only folders need its rules.
    from swift_core.data.repository import subset_files, subset_names

    splits = spec.split if spec else ("train",)
    paths: dict[Path, None] = {}
    left_out: list[Path] = []
    names = subset_names(folder, subsets)
    for name in names:
        found = subset_files(folder, name, splits)
        paths.update(dict.fromkeys(found.paths))
        left_out += found.left_out
    unused = [str(path.relative_to(folder)) for path in dict.fromkeys(left_out) if path not in paths]
    if unused:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        report.note(f"{shown}: subset {'/'.join(names)}; not part of it: {', '.join(unused[:5])}{more}")
    return _of_spec(Source(_read_all(folder, shown, list(paths)), {}, tuple(paths)), spec)


def _read_all(folder: Path, shown: str, paths: list[Path]) -> Iterator[Row | BadRow]:
    for path in paths:
        inside = path.relative_to(folder) if path.is_relative_to(folder) else path.name
        yield from read_rows(path, name=f"{shown}/{inside}")


def _hub_subsets(spec: DatasetSpec, subsets: tuple[str, ...]) -> tuple[str, ...]:
    views = sorted(set(subsets) & set(spec.views))
    if views:
        plain = [name for name in spec.subsets if name not in spec.views]
        raise DataError(
            f"subset {', '.join(views)} of {spec.name} is another subset reworked by code, which is not part of swift",
            fix=f"choose from: {', '.join(plain)}" if plain else "write the rows you want into a .jsonl file",
        )
    if subsets == ("all",):
        subsets = tuple(name for name in spec.subsets if name not in (*spec.weak_subsets, *spec.views))
    if not subsets and len(spec.subsets) > 1 and "default" in spec.subsets:
        subsets = ("default",)
    if not subsets and len(spec.subsets) == 1 and spec.subsets != ("default",):
        subsets = spec.subsets
    return tuple(spec.hub_subsets.get(name, name) for name in subsets)
