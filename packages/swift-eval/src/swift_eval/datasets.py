"""Local data of a benchmark: where its files are, and whether its rows can be evaluated."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swift_core.errors import DataError, NotFoundError

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
OWN_DATA = {"general_mcq": "val", "general_qa": "test"}
COLUMNS = {"general_mcq": "question, A, B, ... and answer", "general_qa": "query (or messages) and response"}
LETTERS = "ABCDEFGHIJ"


def check_local_data(benchmark: str, options: Mapping[str, Any], *, judged: bool = False) -> list[Path]:
    """Check the files of a benchmark that reads local data, and return those whose rows were checked.

    Args:
        benchmark: EvalScope name.
        options: its entry in `--eval_dataset_args`.
        judged: whether a judge model scores the answers, so that rows need no reference.

    Raises:
        NotFoundError: when the path or a subset's file is absent.
        DataError: when a row cannot be evaluated, with `file:line`.
    """
    given = options.get("local_path") or options.get("dataset_id")
    if given is None:
        if benchmark in OWN_DATA:
            example = json.dumps({benchmark: {"local_path": f"{benchmark}.jsonl"}})
            raise NotFoundError(f"{benchmark} evaluates your own file, and none is given", fix=f"--eval_dataset_args '{example}'")
        return []
    path = Path(str(given)).expanduser()
    if not path.exists():
        if options.get("local_path"):
            raise NotFoundError(f"local_path of {benchmark} does not exist: {given}", fix="give a file or folder on this machine")
        return []
    if benchmark not in OWN_DATA:
        return []
    subsets: Sequence[str] = options.get("subset_list") or ["default"]
    files = [_subset_file(benchmark, path, str(subset)) for subset in ([subsets] if isinstance(subsets, str) else subsets)]
    for file in files:
        many = bool((options.get("extra_params") or {}).get("multiple_correct"))
        _check_rows(file, _mcq_fault(many) if benchmark == "general_mcq" else _qa_fault(judged), COLUMNS[benchmark])
    return files


def _subset_file(benchmark: str, path: Path, subset: str) -> Path:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            fix = f"give a file that ends in {', '.join(SUFFIXES)}"
            raise NotFoundError(f"{path} has a format that {benchmark} does not read", fix=fix)
        return path
    for suffix in SUFFIXES:
        for stem in (f"{subset}_{OWN_DATA[benchmark]}", subset):
            file = path / f"{stem}{suffix}"
            if file.is_file():
                return file
    present = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
    raise NotFoundError(
        f"no file of the subset {subset!r} is in {path}; it holds {', '.join(present) or 'no data files'}",
        fix=f"name it {subset}_{OWN_DATA[benchmark]}.jsonl, set subset_list, or give the file itself as local_path",
    )


def _check_rows(file: Path, fault: Callable[[Mapping[str, Any]], str | None], columns: str) -> None:
    if file.suffix == ".parquet":
        return  # Reading it needs pyarrow; EvalScope reports what is wrong with it.
    count = 0
    for line, row in _rows(file):
        count += 1
        reason = fault(row)
        if reason:
            raise DataError(reason, location=f"{file}:{line}", fix=f"every row needs {columns}")
    if not count:
        raise DataError("holds no rows", location=str(file), fix="give a file with at least one row")


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix == ".jsonl":
        for line, text in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if text.strip():
                yield line, _json_row(text, f"{file}:{line}")
        return
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
        for row in reader:
            yield reader.line_num, dict(row)


def _json_row(text: str, location: str) -> dict[str, Any]:
    fix = "write one JSON object a line"
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"is not JSON: {error.msg} at column {error.colno}", location=location, fix=fix) from error
    if not isinstance(row, dict):
        raise DataError(f"holds a {type(row).__name__}, not an object", location=location, fix=fix)
    return row


def _mcq_fault(many: bool) -> Callable[[Mapping[str, Any]], str | None]:
    def fault(row: Mapping[str, Any]) -> str | None:
        if not row.get("question"):
            return "has no question"
        choices = [letter for letter in LETTERS if row.get(letter) not in (None, "")]
        if choices != list(LETTERS[: len(choices)]) or len(choices) < 2:
            return f"has the choices {', '.join(choices) or 'none'}; they must be A, B, ... without a gap"
        answer = row.get("answer")
        if many and not isinstance(answer, list):
            return f"has the answer {answer!r}; with multiple_correct it is a list of letters"
        answers: list[Any] = answer if many and isinstance(answer, list) else [answer]
        wrong = not answers or any(item not in choices for item in answers)
        return f"has the answer {answer!r}, which is none of {', '.join(choices)}" if wrong else None

    return fault


def _qa_fault(judged: bool) -> Callable[[Mapping[str, Any]], str | None]:
    def fault(row: Mapping[str, Any]) -> str | None:
        if not (row.get("query") or row.get("question") or row.get("messages")):
            return "has no query, question or messages"
        if not judged and not (row.get("response") or row.get("answer")):
            return "has no response to compare with"
        return None

    return fault
