"""Which number type the weights are loaded in."""

from __future__ import annotations

from pathlib import Path

import torch

from swift_core.config.sections import ModelSection
from swift_core.errors import ModelError
from swift_core.models.folder import read_header, read_json, weight_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEADER_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float32}


def resolve_dtype(section: ModelSection, folder: Path, *, device: str) -> torch.dtype:
    """Return the setting, or else the type the weights are saved in as far as the device computes in it.

    On a CPU bfloat16 is kept only where the CPU has instructions for it, and float16 becomes float32.

    Args:
        section: `torch_dtype` wins when it is set.
        folder: a model folder with `config.json`.
        device: torch device, such as `cpu` or `cuda:0`.
    """
    if section.torch_dtype is not None:
        return DTYPES[section.torch_dtype]
    return supported_dtype(saved_dtype(folder), device=device)


def training_dtype(section: ModelSection, folder: Path, *, device: str, frozen: bool) -> torch.dtype:
    """Return the number type that a run loads its weights in.

    Weights that stay as they are lose nothing that matters in bfloat16, and products are several times faster and half as large
    in it where the device has instructions for them; trained weights keep float32, where small steps are not rounded away.

    Args:
        section: `torch_dtype` wins when it is set.
        folder: a model folder with `config.json`.
        device: torch device, such as `cpu` or `cuda:0`.
        frozen: whether what is trained stands beside these weights.
    """
    dtype = resolve_dtype(section, folder, device=device)
    return torch.bfloat16 if frozen and section.torch_dtype is None and _multiplies_bfloat16(device) else dtype


def _multiplies_bfloat16(device: str) -> bool:
    kind = torch.device(device).type
    return cpu_has_bfloat16() if kind == "cpu" else kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def supported_dtype(dtype: torch.dtype, *, device: str) -> torch.dtype:
    """Return `dtype`, or float32 where the device would compute in it very slowly or not at all."""
    if torch.device(device).type != "cpu" or dtype == torch.float32:
        return dtype
    return dtype if dtype == torch.bfloat16 and cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices in hardware."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) is True for name in ("avx512_bf16", "amx_bf16", "bf16"))


def saved_dtype(folder: Path) -> torch.dtype:
    """Return the type that `config.json` names, or that of the largest share of the weights, or float32."""
    config = read_json(folder / "config.json")
    nested = [config, *(value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict))]
    for part in nested:
        name = str(part.get("dtype") or part.get("torch_dtype") or "").removeprefix("torch.")
        if name in DTYPES:
            return DTYPES[name]
    sizes: dict[torch.dtype, int] = {}
    for file in weight_files(folder)[:1]:
        for entry in read_header(file).values():
            dtype = _HEADER_NAMES.get(entry["dtype"])
            if dtype is not None:
                start, end = entry["data_offsets"]
                sizes[dtype] = sizes.get(dtype, 0) + end - start
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else torch.float32


def parse_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """Return a torch dtype from a name such as `bfloat16` or `torch.bfloat16`; None and `auto` give None.

    Raises:
        ModelError: for any other name.
    """
    if value is None or isinstance(value, torch.dtype):
        return value
    name = value.removeprefix("torch.")
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32"}
    if name == "auto":
        return None
    if short.get(name, name) not in DTYPES:
        raise ModelError(f"unknown torch_dtype {value!r}", fix=f"use {', '.join(DTYPES)} or auto")
    return DTYPES[short.get(name, name)]
