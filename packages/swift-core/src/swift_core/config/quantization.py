"""Options of a quantised base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from swift_core.config.fields import Section, option
from swift_core.errors import Problem

if TYPE_CHECKING:
    from swift_core.config.training import SftConfig

BITS: dict[str, tuple[str, ...]] = {
    "bnb": ("4", "8"),
    "hqq": ("1", "2", "3", "4", "8"),
    "quanto": ("2", "4", "8", "float8"),
    "eetq": ("8",),
    "fp8": ("8",),
}
"""Method -> the numbers of bits it has, the first being its default."""


class QuantizationSection(Section):
    """Quantisation options."""

    quant_method: Literal["bnb", "hqq", "quanto", "eetq", "fp8"] | None = option(
        None,
        "pack the frozen weights while loading: bnb (bitsandbytes), hqq, quanto, eetq or fp8; GPTQ, AWQ and FP8 checkpoints need no flag",
        basic=True,
    )
    quant_bits: Literal["1", "2", "3", "4", "8", "float8"] | None = option(
        None, "bits of a packed weight; default: 4 for bnb and hqq, else 8", basic=True
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = option("nf4", "bnb, 4 bits: nf4 (for normally distributed weights) or fp4")
    bnb_4bit_use_double_quant: bool = option(True, "bnb, 4 bits: pack the scales of the blocks as well")
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "bnb, 4 bits: number type of the products; default: as --torch_dtype"
    )
    bnb_4bit_quant_storage: Literal["uint8", "bfloat16", "float16", "float32"] = option(
        "uint8", "bnb, 4 bits: number type that the packed weights are stored as"
    )
    hqq_axis: Literal["0", "1"] | None = option(None, "hqq: axis along which weights share a scale; default: 1")
    quant_group_size: int | None = option(None, "hqq: weights that share a scale; default: 64", ge=8)

    @field_validator("quant_bits", "hqq_axis", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @property
    def bits(self) -> str:
        """Return the bits in use, `quant_bits` or the method's default."""
        default = "4" if self.quant_method in ("bnb", "hqq") else "8"
        return self.quant_bits or default


def quantization_problems(section: QuantizationSection, given: frozenset[str]) -> list[Problem]:
    """Return the quantisation settings that would have no effect or do not exist.

    Args:
        section: the settings.
        given: names of settings that somebody gave.
    """
    method = section.quant_method
    if method is None:
        fix = "add --quant_method bnb, or remove it"
        return [Problem(f"--{name}", "has no effect without --quant_method", fix) for name in sorted(given - {"quant_method"})]
    problems: list[Problem] = []
    if section.bits not in BITS[method]:
        problems.append(Problem(f"--quant_bits {section.bits}", f"{method} does not have it", f"one of {', '.join(BITS[method])}"))
    for name in sorted(given):
        owner = "bnb" if name.startswith("bnb_") else "hqq" if name in ("hqq_axis", "quant_group_size") else method
        if owner != method or (owner == "bnb" and name.startswith("bnb_4bit") and section.bits != "4"):
            problems.append(Problem(f"--{name}", f"has no effect with --quant_method {method} --quant_bits {section.bits}", "remove it"))
    return problems


def training_problems(config: SftConfig) -> list[Problem]:
    """Return what is wrong with the quantisation settings of a training run."""
    section = config.quantization
    problems = quantization_problems(section, frozenset(name for name in QuantizationSection.model_fields if config.given(name)))
    if section.quant_method is not None and config.tuner.tuner_type == "full":
        fix = "choose an adapter such as --tuner_type lora, or remove --quant_method"
        problems.append(Problem("--quant_method", "packed weights cannot be trained themselves", fix))
    return problems
