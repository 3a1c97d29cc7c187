"""Options of LoRA and of the tuners made from it."""

from __future__ import annotations

import re
from typing import Any, Literal, cast

from pydantic import ValidationInfo, field_validator, model_validator
from swift_core.config.fields import option

from swift_tuners.config import TargetOptions

# Starts that look at the first training samples.
FROM_DATA = ("lora-ga", "eva")


class LowRankOptions(TargetOptions):
    """Options of everything that trains low-rank matrices."""

    lora_alpha: int = option(32, "the update is scaled by lora_alpha / rank", basic=True, gt=0)
    lora_dropout: float = option(0.05, "dropout in front of the matrices", ge=0, lt=1)
    lora_dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "number type of the matrices; default: float32, also over a half precision model"
    )


class LoraOptions(LowRankOptions):
    """LoRA options."""

    lora_rank: int = option(8, "rank of the two matrices", basic=True, ge=1)
    lora_bias: Literal["none", "all", "lora_only"] = option(
        "none", "biases that are trained as well: none, all, or those of adapted layers"
    )
    rank_pattern: dict[str, int] = option({}, 'ranks of single layers, by end of name or regular expression: {"down_proj": 16}')
    alpha_pattern: dict[str, int] = option({}, "lora_alpha of single layers, as --rank_pattern")
    target_parameters: list[str] = option(
        [], "weights that are not layers of their own, such as mlp.experts.gate_up_proj; needs --lora_dropout 0"
    )
    trainable_token_indices: list[int] = option([], "ids of tokens whose embedding is trained as well, such as those of new special tokens")
    use_rslora: bool = option(False, "scale by lora_alpha / sqrt(lora_rank), which suits high ranks")
    use_dora: bool = option(False, "train magnitude and direction of the weights apart (DoRA)")
    init_weights: Literal["true", "false", "gaussian", "orthogonal", "pissa", "olora", "loftq", "lora-ga", "eva"] = option(
        "true",
        "start of the matrices; true starts as the base model, false at random, pissa (also pissa_niter_N) and olora from the base "
        "weights, loftq from the error of quantising them, lora-ga and eva from the first training samples",
    )
    pissa_niter: int | None = option(None, "iterations of a fast approximate singular value decomposition; default: the exact one", ge=1)
    loftq_bits: Literal["4", "8"] = option("4", "bits that loftq quantises the base weights to")
    loftq_iter: int = option(1, "rounds of loftq", ge=1)
    lora_ga_batch_size: int = option(2, "samples of a gradient estimate of lora-ga", ge=1)
    lora_ga_iters: int = option(2, "gradient estimates that lora-ga averages", ge=1)
    lora_ga_max_length: int = option(1024, "lora-ga looks at so many tokens of a sample", ge=2)
    lora_ga_direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = option("ArB2r", "singular vectors of the gradient that lora-ga takes")
    lora_ga_scale: Literal["gd", "unit", "stable", "weightS"] = option("stable", "how lora-ga scales its start")
    lora_ga_stable_gamma: int = option(16, "divisor of the scale `stable` of lora-ga", gt=0)
    eva_rho: float = option(2.0, "eva may raise the rank of a layer to eva_rho times lora_rank, at the cost of others", ge=1)
    eva_samples: int = option(64, "training samples that eva looks at", ge=1)
    lorap_lr_ratio: float | None = option(None, "LoRA+: the output matrices learn so many times faster, 16 is usual", gt=0)
    lorap_emb_lr: float = option(1e-6, "LoRA+: learning rate of adapters on embeddings", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _spellings(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = cast(dict[str, Any], values)
        start = given.get("init_weights")
        if isinstance(start, bool):
            return {**given, "init_weights": str(start).lower()}
        if isinstance(start, str):
            iterated = re.fullmatch(r"pissa_niter_(\d+)", start)
            if iterated:
                return {**given, "init_weights": "pissa", "pissa_niter": int(iterated.group(1))}
            return {**given, "init_weights": start.replace("_", "-")}
        return given

    @field_validator("target_parameters")
    @classmethod
    def _no_dropout_on_parameters(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if value and info.data.get("lora_dropout", 0.05) > 0:
            raise ValueError("a bare weight has no input to drop; add --lora_dropout 0")
        return value

    @field_validator("pissa_niter")
    @classmethod
    def _only_of_pissa(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("init_weights") != "pissa":
            raise ValueError("only --init_weights pissa has iterations")
        return value


class LongLoraOptions(LoraOptions):
    """LongLoRA options."""

    longlora_group_ratio: float = option(0.25, "a group of tokens that attend to one another, as a share of the sample", gt=0, le=1)
    longlora_trains_embedding: bool = option(True, "train the input embedding in full as well")
    longlora_trains_norms: bool = option(True, "train the norms in full as well")


class LoraLlmOptions(LoraOptions):
    """LoRA options of a language model whose towers and aligner are trained in full."""


class AdaLoraOptions(LowRankOptions):
    """AdaLoRA options."""

    adalora_target_r: int = option(8, "average rank at the end", basic=True, ge=1)
    adalora_init_r: int = option(12, "rank at the start", basic=True, ge=2)
    adalora_tinit: int = option(0, "steps before ranks are taken away", ge=0)
    adalora_tfinal: int = option(0, "steps at the end in which ranks stay", ge=0)
    adalora_deltaT: int = option(1, "steps between two rounds of taking ranks away", ge=1)
    adalora_beta1: float = option(0.85, "smoothing of the importance of a weight", gt=0, lt=1)
    adalora_beta2: float = option(0.85, "smoothing of the uncertainty of that importance", gt=0, lt=1)
    adalora_orth_reg_weight: float = option(0.5, "weight of the penalty that keeps the matrices orthogonal", ge=0)

    @field_validator("adalora_init_r")
    @classmethod
    def _more_to_begin_with(cls, value: int, info: ValidationInfo) -> int:
        target = info.data.get("adalora_target_r", 8)
        if value <= target:
            raise ValueError(f"must exceed adalora_target_r, which is {target}, so that there is rank to take away")
        return value
