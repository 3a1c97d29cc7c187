"""The folder that hubs keep their files in, and folders that are either complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from swift_core.errors import HubError

_TRUE = frozenset({"1", "true", "yes", "on"})


def env_flag(*names: str) -> bool:
    """Return whether one of these environment variables is switched on."""
    return any(os.environ.get(name, "").strip().lower() in _TRUE for name in names)


def cache_root() -> Path:
    """Return the cache folder: `SWIFT_CACHE`, or `~/.cache/swift`."""
    given = os.environ.get("SWIFT_CACHE")
    return Path(given).expanduser().resolve() if given else Path.home() / ".cache" / "swift"


@contextmanager
def file_lock(path: Path) -> Generator[None]:
    """Hold an exclusive lock between processes; the system frees it when the holder dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+b")
    except OSError as error:
        raise HubError(
            f"cannot write to the cache folder {str(path.parent)!r}: {error.strerror or error}",
            fix="set SWIFT_CACHE to a folder that can be written",
        ) from error
    with handle:
        if os.name == "nt":
            import msvcrt

            # LK_LOCK gives up after ten seconds; a conversion can take minutes.
            while True:
                try:
                    handle.seek(0)
                    msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined, unused-ignore]
                    break
                except OSError:
                    continue
        else:
            import fcntl

            fcntl.flock(handle.fileno(), fcntl.LOCK_EX)
        yield


def build_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `build` when it is not there yet.

    `build` gets an empty folder beside it, which is renamed once all its files are on the disk: a crash, a full disk or a
    second process at the same time never leaves a half-made `folder`.

    Raises:
        HubError: when the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    with partial_folder(folder) as partial:
        if not folder.is_dir():
            build(partial)
            publish(partial, folder)
    return folder


@contextmanager
def partial_folder(folder: Path) -> Generator[Path]:
    """Give an empty folder beside `folder` to one process at a time, and remove it afterwards unless it was published."""
    with file_lock(folder.with_name(f".{folder.name}.lock")):
        # The lock is held, so a folder of this name is what a killed process left behind.
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, folder: Path) -> None:
    """Put the files of a partial folder on the disk, then give it its name."""
    _sync(partial)
    partial.rename(folder)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as handle:
                os.fsync(handle.fileno())
