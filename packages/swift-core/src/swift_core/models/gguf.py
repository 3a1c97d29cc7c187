"""From one GGUF file to a normal model folder: safetensors, config, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from swift_core.errors import ModelError
from swift_core.hub.quiet import quiet_stderr
from swift_core.models.quiet import quiet_transformers

_FLOAT32_LIMIT = 2 * 1024**3


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into an empty folder.

    Raises:
        ModelError: when the file is damaged or its architecture is not supported.
    """
    dtype = _dtype(file)
    with quiet_transformers(), quiet_stderr():
        try:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=dtype,
                trust_remote_code=False,
            )
        except (ValueError, OSError, RuntimeError, KeyError, NotImplementedError) as error:
            raise ModelError(
                f"{file}: this GGUF file cannot be read as a model: {error}", fix="use a safetensors copy of the model"
            ) from error
        # The weights are plain now; the record of how they were packed would make the saved folder load wrongly.
        if hasattr(model.config, "quantization_config"):
            delattr(model.config, "quantization_config")
        # Both would keep the path of this file on this machine.
        model.config._name_or_path = ""
        tokenizer.name_or_path = ""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _dtype(file: Path) -> torch.dtype:
    """Choose bfloat16 where the file holds it or float32 would be over 2 GiB, else float32."""
    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, OSError, IndexError) as error:
        raise ModelError(f"{file}: this GGUF file is damaged: {error}", fix="fetch or copy the file again") from error
    matrices = {tensor.tensor_type for tensor in tensors if len(tensor.shape) > 1}
    if matrices == {GGMLQuantizationType.BF16} or sum(int(tensor.n_elements) for tensor in tensors) * 4 > _FLOAT32_LIMIT:
        return torch.bfloat16
    return torch.float32
