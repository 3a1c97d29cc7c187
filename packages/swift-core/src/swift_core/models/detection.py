"""What a model folder holds, found out from its files alone: family, kind, task, prompt format.

The rules, in this order:

1. A model type that the user sets wins; one that is not known is refused.
2. A folder that is called like a known checkpoint, such as `Qwen3-Embedding-0.6B`, is one, if its `config.json` names an
   architecture of that checkpoint's family.
3. The class names in `architectures` lead to a family of `model_types.tsv`. Where they lead to several (34 of 164 names do),
   the traits in `detection_rules.tsv` decide, line by line, and the first line that holds wins. What they look at is what
   fine-tuning does not change: sizes, the chat template, `modules.json`; a folder's name only where nothing else differs. The
   last line for a class always holds and names its most general family.
4. A registered family that shares a class with others and has no such line comes after those of the table.
5. A class that the table does not know makes a family of its own, called as `model_type` in `config.json`: the ending of the
   class says what it is for, `vision_config` and the like that it is multimodal, and the prompt format is the model's own.
   So does a scoring head with several labels, or with a `problem_type`: reward models and rerankers give one bare score.

Nothing here runs code from the folder or imports torch.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, cast

from swift_core.cards.models import Family, families, find_model
from swift_core.errors import ModelError
from swift_core.registry import nearest

TASK_TYPES = ("causal_lm", "seq_cls", "embedding", "reranker", "generative_reranker", "reward", "prm")
# Prompt formats that stand for the absence of one.
_NO_TEMPLATE = frozenset({"", "dummy"})
_MEDIA_CONFIGS = ("vision_config", "audio_config", "visual", "vision_tower", "mm_vision_tower", "thinker_config", "speech_encoder")


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What the files beside `config.json` say.

    Attributes:
        name: last part of the folder's path, or of the id.
        names: files in the folder.
        tokenizer_class: as `tokenizer_config.json` gives it.
        chat_template: the model's own template, or empty.
        tokens: special tokens that `tokenizer_config.json` lists.
        modules: classes in `modules.json` of sentence-transformers, such as `Pooling`.
    """

    name: str = ""
    names: frozenset[str] = frozenset()
    tokenizer_class: str = ""
    chat_template: str = ""
    tokens: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Detected:
    """What a folder holds.

    Attributes:
        model_type: name of the family.
        kind: `llm`, `mllm`, `embedding`, `reranker` or `reward`.
        task_type: what it is loaded for when no task is set.
        template: named prompt format, or empty for the model's own chat template.
        multimodal: whether it takes images, videos or sound.
        known: whether the family is in the table or registered.
        own_template: whether the folder has a chat template of its own.
        quant: how the weights are packed, such as `gptq`, or empty.
        needs: what the checkpoint asks for, as pip takes it.
        reasons: why, in the order in which it was found out.
    """

    model_type: str
    kind: str
    task_type: str
    template: str
    multimodal: bool
    known: bool
    own_template: bool = False
    quant: str = ""
    needs: tuple[str, ...] = ()
    reasons: tuple[str, ...] = field(default=())


def detect(config: Mapping[str, Any], *, files: FolderFacts | None = None, model_type: str | None = None) -> Detected:
    """Return what a model is, by the rules at the top of this module.

    Args:
        config: the content of `config.json`.
        files: what lies beside it.
        model_type: family that the user names.

    Raises:
        ModelError: when the family that the user names is not known, or is text while the folder is multimodal.
    """
    facts = files or FolderFacts()
    names = tuple(str(name) for name in config.get("architectures") or ())
    known = families()
    if model_type:
        return _detected(_chosen(model_type, known, config), config, facts, (f"--model_type {model_type}",))
    named = find_model(facts.name) if facts.name else None
    if named is not None and (not names or set(names) & set(named.architectures) or not named.architectures):
        family = known[named.model_type]
        return _detected(family, config, facts, (f"called like {named.name}",), template=named.template, needs=named.needs)
    candidates = [family for family in known.values() if (set(names) & set(family.architectures) if names else not family.architectures)]
    if _classifies(names, config):
        candidates = [family for family in candidates if family.kind not in ("reward", "reranker")]
    if len(candidates) == 1 and names:
        return _detected(candidates[0], config, facts, (f"architecture {names[0]}",))
    resolved = _resolve(candidates, config, facts)
    if resolved is not None:
        family, reason = resolved
        several = f"architecture {names[0] if names else 'not given'}: {', '.join(family.model_type for family in candidates)}"
        return _detected(family, config, facts, (several, reason))
    unlisted = _unlisted(config, names)
    same = known.get(unlisted.model_type)
    if same is not None and not same.architectures:
        return _detected(same, config, facts, (f"model_type {same.model_type}",))
    return _detected(unlisted, config, facts, (f"architecture {', '.join(names) or 'not given'} is not listed",))


