"""The folder of a run: its name, its lock, and finding one to resume."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from swift_core.config.sections import CheckpointSection
from swift_core.errors import CheckpointError
from swift_core.train.checkpoint import list_checkpoints, newest_valid, step_of, why_invalid

LOCK = "run.lock"


def new_run_dir(section: CheckpointSection) -> Path:
    """Return the folder of a new run: `output_dir/v<N>-<time>`, or `output_dir` itself without `--add_version`.

    Raises:
        CheckpointError: when that folder already holds checkpoints of another run.
    """
    base = Path(section.output_dir or "output").expanduser().absolute()
    if section.add_version:
        numbers = [_version(path) for path in base.iterdir()] if base.is_dir() else []
        return base / f"v{max(numbers, default=-1) + 1}-{time.strftime('%Y%m%d-%H%M%S')}"
    if list_checkpoints(base):
        raise CheckpointError(
            f"{base} already holds checkpoints of another run",
            fix=f"--resume_from_checkpoint {base}, another --output_dir, or --add_version true",
        )
    return base


def _version(path: Path) -> int:
    number = path.name[1:].partition("-")[0]
    return int(number) if path.name.startswith("v") and number.isdigit() else -1


def find_resume_checkpoint(section: CheckpointSection) -> tuple[Path, list[str]]:
    """Return the checkpoint that `--resume_from_checkpoint` means, and remarks on checkpoints that were passed over.

    Raises:
        CheckpointError: when there is none, or the one that was named is damaged.
    """
    wanted = section.resume_from_checkpoint or ""
    folder = _newest_run(section) if wanted.lower() == "true" else Path(wanted).expanduser().absolute()
    if step_of(folder) >= 0:
        return _checked(folder), []
    found, rejected = newest_valid(folder)
    remarks = [f"{item.folder.name} is passed over: {item.reason}" for item in rejected]
    if found is None:
        why = "; ".join(remarks) if remarks else ("the folder does not exist" if not folder.is_dir() else "it holds no checkpoint-N folder")
        raise CheckpointError(f"nothing to resume in {folder}: {why}", fix="give a run folder or a checkpoint-N folder, or start anew")
    return found, remarks


def _checked(folder: Path) -> Path:
    reason = why_invalid(folder)
    if reason is None:
        return folder
    other, _ = newest_valid(folder.parent)
    fix = f"--resume_from_checkpoint {other}" if other else "start anew"
    raise CheckpointError(f"{folder} cannot be resumed: {reason}", fix=fix)


def _newest_run(section: CheckpointSection) -> Path:
    base = Path(section.output_dir or "output").expanduser().absolute()
    runs = [path for path in [base, *(base.iterdir() if base.is_dir() else [])] if list_checkpoints(path)]
    if not runs:
        raise CheckpointError(f"no run with a checkpoint in {base}", fix="give --output_dir, or the run folder to --resume_from_checkpoint")
    return max(runs, key=lambda path: max(checkpoint.stat().st_mtime for checkpoint in list_checkpoints(path)))


class RunLock:
    """Keeps two runs out of one folder. The lock of a process that is gone is taken over."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK

    def __enter__(self) -> RunLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        for _ in range(2):
            try:
                handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._refuse_if_alive()
                self._path.unlink(missing_ok=True)
                continue
            with os.fdopen(handle, "w") as file:
                file.write(content)
            return self
        raise CheckpointError(f"{self._path} is taken by another run", fix="choose another --output_dir")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._path.unlink(missing_ok=True)

    def _refuse_if_alive(self) -> None:
        try:
            owner = json.loads(self._path.read_text(encoding="utf-8"))
            pid, host = int(owner["pid"]), str(owner["host"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, FileNotFoundError):
            return  # written halfway by a process that died, or just removed
        if host == socket.gethostname() and (pid == os.getpid() or not _alive(pid)):
            return
        raise CheckpointError(
            f"{self._path.parent} is in use by process {pid} on {host}",
            fix=f"choose another --output_dir, or delete {self._path} if that run is gone",
        )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
