"""GPTQ, AWQ and FP8 with llm-compressor, in the compressed-tensors format that transformers and vLLM load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from swift_core.errors import MissingDependencyError, ModelError
from swift_core.hub.quiet import quiet_stderr
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

try:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # pyright: ignore[reportMissingImports]
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.gptq import GPTQModifier  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.quantization import QuantizationModifier  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.transform.awq import AWQModifier  # pyright: ignore[reportMissingImports]
    from llmcompressor.pipelines.cache import IntermediatesCache  # pyright: ignore[reportMissingImports]
    from loguru import logger  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    raise MissingDependencyError(error.name or "llmcompressor", needed_for="--quant_method", install="swift-infer[quant]") from error

# Output heads, routers of experts, and the towers of multimodal models stay as they are.
IGNORED = ["re:.*lm_head", "re:.*(router|mlp[.]gate)$", "re:.*(visual|vision_tower|vision_model|audio_tower).*"]
_SIZES = (128, 64, 32)


class _Cache(IntermediatesCache):
    """Inputs of layers that stay where they are."""

    def pin_memory(self, batch_index: int, input_names: list[str] | None = None) -> None:
        """Do nothing: locking pages serves copies to an accelerator, and fails where there is none."""


class _Awq(AWQModifier):
    """AWQ that runs without an accelerator too."""

    def _apply_smoothing(self, model: nn.Module) -> None:
        if not torch.accelerator.is_available():
            for parent, cache in self._parent_args_cache.items():
                self._parent_args_cache[parent] = _Cache(cache.batch_intermediates, cache.offload_device)
        super()._apply_smoothing(model)


def quantize(
    model: PreTrainedModel,
    method: str,
    *,
    bits: int,
    group_size: int,
    rows: Sequence[list[int]],
    batch_size: int,
) -> None:
    """Quantise the linear layers of a model in place.

    Args:
        model: loaded in the number type to calibrate in.
        method: `gptq`, `awq` or `fp8`.
        bits: of a weight.
        group_size: weights that share a scale, or -1 for one scale for each output.
        rows: token ids to calibrate with; unused by fp8.
        batch_size: rows of one forward pass.

    Raises:
        ModelError: when the group size does not fit the layers, or the library cannot take the model.
    """
    if method == "fp8":
        recipe: list[Any] = [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=IGNORED)]
        calibration: dict[str, Any] = {"pipeline": "datafree"}
    else:
        _check_groups(model, group_size)
        grouping: dict[str, Any] = {"strategy": "channel"} if group_size < 0 else {"strategy": "group", "group_size": group_size}
        weights = QuantizationArgs(num_bits=bits, symmetric=method == "gptq", **grouping)
        scheme = {"weights": QuantizationScheme(targets=["Linear"], weights=weights)}
        if method == "gptq":
            recipe = [GPTQModifier(config_groups=scheme, ignore=IGNORED)]
        else:
            recipe = [_Awq(), QuantizationModifier(config_groups=scheme, ignore=IGNORED)]
        calibration = {"pipeline": "sequential", "dataset": _loader(rows, batch_size), "num_calibration_samples": len(rows)}
    with _quiet():
        try:
            oneshot(model=model, recipe=recipe, **calibration)
        except (ValueError, RuntimeError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{method} cannot quantise this {type(model).__name__}: {reason}", fix="try --quant_method bnb or fp8"
            ) from error


def save_options() -> dict[str, Any]:
    """Return what `save_pretrained` of a quantised model needs to write packed weights."""
    return {"save_compressed": True}


def _check_groups(model: nn.Module, group_size: int) -> None:
    if group_size < 0:
        return
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    widths = {layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head}
    odd = sorted(width for width in widths if width % group_size)
    if odd:
        fitting = [str(size) for size in _SIZES if all(width % size == 0 for width in widths)]
        raise ModelError(
            f"--group_size {group_size} does not divide the {odd[0]} inputs of some layers",
            fix=f"--group_size {fitting[0] if fitting else -1}",
        )


def _loader(rows: Sequence[list[int]], batch_size: int) -> DataLoader[dict[str, torch.Tensor]]:
    # Rows of like length share a batch, so that little of it is padding.
    order = sorted(rows, key=len) if batch_size > 1 else list(rows)
    return DataLoader(order, batch_size=batch_size, collate_fn=_padded)  # type: ignore[arg-type]


def _padded(rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    for name in ("llmcompressor", "compressed_tensors"):
        logger.disable(name)
    try:
        with quiet_stderr():
            yield
    finally:
        for name in ("llmcompressor", "compressed_tensors"):
            logger.enable(name)
