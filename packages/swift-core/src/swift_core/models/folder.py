"""Looking at a model folder before anything heavy is loaded from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swift_core.errors import ModelError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_INDEX = "model.safetensors.index.json"


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelError: when it is absent, cut off or no object.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{str(file.parent)!r} is not a model folder: it has no {file.name}", fix=_folder_fix(file.parent)) from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}", fix="fetch or copy the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: holds a JSON {type(value).__name__}, not an object", fix="fetch or copy the model again")
    return value


def _folder_fix(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return f"this is an adapter: give the base model to --model and {str(folder)!r} to --adapters"
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"give the file to --model: {ggufs[0]}"
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        return f"give one of its checkpoints, such as {str(checkpoints[-1])!r}"
    return "give a folder that holds config.json, tokenizer files and .safetensors weights"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model, all of them present.

    Raises:
        ModelError: when there are none, only pickles, or a shard is missing.
    """
    index = folder / _INDEX
    if index.is_file():
        shards = sorted({str(name) for name in (read_json(index).get("weight_map") or {}).values()})
        if not shards:
            raise ModelError(f"{index}: names no weights", fix="fetch or copy the model again")
        absent = [name for name in shards if not (folder / name).is_file()]
        if absent:
            names = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
            raise ModelError(
                f"{str(folder)!r} is incomplete: {len(absent)} of {len(shards)} weight files are missing: {names}",
                fix="fetch or copy the model again",
            )
        return [folder / name for name in shards]
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{str(folder)!r} holds its weights as pickles ({pickles[0]}), which can run code when loaded; only safetensors are read",
            fix="take the safetensors revision of the model, or, where you trust the file, convert it once: "
            "AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER) in transformers",
        )
    raise ModelError(f"{str(folder)!r} holds no weights (.safetensors)", fix=_folder_fix(folder))


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Return the tensor table of a safetensors file, after comparing it with the size of the file.

    Raises:
        ModelError: when the file is cut off or is no safetensors file.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= min(size - 8, 100_000_000):
                raise ValueError("the length of the header does not fit the file")
            header: dict[str, dict[str, Any]] = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not a safetensors file or cut off ({error})", fix="fetch or copy the file again") from error
    if end != size:
        raise ModelError(
            f"{file}: {size:,} bytes, but its header announces {end:,}: cut off or damaged", fix="fetch or copy the file again"
        )
    return header


def check_model_folder(folder: Path) -> None:
    """Raise `ModelError` unless the folder has a readable config and complete safetensors weights."""
    read_json(folder / "config.json")
    for file in weight_files(folder):
        read_header(file)
