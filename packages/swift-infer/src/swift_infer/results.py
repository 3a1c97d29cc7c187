"""The jsonl file that answers to a data set go to; one that exists is continued."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from swift_core.errors import DataError


class ResultFile:
    """Answers in the order of the rows, one JSON object a line, safe against a crash.

    Lines are appended and synced batch by batch; a line that a crash cut off is removed when the file is opened again.

    Args:
        path: the file; made together with its folders when absent.
        prompts: prompt messages of every row, to see that an existing file belongs to the same rows.
        model: name of the model, to see that an existing file was made by the same one.

    Raises:
        DataError: when the file holds answers to other rows or of another model.
    """

    def __init__(self, path: Path, *, prompts: Sequence[Sequence[Mapping[str, Any]]], model: str) -> None:
        self.path = path
        self.done = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: BinaryIO = path.open("ab+")
        try:
            self.done = self._check(prompts, model)
        except BaseException:
            self._stream.close()
            raise

    def _check(self, prompts: Sequence[Sequence[Mapping[str, Any]]], model: str) -> int:
        self._stream.seek(0)
        number, whole = 0, 0
        for line in self._stream:
            if not line.endswith(b"\n"):
                break
            row = self._parse(line, number + 1)
            if number >= len(prompts):
                raise self._mismatch(number + 1, f"the file has more lines than there are rows ({len(prompts)})")
            messages = row.get("messages")
            asked: Any = cast(list[Any], messages)[:-1] if isinstance(messages, list) else None
            if asked != [dict(message) for message in prompts[number]]:
                raise self._mismatch(number + 1, f"it answers another question than row {number + 1}")
            if row.get("model") != model:
                raise self._mismatch(number + 1, f"it was answered by {row.get('model')!r}, not by {model!r}")
            number += 1
            whole += len(line)
        self._stream.truncate(whole)
        return number

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise self._mismatch(number, f"it is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise self._mismatch(number, "it is not a JSON object")
        return cast(dict[str, Any], row)

    def _mismatch(self, number: int, why: str) -> DataError:
        fix = "give another --result_path, or move this file away"
        return DataError(f"the answers cannot be continued: {why}", location=f"{self.path}:{number}", fix=fix)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows and wait until they are on the disk."""
        self._stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace"))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.done += len(rows)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
