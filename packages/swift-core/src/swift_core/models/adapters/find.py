"""Which families have an adapter, by the table `own_code.tsv`, and loading one for a folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_core.errors import ModelError
from swift_core.models.adapters.base import MediaAdapter, Parts
from swift_core.models.detection import detect_folder
from swift_core.models.folder import read_json
from swift_core.models.load_errors import one_line
from swift_core.registry import import_target

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class OwnCode:
    """One row of the table: a family whose code lies in its folder.

    Attributes:
        model_type: the family.
        media: class of its `MediaAdapter`, or empty for a family of text.
        model: function that a loaded model goes through, or empty.
        code: where the code is when it is not in the published folder, or empty.
    """

    model_type: str
    media: str = ""
    model: str = ""
    code: str = ""


@cache
def read_own_code() -> dict[str, OwnCode]:
    """Return the table by model type."""
    lines = files("swift_core.cards").joinpath("own_code.tsv").read_text(encoding="utf-8").splitlines()
    return {record["model_type"]: OwnCode(**record) for record in csv.DictReader(lines, delimiter="\t")}


def find_own_code(folder: Path, *, model_type: str | None = None) -> OwnCode | None:
    """Return the row of a folder's family when its code lies in the folder; nothing of that code is run.

    Raises:
        ModelError: when the code of the family is published elsewhere and was not copied into the folder.
    """
    if not (folder / "config.json").is_file():
        return None
    found = read_own_code().get(detect_folder(folder, model_type=model_type).model_type)
    if found is None:
        return None
    if not read_json(folder / "config.json").get("auto_map"):
        if found.code:
            raise ModelError(
                f"{str(folder)!r}: the Python code of {found.model_type} is not in the folder",
                fix=f"copy it from {found.code} into the folder, and name its classes under auto_map in config.json",
            )
        return None
    return found


def load_adapter(folder: Path, model_type: str | None, new_special_tokens: Sequence[str] = ()) -> MediaAdapter | None:
    """Return the adapter of a folder whose code is trusted, or None when its family has none.

    Raises:
        ModelError: when configuration, tokenizer or processor cannot be loaded.
        MissingDependencyError: when the processor needs a library that is absent.
    """
    from swift_core.models.processing import load_tokenizer, processor_error  # it asks this module for adapters

    row = find_own_code(folder, model_type=model_type)
    if row is None or not row.media:
        return None
    tokenizer = load_tokenizer(folder, trust_remote_code=True, new_special_tokens=new_special_tokens)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(
            f"{folder / 'config.json'}: the model's own code refuses it: {one_line(error)}",
            fix="check which transformers the model asks for (`swift list models`)",
        ) from error
    try:
        processor = _processor(folder, tokenizer)
    except Exception as error:
        raise processor_error(error, folder, _PROCESSOR_FILES) from error
    made: Any = import_target(row.media, needed_for=f"model type {row.model_type!r}")
    return made(Parts(folder, config, tokenizer, processor, row.model_type, tuple(new_special_tokens)))


def _processor(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    named = [folder / name for name in _PROCESSOR_FILES if (folder / name).is_file()]
    mapped = {key for file in [*named, folder / "config.json"] for key in read_json(file).get("auto_map") or {}}
    if "AutoProcessor" in mapped:
        processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
        processor.tokenizer = tokenizer  # one tokenizer, with the tokens that were added
        return processor
    if "AutoImageProcessor" in mapped:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    return None


def finish_model(row: OwnCode | None, model: Any) -> Any:
    """Return a loaded model of the family, made fit for training."""
    if row is None or not row.model:
        return model
    made: Any = import_target(row.model, needed_for=f"model type {row.model_type!r}")
    return made(model)
