"""Adapters by name: `--adapters FOLDER`, or `--adapters NAME=FOLDER NAME2=FOLDER2`; a hub id may stand for a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from swift_core.config.sections import ModelSection
from swift_core.errors import Problem
from swift_core.hub.adapters import adapter_folder

_NAMED = re.compile(r"([A-Za-z0-9][\w.\-:]*)=(.+)")


def split_name(given: str) -> tuple[str | None, str]:
    """Return name and folder of an adapter; a folder that exists as written has no name."""
    match = _NAMED.fullmatch(given)
    if match is None or Path(given).expanduser().exists():
        return None, given
    return match.group(1), match.group(2)


def adapter_folders(loading: ModelSection) -> list[Path]:
    """Return the folders of the settings' adapters, fetched where a hub has them."""
    return [adapter_folder(split_name(given)[1], loading) for given in loading.adapters]


def named_adapters(loading: ModelSection) -> dict[str, Path]:
    """Return name -> folder of the adapters that have names."""
    pairs = [split_name(given) for given in loading.adapters]
    return {name: adapter_folder(folder, loading) for name, folder in pairs if name is not None}


def adapter_problems(given: Sequence[str]) -> list[Problem]:
    """Return what keeps these adapters from being loaded together."""
    names = [split_name(one)[0] for one in given]
    if len(names) > 1 and None in names:
        nameless = given[names.index(None)]
        what = f"{len(names)} adapters are given, and {nameless!r} has no name to ask for"
        return [Problem("--adapters", what, f"write NAME=FOLDER for each, such as first={nameless}")]
    twice = next((name for name in names if name is not None and names.count(name) > 1), None)
    return [Problem("--adapters", f"two adapters are called {twice!r}", "give each a name of its own")] if twice else []
