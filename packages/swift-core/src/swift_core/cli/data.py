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
    from transformers import AutoConfig

    from swift_core.batching.encode import encode_samples
    from swift_core.batching.preview import decoded, legend, preview_report, preview_samples
    from swift_core.data.sources import load_datasets
    from swift_core.models.loading import load_processor, max_model_length, resolve_model_folder, tokenizer_of
    from swift_core.templates.media import build_processor_template

    data = load_datasets(config.data, config.loading)
    folder = resolve_model_folder(config.loading)
    remote = config.loading.trust_remote_code
    processor = load_processor(folder, trust_remote_code=remote)
    tokenizer = tokenizer_of(processor)
    template = build_processor_template(processor, config.chat, config.media)
    limit = config.chat.max_length
    if limit is None:
        auto_config: Any = AutoConfig
        limit = max_model_length(auto_config.from_pretrained(folder, trust_remote_code=remote, local_files_only=True), tokenizer)
    policy = "fail" if config.data.on_bad_row == "fail" else "skip"
    statistics = f"\nrows: {data.report.summary()}\n"
    samples: list[EncodedSample] = []
    for name, part in (("training data", data.train), ("evaluation data", data.val)):
        if part:
            encoded, report = encode_samples(part, template, config.chat, max_length=limit, on_bad_row=policy)
            samples = samples or encoded
            statistics += f"\n{name}: {preview_report(report)}\n"
    count = config.preview.num_samples
    shown = samples if count < 0 else samples[:count]
    if config.preview.format == "json":
        return _json_lines(shown, lambda sample: decoded(sample.input_ids, tokenizer)), statistics
    color = _wants_color(config)
    heading = f"{legend(color=color)}\n\n" if shown else ""
    return heading + preview_samples(shown, tokenizer, color=color), statistics


def _json_lines(samples: Sequence[EncodedSample], text_of: Callable[[EncodedSample], str]) -> str:
    return "".join(
        json.dumps(
            {"text": text_of(sample), "input_ids": sample.input_ids, "labels": sample.labels, "origin": sample.origin},
            ensure_ascii=not _is_utf8(),
        )
        + "\n"
        for sample in samples
    )


def _is_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _write(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))


def _wants_color(config: PreviewConfig) -> bool:
    if config.preview.color != "auto":
        return config.preview.color == "always"
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
