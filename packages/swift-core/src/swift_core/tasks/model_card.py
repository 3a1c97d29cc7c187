"""The README.md of a result: what it is, how it was made and measured, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from swift_core.config.training import short_name
from swift_core.data.dataset_id import parse_dataset_id
from swift_core.hub.local import existing_path, looks_like_path
from swift_core.tasks.export_context import ExportContext, ExportResult

CARD = "README.md"
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_DOWNLOAD = {
    "hf": "hf download {repository} --local-dir {folder} && cd {folder}",
    "ms": "modelscope download --model {repository} --local_dir {folder} && cd {folder}",
}
# What other programs have to be told to look there.
_ELSEWHERE = {"ms": {"vllm": "VLLM_USE_MODELSCOPE=True "}}
_RELATION = (("gguf", "quantized"), ("quantize", "quantized"), ("merge", "finetune"), ("peft", "adapter"))


def write_card(folder: Path, results: Mapping[str, ExportResult], context: ExportContext, *, name: str) -> None:
    """Write the model card of a folder.

    Args:
        folder: where it goes.
        results: action -> what it did, in order.
        context: model, adapter, data and settings.
        name: heading.
    """
    text = render_card(results, context, name=name, loaded=list(results)[-1:])
    (folder / CARD).write_text(text, encoding="utf-8")


def render_card(
    results: Mapping[str, ExportResult], context: ExportContext, *, name: str, loaded: Sequence[str], hub: str | None = None
) -> str:
    """Return the text of a model card; paths of this machine are cut down to names.

    Args:
        results: action -> what it did, in order.
        context: model, adapter, data and settings.
        name: of the folder, or ORG/NAME of the repository.
        loaded: actions whose results lie in this folder or repository.
        hub: `hf` or `ms`, for a repository.
    """
    base = base_model(context)
    trained = [str(item) for item in context.args.get("dataset") or []]
    front = _front_matter(results, context, base, trained, loaded)
    title = name.split("/")[-1]
    lines = ["---", yaml.safe_dump(front, allow_unicode=True, sort_keys=False).strip(), "---", "", f"# {title}", ""]
    lines += [f"Base model: {_shown(base) if base else 'not known'}", ""]
    license_name = front.get("license")
    lines += [f"Licence: {license_name}" if license_name else "Licence: see the base model.", ""]
    lines += ["## How it was made", ""]
    if trained:
        lines.append(f"- trained on {', '.join(_shown(item) for item in trained)}" + _training(context.args))
    for result in results.values():
        lines.append(f"- {result.method}")
        lines += [f"  - {key}: {_value(value)}" for key, value in result.settings.items()]
    measured = {key: value for result in results.values() for key, value in result.metrics.items()}
    if measured:
        lines += ["", "## Measured", "", "| what | value |", "|---|---|"]
        lines += [f"| {key} | {_value(value)} |" for key, value in measured.items()]
    usage = [line for action in loaded for line in results[action].usage] or _usage(context, base, hub)
    lines += ["", "## How to load it", "", "```", *_addressed(usage, name, hub), "```", ""]
    return "\n".join(lines)


def base_model(context: ExportContext) -> str:
    """Return the id of the model that everything started from, or its folder, or nothing."""
    config = context.config.loading
    return str(context.args.get("model") if context.args.get("model") and context.args.get("tuner_type") != "full" else "") or str(
        config.model or context.args.get("model") or ""
    )


def license_of(folder: Path) -> str | None:
    """Return the licence that a model folder's own card names."""
    file = folder / CARD
    match = _FRONT.match(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else None
    if match is None:
        return None
    try:
        front = yaml.safe_load(match.group(1))
    except yaml.YAMLError:
        return None
    found = front.get("license") if isinstance(front, dict) else None
    return str(found) if found else None


def _front_matter(
    results: Mapping[str, ExportResult], context: ExportContext, base: str, trained: list[str], loaded: Sequence[str]
) -> dict[str, Any]:
    front: dict[str, Any] = {}
    local = existing_path(base) if base else None
    license_name = license_of(local) if local is not None and local.is_dir() else None
    if license_name:
        front["license"] = license_name
    repository = _repository(base)
    if repository:
        front["base_model"] = repository
        relation = next(
            (word for action, word in _RELATION if action in results), "adapter" if context.adapter and not context.merged else ""
        )
        if relation:
            front["base_model_relation"] = relation
    data = [found for item in trained if (found := _repository(parse_dataset_id(item).name))]
    if data:
        front["datasets"] = list(dict.fromkeys(data))
    front["library_name"] = _library(context, loaded)
    front["pipeline_tag"] = "text-generation"
    front["tags"] = ["swift", *dict.fromkeys(tag for result in results.values() for tag in result.tags)]
    return front


def _library(context: ExportContext, loaded: Sequence[str]) -> str:
    if loaded and set(loaded) <= {"gguf", "ollama"}:
        return "gguf"
    adapter = list(loaded) == ["peft"] or (not loaded and context.adapter is not None and not context.merged)
    return "peft" if adapter else "transformers"


def _repository(name: str) -> str:
    """Return ORG/NAME of something on a hub, or nothing."""
    plain = name.split("::", 1)[1] if name.startswith(("hf::", "ms::")) else name
    plain = plain.split("@")[0]
    known = re.fullmatch(r"[\w.-]+/[\w.-]+", plain) and existing_path(name) is None and not looks_like_path(name)
    return plain if known else ""


def _shown(name: str) -> str:
    return name if existing_path(name.split("#")[0]) is None and not looks_like_path(name) else short_name(name)


def _training(args: Mapping[str, Any]) -> str:
    names = ("tuner_type", "lora_rank", "lora_alpha", "learning_rate", "num_train_epochs", "max_length")
    known = [f"{name} {args[name]}" for name in names if args.get(name) is not None]
    return f" ({', '.join(known)})" if known else ""


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return _shown(value) if isinstance(value, str) else str(value)


def _usage(context: ExportContext, base: str, hub: str | None) -> list[str]:
    if context.adapter is None or context.merged:
        return ["swift infer --model {model}"]
    # An adapter is taken from a folder.
    return (
        ["{download}", f"swift infer --model {_shown(base) if base else 'BASE'} --adapters ."] if hub else ["swift infer --adapters {name}"]
    )


def _addressed(usage: Sequence[str], name: str, hub: str | None) -> list[str]:
    model = f"{hub}::{name}" if hub else name
    lines: list[str] = []
    for line in dict.fromkeys(usage):
        if line == "{download}":
            lines += [_DOWNLOAD[hub].format(repository=name, folder=name.split("/")[-1])] if hub else []
        else:
            before = _ELSEWHERE.get(hub or "", {}).get(line.split()[0], "")
            lines.append(before + line.replace("{model}", model).replace("{name}", name))
    return lines
