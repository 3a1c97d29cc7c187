"""Keeping transformers' bars and tables off the screen."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from logging import LogRecord, getLogger

from transformers.utils import logging


def _no_table(record: LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Inside the block transformers prints no table of weights, and no progress bars unless stderr is a terminal."""
    loader = getLogger("transformers.modeling_utils")
    bars = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    loader.addFilter(_no_table)
    if bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Of a packed checkpoint, whose kernels alone were chosen.
            warnings.filterwarnings("ignore", message=".*already has a `quantization_config` attribute.*")
            yield
    finally:
        loader.removeFilter(_no_table)
        if bars:
            logging.enable_progress_bar()
