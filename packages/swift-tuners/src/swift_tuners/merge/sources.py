"""What is merged with what: the adapter, the settings it was trained with, and its base model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_core.config.export import ExportConfig
from swift_core.config.load import ARGS_FILE
from swift_core.config.sections import ModelSection
from swift_core.errors import CheckpointError, NotFoundError
from swift_core.hub.adapters import adapter_folders
from swift_core.models.loading import resolve_model_folder

from swift_tuners.adapters import CONFIG, check_adapter_folder
from swift_tuners.config import MergeConfig

# Settings of the training run that say which files the base model is. `trust_remote_code` is not among them: a
# checkpoint from elsewhere must not be able to switch it on.
_INHERITED = ("model_revision", "use_hf", "attn_impl", "torch_dtype")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where everything comes from.

    Attributes:
        adapter: folder of the adapter.
        base: local folder of the base model.
        section: settings that the base model is loaded with.
        args: what training wrote about itself, empty for an adapter from elsewhere.
    """

    adapter: Path
    base: Path
    section: ModelSection
    args: dict[str, Any]


def find_sources(config: MergeConfig | ExportConfig, adapter: Path | None = None) -> Sources:
    """Return the adapter and its base model, fetching the latter where needed.

    The base is `--model`, else the `model` of args.json, else what adapter_config.json names.

    Args:
        config: model and adapters.
        adapter: folder to take instead of the first of `--adapters`.

    Raises:
        NotFoundError: when the adapter is absent or nothing names the base model.
        CheckpointError: when the adapter cannot be read safely.
        HubError: when the base model cannot be fetched.
    """
    adapter = adapter or adapter_folders(config.loading)[0]
    check_adapter_folder(adapter)
    args = _read(adapter / ARGS_FILE) if (adapter / ARGS_FILE).is_file() else {}
    named = args.get("model") or _read(adapter / CONFIG).get("base_model_name_or_path")
    model = config.loading.model or named
    if not model:
        raise NotFoundError(f"nothing in {str(adapter)!r} names its base model", fix="add --model with the model that it was trained from")
    inherited = {} if config.loading.model else {name: args[name] for name in _INHERITED if args.get(name) is not None}
    given = {name: getattr(config.loading, name) for name in ModelSection.model_fields if config.given(name)}
    section = ModelSection(**{**inherited, **given, "model": model, "adapters": []})
    return Sources(adapter, resolve_model_folder(section), section, args)


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}", fix="choose another checkpoint") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds a {type(value).__name__} instead of an object", fix="choose another checkpoint")
    return value
