"""The files of a merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swift_core.config.command import tuner_flags
from swift_core.config.load import ARGS_FILE

REPORT = "merge_report.json"


def write_args(folder: Path, args: dict[str, Any], *, target: Path, dtype: str) -> None:
    """Write the run's args.json as that of a model without adapters, so that later commands prompt it as it was trained."""
    if not args:
        return
    options = set(tuner_flags())
    kept = {name: value for name, value in args.items() if name not in options}
    changes = {"model": str(target.resolve()), "model_revision": None, "adapters": [], "tuner_type": "full", "torch_dtype": dtype}
    merged = {**kept, **{name: value for name, value in changes.items() if name in kept}}
    _dump(folder / ARGS_FILE, merged)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write what was merged and how well it agreed."""
    _dump(folder / REPORT, report)


def _dump(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def tokenizer_source(adapter: Path, base: Path) -> Path:
    """Return the folder whose tokenizer the merged model gets: the checkpoint's own, which holds the template it was trained with."""
    return adapter if (adapter / "tokenizer_config.json").is_file() else base


__all__ = ["tokenizer_source", "write_args", "write_report"]
