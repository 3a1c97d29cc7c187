"""Finding registry entries: installed packages by entry point, user files by path."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import Any

from swift_core.errors import PluginError
from swift_core.specs import Spec

GROUP_PREFIX = "swift."

_broken: dict[str, str] = {}


@cache
def _entry_points() -> dict[str, list[EntryPoint]]:
    # importlib.metadata.entry_points() parses the file of every installed package; most are not ours, so look before parsing.
    groups: dict[str, list[EntryPoint]] = {}
    seen: set[str] = set()
    for distribution in distributions():
        text = distribution.read_text("entry_points.txt")
        if text is None or f"[{GROUP_PREFIX}" not in text or distribution.name in seen:
            continue
        seen.add(distribution.name)
        for point in distribution.entry_points:
            if point.group.startswith(GROUP_PREFIX):
                groups.setdefault(point.group, []).append(point)
    return groups


def entry_specs(registry: str) -> Iterator[tuple[str, Any]]:
    """Yield (source, spec) of every installed package for one registry.

    An entry point of the group `swift.<registry>` names an iterable of specs. One that cannot be imported is remembered
    for `broken_plugins` and skipped, so that a broken stranger does not take the command line down.
    """
    for point in sorted(_entry_points().get(GROUP_PREFIX + registry, []), key=_own_first):
        source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        try:
            specs: Iterable[Spec] = point.load()
        except Exception as error:  # noqa: BLE001  a stranger's module may fail in any way; `swift doctor` reports it
            _broken[f"{source}: {point.group} = {point.value}"] = f"{type(error).__name__}: {error}"
            continue
        for spec in specs:
            yield source, spec


def _own_first(point: EntryPoint) -> tuple[bool, str]:
    return (not point.value.startswith("swift_"), point.value)


def broken_plugins() -> dict[str, str]:
    """Return entry points that failed to load so far, with the reason."""
    return dict(_broken)


def report_broken(name: str, why: str) -> None:
    """Remember an entry that is left out, for `swift doctor`."""
    _broken[name] = why


def load_plugin_files(paths: Iterable[str]) -> list[str]:
    """Run user plugin files, each under a module name of its own, and return those names.

    A file registers what it brings by calling `swift_core.registry.<REGISTRY>.register(...)`. Loading the same file again
    does nothing.

    Raises:
        PluginError: when a file is absent or raises.
    """
    loaded: list[str] = []
    for path in paths:
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise PluginError(f"plugin file {path!r} does not exist", fix="give the path of a .py file to --external_plugins")
        name = f"swift_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        if name not in sys.modules:
            _run_file(file, name)
        loaded.append(name)
    return loaded


def _run_file(file: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file {str(file)!r} is not a Python file", fix="give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"plugin file {str(file)!r} raised {type(error).__name__}: {error}", fix="mend the plugin file") from error
