"""Files that describe data sets: ms-swift's list for `--custom_dataset_info`, and LLaMA-Factory's `dataset_info.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from swift_core.errors import DataError, NotFoundError
from swift_core.specs import DatasetSpec

_MS_SWIFT = frozenset(
    {
        "ms_dataset_id",
        "hf_dataset_id",
        "dataset_path",
        "dataset_name",
        "subsets",
        "split",
        "columns",
        "messages",
        "tags",
        "help",
        "huge_dataset",
    }
)
_MS_SUBSET = frozenset({"name", "subset", "is_weak_subset"})
# Names that ms-swift's description gives to keys and roles inside turns.
_MS_TURNS = {
    "role_key": "role",
    "content_key": "content",
    "user_role": "user",
    "assistant_role": "assistant",
    "system_role": "system",
    "tool_call_role": "tool_call",
    "tool_response_role": "tool_response",
}
_FACTORY = frozenset(
    {"hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name", "formatting", "ranking", "subset", "split"}
    | {"folder", "num_samples", "columns", "tags"}
)
_FACTORY_SOURCES = ("hf_hub_url", "ms_hub_url", "file_name")
_FACTORY_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "images": "images",
    "videos": "videos",
    "audios": "audios",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "label",
}
_FACTORY_TURNS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool_response",
    "function_tag": "tool_call",
    "system_tag": "system",
    "tool_calls_tag": "tool_calls",
}


def read_dataset_info(path: Path) -> list[DatasetSpec]:
    """Return the data sets that a file describes; their relative paths start at the file's folder.

    Args:
        path: JSON; a list of entries is ms-swift's form, an object of entries by name LLaMA-Factory's.

    Raises:
        NotFoundError: when there is no such file.
        DataError: when it is not JSON, or an entry says something that is not understood.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: there is no such file", fix="give a JSON file that describes data sets")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise DataError(f"it is not valid JSON: {getattr(error, 'msg', error)}", location=where, fix="mend the file") from None
    if isinstance(content, list):
        entries = [(f"entry {number}", entry, _from_ms_swift) for number, entry in enumerate(content, start=1)]
    elif isinstance(content, dict):
        entries = [(str(name), entry, _from_factory) for name, entry in content.items()]
    else:
        raise DataError("it holds neither a list nor an object", location=str(path), fix="write a list of data sets, or an object by name")
    specs = [_spec(path, label, entry, make) for label, entry, make in entries]
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"two entries have the name {twice!r}", location=str(path), fix="give each its own 'dataset_name'")
    return specs


class _Entry:
    """An entry being read: its values, and how to complain about them."""

    def __init__(self, path: Path, label: str, values: Mapping[str, Any], known: frozenset[str]) -> None:
        self.path = path
        self.label = label
        self.values = {key: value for key, value in values.items() if value is not None}
        unknown = sorted(set(self.values) - known)
        if unknown:
            raise self.error(f"has the key {unknown[0]!r}", f"allowed keys: {', '.join(sorted(known))}")

    def error(self, what: str, fix: str) -> DataError:
        return DataError(f"{self.label!r} {what}", location=str(self.path), fix=fix)

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise self.error(f"has {key!r} {value!r}, not a text", f"write {key!r} as a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        items: list[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else [None]
        if not all(isinstance(item, str) for item in items):
            raise self.error(f"has {key!r} {value!r}, not a list of texts", f"write {key!r} as a list of texts")
        return tuple(cast("list[str]", items))

    def names(self, key: str) -> dict[str, str]:
        value = self.values.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values() if item is not None):
            raise self.error(f"has {key!r} {value!r}, not an object of texts", f"write {key!r} as an object of texts")
        return {str(name): item for name, item in value.items() if item is not None}

    def known_names(self, key: str, known: Mapping[str, str]) -> dict[str, str]:
        """Return their name -> ours of an object that is written the other way round."""
        given = self.names(key)
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise self.error(f"has {unknown[0]!r} among its {key!r}", f"allowed: {', '.join(known)}")
        return {theirs: known[name] for name, theirs in given.items()}

    def local(self, key: str) -> str:
        written = self.text(key)
        beside = self.path.parent / Path(written).expanduser()
        return str(beside) if written and (beside.exists() or key == "file_name") else written


def _spec(path: Path, label: str, entry: Any, make: Callable[[Path, str, dict[str, Any]], DatasetSpec]) -> DatasetSpec:
    if not isinstance(entry, dict):
        raise DataError(f"{label!r} is not an object", location=str(path), fix="describe each data set by an object")
    return make(path, label, cast("dict[str, Any]", entry))


