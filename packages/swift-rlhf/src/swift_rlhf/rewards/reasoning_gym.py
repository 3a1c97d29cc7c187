"""Tasks of the library reasoning-gym: made by code without end, and scored by the code that made them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from swift_core.config.sections import DataSection
from swift_core.data.rows import Row
from swift_core.errors import DataError, MissingDependencyError
from swift_core.registry import nearest

ROWS = 1000
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def rows(subset: str, data: DataSection) -> Iterator[Row]:
    """Yield 1000 questions of a task, seeded with `--data_seed`: `--dataset reasoning_gym:chain_sum`.

    Raises:
        DataError: for an unknown task.
        MissingDependencyError: without the library reasoning-gym.
    """
    for number, row in enumerate(make_rows(subset, size=ROWS, seed=data.data_seed), start=1):
        yield Row(row, f"reasoning_gym:{subset}:{number}")


def make_rows(task: str, *, size: int, seed: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """Yield rows of a task: `messages` with the question, `solution`, and `reasoning_gym`, from which the scorer makes it again.

    Args:
        task: name in reasoning-gym, such as `chain_sum`.
        size: how many questions.
        seed: the same seed makes the same questions.
        settings: of the task, such as `min_terms`; values must be JSON.

    Raises:
        DataError: for an unknown task or settings that it refuses.
        MissingDependencyError: without the library reasoning-gym.
    """
    recipe = {"task": task, "seed": seed, "size": size, "settings": settings}
    dataset = _dataset(json.dumps(recipe, sort_keys=True))
    for index in range(size):
        entry = dataset[index]
        yield {
            "messages": [{"role": "user", "content": entry["question"]}],
            "solution": entry["answer"],
            "channel": task,
            "reasoning_gym": {**recipe, "index": index},
        }


def reasoning_gym(completions: Sequence[str], *, reasoning_gym: Sequence[Mapping[str, Any] | None], **columns: Any) -> list[float | None]:
    """Return what the task itself gives for each answer, from 0 to 1; None for rows of other data sets.

    The answer is what stands in the last `<answer>`, else the whole completion.

    Args:
        completions: what the model wrote, one text for each sample.
        reasoning_gym: the column that `make_rows` wrote.
        columns: further columns of the rows, not used.
    """
    return [None if made is None else _scored(completion, made) for completion, made in zip(completions, reasoning_gym, strict=True)]


def _scored(completion: str, made: Mapping[str, Any]) -> float:
    recipe = {key: made[key] for key in ("task", "seed", "size", "settings")}
    dataset = _dataset(json.dumps(recipe, sort_keys=True))
    inside = _ANSWER.findall(completion)
    return float(dataset.score_answer((inside[-1] if inside else completion).strip(), dataset[made["index"]]))


@lru_cache(maxsize=64)
def _dataset(recipe: str) -> Any:
    try:
        import reasoning_gym as library  # pyright: ignore[reportMissingImports]  an extra
        from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError("reasoning-gym", needed_for="tasks of reasoning_gym", install="swift-rlhf[reasoning-gym]") from error
    wanted: dict[str, Any] = json.loads(recipe)
    task = wanted["task"]
    if task not in DATASETS:
        near = nearest(task, DATASETS)
        advice = f"did you mean {' or '.join(near)}?" if near else "write --dataset reasoning_gym:TASK, such as reasoning_gym:chain_sum"
        raise DataError(f"reasoning_gym has no task {task!r}", fix=advice)
    try:
        return library.create_dataset(task, seed=wanted["seed"], size=wanted["size"], **wanted["settings"])
    except (TypeError, ValueError, AssertionError) as error:
        raise DataError(f"reasoning_gym task {task!r} refuses its settings: {error}", fix="see the task's configuration class") from error
