"""`swift export --to_gguf`: one file with weights, tokenizer and chat template, read back and compared."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from swift_core.config.training import short_name
from swift_core.errors import CheckpointError, ModelError
from swift_core.hub.quiet import quiet_stderr
from swift_core.models.loading import load_model, load_tokenizer
from swift_core.models.quiet import quiet_transformers
from swift_core.scoring.agreement import PROMPTS, Agreement, compare, logits_of, prompt_ids
from swift_core.tasks.export_context import ExportContext, ExportResult
from swift_core.templates.chat import build_template
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_infer.export.config import GgufSection
from swift_infer.export.gguf_layout import add_parameters, arranged, extra_tensors, layout_of
from swift_infer.export.gguf_vocab import add_vocabulary, read_vocabulary

logger = logging.getLogger(__name__)

_Kind = GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class _Type:
    """A way to store weights.

    Attributes:
        kind: of the matrices.
        outer: of embedding and output head, which lose more from rounding.
        file: its number in the file.
        tolerance: most that logits may differ, root mean square as a share of theirs.
    """

    kind: GGMLQuantizationType
    outer: GGMLQuantizationType
    file: LlamaFileType
    tolerance: float


_TYPES = {
    "f32": _Type(_Kind.F32, _Kind.F32, LlamaFileType.ALL_F32, 1e-4),
    "f16": _Type(_Kind.F16, _Kind.F16, LlamaFileType.MOSTLY_F16, 1e-2),
    "bf16": _Type(_Kind.BF16, _Kind.BF16, LlamaFileType.MOSTLY_BF16, 1e-1),
    "q8_0": _Type(_Kind.Q8_0, _Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0, 0.2),
    "q5_1": _Type(_Kind.Q5_1, _Kind.Q8_0, LlamaFileType.MOSTLY_Q5_1, 0.5),
    "q5_0": _Type(_Kind.Q5_0, _Kind.Q8_0, LlamaFileType.MOSTLY_Q5_0, 0.5),
    "q4_1": _Type(_Kind.Q4_1, _Kind.Q8_0, LlamaFileType.MOSTLY_Q4_1, 0.8),
    "q4_0": _Type(_Kind.Q4_0, _Kind.Q8_0, LlamaFileType.MOSTLY_Q4_0, 0.8),
}


def write_gguf(context: ExportContext, folder: Path) -> ExportResult:
    """Write the model as one GGUF file and compare what it answers once it is loaded again.

    Raises:
        ModelError: when GGUF has no place for the architecture or tokenizer.
        CheckpointError: when the file answers differently.
    """
    options = cast(GgufSection, context.options("gguf"))
    name = str(options.to_gguf)
    section = context.loading()
    source = context.model_folder()
    tokenizer = load_tokenizer(source, trust_remote_code=section.trust_remote_code)
    build_template(tokenizer, context.chat())  # a named format becomes the tokenizer's own
    # Rounding starts from the weights as they are, not from a half precision copy.
    model = load_model(section, source, dtype=torch.float32)
    if getattr(model, "is_quantized", False):
        raise ModelError(f"{str(source)!r} is quantised already", fix="give the model that it was made from")
    file = folder / f"{_file_stem(context)}-{name.upper()}.gguf"
    kinds = _write(file, model, tokenizer, _TYPES[name], title=_file_stem(context))
    inputs = prompt_ids(tokenizer)
    expected = logits_of(model, inputs)
    config = model.config
    del model
    gc.collect()
    agreement = compare(expected, logits_of(_read_back(file, config), inputs))
    _demand(agreement, _TYPES[name], name)
    tokens = _same_tokens(tokenizer, file)
    if not tokens:
        logger.warning("%s: transformers reads other token ids from the file than the model's own tokenizer gives", file.name)
    size = file.stat().st_size / 2**20
    return ExportResult(
        method=f"weights and tokenizer written as GGUF, type {name.upper()}",
        settings={"tensors": ", ".join(f"{count} {kind}" for kind, count in kinds.items())},
        metrics={f"GGUF {name.upper()} loaded again against the model": str(agreement), "GGUF file, MiB": round(size, 1)},
        lines=[
            f"file                  {file.name}, {size:.1f} MiB ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})",
            f"loaded again / model  {agreement}",
            f"token ids read back   {'the same' if tokens else 'differ'}",
        ],
        usage=["{download}", f"swift infer --model {file.name}", f"llama-cli -m {file.name}"],
        tags=["gguf"],
    )


def _file_stem(context: ExportContext) -> str:
    source = str(context.adapter or context.config.loading.model or "model")
    parts = Path(source).parts[-2:] if short_name(source).startswith("checkpoint-") else (short_name(source),)
    return "-".join(parts).removesuffix(".gguf")


def _write(file: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, wanted: _Type, *, title: str) -> dict[str, int]:
    """Write everything and return how many tensors are stored in each type."""
    config: Any = model.config
    layout = layout_of(config)
    names = gguf.get_tensor_name_map(layout.arch, config.num_hidden_layers)
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[layout.arch])
    writer.add_name(title)
    writer.add_file_type(wanted.file)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_parameters(writer, config)
    template: Any = tokenizer.chat_template
    add_vocabulary(writer, tokenizer, read_vocabulary(tokenizer, config.vocab_size), template if isinstance(template, str) else None)
    kinds: dict[str, int] = {}
    tied = bool(config.tie_word_embeddings)
    for name, tensor in [*model.state_dict().items(), *extra_tensors(config)]:
        if name == "lm_head.weight" and tied:
            continue
        stored = name if name.startswith("rope_freqs") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ModelError(f"GGUF has no name for the weight {name!r} of {config.model_type}", fix="use the converter of llama.cpp")
        values = arranged(name, tensor, config, layout).float().contiguous()
        kind = _kind(stored, values, wanted)
        writer.add_tensor(stored, _packed(values, kind), raw_dtype=kind)
        kinds[kind.name] = kinds.get(kind.name, 0) + 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kinds


def _kind(name: str, values: Tensor, wanted: _Type) -> GGMLQuantizationType:
    if values.ndim < 2:
        return _Kind.F32
    kind = wanted.outer if name.startswith(("token_embd", "output")) else wanted.kind
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if values.shape[-1] % block == 0 else _Kind.F16


def _packed(values: Tensor, kind: GGMLQuantizationType) -> Any:
    return gguf.quants.quantize(values.numpy(), kind)


def _read_back(file: Path, config: Any) -> nn.Module:
    if config.model_type == "mistral":  # which GGUF keeps as Llama
        same = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures", "sliding_window")}
        config = LlamaConfig(**same)
    with quiet_transformers(), quiet_stderr():
        try:
            # The loader knows only some of the metadata, so sizes and positions come from the model's own config.
            return AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                config=config,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
        except Exception as error:  # the library's parser meets trouble in many ways
            raise CheckpointError(f"{file.name} cannot be loaded again: {error}", fix="write it in another type, such as f16") from error


def _demand(agreement: Agreement, wanted: _Type, name: str) -> None:
    if agreement.relative > wanted.tolerance:
        raise CheckpointError(
            f"the GGUF file answers differently from the model: {agreement}; nothing was written",
            fix="write a type with more bits, such as --to_gguf q8_0" if name.startswith("q") else "use the converter of llama.cpp",
        )


def _same_tokens(tokenizer: PreTrainedTokenizerBase, file: Path) -> bool:
    with quiet_transformers(), quiet_stderr():
        again: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    own: Any = tokenizer
    return all(again(text, add_special_tokens=False)["input_ids"] == own(text, add_special_tokens=False)["input_ids"] for text in PROMPTS)
