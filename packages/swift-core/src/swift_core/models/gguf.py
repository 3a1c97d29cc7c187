"""From one GGUF file to a normal model folder: safetensors, config, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from swift_core.errors import ModelError
from swift_core.hub.quiet import quiet_stderr
from swift_core.models.quiet import quiet_transformers

_FLOAT32_LIMIT = 512 * 1024**2


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into an empty folder.

    Raises:
        ModelError: when the file is damaged or its architecture is not supported.
    """
    # Unpacked values are float32; a large model is halved instead, to bfloat16. Decided by size, since reading the tensor
    # table takes seconds: 512 MiB of four-bit weights are about 4 GiB of float32.
    dtype = torch.float32 if file.stat().st_size <= _FLOAT32_LIMIT else torch.bfloat16
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
        except Exception as error:  # the library's parser meets damage in many ways, down to struct.error
            raise ModelError(
                f"{file}: this GGUF file cannot be read as a model: {' '.join(str(error).split())}",
                fix="use a safetensors copy of the model",
            ) from error
        # The weights are plain now; the record of how they were packed would make the saved folder load wrongly.
        if hasattr(model.config, "quantization_config"):
            delattr(model.config, "quantization_config")
        # Both would keep the path of this file on this machine.
        model.config._name_or_path = ""
        tokenizer.name_or_path = ""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
