"""From `--dataset` and `--val_dataset` to samples: find the files, read the rows, convert, sample, shuffle, split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from swift_core.cards.datasets import find_dataset, plain_name
from swift_core.config.sections import DataSection, ModelSection
from swift_core.data.dataset_id import DatasetId, parse_dataset_id
from swift_core.data.formats import convert, rename
from swift_core.data.mixing import set_aside, take
from swift_core.data.report import BadRow, RowReport
from swift_core.data.rows import SUFFIXES, Row, read_rows, suffix_of
from swift_core.data.turns import Refused
from swift_core.errors import ConfigError, DataError, NotFoundError, Problem
from swift_core.hub.cache import env_flag
from swift_core.hub.local import existing_path, looks_like_path, missing_path
from swift_core.hub.resolve import resolve
from swift_core.protocols import Sample
from swift_core.registry import DATASETS, import_target, nearest
from swift_core.specs import DatasetSpec

RowMaker = Callable[[str, DataSection], Iterator[Row | BadRow]]
"""The `target` of a `DatasetSpec` that makes its rows itself: called with the subset and the data section."""

_FROM_FILES = DatasetSpec.__dataclass_fields__["target"].default


@dataclass(frozen=True, slots=True)
class LoadedData:
    """All samples of a run.

    Attributes:
        train: samples of `--dataset`, less those set aside.
        val: samples of `--val_dataset`, or those set aside.
        report: what was read, used and refused; print its summary.
    """

    train: list[Sample]
    val: list[Sample]
    report: RowReport


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows of one written data set, not read yet, and the renaming its table entry asks for."""

    rows: Iterator[Row | BadRow]
    columns: Mapping[str, str]


def load_datasets(data: DataSection, loading: ModelSection, *, need_answer: bool = True) -> LoadedData:
    """Read all data sets of a run.

    The result depends on the settings and the content of the files only.

    Args:
        data: what to read and how.
        loading: hub, offline mode and token.
        need_answer: whether every row must hold something to train; false for prompts.

    Raises:
        DataError: for a bad row under `on_bad_row fail`, too many bad rows, or no usable row.
        NotFoundError: when a data set is not where it was said to be.
        ConfigError: for a data set written wrongly or a setting that cannot act.
    """
    _check_settings(data)
    report = new_report(data)

    def read(text: str, position: str, *, shuffle: bool) -> list[Sample]:
        seed = f"{data.data_seed}/{position}"
        return load_dataset(text, data=data, loading=loading, report=report, shuffle=shuffle, seed=seed, need_answer=need_answer)

    train = [s for i, text in enumerate(data.dataset) for s in read(text, f"train/{i}", shuffle=data.dataset_shuffle)]
    val = [s for i, text in enumerate(data.val_dataset) for s in read(text, f"val/{i}", shuffle=data.val_dataset_shuffle)]
    _check_columns(data, report)
    if data.split_dataset_ratio > 0 and not data.val_dataset:
        train, val = set_aside(train, data.split_dataset_ratio, _random(data.dataset_shuffle, f"{data.data_seed}/split"))
        if not val:
            raise DataError("--split_dataset_ratio needs at least two rows", fix="add rows, or remove --split_dataset_ratio")
    for samples, shuffle, name in ((train, data.dataset_shuffle, "train"), (val, data.val_dataset_shuffle, "val")):
        if shuffle:
            Random(f"{data.data_seed}/{name}").shuffle(samples)
    report.used = len(train) + len(val)
    return LoadedData(train, val, report)


def new_report(data: DataSection) -> RowReport:
    """Return an empty report with the run's rules for bad rows."""
    return RowReport(policy=data.on_bad_row, limit=data.max_bad_rows)


def load_dataset(
    text: str,
    *,
    data: DataSection,
    loading: ModelSection,
    report: RowReport,
    shuffle: bool | None = None,
    seed: str | None = None,
    need_answer: bool = True,
) -> list[Sample]:
    """Read one data set, written `[hf::|ms::]NAME[:subset/subset][#count]`, in file order.

    Args:
        text: the data set as written.
        data: columns, names for the self-cognition data, seed.
        loading: hub, offline mode and token.
        report: counts; bad rows go there.
        shuffle: whether `#count` draws rows rather than taking the first; default: `data.dataset_shuffle`.
        seed: of the drawing; default: `data.data_seed`.
        need_answer: whether every row must hold something to train.

    Raises:
        DataError: for bad rows as the report's policy says, or when no row is usable.
        NotFoundError: when it is not where it was said to be.
    """
    wanted = parse_dataset_id(text)
    source = _find(wanted, data=data, loading=loading, report=report)
    read_before, bad_before = report.read, len(report.bad)
    columns = {**source.columns, **data.columns}
    draw = _random(data.dataset_shuffle if shuffle is None else shuffle, seed or str(data.data_seed))
    samples = take(_samples(source.rows, columns, report, need_answer=need_answer), wanted.count, draw)
    if not samples:
        read, bad = report.read - read_before, len(report.bad) - bad_before
        why = f"all {read} rows are bad\n{report.reasons(report.bad[bad_before:])}" if bad else "it holds no rows"
        raise DataError(
            f"nothing can be used of {text!r}: {why}", fix=_first_fix(report, bad_before) if bad else "give a data set with rows"
        )
    return samples


def _samples(rows: Iterator[Row | BadRow], columns: Mapping[str, str], report: RowReport, *, need_answer: bool) -> Iterator[Sample]:
    for row in rows:
        report.read += 1
        if isinstance(row, BadRow):
            report.refuse(row)
            continue
        report.columns.update(dict.fromkeys(row.values))
        try:
            sample, name = convert(rename(row.values, columns), row.origin, need_answer=need_answer)
        except Refused as refused:
            report.refuse(BadRow(row.origin, refused.reason, row.values, refused.fix))
            continue
        report.formats[name] += 1
        yield sample


