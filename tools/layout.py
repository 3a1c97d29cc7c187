"""Where the packages are and which of their modules belong to the light zone. Used by the checks in this folder."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The parts of swift-core that the command line needs before it knows what to run, and the same files in every package.
LIGHT_CORE = ("errors", "registry", "plugins", "specs", "protocols", "builtin", "config", "cli", "launch", "hub", "cards", "__main__")
LIGHT_ANYWHERE = ("specs", "config", "cli")
# Each is the one file that imports an optional library; the registry loads it only when its name is asked for.
WRAPPERS = ("swift_core.hub.huggingface", "swift_core.hub.modelscope")


@dataclass(frozen=True)
class Member:
    """A package of the workspace."""

    folder: Path

    @property
    def dist(self) -> str:
        """Name on the package index."""
        return self.folder.name

    @property
    def module(self) -> str:
        """Import name."""
        return self.folder.name.replace("-", "_")

    @property
    def source(self) -> Path:
        """Folder of the import package."""
        return self.folder / "src" / self.module

    @property
    def project(self) -> dict[str, Any]:
        """The `[project]` table."""
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def modules(self) -> Iterator[str]:
        """Yield the dotted names of all modules."""
        for file in sorted(self.source.rglob("*.py")):
            parts = (self.module, *file.relative_to(self.source).with_suffix("").parts)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def light_modules(self) -> Iterator[str]:
        """Yield the dotted names of the modules that must load without a heavy library."""
        light = LIGHT_CORE if self.module == "swift_core" else LIGHT_ANYWHERE
        for name in self.modules():
            parts = name.split(".")
            if name not in WRAPPERS and (len(parts) == 1 or parts[1] in light):
                yield name


def members() -> list[Member]:
    """Return the packages, swift-core first."""
    folders = sorted(path.parent for path in (ROOT / "packages").glob("*/pyproject.toml"))
    return sorted((Member(folder) for folder in folders), key=lambda member: (member.dist != "swift-core", member.dist))


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without what would leak this checkout into a child."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**kept, **changes}
