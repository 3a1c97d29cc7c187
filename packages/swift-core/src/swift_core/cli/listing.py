"""`swift list`: what the registries hold."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from swift_core.config.combinations import MODES, table
from swift_core.errors import ConfigError, Problem
from swift_core.registry import REGISTRIES, Registry, nearest
from swift_core.specs import DatasetSpec, ModelSpec, Spec, TunerSpec

Row = dict[str, str]
_WIDEST = 100


def main(argv: Sequence[str]) -> int:
    """Run `swift list` with the words after it and return the exit code.

    Raises:
        ConfigError: for a kind that does not exist.
    """
    try:
        options = _parser().parse_args(list(argv))
    except SystemExit as stop:  # argparse has printed the help or the mistake
        return stop.code if isinstance(stop.code, int) else 2
    if options.kind is None:
        rows = [{"kind": name, "entries": str(len(registry.names()))} for name, registry in REGISTRIES.items()]
        _print(rows, rows, options.format)
        return 0
    if options.kind == "parallel":
        return _parallel(options.search, options.format)
    registry = _registry(options.kind)
    if options.format == "json":
        _say(registry, _print_json(registry, options.search))
        return 0
    everything = _rows(registry)
    rows = [row for row in everything if _matches(row.values(), options.search)]
    _print(rows, everything, options.format)
    _say(registry, len(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swift list", description="List what is installed and known.", allow_abbrev=False)
    parser.add_argument(
        "kind", nargs="?", metavar="KIND", help=f"one of {', '.join(REGISTRIES)}, parallel; without it the kinds are listed"
    )
    parser.add_argument("--search", metavar="TEXT", default="", help="only entries with this text in any column, without regard to case")
    parser.add_argument("--format", choices=("table", "json", "names"), default="table", help="(default: table)")
    return parser


def _parallel(search: str, form: str) -> int:
    """Show what goes with which way of spreading a run: `+` or `-`, and the reasons in JSON."""
    rows = [row for row in table() if _matches(row.values(), search)]
    if form == "table":
        rows = [{name: "+" if text == "yes" else "-" if text.startswith("no") else text for name, text in row.items()} for row in rows]
    _print(rows, rows, form)
    sys.stderr.write("".join(f"{mode}: {summary}\n" for mode, summary in MODES.items()) + "reasons: --format json\n")
    return 0


def _registry(kind: str) -> Registry[Any]:
    name = kind.lower().replace("-", "_")
    for candidate in (name, f"{name}s"):
        if candidate in REGISTRIES:
            return REGISTRIES[candidate]
    near = nearest(name, REGISTRIES)
    advice = f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(REGISTRIES)}"
    raise ConfigError([Problem(f"swift list {kind}", "there is no such kind", advice)])


def _rows(registry: Registry[Any]) -> list[Row]:
    columns: Callable[[Any], Row] = {ModelSpec: _model, DatasetSpec: _dataset, TunerSpec: _tuner}.get(registry.kind, _plain)
    known = [columns(spec) for spec in registry]
    missing = [
        {"name": name, "installed": f"no: pip install '{package}'", "summary": "", "source": ""}
        for name, package in registry.absent().items()
    ]
    return known + missing


def _plain(spec: Spec) -> Row:
    return {"name": spec.name, "installed": _installed(spec), "summary": spec.summary, "source": spec.source}


def _tuner(spec: TunerSpec) -> Row:
    facts = {
        "merge": spec.mergeable,
        "quantised base": spec.quantised,
        "several adapters": spec.several,
        "gradient checkpointing": spec.checkpointing,
        "target_parameters": spec.parameters,
    }
    # A dash, since columns that say yes or nothing everywhere are left out.
    said = {name: "yes" if holds else "-" for name, holds in facts.items()}
    return {"name": ", ".join((spec.name, *spec.aliases)), "installed": _installed(spec), **said, "summary": spec.summary}


def _installed(spec: Spec) -> str:
    absent = [library for library in spec.requires if importlib.util.find_spec(library) is None]
    return f"no: pip install '{spec.install or absent[0]}'" if absent else "yes"


def _model(spec: ModelSpec) -> Row:
    return {
        "name": spec.name,
        "kind": spec.kind,
        "type": spec.model_type,
        "template": spec.template,
        "hf id": spec.hf_id,
        "ms id": spec.ms_id,
    }


def _dataset(spec: DatasetSpec) -> Row:
    return {"name": spec.name, "summary": spec.summary, "subsets": _few(spec.subsets), "hf id": spec.hf_id, "ms id": spec.ms_id}


def _few(names: Sequence[str]) -> str:
    return ",".join(names[:4]) + (f" +{len(names) - 4}" if len(names) > 4 else "")


def _matches(texts: Any, search: str) -> bool:
    return search.lower() in "\n".join(texts).lower()


def _print(rows: Sequence[Row], everything: Sequence[Row], form: str) -> None:
    if form == "json":
        sys.stdout.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif form == "names":
        sys.stdout.write("".join(next(iter(row.values())) + "\n" for row in rows))
    elif rows:
        sys.stdout.write(_table(rows, list(everything[0])))


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    # What is the same everywhere says nothing; what is very wide is whole in --format json.
    columns = [column for column in columns if any(row.get(column, "") not in ("", "yes") for row in rows)]
    rows = [{column: _short(row.get(column, "")) for column in columns} for row in rows]
    widths = {column: max(len(column), *(len(row.get(column, "")) for row in rows)) for column in columns}
    screen = shutil.get_terminal_size((0, 0)).columns if sys.stdout.isatty() else 0
    lines = [{column: column for column in columns}, *rows]
    texts = ["  ".join(f"{line.get(column, ''):<{widths[column]}}" for column in columns).rstrip() for line in lines]
    return "".join((text[: screen - 1] + "…" if 0 < screen < len(text) else text) + "\n" for text in texts)


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _print_json(registry: Registry[Any], search: str) -> int:
    records: list[dict[str, Any]] = []
    for spec in registry:
        record = {item.name: getattr(spec, item.name) for item in fields(spec)}
        records.append({**record, "installed": _installed(spec) == "yes"})
    records += [{"name": name, "install": package, "installed": False} for name, package in registry.absent().items()]
    found = [record for record in records if _matches(map(str, record.values()), search)]
    sys.stdout.write("".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in found))
    return len(found)


def _say(registry: Registry[Any], count: int) -> None:
    total = len(registry.names()) + len(registry.absent())
    sys.stderr.write(f"{count:,} {registry.name}\n" if count == total else f"{count:,} of {total:,} {registry.name}\n")