def detect_folder(folder: Path, *, model_type: str | None = None) -> Detected:
    """Return what a local folder holds.

    Raises:
        ModelError: when it has no readable `config.json`, or the family that the user names is not known.
    """
    from swift_core.models.folder import read_json

    return detect(read_json(folder / "config.json"), files=read_facts(folder), model_type=model_type)


def read_facts(folder: Path) -> FolderFacts:
    """Return what the files beside `config.json` say; files that are absent or damaged say nothing."""
    names = frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset[str]()
    tokenizer = _json(folder / "tokenizer_config.json")
    own = folder / "chat_template.jinja"
    template = own.read_text("utf-8", errors="replace") if own.is_file() else tokenizer.get("chat_template")
    if not template:
        template = _json(folder / "chat_template.json").get("chat_template")
    tokens = cast(dict[str, Any], tokenizer.get("added_tokens_decoder") or {})
    modules = _json_list(folder / "modules.json")
    return FolderFacts(
        name=_plain_name(folder),
        names=names,
        tokenizer_class=str(tokenizer.get("tokenizer_class") or ""),
        chat_template=template if isinstance(template, str) else json.dumps(template or ""),
        tokens=frozenset(str(entry.get("content", "")) for entry in tokens.values()),
        modules=tuple(str(entry.get("type", "")).rpartition(".")[2] for entry in modules),
    )


def _plain_name(folder: Path) -> str:
    """Return the model's name: hubs keep it in the path, `models--ORG--NAME/snapshots/HASH` or `ORG/NAME`."""
    for part in folder.resolve().parts[::-1]:
        if part.startswith("models--"):
            return part.rpartition("--")[2]
    return folder.resolve().name.replace("___", ".")  # ModelScope writes dots so


def _json(file: Path) -> dict[str, Any]:
    found = _loads(file)
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _json_list(file: Path) -> list[dict[str, Any]]:
    found = _loads(file)
    return cast(list[dict[str, Any]], found) if isinstance(found, list) else []


