"""Folding an adapter into its base model, with proof that the answers stay the same."""

from __future__ import annotations

import gc
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from swift_core.config.training import short_name
from swift_core.errors import CheckpointError, ModelError
from swift_core.hub.local import existing_path
from swift_core.models.dtype import parse_dtype, saved_dtype
from swift_core.models.loading import load_model, load_tokenizer
from swift_core.models.saving import save_model
from swift_core.scoring.agreement import Agreement, compare, logits_of, prompt_ids
from swift_core.train.aside import check_target, written_aside
from torch import Tensor
from transformers import PreTrainedModel

from swift_tuners.api import Swift
from swift_tuners.config import MergeConfig
from swift_tuners.folders import tuner_of_folder
from swift_tuners.merge.folder import tokenizer_source, write_args, write_report
from swift_tuners.merge.sources import Sources, find_sources

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What came out.

    Attributes:
        folder: the merged model.
        base: folder of the base model.
        adapter: folder of the adapter.
        dtype: number type of the weights.
        effect: base model against base with adapter: what the adapter does.
        merged: base with adapter against merged weights: what merging changed.
        reloaded: merged weights against the folder loaded again: what writing changed.
    """

    folder: Path
    base: Path
    adapter: Path
    dtype: str
    effect: Agreement
    merged: Agreement
    reloaded: Agreement


def merge(config: MergeConfig) -> MergeReport:
    """Write the merged model and return how well it agrees with the adapter on its base.

    Raises:
        NotFoundError: when adapter or base model are absent.
        ModelError: when the base model cannot take merged weights.
        CheckpointError: when the target may not be written or the answers differ; nothing is left behind.
    """
    sources = find_sources(config)
    chosen = config.merging.output_dir or f"{_beside(config.loading.adapters[0])}-merged"
    target = Path(chosen).expanduser()
    check_target(target, exist_ok=config.merging.exist_ok, sources=(sources.adapter, sources.base))
    with written_aside(target) as aside:
        return merge_into(aside, sources, target=target, max_shard_size=config.merging.max_shard_size)


def _beside(adapter: str) -> Path:
    """Return the path that the merged model's is made from: the adapter's, but what a hub sent lies in a cache and gives its name only."""
    return existing_path(adapter) or Path(short_name(adapter))


def merge_into(folder: Path, sources: Sources, *, target: Path, max_shard_size: str) -> MergeReport:
    """Write the merged model into an empty folder and return how well it agrees with the adapter on its base.

    Args:
        folder: where the files go.
        sources: adapter, base model and settings.
        target: where the folder will lie once it is complete.
        max_shard_size: largest weight file, such as `5GB`.

    Raises:
        ModelError: when the base model cannot take merged weights.
        CheckpointError: when the answers differ.
    """
    dtype = parse_dtype(sources.section.torch_dtype) or saved_dtype(sources.base)
    tokenizer = load_tokenizer(tokenizer_source(sources.adapter, sources.base), trust_remote_code=sources.section.trust_remote_code)
    inputs = prompt_ids(tokenizer)
    model, effect, merged, expected = _merge_in_memory(sources, dtype, inputs)
    # A checkpoint's generation settings are those it was trained with; processor files come from either.
    save_model(folder, model, tokenizer, sources=(sources.adapter, sources.base), max_shard_size=max_shard_size)
    # One copy of the weights in memory at a time.
    del model
    gc.collect()
    again = load_model(sources.section, folder, dtype=dtype)
    reloaded = compare(expected, logits_of(again, inputs))
    _demand(reloaded, dtype, "the folder, loaded again, answers differently from the merged model")
    name = str(dtype).removeprefix("torch.")
    write_args(folder, sources.args, target=target, dtype=name)
    report = MergeReport(target, sources.base, sources.adapter, name, effect, merged, reloaded)
    write_report(folder, {key: str(value) if isinstance(value, Path) else value for key, value in asdict(report).items()})
    return report


def _merge_in_memory(
    sources: Sources, dtype: torch.dtype, inputs: list[Tensor]
) -> tuple[PreTrainedModel, Agreement, Agreement, list[Tensor]]:
    """Return the merged model, what the adapter does, what merging changed, and the merged model's logits."""
    base = load_model(sources.section, sources.base, dtype=dtype)
    if getattr(base, "is_quantized", False):
        raise ModelError(
            f"{str(sources.base)!r} holds quantised weights, which cannot take an update exactly",
            fix="add --model with the model that was quantised",
        )
    without = logits_of(base, inputs)
    # By its tuner: one may keep trained weights beside the adapter.
    adapted = tuner_of_folder(sources.adapter).load(base, sources.adapter, trainable=False)
    unmerged = logits_of(adapted, inputs)
    model = cast(PreTrainedModel, Swift.merge_and_unload(adapted))
    expected = logits_of(model, inputs)
    effect, merged = compare(without, unmerged), compare(unmerged, expected)
    _demand(merged, dtype, "the merged model answers differently from the adapter on its base")
    if effect.relative < 2 * merged.relative:
        logger.warning(
            "rounding to %s changed the answers about as much as the adapter does (%.1f%% and %.1f%% on average): "
            "merge with --torch_dtype float32 to keep what was learned",
            str(dtype).removeprefix("torch."),
            100 * merged.relative,
            100 * effect.relative,
        )
    return model, effect, merged, expected


def _demand(agreement: Agreement, dtype: torch.dtype, what: str) -> None:
    if not agreement.within(dtype):
        raise CheckpointError(
            f"{what}: {agreement}; nothing was written",
            fix="merge with --torch_dtype float32; if that differs too, the adapter cannot be folded into this model",
        )
