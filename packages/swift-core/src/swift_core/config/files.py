"""Config files: YAML, JSON and TOML to flat values, each with the place it stands at."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, cast

import yaml

from swift_core.errors import Problem

# Keys of args.json that describe the run and are no settings.
METADATA = ("command", "swift_version", "created")


def read_config_file(path: Path, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a config file.

    Args:
        path: a .yaml, .yml, .json or .toml file.
        problems: receives what is wrong with it.

    Returns:
        flat name -> value, and flat name -> `file:line` (`file` where the format keeps no lines).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        problems.append(Problem(str(path), "this config file does not exist", _siblings(path)))
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(str(path), f"cannot be read: {error}", "save it as UTF-8 text"))
        return {}, {}
    reader = {".json": _read_json, ".toml": _read_toml}.get(path.suffix, _read_yaml)
    values, places = reader(text, path, problems)
    for key in METADATA:
        values.pop(key, None)
    # Secrets are saved masked: a masked value says nothing.
    values = {key.replace("-", "_"): value for key, value in values.items() if value != "***"}
    return values, {key.replace("-", "_"): place for key, place in places.items()}


def _siblings(path: Path) -> str:
    from swift_core.registry import nearest

    if not path.parent.is_dir():
        return f"the folder {str(path.parent)!r} does not exist either"
    near = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else "check the path"


def _read_json(text: str, path: Path, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(Problem(f"{path}:{error.lineno}", f"is not JSON: {error.msg} (column {error.colno})", "mend that line"))
        return {}, {}
    return _mapping(data, path, problems)


def _read_toml(text: str, path: Path, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problems.append(Problem(str(path), f"is not TOML: {error}", "mend that line"))
        return {}, {}
    return _mapping(data, path, problems)


def _mapping(data: Any, path: Path, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, str]]:
    if not isinstance(data, dict):
        problems.append(
            Problem(str(path), f"holds a {type(data).__name__}, not settings by name", "write one `name: value` pair for each setting")
        )
        return {}, {}
    values = cast(dict[str, Any], data)
    return dict(values), dict.fromkeys(values, str(path))


def _read_yaml(text: str, path: Path, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        node: Any = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        column = error.problem_mark.column + 1 if error.problem_mark else 1
        problems.append(Problem(f"{path}:{line}", f"is not plain YAML: {error.problem} (column {column})", "mend that line"))
        return {}, {}
    except yaml.YAMLError as error:
        problems.append(Problem(str(path), f"is not plain YAML: {error}", "mend the file"))
        return {}, {}
    if data is None:
        return {}, {}
    values, places = _mapping(data, path, problems)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            place = f"{path}:{key.start_mark.line + 1}"
            if key.value in seen:
                problems.append(Problem(place, f"{key.value!r} is given twice", "keep one of them"))
            seen.add(key.value)
            places[key.value] = place
    return values, places
