"""`swift export --quant_method`: weights in few bits, proved by perplexity before and after and by loading the result."""

from __future__ import annotations

import gc
import importlib.util
import io
import json
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from swift_core.config.load import ARGS_FILE
from swift_core.config.sections import ModelSection
from swift_core.errors import MissingDependencyError, ModelError
from swift_core.hub.quiet import quiet_stderr
from swift_core.models.dtype import resolve_dtype, saved_dtype
from swift_core.models.loading import load_config, load_model, load_tokenizer, max_model_length
from swift_core.models.quiet import quiet_transformers
from swift_core.models.saving import save_model
from swift_core.protocols import EncodedSample, InferRequest, RequestConfig
from swift_core.tasks.export_context import ExportContext, ExportResult
from swift_core.templates.chat import ChatTemplate, build_template
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_infer.engines.transformers import TransformersEngine
from swift_infer.export.config import CALIBRATED, QuantSection
from swift_infer.export.perplexity import perplexity
from swift_infer.export.rows import LONGEST, Rows, count_answers, read_rows

logger = logging.getLogger(__name__)

_QUESTION = "What is the capital of France?"
_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "bnb": "bitsandbytes", "fp8": "FP8 (scales of activations found while running)"}
# More than this is a warning: the model has lost something that users notice.
_TOLERABLE = 1.25


@dataclass(frozen=True, slots=True)
class _Source:
    section: ModelSection
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate


def quantize_model(context: ExportContext, folder: Path) -> ExportResult:
    """Write the quantised model.

    Raises:
        MissingDependencyError: when the library of the method is absent.
        ModelError: when the model cannot be quantised that way.
        DataError: when rows are missing or unusable.
    """
    options = cast(QuantSection, context.options("quantize"))
    method = str(options.quant_method)
    _require(method)
    source = _source(context)
    rows = _rows(context, source, options)
    model = load_model(source.section, source.folder, dtype=_calibration_dtype(source))
    if getattr(model, "is_quantized", False):
        raise ModelError(f"{str(source.folder)!r} is quantised already", fix="give the model that it was made from")
    before = _measure(model, rows.held_out)
    context.say(_figure("perplexity before", before, rows.held_out))
    if method == "bnb":
        del model
        gc.collect()
        model = _load_bnb(source, options.bits)
        save: dict[str, Any] = {}
    else:
        # It logs to the stdout that it finds when it is imported, and says which accelerators and kernels it did not find.
        with quiet_stderr(), redirect_stdout(io.StringIO()):
            from swift_infer.export.compressor import quantize, save_options
        quantize(
            model, method, bits=options.bits, group_size=options.group_size, rows=rows.calibration, batch_size=options.quant_batch_size
        )
        # Kernels that read packed weights compute in half precision.
        cast(torch.nn.Module, model).to(_kept_dtype(source))
        save = save_options()
    with quiet_stderr():
        save_model(folder, model, source.tokenizer, sources=(source.folder,), **save)
    _strip_paths(folder)
    _keep_args(context, source.folder, folder)
    del model
    gc.collect()
    return _proved(context, folder, options, source, rows, before)


def _proved(context: ExportContext, folder: Path, options: QuantSection, source: _Source, rows: Rows, before: float | None) -> ExportResult:
    section = ModelSection(**{**source.section.model_dump(), "model": str(folder), "torch_dtype": None, "model_revision": None})
    dtype = resolve_dtype(section, folder, device="cpu") if options.quant_method != "bnb" else _kept_dtype(source)
    with quiet_stderr():
        model = load_model(section, folder, dtype=dtype)
        # Unpacked in the first pass, with a bar.
        after = _measure(model, rows.held_out)
    engine = TransformersEngine.from_model(model, source.tokenizer, model_name=folder.name)
    answer = engine.infer([InferRequest(messages=[{"role": "user", "content": _QUESTION}])], RequestConfig(max_tokens=40, temperature=0))
    said = " ".join((answer[0].choices[0].message.content or "").split())
    engine.close()
    metrics: dict[str, Any] = {}
    lines = _figure("perplexity after", after, rows.held_out)
    if before is not None and after is not None:
        metrics = {
            f"perplexity before ({count_answers(rows.held_out)} answer tokens of {len(rows.held_out)} held-out rows)": before,
            "perplexity after, loaded again": after,
        }
        lines.append(f"change                {after / before - 1:+.2%}")
        if after > _TOLERABLE * before:
            logger.warning("perplexity rose from %.4g to %.4g: try %s", before, after, remedy(options))
    small, large = _size(folder), _size(source.folder)
    metrics |= {"weights, MiB": round(small / 2**20, 1), "weights before, MiB": round(large / 2**20, 1)}
    lines += [f"size                  {large / 2**20:.1f} MiB -> {small / 2**20:.1f} MiB", f"{_QUESTION} {said}"]
    settings: dict[str, Any] = {"bits": options.bits}
    if options.quant_method in CALIBRATED:
        settings |= {
            "group size": options.group_size,
            "calibration rows": len(rows.calibration),
            "calibration tokens": sum(map(len, rows.calibration)),
            "calibration data": list(context.config.data.dataset),
        }
    return ExportResult(
        method=f"weights of the linear layers stored in {options.bits} bits with {_METHODS[str(options.quant_method)]}",
        settings=settings,
        metrics=metrics,
        lines=lines,
        usage=_usage(options),
        tags=[str(options.quant_method), *(["compressed-tensors"] if options.quant_method != "bnb" else ["bitsandbytes"])],
    )


