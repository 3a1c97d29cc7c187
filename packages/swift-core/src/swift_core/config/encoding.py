"""What of streaming, lazy encoding and exported token ids goes together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift_core.errors import Problem

if TYPE_CHECKING:
    from swift_core.config.training import SftConfig


def encoding_problems(config: SftConfig) -> list[Problem]:
    """Return the combinations of data and encoding settings that cannot work, each with its remedy."""
    return [*_streaming(config), *_mixing(config), *_lazy(config), *_exported(config), *_other_tasks(config)]


def _streaming(config: SftConfig) -> list[Problem]:
    if not config.data.streaming:
        if config.given("shuffle_buffer_size"):
            return [Problem("--shuffle_buffer_size", "acts on a stream only", "remove it, or add --streaming")]
        return []
    problems: list[Problem] = []
    if config.training.max_steps <= 0:
        problems.append(Problem("--streaming", "has no known end", "say how long to train with --max_steps"))
    if config.data.split_dataset_ratio > 0:
        what = "needs to know all rows, which streaming does not"
        problems.append(Problem("--split_dataset_ratio", what, "give a --val_dataset, or remove --streaming"))
    for name, there in (("lazy_tokenize", config.encoding.lazy_tokenize), ("group_by_length", config.training.group_by_length)):
        if there:
            problems.append(Problem(f"--{name}", "does not go together with --streaming", "remove one of the two"))
    return problems


def _mixing(config: SftConfig) -> list[Problem]:
    weighted = bool(config.data.interleave_prob) or any("@" in name for name in config.data.dataset)
    if config.given("stopping_strategy") and not weighted:
        return [
            Problem("--stopping_strategy", "acts on data sets that are interleaved only", "remove it, or add --interleave_prob 0.7 0.3")
        ]
    return []


def _lazy(config: SftConfig) -> list[Problem]:
    if not config.encoding.lazy_tokenize:
        return []
    problems: list[Problem] = []
    if config.chat.truncation_strategy == "split":
        problems.append(
            Problem("--truncation_strategy split", "changes the number of samples, which must be known", "remove --lazy_tokenize")
        )
    if config.training.group_by_length:
        problems.append(Problem("--group_by_length", "needs the lengths of all samples", "remove it or --lazy_tokenize"))
    if config.encoding.dataset_num_proc > 1:
        fix = "--dataloader_num_workers N encodes in N processes while training"
        problems.append(Problem("--dataset_num_proc", "does nothing where rows are encoded while training", fix))
    return problems


def _exported(config: SftConfig) -> list[Problem]:
    if not config.encoding.cached_dataset:
        if config.encoding.cached_val_dataset:
            return [Problem("--cached_val_dataset", "needs --cached_dataset", "add --cached_dataset DIR, or use --val_dataset")]
        return []
    used = {
        "dataset": bool(config.data.dataset),
        "val_dataset": bool(config.data.val_dataset),
        "split_dataset_ratio": config.data.split_dataset_ratio > 0,
        "streaming": config.data.streaming,
        "lazy_tokenize": config.encoding.lazy_tokenize,
        "dataset_num_proc": config.encoding.dataset_num_proc > 1,
        "columns": bool(config.data.columns),
    }
    what = "does nothing beside --cached_dataset, whose rows are read and encoded already"
    return [Problem(f"--{name}", what, "remove one of the two") for name, there in used.items() if there]


def _other_tasks(config: SftConfig) -> list[Problem]:
    if config.task.task_type == "causal_lm":
        return []
    names = ("dataset_num_proc", "lazy_tokenize", "cached_dataset", "cached_val_dataset", "load_from_cache_file")
    settings = [(name, getattr(config.encoding, name)) for name in names if config.given(name)]
    if config.data.streaming:
        settings.append(("streaming", True))
    what = f"acts on --task_type causal_lm only, not on {config.task.task_type}"
    return [Problem(f"--{name}", what, "remove it") for name, value in settings if value not in (False, [], 1)]
