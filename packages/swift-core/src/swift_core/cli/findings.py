"""One line of a report of `swift doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: `ok`, `note` (worth knowing), or `fail` (something will not work).
        what: name of the thing looked at.
        found: what was found.
        fix: what to do, when something is to be done.
    """

    level: Literal["ok", "note", "fail"]
    what: str
    found: str
    fix: str = ""


def tell(findings: Sequence[Finding], form: str) -> int:
    """Print findings as `text` or `json`; the exit code is 1 when something will not work."""
    if form == "json":
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.write("".join(_line(finding) for finding in findings))
    return int(any(finding.level == "fail" for finding in findings))


def _line(finding: Finding) -> str:
    fix = f"\n{'':<28}-> {finding.fix}" if finding.fix else ""
    return f"{finding.level:<5} {finding.what:<20}  {finding.found}{fix}\n"
