"""Hugging Face, or a mirror of it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
from huggingface_hub import HfApi, constants, snapshot_download  # pyright: ignore[reportUnknownVariableType]  (its annotations are partial)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from swift_core.errors import HubError, NotFoundError
from swift_core.hub.remote import RETRIED, SKIPPED_IN_MODELS, Wanted, one_line

logger = logging.getLogger(__name__)
T = TypeVar("T")

_WAITS = (1.0, 3.0)
_LONGEST_WAIT = 60.0


class HuggingFaceHub:
    """Fetches whole repositories into the cache that other Hugging Face libraries use as well (`HF_HOME`).

    Args:
        wait: called with the seconds to wait before a request is tried again.
    """

    name = "hf"

    def __init__(self, wait: Callable[[float], None] = time.sleep) -> None:
        self._wait = wait

    def fetch(self, repo_id: str, *, kind: Literal["model", "dataset"], revision: str | None, offline: bool, token: str | None) -> Path:
        """Return the local folder of a repository, downloading what is missing.

        Models come without pickles and without copies of the weights for other programs.

        Raises:
            OfflineError: when it is not complete on this machine and connections are off.
            NotFoundError: when there is no such repository or revision, or a model has no safetensors weights.
            HubError: when the hub refuses or cannot be reached.
        """
        endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        wanted = Wanted("hf", "Hugging Face", repo_id, kind, revision, "HF_TOKEN", page)
        if offline:
            local = self._local(wanted)
            if local is None:
                raise wanted.offline()
            return local
        api = HfApi(endpoint=endpoint, token=token)
        try:
            info: Any = self._retrying(lambda: api.repo_info(repo_id, repo_type=kind, revision=revision))
        except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
            problem = _translate(error, wanted, endpoint)
            local = self._local(wanted) if _temporary(error) else None
            if local is None:
                raise problem from error
            logger.warning("%s; using the copy on this machine: %s", problem.message, local)
            return local
        if kind == "model":
            _check_weights([sibling.rfilename for sibling in info.siblings or ()], wanted)
        try:
            with _bars():
                folder = self._retrying(
                    lambda: snapshot_download(
                        repo_id,
                        repo_type=kind,
                        revision=revision,
                        cache_dir=_cache_dir(),
                        endpoint=endpoint,
                        token=token,
                        ignore_patterns=_skipped(kind),
                    ),
                    # Cut files are resumed by the library itself, five times each.
                    only_answers=True,
                )
        except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
            raise _translate(error, wanted, endpoint) from error
        return Path(folder)

    def upload(self, folder: Path, repo_id: str, *, private: bool, token: str | None, message: str) -> str:
        """Put the files of a folder into a model repository in one commit, making the repository where needed; return its address.

        Raises:
            HubError: when the hub refuses or cannot be reached.
        """
        endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        page = f"{endpoint}/{repo_id}"
        wanted = Wanted("hf", "Hugging Face", repo_id, "model", None, "HF_TOKEN", page)
        api = HfApi(endpoint=endpoint, token=token)
        try:
            with _bars():
                self._retrying(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
                self._retrying(lambda: api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
        except HfHubHTTPError as error:
            raise wanted.unwritable(error.response.status_code) from error
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise wanted.unreachable(endpoint, one_line(error)) from error
        return page

    def _local(self, wanted: Wanted) -> Path | None:
        """Return the complete copy in the cache, opening no connection."""
        try:
            folder = snapshot_download(
                wanted.repo_id,
                repo_type=wanted.kind,
                revision=wanted.revision,
                cache_dir=_cache_dir(),
                local_files_only=True,
                ignore_patterns=_skipped(wanted.kind),
            )
        except LocalEntryNotFoundError:
            return None
        return Path(folder)

    def _retrying(self, call: Callable[[], T], *, only_answers: bool = False) -> T:
        for pause in _WAITS:
            try:
                return call()
            except (HfHubHTTPError, httpx.HTTPError) as error:
                if not _temporary(error) or (only_answers and not isinstance(error, HfHubHTTPError)):
                    raise
                self._wait(_asked_wait(error) or pause)
        return call()


def _cache_dir() -> str:
    # Read at call time: the library reads its environment once, at import.
    return os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE


def _skipped(kind: Literal["model", "dataset"]) -> list[str] | None:
    return list(SKIPPED_IN_MODELS) if kind == "model" else None


def _check_weights(names: Sequence[str], wanted: Wanted) -> None:
    if any(name.endswith(".safetensors") for name in names):
        return
    for ending in (".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx"):
        found = [name for name in names if name.endswith(ending)]
        if found:
            raise wanted.weightless(f"it has {found[0]}" + (f" and {len(found) - 1} more like it" if len(found) > 1 else ""))


def _temporary(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in RETRIED
    return isinstance(error, httpx.TransportError)


def _asked_wait(error: Exception) -> float | None:
    if not isinstance(error, HfHubHTTPError):
        return None
    asked = error.response.headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_WAIT) if asked.isdigit() else None


def _translate(error: Exception, wanted: Wanted, endpoint: str) -> HubError | NotFoundError:
    if isinstance(error, GatedRepoError):
        return wanted.refused(403)
    if isinstance(error, RevisionNotFoundError):
        return wanted.absent_revision()
    if isinstance(error, RepositoryNotFoundError):
        return wanted.absent()
    if isinstance(error, HfHubHTTPError):
        return wanted.refused(error.response.status_code)
    return wanted.unreachable(endpoint, one_line(error))


@contextmanager
def _bars() -> Generator[None]:
    """Show progress bars on a terminal only."""
    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
