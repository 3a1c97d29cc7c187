"""Base weights in few bits: packed while loading, or as a checkpoint has them. Each library is asked for before it is needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swift_core.config.quantization import QuantizationSection
from swift_core.errors import MissingDependencyError, ModelError
from swift_core.models.dtype import DTYPES


@dataclass(frozen=True, slots=True)
class Library:
    """What a method needs.

    Attributes:
        modules: import names.
        install: what pip takes.
        cpu: whether it runs without an accelerator.
        instead: what does without one, for the refusal.
    """

    modules: tuple[str, ...]
    install: str
    cpu: bool
    instead: str = "use --quant_method bnb, which runs on a CPU too"


BITSANDBYTES = Library(("bitsandbytes",), "swift-core[bnb]", cpu=True)
GPTQMODEL = Library(("gptqmodel", "optimum"), "swift-core[gptq]", cpu=True)
LIBRARIES: dict[str, Library] = {
    "bnb": BITSANDBYTES,
    "bitsandbytes": BITSANDBYTES,
    "hqq": Library(("hqq",), "swift-core[hqq]", cpu=True),
    "quanto": Library(("optimum.quanto",), "swift-core[quanto]", cpu=True),
    "eetq": Library(("kernels",), "swift-core[kernels]", cpu=False),
    # transformers unpacks FP8 checkpoints to bfloat16 where there is no GPU for them.
    "fp8": Library((), "", cpu=False),
    "gptq": GPTQMODEL,
    "awq": Library(("gptqmodel",), "swift-core[gptq]", cpu=True),
    "compressed-tensors": Library(("compressed_tensors",), "compressed-tensors", cpu=True),
    "torchao": Library(("torchao",), "torchao", cpu=True),
}
"""Name of a method, as `--quant_method` or a checkpoint's config.json says it -> what it needs."""


_WHILE_LOADING = ("hqq", "quanto")


def quantization_config(
    section: QuantizationSection, raw: dict[str, Any], folder: Path, *, dtype: torch.dtype, device: str, trainable: bool = False
) -> Any:
    """Return transformers' config of the method that the settings name or that checkpoints need for training, or None.

    Args:
        section: the settings.
        raw: the model's config.json.
        folder: where the model lies, for messages.
        dtype: number type of the weights that are not packed.
        device: where the model will run, such as `cpu`.
        trainable: whether gradients pass through the weights.

    Raises:
        ModelError: when the weights are packed already, or the method does not run on the device.
        MissingDependencyError: when its library is not installed.
    """
    packed = packed_by(raw)
    if packed is not None:
        if section.quant_method is not None:
            raise ModelError(
                f"--quant_method {section.quant_method}: the weights of {str(folder)!r} are packed by {packed} already", fix="remove it"
            )
        check_checkpoint(packed, folder, device=device)
        if trainable and packed == "gptq" and device == "cpu":
            # gptqmodel 7.6 chooses a kernel there that divides by zero in its first pass for training.
            raise ModelError(
                f"{str(folder)!r}: adapters are not trained over weights of the GPTQ format on a CPU, for want of a kernel",
                fix="use a GPU, or pack the original with `swift export --quant_method gptq`, whose format is trained on CPUs too",
            )
        return _kernels(packed, raw) if trainable else None
    if section.quant_method is None:
        return None
    check_library(section.quant_method, f"--quant_method {section.quant_method}")
    if not LIBRARIES[section.quant_method].cpu and device == "cpu":
        raise ModelError(
            f"--quant_method {section.quant_method} packs weights on a GPU, and this run is on a CPU",
            fix=LIBRARIES[section.quant_method].instead,
        )
    # transformers names HQQ, but does not pack with it while loading.
    return None if section.quant_method == "hqq" else _MAKERS[section.quant_method](section, dtype)


