"""The folder of a run: its name, its lock, and finding one to resume."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from swift_core.config.load import ARGS_FILE
from swift_core.config.sections import CheckpointSection
from swift_core.config.training import TrainingConfig
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


def write_args(folder: Path, args: TrainingConfig, run_dir: Path) -> None:
    """Write the settings of a run into its folder or a checkpoint, as `--resume_from_checkpoint` and later commands read them."""
    values = {**args.flat(), "command": type(args).command, "swift_version": version("swift-core")}
    values.update(output_dir=str(run_dir), add_version=False, resume_from_checkpoint=None)
    (folder / ARGS_FILE).write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")


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
    """Keeps two runs out of one folder. The lock of a process that is gone is taken over.

    The operating system holds the lock as long as the process lives, so that of two that find the lock of a dead one only
    one gets it; the content says who holds it, also to other machines that share the disk.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK
        self._handle = -1

    def __enter__(self) -> RunLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(self._path, os.O_CREAT | os.O_RDWR)
            try:
                self._take(handle)
            except BaseException:
                os.close(handle)
                raise
            if self._is_current(handle):
                break
            os.close(handle)  # its owner has just removed it; a lock on a file without a name keeps nobody out
        self._handle = handle
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._handle)

    def _take(self, handle: int) -> None:
        owner = _owner(os.pread(handle, 4096, 0))
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise self._in_use(owner) from error
        except OSError:  # a disk without locks: what the file says has to do
            if owner is not None and owner[1] == socket.gethostname() and owner[0] != os.getpid() and _alive(owner[0]):
                raise self._in_use(owner) from None
        if owner is not None and owner[1] != socket.gethostname():
            raise self._in_use(owner)

    def _is_current(self, handle: int) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            return False

    def _in_use(self, owner: tuple[int, str] | None) -> CheckpointError:
        who = f"process {owner[0]} on {owner[1]}" if owner is not None else "another process"
        return CheckpointError(
            f"{self._path.parent} is in use by {who}",
            fix=f"choose another --output_dir, or delete {self._path} if that run is gone",
        )


def _owner(content: bytes) -> tuple[int, str] | None:
    try:
        values = json.loads(content)
        return int(values["pid"]), str(values["host"])
    except (ValueError, KeyError, TypeError):
        return None  # new, or written halfway by a process that died


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
