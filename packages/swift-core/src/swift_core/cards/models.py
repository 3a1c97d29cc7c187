"""The table of known checkpoints and their families, and finding one by any of its names."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from weakref import WeakKeyDictionary

from swift_core.registry import MODELS, Registry
from swift_core.specs import ModelSpec

_SAME = "="


@dataclass(frozen=True, slots=True)
class Family:
    """What all checkpoints of a model type share.

    Attributes:
        model_type: its name.
        kind: `llm`, `mllm`, `embedding`, `reranker` or `reward`.
        task_type: what it is loaded for when no task is set.
        multimodal: whether it takes images, videos or sound.
        model_arch: name of its module paths in `model_archs.tsv`, or empty.
        architectures: class names as `config.json` gives them.
        templates: prompt formats of its checkpoints, the most frequent first.
        loader, modules: as in `ModelSpec`.
    """

    model_type: str
    kind: str
    task_type: str
    multimodal: bool
    model_arch: str = ""
    architectures: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    loader: str = ""
    modules: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def module_paths(self) -> tuple[ModulePaths, ...]:
        """Return where its parts may be: as registered, else the rows of `model_archs.tsv`."""
        return (ModulePaths(**self.modules),) if self.modules else read_module_paths().get(self.model_arch, ())


@dataclass(frozen=True, slots=True)
class ModulePaths:
    """One row of `model_archs.tsv`: where the parts of an architecture are, as dotted paths.

    An architecture has a row for each layout that transformers gave it over time.
    """

    embedding: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    lm_head: tuple[str, ...] = ()
    language_model: tuple[str, ...] = ()
    aligner: tuple[str, ...] = ()
    vision_tower: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()


def read_models() -> Iterator[ModelSpec]:
    """Yield the specs of the table `models.tsv`, each name once.

    A name is the last part of the id; a later checkpoint of another organisation with the same last part is listed under its
    full id. `=` in the column `ms_id` means the same id as on Hugging Face. What a whole family shares is in
    `model_types.tsv`. `needs` holds what the files, or the Python code that comes with them, ask for; where transformers has
    the architecture itself, upper bounds and media readers that only other loaders need are left out.
    """
    types = {record["model_type"]: record for record in _read("model_types.tsv")}
    for record in _read("models.tsv"):
        yield _spec(record, types[record["model_type"]])


def _read(name: str) -> Iterator[dict[str, str]]:
    lines = files("swift_core.cards").joinpath(name).read_text(encoding="utf-8").splitlines()
    return csv.DictReader(lines, delimiter="\t")


def _spec(record: dict[str, str], shared: dict[str, str]) -> ModelSpec:
    hf_id = record["hf_id"]
    kind, multimodal = shared["kind"], shared["multimodal"] == "1"
    words = {"llm": "text", "mllm": "multimodal"}
    return ModelSpec(
        name=record["name"],
        summary=f"{record['model_type']}, {words.get(kind, kind)}",
        model_type=record["model_type"],
        hf_id=hf_id,
        ms_id=hf_id if record["ms_id"] == _SAME else record["ms_id"],
        template=record["template"],
        architectures=_list(shared["architectures"]),
        kind=kind,
        task_type=shared["task_type"] or "causal_lm",
        multimodal=multimodal,
        model_arch=shared["model_arch"],
        agent_template=record["agent_template"],
        quant=record["quant"],
        needs=_list(record["needs"], ";"),
        tags=_list(record["tags"]),
    )


def _list(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(filter(None, text.split(separator)))


def families() -> dict[str, Family]:
    """Return all model types by name: those of the table first, then those that were registered."""
    found: dict[str, Family] = {}
    counts: dict[str, dict[str, int]] = {}
    for spec in MODELS:
        templates = counts.setdefault(spec.model_type, {})
        templates[spec.template] = templates.get(spec.template, 0) + 1
        if spec.model_type not in found or spec.loader or spec.modules:
            found[spec.model_type] = _family(spec)
    for name, family in found.items():
        ranked = sorted(counts.get(name, {}), key=lambda template: -counts[name][template])
        found[name] = replace(family, templates=tuple(filter(None, ranked)))
    return found


def _family(spec: ModelSpec) -> Family:
    return Family(
        model_type=spec.model_type,
        kind=spec.kind,
        task_type=spec.task_type,
        multimodal=spec.multimodal,
        model_arch=spec.model_arch,
        architectures=spec.architectures,
        loader=spec.loader,
        modules=spec.modules,
    )


@cache
def read_module_paths() -> dict[str, tuple[ModulePaths, ...]]:
    """Return the rows of `model_archs.tsv` by architecture name."""
    found: dict[str, tuple[ModulePaths, ...]] = {}
    for record in _read("model_archs.tsv"):
        name = record.pop("model_arch")
        found[name] = (*found.get(name, ()), ModulePaths(**{key: _list(value) for key, value in record.items()}))
    return found


def find_model(name: str, *, table: Registry[ModelSpec] | None = None) -> ModelSpec | None:
    """Return the known checkpoint of a short name, of an id on either hub, or of the last part of such an id; else None.

    Case is ignored when no name is spelt exactly so.
    """
    table = MODELS if table is None else table
    if name in table:
        return table.get(name)
    wanted = name.strip().lower()
    if not wanted:
        return None
    found = _index(table).get(wanted)
    return table.get(found) if found is not None else None


_indexes: WeakKeyDictionary[Registry[ModelSpec], tuple[int, dict[str, str]]] = WeakKeyDictionary()


def _index(table: Registry[ModelSpec]) -> dict[str, str]:
    """Return lower-case name, id or last part of an id -> name of the entry; built again when entries were added."""
    size, index = _indexes.get(table, (-1, dict[str, str]()))
    if size != len(table.names()):
        index = dict[str, str]()
        specs = list(table)
        for spec in specs:
            index.setdefault(spec.name.lower(), spec.name)
        for spec in specs:
            for repo in filter(None, (spec.hf_id, spec.ms_id)):
                index.setdefault(repo.lower(), spec.name)
        for spec in specs:  # last: the name of one checkpoint wins over the last part of another's id
            for repo in filter(None, (spec.hf_id, spec.ms_id)):
                index.setdefault(repo.lower().rpartition("/")[2], spec.name)
        _indexes[table] = (len(specs), index)
    return index
