"""The table of known checkpoints, and finding one by any of its names."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib.resources import files

from swift_core.registry import MODELS
from swift_core.specs import ModelSpec

_SAME = "="


def read_models() -> Iterator[ModelSpec]:
    """Yield the specs of the table `models.tsv`, each name once.

    A name is the last part of the id; a later checkpoint of another organisation with the same last part is listed under its
    full id. `=` in the column `ms_id` means the same id as on Hugging Face.
    """
    lines = files("swift_core.cards").joinpath("models.tsv").read_text(encoding="utf-8").splitlines()
    yield from map(_spec, csv.DictReader(lines, delimiter="\t"))


def _spec(record: dict[str, str]) -> ModelSpec:
    hf_id = record["hf_id"]
    kinds = {"llm": "text", "mllm": "multimodal"}
    return ModelSpec(
        name=record["name"],
        summary=f"{record['model_type']}, {kinds.get(record['kind'], record['kind'])}",
        model_type=record["model_type"],
        hf_id=hf_id,
        ms_id=hf_id if record["ms_id"] == _SAME else record["ms_id"],
        template=record["template"],
        architectures=tuple(filter(None, record["architectures"].split(","))),
        kind=record["kind"],
        task_type=record["task_type"],
    )


def find_model(name: str) -> ModelSpec | None:
    """Return the known checkpoint of a short name or of an id on either hub; None when there is none.

    Case is ignored when no name is spelt exactly so.
    """
    if name in MODELS:
        return MODELS.get(name)
    if not name.strip():
        return None
    wanted = name.lower()
    specs = list(MODELS)
    by_id = (spec for spec in specs if wanted in (spec.name.lower(), spec.hf_id.lower(), spec.ms_id.lower()))
    by_tail = (spec for spec in specs if "/" not in name and wanted == spec.hf_id.lower().rpartition("/")[2])
    return next(by_id, None) or next(by_tail, None)
