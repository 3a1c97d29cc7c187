"""What `swift export` does with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from swift_core.errors import ConfigError, Problem
from swift_core.tasks.export_context import ExportContext, ExportResult

from swift_tuners.merge.merging import merge_into
from swift_tuners.merge.peft_format import write_peft_format
from swift_tuners.merge.sources import find_sources
from swift_tuners.merge_options import MergeActionSection


def merge_adapter(context: ExportContext, folder: Path) -> ExportResult:
    """Write base model and adapter as one model, after comparing logits before and after.

    Raises:
        ConfigError: when there is no adapter to merge.
        NotFoundError: when the base model is absent.
        ModelError: when the base model cannot take merged weights.
        CheckpointError: when the answers differ.
    """
    options = cast(MergeActionSection, context.options("merge"))
    if context.adapter is None:
        what = "holds a whole model, which has nothing to merge"
        raise ConfigError([Problem("--merge_lora", f"{context.model!r} {what}", f"remove --merge_lora and give --model {context.model}")])
    sources = find_sources(context.config, context.adapter)
    report = merge_into(folder, sources, target=context.target or folder, max_shard_size=options.max_shard_size)
    return ExportResult(
        method="adapter folded into the weights of the base model",
        settings={"number type": report.dtype},
        metrics={
            "effect of the adapter on the logits": str(report.effect),
            "merged against adapter on its base": str(report.merged),
            "loaded again against merged": str(report.reloaded),
        },
        lines=[
            f"base model            {report.base}",
            f"adapter               {report.adapter}",
            f"effect of the adapter {report.effect}",
            f"merged / unmerged     {report.merged}",
            f"loaded again / merged {report.reloaded}",
        ],
        usage=["swift infer --model {model}"],
    )


def to_peft(context: ExportContext, folder: Path) -> ExportResult:
    """Write the adapter as PEFT reads it.

    Raises:
        NotFoundError: when there is no adapter.
        CheckpointError: when it is not an adapter that PEFT knows.
    """
    source = cast(Path, context.adapter)
    written = write_peft_format(source, folder)
    names = ", ".join(name or "default" for name in written)
    return ExportResult(
        method="adapter written in PEFT's format",
        lines=[f"adapters              {names}"],
        usage=['PeftModel.from_pretrained(base, "{name}")'],
        tags=["peft"],
    )
