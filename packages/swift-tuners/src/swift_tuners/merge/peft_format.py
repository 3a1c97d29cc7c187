"""Checkpoints of ms-swift as plain PEFT adapters."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from swift_core.errors import CheckpointError, NotFoundError

from swift_tuners.adapters import CONFIG, PICKLED_WEIGHTS, WEIGHTS

_PREFIX = "base_model.model."
_PARTS = re.compile(r"(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(?P<name>[^.]+)(?=\.|$)")
# Settings that ms-swift adds to those of PEFT and that change nothing about the weights once training is over.
_OWN_SETTINGS = (
    "swift_type",
    "model_key_mapping",
    "use_qa_lora",
    "use_merged_linear",
    "enable_lora",
    "lora_dtype",
    "lorap_lr_ratio",
    "lorap_emb_lr",
)
# Those that do.
_UNKNOWN_TO_PEFT = ("use_qa_lora", "use_merged_linear", "enable_lora")
_FIX = "load it with ms-swift, merge it there, and give the merged model to --model"


def write_peft_format(source: Path, target: Path) -> list[str]:
    """Write the adapters of a checkpoint into an empty folder as PEFT reads them and return their names.

    ms-swift keeps each adapter in a folder of its name, with that name inside the weight names and settings of its own in
    the config. The adapter `default` ends up at the top, others in folders of their names.

    Args:
        source: a checkpoint of ms-swift, or a PEFT adapter, which stays as it is.
        target: an empty folder.

    Raises:
        NotFoundError: when there is no adapter in it.
        CheckpointError: when PEFT has no such adapter.
    """
    if not source.is_dir():
        raise NotFoundError(f"there is no checkpoint folder {str(source)!r}", fix="give the path of a checkpoint-N folder")
    folders = {"": source} if (source / CONFIG).is_file() else {}
    folders |= {folder.name: folder for folder in sorted(source.iterdir()) if (folder / CONFIG).is_file()}
    if not folders:
        raise NotFoundError(f"{str(source)!r} holds no adapter (no {CONFIG} in it or in its folders)", fix="give a checkpoint-N folder")
    if any((source / name).exists() for name in ("extra_states", "swift_extra_states")):
        raise CheckpointError(f"{str(source)!r} holds trained weights beside the adapter, which PEFT has no place for", fix=_FIX)
    for name, folder in folders.items():
        place = target if name in ("", "default") else target / name
        place.mkdir(exist_ok=True)
        config = _config(folder)
        save_file(_renamed(_weights(folder), name or "default"), place / WEIGHTS, metadata={"format": "pt"})
        (place / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    for file in source.iterdir():
        if file.is_file() and (file.name == "args.json" or file.name.startswith("tokenizer") or file.suffix == ".jinja"):
            shutil.copyfile(file, target / file.name)
    return list(folders)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}", fix="choose another checkpoint") from error
    kind = str(config.get("peft_type") or config.get("swift_type") or "").upper()
    if kind != "LORA":
        raise CheckpointError(f"{file}: an adapter of the kind {kind or 'unknown'} has no PEFT format", fix=_FIX)
    used = [name for name in _UNKNOWN_TO_PEFT if config.get(name)]
    if used:
        raise CheckpointError(f"{file}: {', '.join(used)} changes the weights in a way that PEFT does not know", fix=_FIX)
    kept = {name: value for name, value in config.items() if name not in (*_OWN_SETTINGS, *_UNKNOWN_TO_PEFT)}
    return {**kept, "peft_type": "LORA", "inference_mode": True}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / WEIGHTS).is_file():
        try:
            return load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}", fix="choose another checkpoint") from error
    if (folder / PICKLED_WEIGHTS).is_file():
        # weights_only refuses everything in a pickle but tensors.
        return torch.load(folder / PICKLED_WEIGHTS, map_location="cpu", weights_only=True)
    raise NotFoundError(f"{str(folder)!r} has no {WEIGHTS}", fix="choose another checkpoint")


def _renamed(weights: dict[str, torch.Tensor], adapter: str) -> dict[str, torch.Tensor]:
    def plain(name: str) -> str:
        name = _PARTS.sub(lambda match: match[1] if match["name"] == adapter else match[0], name)
        return name if name.startswith(_PREFIX) else _PREFIX + name

    return {plain(name): tensor.contiguous() for name, tensor in weights.items()}
