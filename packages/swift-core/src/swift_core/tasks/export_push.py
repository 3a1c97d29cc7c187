"""`swift export --push_to_hub`: one commit with model, files and model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal, cast

from swift_core.config.actions import PushSection
from swift_core.errors import ConfigError, NotFoundError, Problem
from swift_core.hub.local import existing_path
from swift_core.registry import HUBS
from swift_core.tasks.export_context import ExportContext, ExportResult
from swift_core.tasks.model_card import CARD, render_card

# What a model is made of. What training left beside it (optimizer, arguments with paths of this machine) stays here.
_PARTS = ("*.safetensors", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "Modelfile", "LICENSE*", "NOTICE*", "recipe.yaml")
_PRIVATE = ("args.json", "export.json", "merge_report.json", "manifest.json", "trainer_state.json")


def push(context: ExportContext) -> ExportResult:
    """Upload what the plan made, or the given model or adapter, and return where it is.

    Raises:
        NotFoundError: when there is no folder of this machine to upload.
        HubError: when the hub refuses or cannot be reached.
    """
    options = cast(PushSection, context.options("push"))
    hub_name, repo_id = _destination(context, options.hub_model_id or "")
    folders = _folders(context)
    with tempfile.TemporaryDirectory(prefix="swift-upload-") as scratch:
        staged = Path(scratch)
        names = [name for folder in folders for name in _stage(folder, staged)]
        _check(staged, folders)
        loaded = [action for action in context.results if context.folders.get(action) in folders]
        text = render_card(context.results, context, name=repo_id, loaded=loaded, hub=hub_name)
        (staged / CARD).write_text(text, encoding="utf-8")
        size = sum(file.stat().st_size for file in staged.iterdir())
        context.say([f"uploading {len(names) + 1} files, {size / 2**20:.1f} MiB, to {hub_name}::{repo_id}"])
        hub = HUBS.load(hub_name)()
        address = hub.upload(
            staged,
            repo_id,
            private=options.hub_private_repo,
            token=context.config.loading.hub_token,
            message=options.commit_message,
        )
    return ExportResult(method="uploaded", lines=[f"uploaded: {address}", f"use: swift infer --model {hub_name}::{repo_id}"])


def _destination(context: ExportContext, name: str) -> tuple[Literal["hf", "ms"], str]:
    prefix, _, rest = name.rpartition("::")
    if prefix in ("hf", "ms"):
        return cast(Literal["hf", "ms"], prefix), rest
    return ("hf" if context.config.loading.use_hf else "ms"), rest


def _folders(context: ExportContext) -> list[Path]:
    made = [context.folders[name] for name in ("gguf", "ollama") if name in context.folders]
    made += [folder for name, folder in context.folders.items() if name not in ("gguf", "ollama", "merge", "peft", "quantize")]
    best = context.final or context.folders.get("merge") or context.folders.get("peft")
    if best is not None:
        return [best, *made]
    if made:
        return made
    if context.adapter is not None:
        return [context.adapter]
    local = existing_path(context.model or "")
    if local is None or not local.is_dir():
        what = f"{context.model!r} is on a hub already, and nothing was made from it"
        raise ConfigError(
            [Problem("--push_to_hub", what, "give a folder of this machine to --model, or add an action such as --to_gguf q8_0")]
        )
    return [local]


def _stage(folder: Path, staged: Path) -> list[str]:
    found = {file for pattern in _PARTS for file in folder.glob(pattern) if file.is_file() and file.name not in _PRIVATE}
    for file in sorted(found):
        target = staged / file.name
        if target.exists():
            continue
        try:
            os.link(file.resolve(), target)
        except OSError:  # another disk: there is nothing to link
            shutil.copyfile(file, target)
    return [file.name for file in found]


def _check(staged: Path, folders: list[Path]) -> None:
    if not any(file.suffix in (".safetensors", ".gguf") for file in staged.iterdir()):
        where = ", ".join(map(str, folders))
        raise NotFoundError(
            f"{where}: there are no weights to upload", fix="give a folder with .safetensors files, such as RUN/checkpoint-N"
        )
    adapter = staged / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if isinstance(base, str) and existing_path(base) is not None:
            # Others cannot load from a path of this machine; what it is called helps them to find the model.
            config = json.loads(adapter.read_text(encoding="utf-8"))
            adapter.unlink()
            adapter.write_text(json.dumps({**config, "base_model_name_or_path": Path(base).name}, indent=2) + "\n", encoding="utf-8")
