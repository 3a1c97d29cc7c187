"""The index of errors: what the source raises, read from its syntax tree."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import swift_core.errors as errors
from layout import members
from swift_core.errors import SwiftError

_HOLE = "…"


@dataclass(frozen=True, slots=True, order=True)
class Raised:
    """A message that the code can raise.

    Attributes:
        kind: class of the error.
        message: what it says, with a hole for each value that it fills in.
        fix: its remedy, or empty.
    """

    kind: str
    message: str
    fix: str


def error_classes() -> dict[str, type[SwiftError]]:
    """Return the errors of the tree by name."""
    found = {name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, SwiftError)}
    return dict(sorted(found.items(), key=lambda item: (item[1].exit_code, item[0])))


def raised() -> list[Raised]:
    """Return every message of the packages, sorted; those of test doubles are left out."""
    known = {*error_classes(), "Problem", "Refused"}
    files = [path for member in members() for path in sorted(member.source.rglob("*.py")) if "testing" not in path.parts]
    return sorted({found for path in files for found in _in_file(path, known)})


def _in_file(path: Path, known: set[str]) -> Iterator[Raised]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in known:
            continue
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        texts = [_text(argument) for argument in node.args]
        if node.func.id == "Problem":
            where, what, fix = (*texts, "", "", "")[:3]
            yield Raised("ConfigError", f"{where}: {what}", fix or _text(named.get("fix")))
        elif texts and texts[0].strip(_HOLE + " :"):
            fix = _text(named.get("fix")) or (texts[1] if node.func.id == "Refused" and len(texts) > 1 else "")
            yield Raised("DataError" if node.func.id == "Refused" else node.func.id, texts[0], fix)


def _text(node: ast.expr | None) -> str:
    """Return a text of the source, with a hole for what only a run knows."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else _HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return _HOLE


def error_page(say: Callable[[str], str], table: Callable[[Sequence[str], list[tuple[str, ...]]], str]) -> str:
    """Return the page of all errors, by class."""
    intro = say("Every message that the code can raise, with its remedy; … stands for what the message fills in.")
    classes = error_classes()
    rows = [(f"[`{name}`](#{name.lower()})", str(kind.exit_code), _first_line(kind)) for name, kind in classes.items()]
    parts = [f"# {say('Errors')}", intro, table((say("name"), say("exit code"), say("meaning")), rows)]
    by_class: dict[str, list[Raised]] = {}
    for found in raised():
        by_class.setdefault(found.kind, []).append(found)
    for name in classes:
        lines = [(_code(found.message), _code(found.fix)) for found in by_class.get(name, [])]
        parts.append(f"## {name}\n\n" + (table((say("message"), say("fix")), lines) if lines else _first_line(classes[name])))
    return "\n\n".join(parts) + "\n"


def _first_line(kind: type[SwiftError]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _code(text: str) -> str:
    """Return a text as inline code; one with backquotes in it gets two around it."""
    flat = " ".join(text.split())
    return "" if not flat else f"`` {flat} ``" if "`" in flat else f"`{flat}`"
