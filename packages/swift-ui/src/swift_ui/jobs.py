"""Jobs: child processes of `swift <command> FILE`, remembered in SQLite so that a reload or a restart of the server loses none."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from swift_core.errors import LaunchError

Status = Literal["running", "stopping", "done", "failed", "stopped", "lost"]
ACTIVE: tuple[Status, ...] = ("running", "stopping")

CONFIG_FILE, SECRETS_FILE, LOG_FILE, EXIT_FILE, RUN_FOLDER = "run.yaml", "secrets.yaml", "log.txt", "exit.json", "run"

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    command TEXT NOT NULL,
    folder TEXT NOT NULL,
    pid INTEGER NOT NULL,
    identity TEXT NOT NULL,
    status TEXT NOT NULL,
    exit_code INTEGER,
    created REAL NOT NULL,
    ended REAL
)
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One started command.

    Attributes:
        id: number, counted up.
        name: what the person called it.
        command: word after `swift`.
        folder: holds the config file, the log, and the run in `run/`.
        pid: process id.
        identity: start of that process as the system tells it, so that a reused pid is never taken for it.
        status: `lost` means that it ended without leaving an exit code, as after `kill -9` or a power cut.
        exit_code: of the command, once it ended.
        created: seconds since the epoch.
        ended: the same, once it ended.
    """

    id: int
    name: str
    command: str
    folder: Path
    pid: int
    identity: str
    status: Status
    exit_code: int | None
    created: float
    ended: float | None

    @property
    def run_folder(self) -> Path:
        """Return the output folder of the command."""
        return self.folder / RUN_FOLDER

    @property
    def log_file(self) -> Path:
        """Return the file with everything the command printed."""
        return self.folder / LOG_FILE


class JobManager:
    """Starts, stops and lists the jobs of one workspace.

    Args:
        workspace: folder of the job list and of every job's folder; created when absent.
    """

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace.expanduser().resolve()
        (self.workspace / "jobs").mkdir(parents=True, exist_ok=True)
        self._database = self.workspace / "jobs.sqlite"
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        with self._connect() as connection:
            connection.execute(SCHEMA)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._database, timeout=10)
        connection.row_factory = sqlite3.Row
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def start(self, command: str, settings: Mapping[str, Any], *, name: str = "", secrets: Mapping[str, Any] | None = None) -> Job:
        """Write the settings to a file and start `swift <command> FILE`.

        Secrets go to a file of their own that only this user can read and that is deleted when the job ends.

        Raises:
            LaunchError: when the process cannot be started.
        """
        with self._lock, self._connect() as connection:
            created = time.time()
            row = "INSERT INTO jobs (name, command, folder, pid, identity, status, created) VALUES (?, ?, '', 0, '', 'lost', ?)"
            number = connection.execute(row, (name, command, created)).lastrowid or 0
            folder = _new_folder(self.workspace / "jobs", number)
            words = [command, *_write_files(folder, settings, secrets or {})]
            process = _spawn(folder, words)
            self._children[number] = process
            identity = process_identity(process.pid) or ""
            update = "UPDATE jobs SET folder = ?, pid = ?, identity = ?, status = 'running', name = ? WHERE id = ?"
            connection.execute(update, (str(folder), process.pid, identity, name or f"{command}-{number}", number))
        return self.get(number)

    def stop(self, number: int) -> Job:
        """Ask a job to save and end: SIGTERM to the recorded process, and only if it is still that process."""
        job = self.get(number)
        if job.status in ACTIVE and _is_alive(job):
            with self._connect() as connection:
                connection.execute("UPDATE jobs SET status = 'stopping' WHERE id = ?", (number,))
            os.kill(job.pid, signal.SIGTERM)
        return self.get(number)

    def get(self, number: int) -> Job:
        """Return a job with its present status.

        Raises:
            LaunchError: when there is no such job.
        """
        with self._connect() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise LaunchError(f"there is no job {number}", fix="choose one from the list")
        return self._refresh(_job(row))

    def all(self) -> list[Job]:
        """Return all jobs with their present status, newest first."""
        with self._connect() as connection:
            rows = connection.execute("SELECT * FROM jobs ORDER BY id DESC").fetchall()
        return [self._refresh(_job(row)) for row in rows]

    def _refresh(self, job: Job) -> Job:
        if job.status not in ACTIVE:
            return job
        child = self._children.get(job.id)
        code = child.poll() if child is not None else None  # also collects an ended child
        if code is None and _is_alive(job):
            return job
        recorded = _exit_code(job.folder)
        code = recorded if recorded is not None else code
        status: Status = "lost" if code is None or code < 0 else "done" if code == 0 else "failed"
        if job.status == "stopping" and code in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM):
            status = "stopped"
        (job.folder / SECRETS_FILE).unlink(missing_ok=True)
        with self._connect() as connection:
            update = "UPDATE jobs SET status = ?, exit_code = ?, ended = ? WHERE id = ? AND ended IS NULL"
            connection.execute(update, (status, code, time.time(), job.id))
            row = connection.execute("SELECT * FROM jobs WHERE id = ?", (job.id,)).fetchone()
        return _job(row)


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**{key: row[key] for key in row.keys()}, "folder": Path(row["folder"])})  # noqa: SIM118  a Row iterates over values


