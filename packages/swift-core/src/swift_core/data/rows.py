"""Files as rows: JSON, CSV, Parquet, Arrow and plain text, read one row at a time and without guessing column types."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from swift_core.data.json_rows import RECODE, read_json, undecodable
from swift_core.data.report import BadRow
from swift_core.errors import DataError

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
BINARY_SUFFIXES = (".parquet", ".arrow")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), *BINARY_SUFFIXES)
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One row as a file gives it.

    Attributes:
        values: column -> value.
        origin: `file:line` of its start, with `#place` (from 0) behind it for the second and further rows of a line, or `file#row`
            (from 0) where a format has no lines.
    """

    values: dict[str, Any]
    origin: str


def suffix_of(path: Path) -> str:
    """Return the part of a file name that names a format, such as `.jsonl.gz`, or an empty text."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), "")


def read_rows(path: Path, *, name: str | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of one file in order; a broken row becomes a `BadRow` and reading goes on.

    `.json` and `.jsonl` may hold one object a line, an array of objects, one object whose only key holds an array, or
    objects one after another: the content decides. `.csv` and `.tsv` need a header line. A `.txt` file is one sample for
    each line that is not empty, in the column `text`. Text may be UTF-8 or UTF-16, with or without byte order mark, and
    the text formats may be gzipped.

    Args:
        path: the file.
        name: how origins call it; default: the path as given.

    Raises:
        DataError: when the file as a whole cannot be read.
    """
    suffix = suffix_of(path)
    shown = name or str(path)
    if not suffix:
        raise DataError(f"cannot tell the format of {shown}", fix=f"use one of {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            yield from _parquet(path, shown)
        elif suffix == ".arrow":
            yield from _arrow(path, shown)
        else:
            with _open_text(path, newline="" if suffix.startswith((".csv", ".tsv")) else None) as stream:
                yield from _text_rows(stream, shown, suffix.removesuffix(".gz"))
    except UnicodeError as error:
        raise DataError(f"cannot decode the text: {error}", location=shown, fix="save the file as UTF-8") from error
    except (pa.ArrowException, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"the file is damaged: {error}", location=shown, fix="fetch or write the file again") from error


def _text_rows(stream: TextIO, name: str, suffix: str) -> Iterator[Row | BadRow]:
    if suffix in (".csv", ".tsv"):
        yield from _csv(stream, name, tab=suffix == ".tsv")
    elif suffix == ".txt":
        yield from _lines(stream, name)
    else:
        before, place = 0, 0
        for line, found in read_json(stream, name):
            # A list written without line ends has all its rows on one line, and no two may be taken for one.
            before, place = line, place + 1 if line == before else 0
            yield found if isinstance(found, BadRow) else Row(found, f"{name}:{line}" + (f"#{place}" if place else ""))


def _open_text(path: Path, *, newline: str | None) -> TextIO:
    packed = path.name.lower().endswith(".gz")
    with gzip.open(path, "rb") if packed else path.open("rb") as stream:
        encoding, errors = _encoding(cast("IO[bytes]", stream).read(4))
    if packed:
        return cast("TextIO", gzip.open(path, "rt", encoding=encoding, errors=errors, newline=newline))
    return path.open(encoding=encoding, errors=errors, newline=newline)


def _encoding(head: bytes) -> tuple[str, str]:
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32", "strict"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", "strict"
    if len(head) >= 2 and head[0] and not head[1]:
        return "utf-16-le", "strict"
    if len(head) >= 2 and not head[0] and head[1]:
        return "utf-16-be", "strict"
    # Wrong bytes are kept as marks, so that the row that holds them can be named and the others used.
    return "utf-8-sig", "surrogateescape"


def _lines(stream: TextIO, name: str) -> Iterator[Row | BadRow]:
    for number, line in enumerate(stream, start=1):
        text = line.rstrip("\n")
        if not text.strip():
            continue
        fault = undecodable(text)
        origin = f"{name}:{number}"
        yield BadRow(origin, fault, text, RECODE) if fault else Row({"text": text}, origin)


def _csv(stream: TextIO, name: str, *, tab: bool) -> Iterator[Row | BadRow]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KB is less than a long conversation
    head = stream.readline()
    while head and not head.strip():
        head = stream.readline()
    delimiter = "\t" if tab else max(",;\t", key=head.count)
    stream.seek(0)
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        origin = f"{name}:{line}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fix = 'put texts with commas, quotes or line ends into "...", and write a quote inside as ""'
            yield BadRow(origin, f"broken CSV: {error}", "", fix)
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(cells, origin)
        else:
            yield _record(header, cells, origin)


def _header(cells: list[str], origin: str) -> list[str]:
    names = [cell.strip().lstrip("\ufeff") for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"the header names {', '.join(map(repr, twice))} twice: {names}", location=origin, fix="give every column its own name"
        )
    return names


def _record(header: list[str], cells: list[str], origin: str) -> Row | BadRow:
    if len(cells) > len(header):
        reason = f"{len(cells)} cells under a header of {len(header)} ({', '.join(header)})"
        return BadRow(origin, reason, cells, 'put texts that hold the separator into "..."')
    for column, cell in zip(header, cells, strict=False):
        fault = undecodable(cell)
        if fault:
            return BadRow(origin, f"column {column!r}: {fault}", cells, RECODE)
    return Row(dict.fromkeys(header) | dict(zip(header, cells, strict=False)), origin)


def _parquet(path: Path, name: str) -> Iterator[Row]:
    with pq.ParquetFile(path) as table:
        yield from _batches(table.iter_batches(batch_size=_BATCH), name)


def _arrow(path: Path, name: str) -> Iterator[Row]:
    with pa.memory_map(str(path)) as source:
        yield from _batches(iter(pa.ipc.open_stream(source)), name)


def _batches(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[Row]:
    index = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            for values in batch.slice(start, _BATCH).to_pylist():
                yield Row({str(key): _missing(value) for key, value in values.items()}, f"{name}#{index}")
                index += 1


def _missing(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
