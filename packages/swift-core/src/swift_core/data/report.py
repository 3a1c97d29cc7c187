"""What reading the data found: rows read, used and refused, and why."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from swift_core.errors import DataError

_SKIP = "leave bad rows out with --on_bad_row skip (quarantine also writes them to rejected.jsonl)"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        origin: `file:line`, or `file#row` where a format has no lines.
        reason: what is wrong, with column names or the position.
        raw: the text or the values as read.
        fix: what to do about this reason, where more can be said than "mend the row".
    """

    origin: str
    reason: str
    raw: Any = None
    fix: str = ""


@dataclass(slots=True)
class RowReport:
    """Counts over all data sets of one call.

    Attributes:
        policy: what happens to a bad row.
        limit: most bad rows to accept, or None.
        read: rows seen, bad ones included.
        used: samples handed on, after sampling and repetition.
        bad: refused rows in order; `raw` is kept only under `quarantine`.
        formats: detected format -> rows.
        columns: names met in any row, before renaming.
        notes: further lines of the summary, such as files left out.
    """

    policy: Literal["fail", "skip", "quarantine"] = "fail"
    limit: int | None = None
    read: int = 0
    used: int = 0
    bad: list[BadRow] = field(default_factory=list[BadRow])
    formats: Counter[str] = field(default_factory=Counter[str])
    columns: dict[str, None] = field(default_factory=dict[str, None])
    notes: list[str] = field(default_factory=list[str])

    def refuse(self, row: BadRow) -> None:
        """Count a bad row.

        Raises:
            DataError: under the policy `fail`, or when there are more bad rows than the limit.
        """
        kept = row if self.policy == "quarantine" else BadRow(row.origin, row.reason, fix=row.fix)
        self.bad.append(kept)
        if self.policy == "fail":
            raise DataError(
                f"{row.reason} (rows read so far: {self.read})", location=row.origin, fix=f"{row.fix or 'mend the row'}; or {_SKIP}"
            )
        if self.limit is not None and len(self.bad) > self.limit:
            raise DataError(
                f"{row.reason} (bad row {len(self.bad)} of {self.read} read; --max_bad_rows is {self.limit})\n{self.reasons()}",
                location=row.origin,
                fix=row.fix or "mend the rows, or raise --max_bad_rows",
            )

    def note(self, line: str) -> None:
        """Add a line to the summary once."""
        if line not in self.notes:
            self.notes.append(line)

    def summary(self) -> str:
        """Return the counts as a few lines of text."""
        kinds = ", ".join(f"{name} {count}" for name, count in self.formats.most_common())
        lines = [f"rows read {self.read}, used {self.used}, bad {len(self.bad)}" + (f"; formats: {kinds}" if kinds else "")]
        if self.bad:
            lines.append(self.reasons())
        return "\n".join([*lines, *self.notes])

    def reasons(self, rows: Sequence[BadRow] | None = None) -> str:
        """Return bad rows (default: all of them) by reason, most frequent first, as indented lines."""
        groups: dict[str, list[str]] = {}
        for row in self.bad if rows is None else rows:
            groups.setdefault(row.reason, []).append(row.origin)
        ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
        lines = [f"  {len(where)} x {reason} ({_some(where)})" for reason, where in ranked[:10]]
        if len(ranked) > 10:
            lines.append(f"  and {sum(len(where) for _, where in ranked[10:])} for {len(ranked) - 10} other reasons")
        return "\n".join(lines)


def _some(where: list[str]) -> str:
    return ", ".join(where[:3]) + (", ..." if len(where) > 3 else "")


def write_rejected(report: RowReport, path: Path) -> int:
    """Write the bad rows as JSON lines with origin, reason, fix and raw content; return how many.

    The file appears only once it is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.writelines(_json_lines(report.bad))
    partial.replace(path)
    return len(report.bad)


def _json_lines(rows: Iterable[BadRow]) -> Iterable[str]:
    for row in rows:
        record = {"origin": row.origin, "reason": row.reason, "fix": row.fix, "raw": row.raw}
        text = json.dumps(record, ensure_ascii=False, default=repr)
        # Bytes that were not UTF-8 arrive as lone surrogates, which cannot be written as they are.
        yield text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"
