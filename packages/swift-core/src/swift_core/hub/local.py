"""Models and data sets that are already on this machine."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from swift_core.errors import NotFoundError
from swift_core.hub.cache import build_folder, cache_root
from swift_core.registry import import_target, nearest


def existing_path(name: str) -> Path | None:
    """Return the path when `name` as a whole is a file or folder."""
    try:
        path = Path(name).expanduser()
        return path.resolve() if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, an unknown ~user: not a path of this machine
        return None


def looks_like_path(name: str) -> bool:
    """Return whether a name that does not exist was meant as a path rather than as a hub id."""
    if name.startswith(("/", ".", "~")) or "\\" in name or re.match(r"[A-Za-z]:[\\/]", name):
        return True
    if "/" not in name:
        return False
    return name.count("/") > 1 or Path(name).parent.is_dir()


def missing_path(name: str, *, kind: Literal["model", "dataset"]) -> NotFoundError:
    """Return the error for a path that does not exist, naming what lies nearby."""
    path = Path(name).expanduser()
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    wanted = path.relative_to(parent).parts[0] if path.is_relative_to(parent) else path.name
    siblings = sorted(
        entry.name
        for entry in parent.iterdir()
        if not entry.name.startswith(".") and (kind == "dataset" or entry.is_dir() or entry.suffix == ".gguf")
    )
    near = nearest(wanted, siblings) or siblings[:3]
    if near:
        fix = f"in {str(parent)!r} there is {' or '.join(repr(each) for each in near)}; give a path that exists"
    else:
        fix = f"{str(parent)!r} holds no {'folder' if kind == 'model' else 'file'}; give a path that exists"
    return NotFoundError(f"{kind} path {name!r} does not exist", fix=fix + ", or a hub id such as hf::ORG/NAME")


def local_model(path: Path) -> Path:
    """Return the model folder of a local path; a single GGUF file is converted once."""
    if path.is_dir():
        return path
    if path.suffix.lower() != ".gguf":
        raise NotFoundError(
            f"model path {str(path)!r} is a file, not a model folder", fix=f"give its folder {str(path.parent)!r}, or a .gguf file"
        )
    return convert_once(path, name=path.stem, key=_identity(path))


def convert_once(gguf_file: Path, *, name: str, key: str) -> Path:
    """Return the safetensors folder of a GGUF file, converting it the first time.

    Args:
        gguf_file: the weights.
        name: readable first part of the folder's name.
        key: second part of the folder's name; differs when the weights differ.
    """

    def convert(folder: Path) -> None:
        # By name, as registry targets are: the hub must work where torch is not installed, as long as nothing is converted.
        needed_for = f"converting {gguf_file.name}"
        import_target("swift_core.models.gguf:convert_gguf", needed_for=needed_for, install="swift-core[torch]")(gguf_file, folder)

    return build_folder(cache_root() / "models" / f"{name}-{key}", convert)


def _identity(path: Path) -> str:
    status = path.stat()
    return hashlib.sha256(f"{path}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:12]
