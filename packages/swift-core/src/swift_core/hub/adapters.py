"""From what a user writes after --adapters to a local folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from swift_core.hub.local import existing_path, looks_like_path
from swift_core.hub.resolve import resolve

if TYPE_CHECKING:
    from swift_core.config.sections import ModelSection

_CHECKPOINT = re.compile(r"checkpoint-\d+")


def adapter_folder(name: str, loading: ModelSection) -> Path:
    """Return the local folder of an adapter, downloading it where it is named by `hf::ORG/NAME`, `ms::ORG/NAME` or ORG/NAME.

    Anything else is a path, and whoever reads it says when it is absent. The revision of the base model is not that of the adapter,
    which is written `ORG/NAME@REVISION`.

    Raises:
        NotFoundError: when there is no such repository, or it holds no safetensors weights.
        OfflineError: when it is not on this machine and connections are off.
        HubError: when the hub refuses or cannot be reached.
    """
    path = Path(name).expanduser()
    if existing_path(name) is not None or not is_hub_id(name):
        return path
    return resolve(name, use_hf=loading.use_hf, offline=loading.offline, token=loading.hub_token)


def adapter_folders(loading: ModelSection) -> list[Path]:
    """Return the local folders of a section's adapters, see `adapter_folder`."""
    return [adapter_folder(name, loading) for name in loading.adapters]


def is_hub_id(name: str) -> bool:
    """Say whether a name that is no path of this machine asks for a repository: RUN/checkpoint-N never does."""
    if "::" in name:
        return True
    return name.count("/") == 1 and not looks_like_path(name) and not _CHECKPOINT.fullmatch(name.rpartition("/")[2])
