"""What the rows of a data set are for, seen from their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from swift_core.config.sections import DataSection, ModelSection
from swift_core.data.columns import DOCUMENT, LABEL, NEGATIVE, POSITIVE, QUERY, REJECTED, Columns, rename
from swift_core.data.companions import text_pair
from swift_core.data.dataset_id import parse_dataset_id
from swift_core.data.formats import convert
from swift_core.data.locate import find_rows
from swift_core.data.registered import register_info_files
from swift_core.data.report import BadRow, RowReport
from swift_core.data.task_rows import Task
from swift_core.data.values import Refused

LOOKED_AT = 50
"""Rows whose columns are looked at."""

# A row of the first kind among them decides, then the next: a pair without its rejected answer is a slip, not another data set.
_ORDER: tuple[Task, ...] = ("preference", "reranker", "embedding", "kto", "seq_cls", "causal_lm", "prompt")


def find_task(data: DataSection, loading: ModelSection) -> tuple[Task, str]:
    """Return what the data set is for, by the columns of its first rows, and the column or reason that says so.

    Rows that no format fits say nothing; where no row says anything, it is `causal_lm`.

    Raises:
        NotFoundError: when the data set is not where it was said to be.
        DataError: when it cannot be read as rows.
    """
    register_info_files(data.custom_dataset_info)
    wanted = parse_dataset_id([*data.dataset, *data.val_dataset][0])
    source = find_rows(wanted, data=data, loading=loading, report=RowReport(policy="skip"))
    columns = {**source.columns, **data.columns}
    rows = (row.values for row in islice(source.rows, LOOKED_AT) if not isinstance(row, BadRow))
    return task_of_rows(rows, columns, aliases=not data.disable_auto_column_mapping)


def task_of_rows(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], *, aliases: bool = True) -> tuple[Task, str]:
    """Return what rows are for, and why; see `find_task`."""
    found: dict[Task, str] = {}
    for values in rows:
        try:
            task, why = _task_of(rename(values, columns), aliases)
        except Refused:
            continue
        found.setdefault(task, why)
    nothing: tuple[Task, str] = ("causal_lm", "")
    known: list[tuple[Task, str]] = [(task, found[task]) for task in _ORDER if task in found]
    return known[0] if known else nothing


def _task_of(values: Mapping[str, Any], aliases: bool) -> tuple[Task, str]:
    row = Columns.of(values, task=None, need_answer=False, auto=aliases)
    rejected = row.first(REJECTED)
    if rejected and isinstance(row.values[rejected], str | list | dict):
        return "preference", row.what(rejected)
    other = next((name for name in row.values if name.startswith("rejected_")), None)
    if other:
        return "preference", row.what(other)
    companion = row.first(POSITIVE) or row.first(NEGATIVE)
    if companion:
        return "embedding", row.what(companion)
    documents = row.first(DOCUMENT)
    if documents and row.first(QUERY):
        return "reranker", row.what(documents)
    return _labelled(row, values, aliases)


def _labelled(row: Columns, values: Mapping[str, Any], aliases: bool) -> tuple[Task, str]:
    pair, column = text_pair(row), row.first(LABEL)
    label = row.values.get(column or "")
    number = isinstance(label, int | float | list) and not isinstance(label, bool)
    if pair and not (isinstance(label, int) and label > 1):
        return "embedding", f"columns {pair[0]!r} and {pair[1]!r}"
    roles = _roles(values, aliases)
    if column and (isinstance(label, bool) or str(label).lower() in ("true", "false")):
        return "kto", row.what(column)
    if column and number and not (label in (0, 1) and {"user", "assistant"} <= roles):
        return "seq_cls", row.what(column)
    if column and number:
        return "kto", row.what(column)
    if not roles:
        raise Refused("no format fits")
    return ("causal_lm", "") if "assistant" in roles else ("prompt", "the rows have no answer")


def _roles(values: Mapping[str, Any], aliases: bool) -> set[str]:
    """Return who speaks in a row that can be read as a conversation: without its answer, if it has none; else an empty set."""
    tasks: tuple[Task, ...] = ("causal_lm", "prompt")
    for task in tasks:
        try:
            sample, _ = convert(values, "", need_answer=task == "causal_lm", task=task, auto_columns=aliases)
        except Refused:
            continue
        return {str(message["role"]) for message in sample.messages}
    return set()
