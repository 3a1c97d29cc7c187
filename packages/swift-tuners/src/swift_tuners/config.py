"""Options of the tuners and the config of `swift merge-lora`."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

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


class LoraOptions(TargetOptions):
    """LoRA options."""

    lora_rank: int = option(8, "rank of the two matrices", basic=True, ge=1)
    lora_alpha: int = option(32, "the update is scaled by lora_alpha / lora_rank", basic=True, gt=0)
    lora_dropout: float = option(0.05, "dropout in front of the matrices", ge=0, lt=1)
    lora_bias: Literal["none", "all", "lora_only"] = option(
        "none", "biases that are trained as well: none, all, or those of adapted layers"
    )
    target_parameters: list[str] = option(
        [], "weights that are not layers of their own, such as mlp.experts.gate_up_proj; needs --lora_dropout 0"
    )
    use_rslora: bool = option(False, "scale by lora_alpha / sqrt(lora_rank), which suits high ranks")
    use_dora: bool = option(False, "train magnitude and direction of the weights apart (DoRA)")
    init_weights: Literal["true", "false", "gaussian", "orthogonal", "pissa", "olora"] = option(
        "true", "start of the matrices; true starts as the base model, false at random, pissa and olora from the base weights"
    )
    lora_dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "number type of the matrices; default: float32, also over a half precision model"
    )

    @field_validator("init_weights", mode="before")
    @classmethod
    def _boolean_word(cls, value: Any) -> Any:
        return str(value).lower() if isinstance(value, bool) else value

    @field_validator("target_parameters")
    @classmethod
    def _no_dropout_on_parameters(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if value and info.data.get("lora_dropout", 0.05) > 0:
            raise ValueError("a bare weight has no input to drop; add --lora_dropout 0")
        return value


class MergeSection(Section):
    """Merge options."""

    output_dir: str | None = option(None, "folder of the merged model; default: <checkpoint>-merged", basic=True)
    exist_ok: bool = option(False, "replace the output folder when it holds a model already", basic=True)
    max_shard_size: str = option("5GB", "largest weight file, such as 5GB or 500MB")

    @field_validator("max_shard_size")
    @classmethod
    def _a_size(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9]\d*(\.\d+)?\s*(KB|MB|GB|KIB|MIB|GIB)", value.upper()):
            raise ValueError("write a number and KB, MB or GB, such as 5GB")
        return value


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
