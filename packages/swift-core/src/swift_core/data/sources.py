"""From `--dataset` and `--val_dataset` to samples: find the files, read the rows, convert, sample, shuffle, split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from swift_core.cards.datasets import find_dataset
from swift_core.config.sections import DataSection, ModelSection
from swift_core.data.dataset_id import parse_dataset_id
from swift_core.data.formats import convert, rename
from swift_core.data.locate import find_rows
from swift_core.data.mixing import interleave, set_aside, take
from swift_core.data.registered import register_info_files
from swift_core.data.report import BadRow, RowReport
from swift_core.data.rows import Row
from swift_core.data.task_rows import Task, check_task
from swift_core.data.values import Refused
from swift_core.errors import ConfigError, DataError, Problem
from swift_core.hub.local import existing_path
from swift_core.protocols import Sample


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


def load_datasets(data: DataSection, loading: ModelSection, *, need_answer: bool = True, task: Task = "causal_lm") -> LoadedData:
    """Read all data sets of a run.

    The result depends on the settings and the content of the files only.

    Args:
        data: what to read and how.
        loading: hub, offline mode and token.
        need_answer: whether every row must hold something to train; false for prompts.
        task: what the samples are for; a row of no use for it is a bad row.

    Raises:
        DataError: for a bad row under `on_bad_row fail`, too many bad rows, or no usable row.
        NotFoundError: when a data set is not where it was said to be.
        ConfigError: for a data set written wrongly or a setting that cannot act.
    """
    if data.streaming:
        raise ConfigError([Problem("--streaming", "acts where rows are read while training, not here", "remove it, or read with #count")])
    check_settings(data)
    report = new_report(data)

    def read(text: str, position: str, *, shuffle: bool) -> list[Sample]:
        seed = f"{data.data_seed}/{position}"
        return load_dataset(text, data=data, loading=loading, report=report, shuffle=shuffle, seed=seed, need_answer=need_answer, task=task)

    weights = mixing_weights(data)
    train = _mixed([read(text, f"train/{i}", shuffle=data.dataset_shuffle) for i, text in enumerate(data.dataset)], weights, data)
    val = [s for i, text in enumerate(data.val_dataset) for s in read(text, f"val/{i}", shuffle=data.val_dataset_shuffle)]
    check_columns(data, report)
    if data.split_dataset_ratio > 0 and not data.val_dataset:
        train, val = set_aside(train, data.split_dataset_ratio, _random(data.dataset_shuffle, f"{data.data_seed}/split"))
        if not val:
            raise DataError("--split_dataset_ratio needs at least two rows", fix="add rows, or remove --split_dataset_ratio")
    for samples, shuffle, name in ((train, data.dataset_shuffle, "train"), (val, data.val_dataset_shuffle, "val")):
        if shuffle:
            Random(f"{data.data_seed}/{name}").shuffle(samples)
    report.used = len(train) + len(val)
    return LoadedData(train, val, report)


def mixing_weights(data: DataSection) -> list[float] | None:
    """Return the chance of each data set of `--dataset`, relative to the others, or None where they are not mixed by chance.

    Raises:
        ConfigError: when chances are given twice, or their number is not that of the data sets.
    """
    written = [parse_dataset_id(text).weight for text in data.dataset]
    weighted = [text for text in data.val_dataset if parse_dataset_id(text).weight is not None]
    if weighted:
        what = "has a weight, and evaluation reads every row once"
        raise ConfigError([Problem(f"--val_dataset {weighted[0]}", what, "remove the weight")])
    if not data.interleave_prob:
        return None if all(weight is None for weight in written) else [1.0 if weight is None else weight for weight in written]
    where = "--interleave_prob"
    if any(weight is not None for weight in written):
        raise ConfigError([Problem(where, "data sets have weights of their own after '@' as well", "keep one of the two")])
    if len(data.interleave_prob) != len(written):
        what = f"has {len(data.interleave_prob)} values for {len(written)} data sets"
        raise ConfigError([Problem(where, what, "give one value for each data set of --dataset")])
    if any(not 0 < chance < float("inf") for chance in data.interleave_prob):
        raise ConfigError([Problem(where, f"{data.interleave_prob} are not all positive numbers", "for example --interleave_prob 0.7 0.3")])
    return list(data.interleave_prob)


def _mixed(sets: list[list[Sample]], weights: list[float] | None, data: DataSection) -> list[Sample]:
    if weights is None or len(sets) < 2:
        return [sample for samples in sets for sample in samples]
    for number, samples in enumerate(sets):
        if data.dataset_shuffle:  # before mixing: where a set is used in part, that part is a draw, not the first rows
            Random(f"{data.data_seed}/set/{number}").shuffle(samples)
    return interleave(sets, weights, Random(f"{data.data_seed}/mix"), data.stopping_strategy)


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
    task: Task = "causal_lm",
) -> list[Sample]:
    """Read one data set, written `[hf::|ms::]NAME[:subset/subset][#count][@weight]`, in file order.

    Args:
        text: the data set as written.
        data: columns, names for the self-cognition data, seed.
        loading: hub, offline mode and token.
        report: counts; bad rows go there.
        shuffle: whether `#count` draws rows rather than taking the first; default: `data.dataset_shuffle`.
        seed: of the drawing; default: `data.data_seed`.
        need_answer: whether every row must hold something to train.
        task: what the samples are for.

    Raises:
        DataError: for bad rows as the report's policy says, or when no row is usable.
        NotFoundError: when it is not where it was said to be.
    """
    wanted = parse_dataset_id(text)
    source = find_rows(wanted, data=data, loading=loading, report=report)
    read_before, bad_before = report.read, len(report.bad)
    columns = {**source.columns, **data.columns}
    draw = _random(data.dataset_shuffle if shuffle is None else shuffle, seed or str(data.data_seed))
    aliases = not data.disable_auto_column_mapping
    found = samples_of(source.rows, columns, report, need_answer=need_answer, aliases=aliases, task=task)
    samples = take(found, wanted.count, draw)
    if not samples:
        read, bad = report.read - read_before, len(report.bad) - bad_before
        why = f"all {read} rows are bad\n{report.reasons(report.bad[bad_before:])}" if bad else "it holds no rows"
        fix = report.bad[bad_before].fix or "mend the rows" if bad else "give a data set with rows"
        raise DataError(f"nothing can be used of {text!r}: {why}", fix=fix)
    return samples


def samples_of(
    rows: Iterator[Row | BadRow],
    columns: Mapping[str, str],
    report: RowReport,
    *,
    need_answer: bool,
    aliases: bool = True,
    task: Task = "causal_lm",
) -> Iterator[Sample]:
    """Yield the sample of every row that can be used; the report gets the others.

    Args:
        rows: as read.
        columns: renaming.
        report: counts, and what happens to a bad row.
        need_answer: whether every row must hold something to train.
        aliases: whether columns count under other names as well, such as `prompt` for `query`.
        task: what the samples are for.

    Raises:
        DataError: for a bad row, as the report's policy says.
    """
    task = "prompt" if task == "causal_lm" and not need_answer else task
    for row in rows:
        report.read += 1
        if isinstance(row, BadRow):
            report.refuse(row)
            continue
        report.columns.update(dict.fromkeys(row.values))
        try:
            values = rename(row.values, columns)
            sample, name = convert(values, row.origin, need_answer=need_answer, task=task, auto_columns=aliases)
            remark = check_task(sample, task)
        except Refused as refused:
            report.refuse(BadRow(row.origin, refused.reason, row.values, refused.fix))
            continue
        report.formats[name] += 1
        if remark:
            report.note(remark)
        yield sample


def _random(shuffle: bool, seed: str) -> Random | None:
    return Random(seed) if shuffle else None  # Random hashes a text itself, the same way on every machine


def check_settings(data: DataSection) -> None:
    """Register the described data sets, then refuse settings that cannot act.

    Raises:
        ConfigError: with what to do instead.
    """
    register_info_files(data.custom_dataset_info)
    mixing_weights(data)
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


def check_columns(data: DataSection, report: RowReport) -> None:
    """Refuse a renaming that met no row.

    Raises:
        ConfigError: with the columns that there are.
    """
    unmet = [name for name in data.columns if name not in report.columns]
    if unmet:
        fix = f"columns in the data: {', '.join(report.columns)}"
        raise ConfigError([Problem("--columns", f"renames {', '.join(map(repr, unmet))}, which no row has", fix)])