def _from_ms_swift(path: Path, label: str, values: dict[str, Any]) -> DatasetSpec:
    entry = _Entry(path, label, values, _MS_SWIFT)
    ms_id, hf_id, local = entry.text("ms_dataset_id"), entry.text("hf_dataset_id"), entry.local("dataset_path")
    if not (ms_id or hf_id or local):
        raise entry.error("has no source", "give 'ms_dataset_id', 'hf_dataset_id' or 'dataset_path'")
    subsets, on_hub, weak = _ms_subsets(entry)
    return DatasetSpec(
        name=entry.text("dataset_name") or (ms_id or hf_id).rpartition("/")[2] or Path(local).stem,
        summary=entry.text("help"),
        ms_id=ms_id,
        hf_id=hf_id,
        path=local,
        subsets=subsets,
        hub_subsets=on_hub,
        weak_subsets=weak,
        split=entry.texts("split") or ("train",),
        columns=entry.names("columns"),
        turn_names=_differing(entry.known_names("messages", _MS_TURNS)),
        tags=entry.texts("tags"),
    )


def _ms_subsets(entry: _Entry) -> tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]:
    names: list[str] = []
    on_hub: dict[str, str] = {}
    weak: list[str] = []
    for subset in entry.values.get("subsets", []):
        if isinstance(subset, str):
            names.append(subset)
            continue
        if not isinstance(subset, dict) or not isinstance(subset.get("subset", subset.get("name")), str):
            raise entry.error(f"has the subset {subset!r}", "write a subset as its name")
        odd = sorted(set(cast("dict[str, Any]", subset)) - _MS_SUBSET)
        if odd:
            raise entry.error(f"has a subset with {odd[0]!r} of its own", "describe that subset as a data set of its own")
        name = str(subset.get("name") or subset["subset"])
        names.append(name)
        if subset.get("subset") and subset["subset"] != name:
            on_hub[name] = subset["subset"]
        if subset.get("is_weak_subset"):
            weak.append(name)
    return tuple(names), on_hub, tuple(weak)


def _from_factory(path: Path, label: str, values: dict[str, Any]) -> DatasetSpec:
    entry = _Entry(path, label, values, _FACTORY)
    formatting = entry.text("formatting") or "alpaca"
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise entry.error(f"has the formatting {formatting!r}", "write alpaca, sharegpt or openai")
    hf_id, ms_id = entry.text("hf_hub_url"), entry.text("ms_hub_url")
    on_hub = bool(hf_id or ms_id)
    return DatasetSpec(
        name=label,
        summary="preference pairs" if values.get("ranking") else "",
        hf_id=hf_id,
        ms_id=ms_id,
        path="" if on_hub else entry.local("file_name"),
        obstacle=_obstacle(entry),
        subsets=entry.texts("subset"),
        split=entry.texts("split") or ("train",),
        columns=_factory_columns(entry, formatting),
        turn_names=_differing(entry.known_names("tags", _FACTORY_TURNS)),
        task="rlhf" if values.get("ranking") else "",
    )


def _obstacle(entry: _Entry) -> str:
    """Return what keeps a data set from being read, which matters only to those who ask for it."""
    if not any(entry.values.get(key) for key in _FACTORY_SOURCES):
        given = next((key for key in ("script_url", "cloud_file_name", "om_hub_url") if entry.values.get(key)), None)
        return f"its description has only {given!r}, which is not read" if given else "its description has no 'file_name' and no hub id"
    odd = next((key for key in ("folder", "num_samples") if entry.values.get(key)), None)
    return f"its description has {odd!r}, which is not read: name the files, and write NAME#COUNT for some of the rows" if odd else ""


def _factory_columns(entry: _Entry, formatting: str) -> dict[str, str]:
    given = entry.known_names("columns", _FACTORY_COLUMNS)
    if formatting == "alpaca" and set(given.values()) == {"instruction"}:
        given = dict.fromkeys(given, "text")  # a prompt without an answer is plain text to go on training with
    if given:
        # A description that names columns names all of them: others stay what they are, data beside the sample.
        layout = {"instruction", "input", "output", "history"} if formatting == "alpaca" else {"messages", "conversations"}
        unnamed = (layout | {"system", "tools"}) - set(given)
        given |= {name: f"_{name}" for name in sorted(unnamed)}
    return _differing(given)


def _differing(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for theirs, ours in names.items() if theirs != ours}
