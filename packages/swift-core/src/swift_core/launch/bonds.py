"""What binds the processes of a job: a child ends with its parent, and the job ends with the exit code of the first that failed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

EXIT_FILE = "SWIFT_EXIT_CODE_FILE"
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent is gone, so that it saves and leaves; Linux only."""
    if sys.platform == "linux":
        import ctypes  # takes milliseconds that most commands need not wait for

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def record_exit(name: str, code: int) -> None:
    """Write the exit code of a worker where its launcher looks; the first worker that fails is the one that counts."""
    if not code:
        return
    try:
        handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except (FileExistsError, FileNotFoundError):  # another one was first, or the launcher is gone
        return
    os.write(handle, str(code).encode())
    os.close(handle)


def recorded_exit(environment: Mapping[str, str]) -> int | None:
    """Return the exit code of the first worker that failed, or None when none of them could say it."""
    file = Path(environment[EXIT_FILE])
    text = file.read_text(encoding="ascii") if file.is_file() else ""
    return int(text) if text.isdigit() else None
