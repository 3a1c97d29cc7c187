"""Which tuner wrote a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swift_core.errors import CheckpointError
from swift_core.protocols import Tuner
from swift_core.registry import TUNERS
from swift_core.train.tuning import load_tuner

from swift_tuners.adapters import CONFIG


def tuner_of_folder(folder: Path) -> Tuner:
    """Return the tuner that loads a folder, by the files in it; lora where nothing says otherwise.

    Raises:
        CheckpointError: when a file that describes it is damaged.
    """
    if (folder / CONFIG).is_file():
        if (folder / "vit.safetensors").is_file():
            return load_tuner("lora_llm")
        kind = str(_read(folder / CONFIG).get("peft_type", "lora")).lower()
        return load_tuner(kind if kind in TUNERS else "lora")
    if (folder / "config.json").is_file() and "llamapro_blocks" in json.dumps(_read(folder / "config.json")):
        return load_tuner("llamapro")
    return load_tuner("lora")


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}", fix="choose another checkpoint") from error
