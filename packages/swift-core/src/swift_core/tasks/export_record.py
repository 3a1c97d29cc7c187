"""The record of an export that has not come to its end, so that the same command goes on after the last finished action."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swift_core.config.export import ExportConfig
from swift_core.errors import CheckpointError
from swift_core.hub.local import existing_path
from swift_core.tasks.export_context import ExportResult
from swift_core.train.checkpoint import why_invalid

# Settings that change nothing about what is written.
_IRRELEVANT = ("exist_ok", "hub_token", "offline", "push_to_hub", "hub_model_id", "hub_private_repo", "commit_message")


@dataclass(slots=True)
class Record:
    """Finished actions of one plan.

    Attributes:
        file: where the record lies, beside the results.
        settings: the settings and the state of the input files.
        done: action -> folder and result.
    """

    file: Path
    settings: dict[str, Any]
    done: dict[str, tuple[Path, ExportResult]] = field(default_factory=dict[str, tuple[Path, ExportResult]])

    def finished(self, action: str) -> tuple[Path, ExportResult] | None:
        """Return folder and result of an action that was finished by an earlier run and is still as it was written."""
        found = self.done.get(action)
        return found if found is not None and why_invalid(found[0]) is None else None

    def add(self, action: str, folder: Path, result: ExportResult) -> None:
        """Note that an action is finished; the file is replaced in one step."""
        self.done[action] = (folder, result)
        done = {name: {"folder": str(path), "result": asdict(outcome)} for name, (path, outcome) in self.done.items()}
        text = json.dumps({"settings": self.settings, "done": done}, ensure_ascii=False, indent=2)
        partial = self.file.with_name(self.file.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self.file)

    def close(self) -> None:
        """Remove the record: the plan is finished."""
        self.file.unlink(missing_ok=True)


def open_record(root: Path, config: ExportConfig, inputs: list[Path]) -> Record:
    """Return the record of a plan that writes to `root`, with what an earlier run of the same command finished.

    Raises:
        CheckpointError: when an unfinished plan with other settings lies there and `--exist_ok` is not given.
    """
    file = root.with_name(f".{root.name}.export.json")
    record = Record(file, {"given": _settings(config), "inputs": [_state(path) for path in inputs]})
    if not file.is_file():
        return record
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        done = {name: (Path(entry["folder"]), ExportResult(**entry["result"])) for name, entry in saved["done"].items()}
        differing = _differences(saved["settings"], record.settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}", fix="delete it to start anew") from error
    if not differing:
        record.done = done
    elif not config.export.exist_ok:
        raise CheckpointError(
            f"an unfinished export to {str(root)!r} had other settings: {', '.join(differing)}",
            fix="run that command again to finish it, start anew with --exist_ok true, or choose another --output_dir",
        )
    return record


def _settings(config: ExportConfig) -> dict[str, Any]:
    return json.loads(json.dumps({name: value for name, value in config.flat().items() if name not in _IRRELEVANT}, default=str))


def _state(path: Path) -> list[list[Any]]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return [[file.name, (status := file.stat()).st_size, status.st_mtime_ns] for file in files if file.is_file()]


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    before, after = saved["given"], now["given"]
    names = [f"--{name}" for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return names or (["the input files"] if saved["inputs"] != now["inputs"] else [])


def inputs_of(config: ExportConfig) -> list[Path]:
    """Return the local files and folders that an export reads."""
    named = [config.loading.model or "", *config.loading.adapters, *(text.split("#")[0] for text in config.data.dataset)]
    return [path for name in named if (path := existing_path(name)) is not None]
