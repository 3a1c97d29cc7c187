"""Writing a model folder that appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swift_core.config.command import tuner_flags
from swift_core.config.load import ARGS_FILE
from swift_core.errors import CheckpointError
from swift_core.models.quiet import quiet_transformers
from swift_core.train.checkpoint import seal
from transformers import GenerationConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

REPORT = "merge_report.json"
_ASIDE = ".writing-"
_REPLACED = ".replaced-"
# Files of the base that belong to a model and that neither model nor tokenizer writes.
_KEPT = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "LICENSE*", "NOTICE*")
_GENERATION = "generation_config.json"


def check_target(target: Path, *, exist_ok: bool, sources: Sequence[Path]) -> None:
    """Check that a merged model may be written to a folder.

    Raises:
        CheckpointError: when it exists and may not be replaced, or holds what is merged.
    """
    if not target.exists():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not exist_ok:
        raise CheckpointError(f"{str(target)!r} exists already", fix="choose another --output_dir, or replace it with --exist_ok")
    resolved = target.resolve()
    for source in sources:
        if resolved == source.resolve() or resolved in source.resolve().parents:
            raise CheckpointError(f"{str(target)!r} holds {str(source)!r}, which is being merged", fix="choose another --output_dir")
    if not (target / "config.json").is_file():
        # A mistyped folder must not be emptied.
        raise CheckpointError(f"{str(target)!r} exists and is no model folder, so it is not replaced", fix="choose another --output_dir")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that takes its place when the block ends well and vanishes otherwise.

    Raises:
        CheckpointError: when it cannot be written.
    """
    aside, replaced = target.with_name(_ASIDE + target.name), target.with_name(_REPLACED + target.name)
    try:
        for left_over in (aside, replaced):
            if left_over.exists():
                shutil.rmtree(left_over)
        aside.mkdir(parents=True)
        yield aside
        seal(aside)
        if target.exists():
            target.rename(replaced)
        aside.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{target} could not be written: {error}", fix="free some space or choose another --output_dir") from error
    finally:
        if aside.exists():
            shutil.rmtree(aside)


def write_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, base: Path, adapter: Path, max_shard_size: str
) -> None:
    """Write weights, tokenizer with chat template, generation settings and processor files."""
    # Settings as the authors wrote them: saving them anew refuses combinations that loading accepts.
    model.generation_config = GenerationConfig()
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    (folder / _GENERATION).unlink(missing_ok=True)
    for source in (adapter, base):
        if (source / _GENERATION).is_file():
            shutil.copyfile(source / _GENERATION, folder / _GENERATION)
            break
    for pattern in _KEPT:
        for file in base.glob(pattern):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)


def write_args(folder: Path, args: dict[str, Any], *, target: Path, dtype: str) -> None:
    """Write the run's args.json as that of a model without adapters, so that later commands prompt it as it was trained."""
    if not args:
        return
    options = set(tuner_flags())
    kept = {name: value for name, value in args.items() if name not in options}
    changes = {"model": str(target.resolve()), "model_revision": None, "adapters": [], "tuner_type": "full", "torch_dtype": dtype}
    merged = {**kept, **{name: value for name, value in changes.items() if name in kept}}
    _dump(folder / ARGS_FILE, merged)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write what was merged and how well it agreed."""
    _dump(folder / REPORT, report)


def _dump(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def tokenizer_source(adapter: Path, base: Path) -> Path:
    """Return the folder whose tokenizer the merged model gets: the checkpoint's own, which holds the template it was trained with."""
    return adapter if (adapter / "tokenizer_config.json").is_file() else base


__all__ = ["check_target", "tokenizer_source", "write_args", "write_model", "write_report", "written_aside"]