def _new_folder(parent: Path, number: int) -> Path:
    # Folders outlive a job list that someone deleted: an old exit code must not be read for a new job.
    names = (f"{number:04d}" + (f"-{again}" if again else "") for again in itertools.count())
    folder = next(parent / name for name in names if not (parent / name).exists())
    folder.mkdir()
    return folder


def _write_files(folder: Path, settings: Mapping[str, Any], secrets: Mapping[str, Any]) -> list[str]:
    managed = {"output_dir": str(folder / RUN_FOLDER), "add_version": False, "disable_tqdm": True}
    config = folder / CONFIG_FILE
    config.write_text(yaml.safe_dump({**settings, **managed}, allow_unicode=True, sort_keys=False), encoding="utf-8")
    if not secrets:
        return [str(config)]
    hidden = folder / SECRETS_FILE
    with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        yaml.safe_dump(dict(secrets), stream, allow_unicode=True)
    return [str(config), str(hidden)]


def _spawn(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    # `swift_ui.child` is `python -m swift_core` that leaves its exit code in a file: it outlives a restart of the server.
    argv = [sys.executable, "-m", "swift_ui.child", str(folder / EXIT_FILE), *words]
    try:
        with (folder / LOG_FILE).open("wb") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
    except OSError as error:
        raise LaunchError(f"the job could not be started: {error}", fix="check the Python installation and the free memory") from error


def _exit_code(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / EXIT_FILE).read_text(encoding="utf-8"))["exit_code"])
    except FileNotFoundError:
        return None


def _is_alive(job: Job) -> bool:
    return bool(job.identity) and process_identity(job.pid) == job.identity


def process_identity(pid: int) -> str | None:
    """Return what tells a process from a later one with the same pid, or None when it does not run (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _identity_by_ps(pid)
    # The name, in brackets, may hold anything; state and start time come behind the last bracket.
    rest = text.rpartition(")")[2].split()
    if rest[0] in ("Z", "X"):
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot}:{rest[19]}"


def _identity_by_ps(pid: int) -> str | None:
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = shown.stdout.strip().partition(" ")
    return started.strip() if state and not state.startswith("Z") else None


def tail(file: Path, *, most_bytes: int = 24_000) -> str:
    """Return the end of a text file, from the beginning of a line, with carriage returns resolved as a terminal would."""
    if not file.is_file():
        return ""
    size = file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(max(0, size - most_bytes))
        text = stream.read().decode("utf-8", errors="replace")
    lines = text.split("\n")[1 if size > most_bytes else 0 :]
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
