"""Log-probabilities under the reference model, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from swift_core.hub.cache import cache_root, file_lock
from swift_core.train.parallel import World

from swift_rlhf.preference.layout import AnswerBatch
from swift_rlhf.preference.samples import Answer

_HEAD = 1 << 20
ANSWERS = 8
"""Rows of a forward pass."""


def model_key(folders: Sequence[Path], *facts: Any) -> str:
    """Return a hash of the files that define a model, weights by size, beginning and end, and of further facts."""
    digest = hashlib.sha256(repr(facts).encode())
    for folder in folders:
        for file in sorted(
            path for path in folder.iterdir() if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".gguf")
        ):
            size = file.stat().st_size
            digest.update(f"{file.name}\0{size}\0".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_HEAD))
                stream.seek(max(_HEAD, size - _HEAD))
                digest.update(stream.read(_HEAD))
    return digest.hexdigest()[:32]


def row_key(answer: Answer) -> str:
    """Return a hash of everything that the log-probabilities of a row depend on: tokens, what counts of them, media."""
    digest = hashlib.sha256()
    for part in _parts(answer):
        digest.update(repr((part.input_ids, part.labels)).encode())
        for name, value in sorted((part.model_inputs or {}).items()):
            digest.update(name.encode())
            digest.update(
                value.contiguous().view(torch.uint8).numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
            )
    return digest.hexdigest()[:32]


def _parts(answer: Answer) -> list[Answer]:
    return [*answer.answers, *([answer.unrelated] if answer.unrelated is not None else [])]


def fill_reference(
    rows: Sequence[Answer],
    key: str,
    world: World,
    score: Callable[[Sequence[Answer]], tuple[Sequence[float], Sequence[float]]],
    *,
    say: Callable[[str], None],
) -> None:
    """Set `reference` of all answers, from the file of the key where it has them, else by scoring, and add these to the file.

    A run that stops halfway leaves what it has found.

    Args:
        rows: pairs or judged answers.
        key: of the reference model.
        world: each rank scores a share.
        score: returns the log-probabilities of the answers of some rows, and those of their unrelated answers.
        say: prints a line.
    """
    file = cache_root() / "reference_logps" / f"{key}.jsonl"
    keys = [row_key(row) for row in rows]
    known = _read(file)
    missing = sorted(
        {name: number for number, name in enumerate(keys) if name not in known}.values(), key=lambda number: -len(rows[number])
    )
    mine = missing[world.rank :: world.size]
    for start in range(0, len(mine), ANSWERS):
        chosen = mine[start : start + ANSWERS]
        answers, unrelated = score([rows[number] for number in chosen])
        found = {keys[number]: values for number, values in zip(chosen, _split(rows, chosen, answers, unrelated), strict=True)}
        known.update(found)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(file.with_suffix(".lock")), file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"row": name, "logps": values}) + "\n" for name, values in found.items())
    for part in world.gather({keys[number]: known[keys[number]] for number in mine}):
        known.update(part)
    say(f"reference log-probabilities: {len(rows) - len(missing)} rows from {file}, {len(missing)} computed")
    for row, name in zip(rows, keys, strict=True):
        for answer, value in zip(_parts(row), known[name], strict=True):
            answer.reference = value


def _split(rows: Sequence[Answer], chosen: Sequence[int], answers: Sequence[float], unrelated: Sequence[float]) -> list[list[float]]:
    rest, others = iter(answers), iter(unrelated)
    return [
        [*(next(rest) for _ in rows[number].answers), *([next(others)] if rows[number].unrelated is not None else [])] for number in chosen
    ]


def _read(file: Path) -> dict[str, list[float]]:
    if not file.is_file():
        return {}
    found: dict[str, list[float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # the last line of a run that was stopped while writing
            continue
        found[values["row"]] = values["logps"]
    return found


def scored_rows(batch: AnswerBatch, logps: Callable[[AnswerBatch], torch.Tensor]) -> tuple[list[float], list[float]]:
    """Return the log-probabilities of a batch's answers and of its unrelated answers."""
    return logps(batch).tolist(), [] if batch.unrelated is None else logps(batch.unrelated).tolist()
