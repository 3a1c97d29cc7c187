"""`swift export --to_cached_dataset`: a data set as token ids, to be trained on as often as wanted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from swift_core.batching.encode import Encoder
from swift_core.batching.folders import MANIFEST, write_part
from swift_core.config.export import ExportConfig
from swift_core.data.sources import load_datasets
from swift_core.errors import ConfigError, DataError, Problem
from swift_core.hub.cache import partial_folder, publish
from swift_core.models.config import load_config
from swift_core.models.loading import load_tokenizer, max_model_length, resolve_model_folder
from swift_core.tasks.console import indented
from swift_core.templates.chat import build_template


def export_tokens(config: ExportConfig) -> Path:
    """Write `train/`, and `val/` where there is evaluation data, and return the folder, which appears once it is complete.

    Raises:
        ConfigError: when the folder holds something already.
        DataError: for bad rows, when nothing is left to train on, or when rows have media.
    """
    target = Path(config.export.output_dir or "").expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError([Problem("--output_dir", f"{target} exists and is not empty", "choose another folder, or delete it")])
    data = load_datasets(config.data, config.loading)
    folder = resolve_model_folder(config.loading)
    loading = config.loading
    tokenizer = load_tokenizer(folder, trust_remote_code=loading.trust_remote_code, new_special_tokens=loading.special_tokens)
    template = build_template(tokenizer, config.chat)
    max_length = config.chat.max_length or max_model_length(load_config(loading, folder), tokenizer)
    policy = "fail" if config.data.on_bad_row == "fail" else "skip"
    encoder = Encoder(template, config.chat, max_length=max_length, on_bad_row=policy)
    lines = ["rows:", *indented(data.report.summary())]
    parts: dict[str, int] = {}
    with partial_folder(target) as partial:
        for name, samples in (("train", data.train), ("val", data.val)):
            if not samples:
                continue
            report = write_part(partial / name, samples, data.report, encoder, config.chat, processes=config.encoding.dataset_num_proc)
            if report is None:
                raise DataError(
                    "rows with media or companions cannot be written as token ids alone", fix="train on them directly: swift sft --dataset"
                )
            parts[name] = report.kept
            lines += [f"{name}:", *indented(report.summary())]
        text = json.dumps({"parts": parts, "settings": config.flat()}, ensure_ascii=False, indent=2, default=str)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        if target.is_dir():
            target.rmdir()  # empty, as checked
        publish(partial, target)
    val = f" --cached_val_dataset {target}" if "val" in parts else ""
    lines.append(f"written: {target}\nuse: swift sft --model {config.loading.model} --cached_dataset {target}{val}")
    sys.stderr.write("\n".join(lines) + "\n")
    return target
