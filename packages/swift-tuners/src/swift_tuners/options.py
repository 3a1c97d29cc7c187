"""Options of the tuners that are no LoRA."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationInfo, field_validator
from swift_core.config.fields import Section, option

from swift_tuners.config import TargetOptions


def _other_of_two(value: int, info: ValidationInfo, name: str) -> int:
    """Check a number of which it or the one called `name` is 0."""
    other = info.data.get(name)
    if other is not None and (value > 0) == (other > 0):  # None: it was refused itself
        raise ValueError(f"with {name} {other} one of the two must be 0 and the other not")
    return value


class Ia3Options(TargetOptions):
    """IA3 options."""

    feedforward_modules: list[str] = option(
        [], "adapted layers whose input is scaled instead of their output; default: those whose name says feed-forward"
    )


class VeraOptions(TargetOptions):
    """VeRA options."""

    vera_rank: int = option(256, "rank of the two frozen random matrices", basic=True, ge=1)
    vera_projection_prng_key: int = option(0, "seed of the frozen matrices", ge=0)
    vera_dropout: float = option(0.0, "dropout in front of the matrices", ge=0, lt=1)
    vera_d_initial: float = option(0.1, "start of the trained scale between the matrices")


class BoftOptions(TargetOptions):
    """BOFT options."""

    boft_block_size: int = option(4, "width of a rotated block; 0 when --boft_block_num says it", basic=True, ge=0)
    boft_block_num: int = option(0, "number of rotated blocks; 0 when --boft_block_size says it", ge=0)
    boft_n_butterfly_factor: int = option(1, "butterfly factors", ge=1)
    boft_dropout: float = option(0.0, "share of the blocks that do not rotate in a step", ge=0, lt=1)

    @field_validator("boft_block_num")
    @classmethod
    def _one_of_the_two(cls, value: int, info: ValidationInfo) -> int:
        return _other_of_two(value, info, "boft_block_size")


class OftOptions(TargetOptions):
    """OFT options."""

    oft_block_size: int = option(32, "width of a rotated block; 0 when --oft_rank says it", basic=True, ge=0)
    oft_rank: int = option(0, "number of rotated blocks; 0 when --oft_block_size says it", ge=0)
    oft_dropout: float = option(0.0, "share of the blocks that do not rotate in a step", ge=0, lt=1)
    oft_coft: bool = option(False, "keep the rotation small (constrained OFT)")
    oft_block_share: bool = option(False, "one rotation for all blocks of a layer")

    @field_validator("oft_rank")
    @classmethod
    def _one_of_the_two(cls, value: int, info: ValidationInfo) -> int:
        return _other_of_two(value, info, "oft_block_size")


class FourierFtOptions(TargetOptions):
    """FourierFT options."""

    fourier_n_frequency: int = option(2000, "trained frequencies of each update", basic=True, ge=1)
    fourier_scaling: float = option(300.0, "factor of the update", gt=0)


class MissOptions(TargetOptions):
    """MiSS (Bone) options."""

    miss_rank: int = option(64, "width of the shared block", basic=True, ge=1)
    miss_dropout: float = option(0.0, "dropout of the input", ge=0, lt=1)
    init_weights: Literal["true", "bat", "mini"] = option(
        "true", "true: shared block; bat: updates that depend on the weights; mini: fewer"
    )
    miss_mini_rank: int = option(1, "second rank of mini", ge=1)

    @field_validator("init_weights", mode="before")
    @classmethod
    def _boolean_word(cls, value: Any) -> Any:
        return str(value).lower() if isinstance(value, bool) else value

    @property
    def start(self) -> bool | str:
        """Return `init_weights` as PEFT takes it."""
        return self.init_weights == "true" or self.init_weights


class VirtualTokenOptions(Section):
    """Options of everything that puts trained tokens in front of the input."""

    num_virtual_tokens: int = option(20, "trained tokens in front of every input", basic=True, ge=1)


class PromptTuningOptions(VirtualTokenOptions):
    """Prompt tuning options."""

    prompt_tuning_init_text: str | None = option(None, "text whose embedding the tokens start as; default: at random")


class PrefixTuningOptions(VirtualTokenOptions):
    """Prefix tuning options."""

    prefix_projection: bool = option(False, "make the keys and values from a small network while training")
    encoder_hidden_size: int | None = option(None, "width of that network; default: that of the model", ge=1)


class PTuningOptions(VirtualTokenOptions):
    """P-tuning options."""

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = option("MLP", "network that makes the tokens while training")
    encoder_hidden_size: int = option(128, "width of that network", ge=1)
    encoder_num_layers: int = option(2, "layers of an LSTM", ge=1)
    encoder_dropout: float = option(0.0, "dropout of an LSTM", ge=0, lt=1)


class LlamaProOptions(Section):
    """LLaMA-Pro options."""

    llamapro_num_new_blocks: int = option(4, "layers that are put in and trained", basic=True, ge=1)
    llamapro_num_groups: int | None = option(None, "groups of layers, each of which gets new ones; default: one for each new layer", ge=1)

    @field_validator("llamapro_num_groups")
    @classmethod
    def _whole_shares(cls, value: int | None, info: ValidationInfo) -> int | None:
        new = info.data.get("llamapro_num_new_blocks", 4)
        if value is not None and new % value:
            raise ValueError(f"{new} new layers cannot be shared out evenly over {value} groups")
        return value


class BottleneckOptions(Section):
    """Bottleneck adapter options."""

    adapter_length: int = option(128, "width of the bottleneck", basic=True, ge=1)
    adapter_act: Literal["gelu", "relu", "silu", "tanh"] = option("gelu", "activation of the bottleneck")
    adapter_modules: list[str] = option([], "modules whose output passes the adapter; default: the feed-forward part of every layer")


class ReftOptions(Section):
    """ReFT options."""

    reft_rank: int = option(4, "rank of an intervention", basic=True, ge=1)
    reft_layers: list[int] = option([], "numbers of the layers after which there is an intervention; default: all")
    reft_layer_key: str | None = option(None, "dotted path of the list of layers; default: found by the architecture")
    reft_intervention_type: Literal[
        "NoreftIntervention",
        "LoreftIntervention",
        "ConsreftIntervention",
        "LobireftIntervention",
        "DireftIntervention",
        "NodireftIntervention",
    ] = option("LoreftIntervention", "kind of intervention")
    reft_positions: str = option("f1+l1", "tokens of the prompt that are changed: f1+l1 is the first and the last one, all is every token")

    @field_validator("reft_positions")
    @classmethod
    def _a_choice(cls, value: str) -> str:
        import re

        if value != "all" and not re.fullmatch(r"f\d+|l\d+|f\d+\+l\d+", value):
            raise ValueError("write all, f2, l2 or f2+l2")
        return value