def _random(shuffle: bool, seed: str) -> Random | None:
    return Random(seed) if shuffle else None  # Random hashes a text itself, the same way on every machine


# --- finding


def _find(wanted: DatasetId, *, data: DataSection, loading: ModelSection, report: RowReport) -> _Source:
    path = existing_path(wanted.name) if wanted.hub is None else None
    if path is not None:
        return _local(path, wanted, report)
    if wanted.hub is None and (looks_like_path(wanted.name) or suffix_of(Path(wanted.name))):
        raise missing_path(wanted.name, kind="dataset")
    hub = wanted.hub or ("hf" if loading.use_hf or env_flag("USE_HF") else "ms")
    name, at, revision = wanted.name.partition("@")
    spec = find_dataset(name, hub=wanted.hub)
    if spec is not None and spec.target != _FROM_FILES:
        return _made(spec, wanted, data)
    if spec is None and "/" not in name:
        near = nearest(name, DATASETS.names())
        advice = f"did you mean {' or '.join(near)}? " if near else ""
        raise NotFoundError(
            f"data set {name!r} is neither a path nor a known name", fix=f"{advice}See `swift list datasets`, or give a path or ORG/NAME"
        )
    repo = _repo(spec, hub, explicit=wanted.hub is not None) if spec else name
    subsets = _hub_subsets(spec, wanted.subsets) if spec else wanted.subsets
    folder = resolve(f"{hub}::{repo}{at}{revision}", kind="dataset", offline=loading.offline, token=loading.hub_token)
    return _folder(folder, repo, subsets, spec, report)


def _repo(spec: DatasetSpec, hub: Literal["hf", "ms"], *, explicit: bool) -> str:
    here, there = (spec.hf_id, spec.ms_id) if hub == "hf" else (spec.ms_id, spec.hf_id)
    if here:
        return here
    this, other, prefix = ("Hugging Face", "ModelScope", "ms") if hub == "hf" else ("ModelScope", "Hugging Face", "hf")
    switch = "" if explicit else ", or remove --use_hf" if hub == "hf" else ", or add --use_hf"
    raise NotFoundError(f"data set {spec.name!r} is on {other}, not on {this}", fix=f"write {prefix}::{there}{switch}")


def _made(spec: DatasetSpec, wanted: DatasetId, data: DataSection) -> _Source:
    if wanted.hub is not None:
        raise NotFoundError(
            f"data set {spec.name!r} does not come from a hub: it is made by {spec.source}", fix=f"write --dataset {spec.name}"
        )
    make: RowMaker = import_target(spec.target, needed_for=f"data set {spec.name!r}", install=spec.install)
    subsets = wanted.subsets or spec.subsets[:1] or ("default",)
    if subsets == ("all",) and "all" not in spec.subsets:
        subsets = tuple(name for name in spec.subsets if name not in spec.weak_subsets)
    return _Source((row for subset in subsets for row in make(subset, data)), spec.columns)


def _local(path: Path, wanted: DatasetId, report: RowReport) -> _Source:
    if path.is_file():
        if wanted.subsets:
            raise DataError(f"{wanted.name} is a file, which has no subset {'/'.join(wanted.subsets)!r}", fix=f"write {wanted.name}")
        if not suffix_of(path):
            raise DataError(f"cannot tell the format of {wanted.name}", fix=f"use one of {', '.join(SUFFIXES)}")
        return _Source(read_rows(path, name=wanted.name), {})
    twin = next((spec for spec in DATASETS if plain_name(path.name) in _tails(spec)), None)
    if twin is not None and (twin.columns or twin.split != ("train",) or twin.hub_subsets):
        report.note(f"{wanted.name} is read as a copy of the known data set {twin.name!r}")
    return _folder(path, wanted.name, _hub_subsets(twin, wanted.subsets) if twin else wanted.subsets, twin, report)


def _tails(spec: DatasetSpec) -> set[str]:
    return {plain_name(repo).rpartition("/")[2] for repo in (spec.ms_id, spec.hf_id) if repo}


def _folder(folder: Path, shown: str, subsets: tuple[str, ...], spec: DatasetSpec | None, report: RowReport) -> _Source:
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
    return _Source(_read_all(folder, shown, list(paths)), spec.columns if spec else {})


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


# --- settings


def _check_settings(data: DataSection) -> None:
    if not data.dataset and not data.val_dataset:
        raise ConfigError([Problem("--dataset", "is missing", "--dataset FILE, a folder, a hub id, or self-cognition")])
    names = [flag for flag, value in (("--model_name", data.model_name), ("--model_author", data.model_author)) if value]
    if names and not any(_is_self_cognition(text) for text in (*data.dataset, *data.val_dataset)):
        raise ConfigError(
            [Problem(names[0], "only acts on the self-cognition data, which is not among the data sets", "add --dataset self-cognition")]
        )


def _is_self_cognition(text: str) -> bool:
    wanted = parse_dataset_id(text)
    spec = None if wanted.hub or existing_path(wanted.name) else find_dataset(wanted.name)
    return spec is not None and spec.name == "self-cognition"


def _check_columns(data: DataSection, report: RowReport) -> None:
    unmet = [name for name in data.columns if name not in report.columns]
    if unmet:
        fix = f"columns in the data: {', '.join(report.columns)}"
        raise ConfigError([Problem("--columns", f"renames {', '.join(map(repr, unmet))}, which no row has", fix)])