def _loads(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # whoever needs the file says what is wrong with it


def _chosen(model_type: str, known: Mapping[str, Family], config: Mapping[str, Any]) -> Family:
    family = known.get(model_type)
    if family is None:
        near = nearest(model_type, known)
        raise ModelError(
            f"--model_type {model_type!r} is not known",
            fix=(f"did you mean {' or '.join(near)}? Else " if near else "")
            + "see `swift list models`, or leave it out: any model that transformers loads works",
        )
    names = {str(name) for name in config.get("architectures") or ()}
    if names and family.architectures and not names & set(family.architectures):
        raise ModelError(
            f"--model_type {model_type!r} has the architecture {' or '.join(family.architectures)}, not {', '.join(names)} of config.json",
            fix="leave --model_type out",
        )
    return family


@dataclass(frozen=True, slots=True)
class _Rule:
    architecture: str
    model_type: str
    trait: str
    pattern: str
    reason: str


@cache
def _rules() -> tuple[_Rule, ...]:
    lines = resources("swift_core.cards").joinpath("detection_rules.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(_Rule(**record) for record in csv.DictReader(lines, delimiter="\t"))


def _resolve(candidates: list[Family], config: Mapping[str, Any], facts: FolderFacts) -> tuple[Family, str] | None:
    by_name = {family.model_type: family for family in candidates}
    names = {str(name) for name in config.get("architectures") or ()} or {""}
    for rule in _rules():
        if rule.architecture in names and rule.model_type in by_name and _holds(rule, config, facts):
            return by_name[rule.model_type], rule.reason
    if not candidates or names == {""}:
        return None
    return candidates[0], f"no rule tells them apart: {candidates[0].model_type} comes first"


def _holds(rule: _Rule, config: Mapping[str, Any], facts: FolderFacts) -> bool:
    """Say whether the text of a trait matches the rule's expression."""
    if rule.trait.startswith("config."):
        value: Any = config
        for key in rule.trait.removeprefix("config.").split("."):
            value = cast(Mapping[str, Any], value).get(key) if isinstance(value, Mapping) else None
        text = "" if value is None else str(value)
    else:
        found = getattr(facts, rule.trait)
        text = found if isinstance(found, str) else "\n".join(sorted(found))
    return re.search(rule.pattern, text, re.IGNORECASE | re.MULTILINE) is not None


def _unlisted(config: Mapping[str, Any], names: tuple[str, ...]) -> Family:
    multimodal = any(config.get(key) for key in _MEDIA_CONFIGS)
    task = _task_of(names, config)
    kinds = {"embedding": "embedding", "reranker": "reranker", "reward": "reward", "prm": "reward"}
    kind = kinds.get(task) or ("mllm" if multimodal else "llm")
    return Family(str(config.get("model_type") or "unknown"), kind, task, multimodal, architectures=names)


def _classifies(names: tuple[str, ...], config: Mapping[str, Any]) -> bool:
    """Say whether a scoring head gives classes, or a number of a named kind: reward models and rerankers give one bare score."""
    labels = cast(dict[str, Any], config.get("id2label") or {})
    count = len(labels) or int(config.get("num_labels") or 2)
    return any(name.endswith("ForSequenceClassification") for name in names) and (count != 1 or bool(config.get("problem_type")))


def _task_of(names: tuple[str, ...], config: Mapping[str, Any]) -> str:
    """Return the task that the ending of a class name tells."""
    name = names[0] if names else ""
    if name.endswith("ForSequenceClassification"):
        return "seq_cls"
    if name.endswith("ForRewardModel"):
        return "reward"
    if name.endswith("ForProcessRewardModel"):
        return "prm"
    auto_map = cast(dict[str, Any], config.get("auto_map") or {})
    headless = name.endswith("Model") and not any("ForCausalLM" in key for key in auto_map)
    return "embedding" if headless or name.endswith("ForMaskedLM") else "causal_lm"


def _detected(
    family: Family,
    config: Mapping[str, Any],
    facts: FolderFacts,
    reasons: tuple[str, ...],
    *,
    template: str | None = None,
    needs: tuple[str, ...] = (),
) -> Detected:
    task = family.task_type
    if "Pooling" in facts.modules and task not in ("embedding", "reranker"):
        task, reasons = "embedding", (*reasons, "modules.json of sentence-transformers: embedding")
    own = bool(facts.chat_template.strip('" \n'))
    if template is None and len(family.templates) == 1:
        template = family.templates[0]
    elif template is None and family.templates and not own:
        reasons = (*reasons, f"no chat template, and checkpoints of {family.model_type} differ: {', '.join(family.templates)}")
    # A chat template in the folder is what the model was trained with, whatever its family is.
    chosen = "" if own or template is None or template in _NO_TEMPLATE else template
    quantisation = cast(dict[str, Any], config.get("quantization_config") or {})
    return Detected(
        model_type=family.model_type,
        kind=family.kind,
        task_type=task,
        template=chosen,
        multimodal=family.multimodal,
        known=family.model_type in families(),
        own_template=own,
        quant=str(quantisation.get("quant_method") or ""),
        needs=needs,
        reasons=reasons,
    )
