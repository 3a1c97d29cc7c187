"""Keeping progress bars of libraries off when nobody watches them."""

from __future__ import annotations

import io
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stderr


@contextmanager
def quiet_stderr() -> Generator[None]:
    """Drop what is written to stderr unless it is a terminal: for bars that have no switch. Errors still raise."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        yield
