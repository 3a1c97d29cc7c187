"""Which layers a tuner goes to, and the config of `swift merge-lora`."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field, ValidationInfo, field_validator
from swift_core.config.command import CommandConfig
from swift_core.config.fields import Section, option
from swift_core.config.sections import ModelSection
from swift_core.errors import Problem

ALL_LINEAR = "all-linear"


class TargetOptions(Section):
    """Which layers an adapter goes to; shared by every tuner that puts something on layers."""

    target_modules: list[str] = option(
        [ALL_LINEAR],
        "layers that get an adapter: all-linear (every linear layer but the output head) or names such as q_proj v_proj",
        basic=True,
    )
    target_regex: str | None = option(None, "layers whose full name this regular expression matches, instead of --target_modules")
    modules_to_save: list[str] = option([], "layers trained in full and saved with the adapter, such as embed_tokens lm_head")
    layers_to_transform: list[int] = option([], "numbers of the model's layers that get an adapter; default: all")

    @field_validator("layers_to_transform")
    @classmethod
    def _numbers_of_layers(cls, value: list[int], info: ValidationInfo) -> list[int]:
        if any(number < 0 for number in value):
            raise ValueError("layers are counted from 0")
        if value and info.data.get("target_regex") is not None:
            raise ValueError("target_regex says which layers already; write the numbers into it")
        return value

    @field_validator("target_regex")
    @classmethod
    def _one_choice_of_layers(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if info.data.get("target_modules", [ALL_LINEAR]) != [ALL_LINEAR]:
            raise ValueError("target_modules is given as well; keep one of the two")
        return value


def shard_size(value: str) -> str:
    """Return a size such as `5GB` as it is.

    Raises:
        ValueError: when it is none.
    """
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?\s*(KB|MB|GB|KIB|MIB|GIB)", value.upper()):
        raise ValueError("write a number and KB, MB or GB, such as 5GB")
    return value


class MergeSection(Section):
    """Merge options."""

    output_dir: str | None = option(None, "folder of the merged model; default: <checkpoint>-merged", basic=True)
    exist_ok: bool = option(False, "replace the output folder when it holds a model already", basic=True)
    max_shard_size: str = option("5GB", "largest weight file, such as 5GB or 500MB")

    @field_validator("max_shard_size")
    @classmethod
    def _a_size(cls, value: str) -> str:
        return shard_size(value)


class MergeConfig(CommandConfig):
    """Settings of `swift merge-lora`."""

    command: ClassVar[str] = "merge-lora"

    loading: ModelSection = Field(default_factory=ModelSection)
    merging: MergeSection = Field(default_factory=MergeSection)

    def check(self) -> list[Problem]:
        """Return what is missing or too much."""
        count = len(self.loading.adapters)
        if count == 1:
            return []
        if count == 0:
            return [Problem("--adapters", "is missing", "--adapters RUN/checkpoint-N")]
        what = f"{count} adapters are given, but one is merged at a time"
        return [Problem("--adapters", what, "merge the first, then the next with --model <merged folder>")]
