"""`swift data preview`: data as training sees it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from swift_core.cli.run import run_config_command
from swift_core.config.preview import PreviewConfig
from swift_core.errors import ConfigError, Problem
from swift_core.registry import nearest

if TYPE_CHECKING:
    from swift_core.batching.preview import Shown
    from swift_core.protocols import EncodedSample

_SUMMARY = "print samples with the part that is trained, and the lengths of the whole data set"
_USAGE = f"""usage: swift data preview --dataset DATA ... --model MODEL [--flag value ...]

  preview   {_SUMMARY}

`swift data preview --help` shows the options.
"""


def main(argv: Sequence[str]) -> int:
    """Run `swift data` with the words after it and return the exit code.

    Raises:
        SwiftError: when the data cannot be read or encoded.
    """
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        (sys.stdout if words else sys.stderr).write(_USAGE)
        return 0 if words else 2
    if words[0] != "preview":
        near = nearest(words[0], ["preview"])
        raise ConfigError(
            [Problem(repr(words[0]), "is no action of `swift data`", "did you mean preview?" if near else "swift data preview")]
        )
    return run_config_command(PreviewConfig, words[1:], preview, summary=_SUMMARY)


def preview(config: PreviewConfig) -> int:
    """Encode the data set as training would and print samples and statistics.

    Raises:
        SwiftError: when the data cannot be read or encoded.
    """
    out = sys.stdout
    # Libraries print on stdout at times; with --format json it must hold JSON lines and nothing else.
    with redirect_stdout(sys.stderr):
        text, statistics = _prepared(config)
    if config.preview.format == "json":
        sys.stderr.write(statistics)
        out.write(text)
    else:
        _write(text + statistics)
    return 0


def _prepared(config: PreviewConfig) -> tuple[str, str]:
    from swift_core.batching.preview import decoded, legend, preview_rows
    from swift_core.tasks.previewing import prepare_preview

    found = prepare_preview(config)
    count = config.preview.num_samples
    shown = found.samples if count < 0 else found.samples[:count]
    if config.preview.format == "json":
        return _json_lines(shown, lambda sample: decoded(sample.input_ids, found.tokenizer)), f"{found.kind}\n{found.statistics}"
    color = _wants_color(config)
    heading = f"{found.kind}\n{legend(color=color) if found.masks else ''}".rstrip() + "\n\n"
    return heading + preview_rows(shown, found.tokenizer, color=color), found.statistics


def _json_lines(rows: Sequence[Shown], text_of: Callable[[EncodedSample], str]) -> str:
    return "".join(json.dumps(_as_json(row, text_of), ensure_ascii=not _is_utf8(), default=repr) + "\n" for row in rows)


def _as_json(row: Shown, text_of: Callable[[EncodedSample], str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, sample in row.parts:
        part = {"text": text_of(sample), "input_ids": sample.input_ids, "labels": sample.labels}
        if not name:
            values.update(part)
        elif name in ("positive", "negative"):
            values.setdefault(f"{name}s", []).append(part)
        else:
            values[name] = part
    further = {"label": row.label, "columns": dict(row.columns) or None}
    return {**values, **{name: value for name, value in further.items() if value is not None}, "origin": row.parts[0][1].origin}


def _is_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _write(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))


def _wants_color(config: PreviewConfig) -> bool:
    if config.preview.color != "auto":
        return config.preview.color == "always"
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
