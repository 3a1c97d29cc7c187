"""What a checkpoint folder says about the run that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from swift_core.config.training import short_name
from swift_core.errors import CheckpointError, ConfigError, NotFoundError, Problem

from swift_infer.adapter_names import adapter_folders

if TYPE_CHECKING:
    from swift_infer.config import DeployConfig, InferConfig

ARGS_FILE = "args.json"
ADAPTER_FILE = "adapter_config.json"

_BNB = ("quant_type", "use_double_quant", "compute_dtype", "quant_storage")
# Settings that describe the base model itself: taken from a file only together with the model's name.
_BASE = ("model_revision", "use_hf")
# How the base weights were packed when the adapter was trained on them.
_PACKING = ("quant_method", "quant_bits", *(f"bnb_4bit_{name}" for name in _BNB), "hqq_axis", "quant_group_size")
_PROMPT = ("template", "system", "use_chat_template", "agent_template", "enable_thinking", "response_prefix")
# Settings that shape prompts and numbers. trust_remote_code is not among them: a file never switches it on.
_RUN = (
    *("torch_dtype", "attn_impl", "template", "system", "use_chat_template", "chat_template_kwargs"),
    *("agent_template", "enable_thinking", "preserve_thinking", "add_non_thinking_prefix", "response_prefix"),
    *("max_pixels", "min_pixels", "video_max_pixels", "fps", "max_frames"),
    *("new_special_tokens", "rope_scaling", "max_model_len"),
    *("task_type", "num_labels", "problem_type", "pooling", "positive_token", "negative_token", "reranker_instruction"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A local folder that holds an adapter or a whole model.

    Attributes:
        folder: where it is.
        args: flat settings of the run that made it, empty when there is no args.json.
        adapter: PEFT's adapter_config.json, or None for a whole model.
    """

    folder: Path
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    adapter: Mapping[str, Any] | None = None

    @property
    def is_adapter(self) -> bool:
        """Say whether the folder holds only what a tuner added to a base model."""
        return self.adapter is not None or self.args.get("tuner_type", "full") != "full"

    @property
    def tuner(self) -> str:
        """Return the registry name of the tuner that made the adapter."""
        named = self.args.get("tuner_type")
        if isinstance(named, str) and named != "full":
            return named
        return str((self.adapter or {}).get("peft_type") or "lora").lower()

    def base_model(self, *, load_args: bool) -> tuple[str, str] | None:
        """Return the base model and the file that names it, or None when no file does."""
        model = self.args.get("model") if load_args else None
        if isinstance(model, str) and model:
            return model, ARGS_FILE
        model = (self.adapter or {}).get("base_model_name_or_path")
        return (model, ADAPTER_FILE) if isinstance(model, str) and model else None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the small files of a checkpoint; no weights are touched.

    Raises:
        CheckpointError: when one of them is not a JSON object.
        NotFoundError: when the folder is absent, or is the folder of a whole run.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no checkpoint folder {str(folder)!r}", fix="give the path of a checkpoint-N folder")
    if not (folder / ARGS_FILE).is_file() or not _has_weights(folder):
        inside = [*folder.glob("checkpoint-*"), *folder.glob("*/checkpoint-*")]
        if inside:
            newest = max(inside, key=lambda path: path.stat().st_mtime)
            raise NotFoundError(
                f"{str(folder)!r} holds {len(inside)} checkpoints and is none itself", fix=f"give one, such as {str(newest)!r}"
            )
    args = _read_json(folder / ARGS_FILE) or {}
    return Checkpoint(folder, args, _read_json(folder / ADAPTER_FILE))


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER_FILE, "config.json"))


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}", fix="choose another checkpoint") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object", fix="choose another checkpoint")
    return cast(dict[str, Any], value)