def remedy(options: QuantSection) -> str:
    """Return the settings that lose less of a model, or another method where there are none."""
    method, found = options.quant_method, list[str]()
    if method in CALIBRATED:
        finer = 128 if options.group_size < 0 else options.group_size // 2
        found = [f"--group_size {finer}"] * (finer >= 32) + ["more rows"]
    if options.bits == 4:
        found.append("--quant_method gptq --quant_bits 8" if method == "awq" else "--quant_bits 8")
    return " or ".join(found) or "another --quant_method"


def _usage(options: QuantSection) -> list[str]:
    library = "bitsandbytes" if options.quant_method == "bnb" else "compressed-tensors"
    # vLLM multiplies other packed weights on GPUs only, and reads those of bitsandbytes with a plugin.
    where = "" if options.quant_method in CALIBRATED and options.bits == 4 else "  # on a GPU"
    served = [] if options.quant_method == "bnb" else ["vllm serve {name}" + where]
    return [f"pip install {library}", "swift infer --model {model}", *served]


def _require(method: str) -> None:
    library = "bitsandbytes" if method == "bnb" else "llmcompressor"
    if importlib.util.find_spec(library) is None:
        install = "bitsandbytes" if method == "bnb" else "swift-infer[quant]"
        raise MissingDependencyError(library, needed_for=f"--quant_method {method}", install=install)


def _source(context: ExportContext) -> _Source:
    section = context.loading()
    folder = context.model_folder()
    tokenizer = load_tokenizer(folder, trust_remote_code=section.trust_remote_code)
    return _Source(section, folder, tokenizer, build_template(tokenizer, context.chat()))


def _rows(context: ExportContext, source: _Source, options: QuantSection) -> Rows:
    if not context.config.data.dataset and not context.config.data.val_dataset:
        return Rows([], [])
    limit = max_model_length(load_config(source.section, source.folder), source.tokenizer) or LONGEST
    longest = min(context.config.chat.max_length or LONGEST, limit)
    calibration = options.quant_n_samples if options.quant_method in CALIBRATED else 0
    return read_rows(context, source.template, calibration=calibration, held_out=options.quant_eval_samples, longest=longest)


def _measure(model: PreTrainedModel, rows: list[EncodedSample]) -> float | None:
    return perplexity(model.eval(), rows) if rows else None


def _figure(name: str, value: float | None, rows: list[EncodedSample]) -> list[str]:
    if value is None:
        return [] if name.endswith("after") else ["perplexity            not measured: no --dataset is given"]
    return [f"{name:<22}{value:.4f} ({count_answers(rows)} answer tokens of {len(rows)} rows)"]


def _calibration_dtype(source: _Source) -> torch.dtype:
    return resolve_dtype(source.section, source.folder, device="cpu")


def _kept_dtype(source: _Source) -> torch.dtype:
    saved = saved_dtype(source.folder)
    return torch.bfloat16 if saved == torch.float32 else saved


def _load_bnb(source: _Source, bits: int) -> PreTrainedModel:
    dtype = _kept_dtype(source)
    if bits == 4:
        packing = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    else:
        packing = BitsAndBytesConfig(load_in_8bit=True)
    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            quantization_config=packing,
            trust_remote_code=source.section.trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
        )
    return model


def _strip_paths(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for name in ("_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    file.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _keep_args(context: ExportContext, source: Path, folder: Path) -> None:
    """Hand the prompt settings of the run on to the result."""
    file = source / ARGS_FILE
    if file.is_file() and context.target is not None:
        args = json.loads(file.read_text(encoding="utf-8"))
        args = {**args, "model": str(context.target.resolve()), "torch_dtype": None}
        (folder / ARGS_FILE).write_text(json.dumps(args, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
