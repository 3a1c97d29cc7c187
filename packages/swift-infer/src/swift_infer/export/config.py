"""Options of the export actions of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator
from swift_core.config.actions import ActionSection
from swift_core.config.fields import option
from swift_core.errors import Problem

if TYPE_CHECKING:
    from swift_core.config.export import ExportConfig

QUANT_BITS = {"awq": (4,), "gptq": (4, 8), "bnb": (4, 8), "fp8": (8,)}
CALIBRATED = ("awq", "gptq")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


class QuantSection(ActionSection):
    """Quantisation options."""

    reads_dataset: ClassVar[bool] = True

    quant_method: Literal["awq", "gptq", "bnb", "fp8"] | None = option(
        None, "store weights in few bits: awq and gptq with the help of --dataset, bnb and fp8 without", basic=True
    )
    quant_bits: int | None = option(None, "bits of a weight: 4 (awq, gptq, bnb) or 8 (gptq, bnb, fp8); default: 4, fp8: 8", basic=True)
    group_size: int = option(128, "awq and gptq: weights that share a scale; -1 for one scale for each output", ge=-1)
    quant_n_samples: int = option(256, "awq and gptq: rows of --dataset to calibrate with", basic=True, ge=1)
    quant_batch_size: int = option(1, "awq and gptq: rows of one forward pass", ge=1)
    quant_eval_samples: int = option(64, "other rows of --dataset, or rows of --val_dataset, that perplexity is measured on", ge=1)

    @field_validator("group_size")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("write a positive number, or -1 for one scale for each output")
        return value

    @property
    def wanted(self) -> bool:
        """Say whether quantised weights are asked for."""
        return self.quant_method is not None

    @property
    def bits(self) -> int:
        """Return the bits of a weight."""
        return self.quant_bits or (8 if self.quant_method == "fp8" else 4)

    @property
    def folder_name(self) -> str:
        """Return how the folder of the result is called, such as `gptq-int4`."""
        return "fp8" if self.quant_method == "fp8" else f"{self.quant_method}-int{self.bits}"

    def problems(self, config: ExportConfig) -> list[Problem]:
        """Return what is missing, has no effect, or is not possible with the method."""
        method = self.quant_method
        names = ("quant_bits", "group_size", "quant_n_samples", "quant_batch_size", "quant_eval_samples")
        if method is None:
            what = "only acts when weights are quantised"
            return [Problem(f"--{name}", what, "add --quant_method gptq, or remove it") for name in names if config.given(name)]
        found: list[Problem] = []
        if self.bits not in QUANT_BITS[method]:
            allowed = ", ".join(map(str, QUANT_BITS[method]))
            found.append(Problem(f"--quant_bits {self.bits}", f"is not possible with {method}", f"allowed: {allowed}"))
        if method in CALIBRATED:
            if not config.data.dataset:
                found.append(Problem("--dataset", f"is missing: {method} calibrates with it", "--dataset my.jsonl"))
        else:
            idle = ("group_size", "quant_n_samples", "quant_batch_size")
            what = f"has no effect on {method}, which does not calibrate"
            found += [Problem(f"--{name}", what, "remove it") for name in idle if config.given(name)]
        if config.data.streaming:
            found.append(Problem("--streaming", "calibration reads all rows first", "remove it"))
        return found


class GgufSection(ActionSection):
    """GGUF options."""

    to_gguf: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] | None = option(
        None, "write one .gguf file with weights of this type, for llama.cpp, Ollama and others", basic=True
    )

    @property
    def wanted(self) -> bool:
        """Say whether a GGUF file is asked for."""
        return self.to_gguf is not None

    @property
    def folder_name(self) -> str:
        """Return how the folder of the result is called."""
        return "gguf"


class OllamaSection(ActionSection):
    """Ollama options."""

    to_ollama: bool = option(False, "write a Modelfile: prompt format, system message, stop words, sampling", basic=True)

    @property
    def wanted(self) -> bool:
        """Say whether a Modelfile is asked for."""
        return self.to_ollama

    @property
    def folder_name(self) -> str:
        """Return how the folder of the result is called."""
        return "ollama"

    def problems(self, config: ExportConfig) -> list[Problem]:
        """Return what cannot be done."""
        wanted = config.wanted_actions()
        if self.to_ollama and "push" in wanted and "gguf" not in wanted:
            what = "the Modelfile names a folder of this machine, which is of no use on a hub"
            return [Problem("--to_ollama", what, "add --to_gguf q8_0, or remove --push_to_hub")]
        return []