def adopt_checkpoint(config: InferConfig | DeployConfig) -> tuple[Checkpoint | None, list[str]]:
    """Fill what the user did not give from the checkpoint that the settings name.

    Understands an adapter folder given as `--model` and a whole model given as `--adapters`.

    Returns:
        the checkpoint, or None when the model is not a local folder; and one line for each thing that was taken.

    Raises:
        CheckpointError: when the checkpoint's files are damaged or a value in them does not fit.
        ConfigError: when no file names the base model and the user does not either.
        NotFoundError: when the adapter folder is absent.
    """
    folders = adapter_folders(config.loading)
    place = config.loading.model or ""
    folder = folders[0] if folders else Path(place).expanduser()
    if not config.loading.adapters and not folder.is_dir():
        if folder.name.startswith("checkpoint-"):
            raise NotFoundError(f"there is no checkpoint folder {place!r}", fix="give the path of a checkpoint-N folder")
        return None, []
    found = read_checkpoint(folder)
    notes = _sort_out_folder(config, found)
    others = [read_checkpoint(other) for other in folders[1:]]
    if found.is_adapter and not config.loading.model:
        notes += _take_base(config, found)
    if config.inference.load_args:
        packs = found.is_adapter and config.inference.infer_backend == "transformers"
        for name in (*_RUN, *(_PACKING if packs else ())):
            notes += _take(config, found, name)
        if found.args.get("trust_remote_code") and not config.loading.trust_remote_code:
            notes.append("the run trusted the model's own code; it stays off here unless you add --trust_remote_code true")
    return found, notes + _compare(config, found, others)


def _sort_out_folder(config: InferConfig | DeployConfig, found: Checkpoint) -> list[str]:
    folder = str(found.folder)
    if config.loading.adapters and not found.is_adapter:
        if config.loading.model:
            raise ConfigError([Problem("--adapters", f"{folder!r} holds a whole model, not an adapter", f"--model {folder}")])
        config.derive("model", folder, "derived: the folder given as adapters holds a whole model")
        config.derive("adapters", [], "derived: the folder given as adapters holds a whole model")
        return [f"{folder} holds a whole model: used as --model"]
    if not config.loading.adapters and found.is_adapter:
        config.derive("adapters", [folder], "derived: the folder given as model holds an adapter")
        config.derive("model", None, "derived: the folder given as model holds an adapter")
        return [f"{folder} holds an adapter: used as --adapters"]
    return []


def _compare(config: InferConfig | DeployConfig, first: Checkpoint, others: list[Checkpoint]) -> list[str]:
    """Refuse adapters of other base models, and tell where runs differ: all adapters are asked in the way of the first."""
    notes: list[str] = []
    for other in others:
        if not other.is_adapter:
            raise ConfigError([Problem("--adapters", f"{str(other.folder)!r} holds a whole model, not an adapter", "remove it")])
        bases = [checkpoint.base_model(load_args=True) for checkpoint in (first, other)]
        if bases[0] and bases[1] and short_name(bases[0][0]) != short_name(bases[1][0]):
            what = f"{str(other.folder)!r} was trained on {bases[1][0]!r}, the first one on {bases[0][0]!r}"
            raise ConfigError([Problem("--adapters", what, "give adapters of one base model")])
        if config.inference.load_args:
            notes += [
                f"--{name} {getattr(config, name)} holds for {other.folder} too, whose run had {other.args[name]}"
                for name in _PROMPT
                if other.args.get(name) is not None and other.args[name] != getattr(config, name) and not config.given(name)
            ]
    return notes


def _take_base(config: InferConfig | DeployConfig, found: Checkpoint) -> list[str]:
    base = found.base_model(load_args=config.inference.load_args)
    if base is None:
        raise ConfigError([Problem("--model", f"no file in {str(found.folder)!r} names the base model", "add --model BASE")])
    config.derive("model", base[0], f"derived: from {base[1]}")
    notes = [f"--model {base[0]} (from {base[1]})"]
    if base[1] == ARGS_FILE:
        for name in _BASE:
            notes += _take(config, found, name)
    return notes


def _take(config: InferConfig | DeployConfig, found: Checkpoint, name: str) -> list[str]:
    value = found.args.get(name)
    if value is None or config.given(name) or value == getattr(config, name):
        return []
    try:
        config.derive(name, value, f"derived: from {ARGS_FILE}")
    except ValidationError as error:
        raise CheckpointError(
            f"{found.folder / ARGS_FILE}: {name} = {value!r} is not a value this command knows", fix=f"give --{name}, or --load_args false"
        ) from error
    return [f"--{name} {value} (from {ARGS_FILE})"]
