"""ModelScope, or a mirror of it."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import requests
from modelscope.hub.api import HubApi  # pyright: ignore[reportMissingTypeStubs]
from modelscope.hub.snapshot_download import (  # pyright: ignore[reportMissingTypeStubs]
    dataset_snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    snapshot_download,  # pyright: ignore[reportUnknownVariableType]
)

from swift_core.errors import HubError, NotFoundError
from swift_core.hub.cache import cache_root
from swift_core.hub.quiet import quiet_stderr
from swift_core.hub.remote import RETRIED, SKIPPED_IN_MODELS, Wanted, one_line

logger = logging.getLogger(__name__)

_DEFAULT_ENDPOINT = "https://www.modelscope.cn"


class ModelScopeHub:
    """Fetches whole repositories into ModelScope's own cache (`MODELSCOPE_CACHE`)."""

    name = "ms"

    def fetch(self, repo_id: str, *, kind: Literal["model", "dataset"], revision: str | None, offline: bool, token: str | None) -> Path:
        """Return the local folder of a repository, downloading what is missing.

        Models come without pickles and without copies of the weights for other programs.

        Raises:
            OfflineError: when it is not known to be complete on this machine and connections are off.
            NotFoundError: when there is no such repository or revision, or a model has no safetensors weights.
            HubError: when the hub refuses or cannot be reached.
        """
        endpoint = _endpoint()
        page = f"{endpoint or _DEFAULT_ENDPOINT}/{kind}s/{repo_id}"
        wanted = Wanted("ms", "ModelScope", repo_id, kind, revision, "MODELSCOPE_API_TOKEN", page)
        if offline:
            local = _complete_copy(wanted)
            if local is None:
                raise wanted.offline(f"no complete copy of {kind} {wanted.id} is known on this machine")
            return local
        try:
            with quiet_stderr():
                folder = Path(_download(wanted, endpoint, token))
        except Exception as error:  # the library raises its own tree, that of requests, and plain ValueError and OSError
            status = _status(error)
            problem = _translate(error, wanted, status, endpoint or _DEFAULT_ENDPOINT)
            local = _complete_copy(wanted) if status is None or status in RETRIED else None
            if local is None:
                raise problem from error
            logger.warning("%s; using the copy on this machine: %s", problem.message, local)
            return local
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".incomplete")]
        if not files:
            raise wanted.absent()
        if kind == "model" and not any(path.suffix == ".safetensors" for path in files):
            raise wanted.weightless("pickles and GGUF files are not fetched")
        _remember(wanted, folder, files)
        return folder

    def upload(self, folder: Path, repo_id: str, *, private: bool, token: str | None, message: str) -> str:
        """Put the files of a folder into a model repository in one commit, making the repository where needed; return its address.

        Raises:
            HubError: when the hub refuses or cannot be reached.
        """
        endpoint = _endpoint()
        page = f"{endpoint or _DEFAULT_ENDPOINT}/models/{repo_id}"
        wanted = Wanted("ms", "ModelScope", repo_id, "model", None, "MODELSCOPE_API_TOKEN", page)
        given = token or os.environ.get("MODELSCOPE_API_TOKEN")
        if not given:
            raise wanted.unwritable(401)
        api: Any = HubApi(endpoint=endpoint, token=given)
        # The library logs every step and prints a report.
        log = logging.getLogger("modelscope_hub")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with quiet_stderr(), redirect_stdout(io.StringIO()):
                if not api.repo_exists(repo_id, repo_type="model"):
                    api.create_repo(repo_id, repo_type="model", visibility="private" if private else "public")
                api.upload_folder(
                    repo_id=repo_id, folder_path=str(folder), commit_message=message, repo_type="model", token=given, disable_tqdm=True
                )
        except Exception as error:  # the library raises its own tree, that of requests, and plain ValueError and OSError
            status = _status(error)
            if status is None or 200 <= status < 400:
                raise wanted.unreachable(endpoint or _DEFAULT_ENDPOINT, _reason(error)) from error
            raise wanted.unwritable(status) from error
        finally:
            log.setLevel(level)
        return page


def _endpoint() -> str | None:
    """Return the mirror that the environment names, as the library reads it, or None."""
    named = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN", "").strip()
    if not named:
        return None
    return (named if "://" in named else f"https://{named}").rstrip("/")


def _download(wanted: Wanted, endpoint: str | None, token: str | None) -> str:
    # Read at call time: the library reads its environment once, at import.
    cache = os.environ.get("MODELSCOPE_CACHE")
    if wanted.kind == "dataset":
        return dataset_snapshot_download(wanted.repo_id, revision=wanted.revision, cache_dir=cache, token=token, endpoint=endpoint)
    return snapshot_download(
        wanted.repo_id,
        revision=wanted.revision,
        cache_dir=cache,
        token=token,
        endpoint=endpoint,
        ignore_patterns=list(SKIPPED_IN_MODELS),
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and the failures of single files it carries."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        failed: dict[str, BaseException] = getattr(each, "failed_files", None) or {}
        waiting.extend([*failed.values(), *(cause for cause in (each.__cause__, each.__context__) if cause is not None)])


def _status(error: BaseException) -> int | None:
    for each in _chain(error):
        response: Any = getattr(each, "response", None)
        for value in (getattr(each, "status_code", None), getattr(response, "status_code", None)):
            if isinstance(value, int):
                return value
    return None


def _translate(error: Exception, wanted: Wanted, status: int | None, endpoint: str) -> HubError | NotFoundError:
    if status is None or 200 <= status < 400:
        return wanted.unreachable(endpoint, _reason(error))
    if status == 404 and wanted.revision:
        return NotFoundError(
            f"ModelScope has no {wanted.kind} {wanted.repo_id!r} with a revision {wanted.revision!r}, or it is private",
            fix=f"check both at {wanted.page}, or try hf::{wanted.repo_id}",
        )
    return wanted.refused(status)


def _reason(error: Exception) -> str:
    """Return what the system said when there is such a text; the library's own ones are partly Chinese and count files."""
    known = list(_chain(error))
    said = [each.strerror for each in known if isinstance(each, OSError) and each.strerror]
    if said:
        return said[-1]
    return "the connection was cut" if any(isinstance(each, requests.RequestException) for each in known) else one_line(error)


def _record(wanted: Wanted) -> Path:
    name = quote(f"{wanted.repo_id}@{wanted.revision or 'master'}", safe="@")
    return cache_root() / "modelscope" / f"{wanted.kind}s" / f"{name}.json"


def _remember(wanted: Wanted, folder: Path, files: list[Path]) -> None:
    """Note which files make the repository complete: the library does not, and a cut download leaves the same folder."""
    record = _record(wanted)
    content = {"folder": str(folder), "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}}
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial = record.with_name(f".{record.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(content, indent=1), "utf-8")
        partial.replace(record)
    except OSError as error:
        logger.warning(
            "cannot write %s (%s): offline mode will not find %s; set SWIFT_CACHE to a writable folder", record, error, wanted.id
        )


def _complete_copy(wanted: Wanted) -> Path | None:
    try:
        content = json.loads(_record(wanted).read_text("utf-8"))
        folder, files = Path(content["folder"]), dict(content["files"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s) and is not used", _record(wanted), error)
        return None
    whole = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())
    return folder if whole else None
