"""Checkpoints that are whole or absent: written aside, hashed, renamed; read only after the hashes agree."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swift_core.errors import CheckpointError

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
_FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_ASIDE = ".writing-"
_DISCARDED = ".discarded-"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A checkpoint that cannot be used, and why."""

    folder: Path
    reason: str


def step_of(folder: Path) -> int:
    """Return the optimizer step in a checkpoint folder's name, or -1."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def write_checkpoint(run_dir: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write `checkpoint-<step>` so that it appears complete or not at all.

    Args:
        run_dir: folder of the run.
        step: optimizer step.
        write: puts all files into the folder it is given.

    Returns:
        the folder.

    Raises:
        CheckpointError: when a file cannot be written, such as on a full disk; older checkpoints stay as they are.
    """
    aside = run_dir / f"{_ASIDE}{PREFIX}{step}"
    target = run_dir / f"{PREFIX}{step}"
    try:
        _remove(aside)
        aside.mkdir(parents=True)
        write(aside)
        seal(aside)
        if target.exists():
            _set_aside(target)
        aside.rename(target)
        _sync(run_dir)
    except Exception as error:
        _remove(aside)
        if not is_disk_error(error):
            raise
        raise CheckpointError(
            f"checkpoint {target} could not be written: {error}", fix="free some space, then resume from the checkpoint before it"
        ) from error
    clean(run_dir)
    return target


def is_disk_error(error: Exception) -> bool:
    """Say whether a file could not be written; safetensors, tokenizers and torch have errors of their own for it."""
    return isinstance(error, OSError) or any(part in str(error) for part in ("os error", "inline_container.cc"))


def seal(folder: Path) -> None:
    """Flush every file of a folder to disk and write the manifest with sizes and SHA-256 hashes last."""
    files: dict[str, dict[str, int | str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
            _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": _FORMAT, "files": files}, indent=2), encoding="utf-8")
    _sync(manifest)
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync(path)


def why_invalid(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file is there as it was written."""
    manifest = folder / MANIFEST
    if not folder.is_dir():
        return "is not a folder"
    if not manifest.is_file():
        return f"has no {MANIFEST}: it was not written to the end"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        form, files = content["format"], {name: (values["size"], values["sha256"]) for name, values in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{MANIFEST} is damaged: {type(error).__name__}: {error}"
    if form != _FORMAT:
        return f"{MANIFEST} has the format {form!r}, not {_FORMAT}"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _digest(path) != digest:
            return f"{name} differs from what was written"
    return None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first, without looking inside."""
    if not run_dir.is_dir():
        return []
    return sorted((path for path in run_dir.iterdir() if step_of(path) >= 0 and path.is_dir()), key=step_of)


def newest_valid(run_dir: Path) -> tuple[Path | None, list[Rejected]]:
    """Return the newest checkpoint that can be used, and the newer ones that were passed over with the reason."""
    rejected: list[Rejected] = []
    for folder in reversed(list_checkpoints(run_dir)):
        reason = why_invalid(folder)
        if reason is None:
            return folder, rejected
        rejected.append(Rejected(folder, reason))
    return None, rejected


def rotate(run_dir: Path, *, keep: int | None, best: Path | None) -> list[Path]:
    """Delete checkpoints beyond the newest `keep`; the best one stays and is not counted.

    Returns:
        the folders deleted.
    """
    if keep is None:
        return []
    others = [folder for folder in list_checkpoints(run_dir) if best is None or folder.name != best.name]
    surplus = others[: max(0, len(others) - keep)]
    for folder in surplus:
        _remove(_set_aside(folder))
    return surplus


def short_of_room(folder: Path) -> str | None:
    """Return a warning when the disk has no room for another checkpoint like this one, or None."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if free >= size:
        return None
    return (
        f"a checkpoint takes {size / 2**30:.2f} GiB and the disk has {free / 2**30:.2f} left: the next save will fail unless space is freed"
    )


def clean(run_dir: Path) -> None:
    """Remove what an interrupted save or deletion left behind."""
    if run_dir.is_dir():
        for path in run_dir.iterdir():
            if path.name.startswith((_ASIDE, _DISCARDED)):
                _remove(path)


def _set_aside(folder: Path) -> Path:
    # Deleting takes many steps; renaming takes one, so no half-deleted checkpoint ever bears a valid name.
    hidden = folder.with_name(f"{_DISCARDED}{folder.name}")
    _remove(hidden)
    folder.rename(hidden)
    return hidden


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
