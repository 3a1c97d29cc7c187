"""Which libraries a known checkpoint asks for, and which of them are absent or of another version."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement


def unmet(needs: Iterable[str]) -> list[str]:
    """Return what is not installed as asked for, as `transformers<4.42 (5.19.0 is installed)`.

    Args:
        needs: requirements as pip takes them.
    """
    found: list[str] = []
    for text in needs:
        requirement = Requirement(text)
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            found.append(f"{text} (not installed)")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            found.append(f"{text} ({installed} is installed)")
    return found


def pip_line(needs: Iterable[str]) -> str:
    """Return the pip command that installs requirements."""
    return "pip install " + " ".join(f"'{text}'" for text in needs)