def _kernels(method: str, raw: dict[str, Any]) -> Any:
    """Return the config that lets gptqmodel choose kernels with a backward pass; transformers takes the rest from the checkpoint."""
    from transformers import AwqConfig, GPTQConfig

    kind: Any = {"gptq": GPTQConfig, "awq": AwqConfig}.get(method)
    return None if kind is None else kind(bits=int(raw["quantization_config"].get("bits", 4)), backend="auto_trainable")


def packed_by(raw: dict[str, Any]) -> str | None:
    """Return the method that a checkpoint's weights are packed by, from its config.json, or None."""
    found = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")
    if not isinstance(found, dict):
        return None
    method = found.get("quant_method")
    if method is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = "bitsandbytes"
    return str(method or "an unknown method")


def check_checkpoint(method: str, folder: Path, *, device: str) -> None:
    """Check that a packed checkpoint can be loaded on a device.

    Raises:
        ModelError: when transformers cannot load it, or not there.
        MissingDependencyError: when its library is not installed.
    """
    if method in _WHILE_LOADING:
        raise ModelError(
            f"{str(folder)!r}: transformers packs weights with {method}, but does not load those that were saved packed",
            fix=f"give the model that it was made from, and --quant_method {method}",
        )
    if method == "eetq" and device == "cpu":
        raise ModelError(f"{str(folder)!r}: weights packed by eetq run on a GPU, not on a CPU", fix="use a GPU, or another model")
    if method in LIBRARIES:
        check_library(method, f"{str(folder)!r}, whose weights are packed by {method},")


def check_library(method: str, needed_for: str) -> None:
    """Check that the library of a method is there.

    Raises:
        MissingDependencyError: when it is not installed.
    """
    library = LIBRARIES[method]
    for module in library.modules:
        if not _is_there(module):
            raise MissingDependencyError(module, needed_for=needed_for, install=library.install)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that would hold it
        return False


def placement(config: Any, raw: dict[str, Any], device: str) -> dict[str, str] | None:
    """Return the device map of a packed model, which goes to its device while loading, or None for any other."""
    if config is None and packed_by(raw) is None:
        return None
    return {"": device} if device != "cpu" else None


def refuse_full_training(model: nn.Module) -> None:
    """Refuse to train the weights of a packed model themselves.

    Raises:
        ModelError: when its weights are packed.
    """
    if getattr(model, "is_quantized", False):
        raise ModelError("the weights of this model are packed and cannot be trained themselves", fix="choose --tuner_type lora")


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from rearranging 4-bit weights for inference on CPUs, which it does in the first pass without gradients.

    The rearranged weights run through a kernel that passes no gradient on, so training after an evaluation would go wrong.

    Raises:
        ModelError: when weights are rearranged already.
    """
    for module in model.modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                "the 4-bit weights of this model were rearranged when it answered on this CPU, and cannot be trained through any more",
                fix="load the model again and train it before it answers",
            )
        setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  an attribute of the library's layer


def _bnb(section: QuantizationSection, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if section.bits == "8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=section.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=DTYPES[section.bnb_4bit_compute_dtype] if section.bnb_4bit_compute_dtype else dtype,
        bnb_4bit_quant_storage=section.bnb_4bit_quant_storage,
    )


def _quanto(section: QuantizationSection, dtype: torch.dtype) -> Any:
    from transformers import QuantoConfig

    return QuantoConfig(weights=section.bits if section.bits == "float8" else f"int{section.bits}")


def _eetq(section: QuantizationSection, dtype: torch.dtype) -> Any:
    from transformers import EetqConfig

    return EetqConfig("int8")


def _fp8(section: QuantizationSection, dtype: torch.dtype) -> Any:
    from transformers import FineGrainedFP8Config

    return FineGrainedFP8Config()


_MAKERS: dict[str, Callable[[QuantizationSection, torch.dtype], Any]] = {
    "bnb": _bnb,
    "quanto": _quanto,
    "eetq": _eetq,
    "fp8": _fp8,
}
