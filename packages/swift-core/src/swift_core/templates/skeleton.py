"""Renderings of which only the contents of the messages differ, made by putting the contents into their places.

Most chat templates do nothing with a content but write it, perhaps without the white space around it. Where the template's
code proves that, conversations with the same roles have the same text around their contents, and it is rendered once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from swift_core.templates.mask import Span

# A content that is looked for in a rendering; the spaces at its ends tell whether the template strips it.
_LEFT, _OPEN, _CLOSE, _RIGHT = "\u2003", "\ue000", "\ue001", "\u2002"
_PLACE = re.compile(f"({_LEFT}?){_OPEN}([0-9]+){_CLOSE}({_RIGHT}?)")
_WRITE: dict[tuple[bool, bool], Callable[[str], str]] = {
    (True, True): str,
    (False, True): str.lstrip,
    (True, False): str.rstrip,
    (False, False): str.strip,
}


class _Kind(Enum):
    """What an expression holds: nothing of a content, a content as it is, text with contents in it, a message, messages."""

    CLEAN = 0
    CONTENT = 1
    TEXT = 2
    MESSAGE = 3
    MESSAGES = 4


_TYPE_TESTS = {"string", "mapping", "defined", "undefined", "none", "sequence", "iterable", "number", "boolean", "true", "false"}
_CHANGING = {"strftime_now", "lipsum", "random", "shuffle"}


class _Unproven(Exception):
    """The template does something with a content that may depend on what it says."""


def only_writes_contents(source: str) -> bool:
    """Say whether a chat template provably does nothing with the texts of messages but write them.

    Args:
        source: the template, without `{% generation %}` marks.
    """
    if any(mark in source for mark in (_LEFT, _OPEN, _CLOSE, _RIGHT)):
        return False
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        _Proof().check(environment.parse(source))
    except (JinjaError, _Unproven):
        return False
    return True


class _Proof:
    """Follows messages and contents through a template, whatever the order in which it runs."""

    def __init__(self) -> None:
        self._names = {"messages": _Kind.MESSAGES}
        self._loops: list[_Kind] = []
        self._inside = 0  # of something that turns what is written into a value

    def check(self, tree: nodes.Template) -> None:
        """Raise `_Unproven` unless contents are only written."""
        before: dict[str, _Kind] = {}
        while before != self._names:
            before = dict(self._names)
            self._body(tree.body)

    def _body(self, statements: Iterable[nodes.Node]) -> None:
        for node in statements:
            self._statement(node)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for part in node.nodes:
                    kind = self._kind(part)
                    if kind in (_Kind.MESSAGE, _Kind.MESSAGES) or (self._inside and kind != _Kind.CLEAN):
                        raise _Unproven
            case nodes.If():
                self._condition(node.test)
                self._body([*node.body, *node.elif_, *node.else_])
            case nodes.For():
                self._for(node)
            case nodes.Assign():
                self._assign(node.target, self._kind(node.node))
            case nodes.AssignBlock() if node.filter is None:
                self._captured(node.body)
                self._assign(node.target, _Kind.CLEAN)
            case nodes.Macro():
                self._clean(node.defaults)
                self._captured(node.body)
            case nodes.ExprStmt():
                self._clean([node.node])
            case nodes.Continue() | nodes.Break():
                pass
            case _:
                raise _Unproven

    def _captured(self, body: Iterable[nodes.Node]) -> None:
        self._inside += 1
        self._body(body)
        self._inside -= 1

    def _for(self, node: nodes.For) -> None:
        over = self._kind(node.iter)
        if node.recursive or over not in (_Kind.CLEAN, _Kind.MESSAGES):
            raise _Unproven
        item = _Kind.MESSAGE if over == _Kind.MESSAGES else _Kind.CLEAN
        self._assign(node.target, item)
        if node.test is not None:
            self._condition(node.test)
        self._loops.append(item)
        self._body([*node.body, *node.else_])
        self._loops.pop()

    def _assign(self, target: nodes.Node, kind: _Kind) -> None:
        if isinstance(target, nodes.Name):
            self._names[target.name] = _join(self._names.get(target.name, _Kind.CLEAN), kind)
        elif kind != _Kind.CLEAN:
            raise _Unproven

    def _condition(self, node: nodes.Node) -> None:
        match node:
            case nodes.And() | nodes.Or():
                self._condition(node.left)
                self._condition(node.right)
            case nodes.Not():
                self._condition(node.node)
            case _:
                # A message is never empty, and whether there are any depends on their number alone.
                if self._kind(node) in (_Kind.CONTENT, _Kind.TEXT):
                    raise _Unproven

    def _clean(self, found: Iterable[nodes.Node]) -> None:
        if any(self._kind(node) != _Kind.CLEAN for node in found):
            raise _Unproven

    def _kind(self, node: nodes.Node) -> _Kind:
        match node:
            case nodes.Name():
                if node.name in _CHANGING:
                    raise _Unproven
                return self._names.get(node.name, _Kind.CLEAN)
            case nodes.Getattr():
                return self._member(node.node, node.attr)
            case nodes.Getitem():
                return self._item(node)
            case nodes.Call():
                return self._call(node)
            case nodes.Filter():
                return self._filter(node)
            case nodes.Test() if node.name in _TYPE_TESTS and not node.args:
                self._kind(node.node)
                return _Kind.CLEAN
            case nodes.Add() | nodes.Concat():
                parts = node.nodes if isinstance(node, nodes.Concat) else [node.left, node.right]
                kinds = {self._kind(part) for part in parts}
                if kinds & {_Kind.MESSAGE, _Kind.MESSAGES}:
                    raise _Unproven
                return _Kind.CLEAN if kinds <= {_Kind.CLEAN} else _Kind.TEXT
            case nodes.CondExpr():
                self._condition(node.test)
                return _join(self._kind(node.expr1), self._kind(node.expr2) if node.expr2 is not None else _Kind.CLEAN)
            case nodes.Not():
                self._condition(node)
                return _Kind.CLEAN
            case _:
                self._clean(node.iter_child_nodes())
                return _Kind.CLEAN

    def _member(self, owner: nodes.Node, name: object) -> _Kind:
        kind = self._kind(owner)
        if kind == _Kind.MESSAGE and isinstance(name, str) and not hasattr(dict, name):
            return _Kind.CONTENT if name == "content" else _Kind.CLEAN
        if isinstance(owner, nodes.Name) and owner.name == "loop" and name in ("previtem", "nextitem"):
            return self._loops[-1] if self._loops else _Kind.CLEAN
        if kind != _Kind.CLEAN:
            raise _Unproven
        return _Kind.CLEAN

    def _item(self, node: nodes.Getitem) -> _Kind:
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return self._member(node.node, node.arg.value)
        self._clean([node.arg])
        kind = self._kind(node.node)
        if kind == _Kind.MESSAGES:
            return kind if isinstance(node.arg, nodes.Slice) else _Kind.MESSAGE
        if kind != _Kind.CLEAN:
            raise _Unproven
        return _Kind.CLEAN

    def _call(self, node: nodes.Call) -> _Kind:
        arguments = [*node.args, *node.kwargs, *filter(None, [node.dyn_args, node.dyn_kwargs])]
        self._clean(arguments)
        if isinstance(node.node, nodes.Getattr):
            kind = self._kind(node.node.node)
            name = node.node.attr
            if kind == _Kind.CONTENT and name in ("strip", "lstrip", "rstrip") and not arguments:
                return kind
            if kind == _Kind.MESSAGE and name == "get" and isinstance(node.args[0], nodes.Const):
                return self._member(node.node.node, node.args[0].value)
        self._clean([node.node])
        return _Kind.CLEAN

    def _filter(self, node: nodes.Filter) -> _Kind:
        arguments = [*node.args, *node.kwargs, *filter(None, [node.dyn_args, node.dyn_kwargs])]
        self._clean(arguments)
        kind = self._kind(node.node) if node.node is not None else _Kind.CLEAN
        if kind == _Kind.CLEAN and node.name not in _CHANGING:
            return kind
        if kind == _Kind.CONTENT and node.name == "trim" and not arguments:
            return kind
        if kind == _Kind.MESSAGES and node.name in ("length", "count"):
            return _Kind.CLEAN
        if kind == _Kind.MESSAGES and node.name in ("first", "last"):
            return _Kind.MESSAGE
        raise _Unproven


def _join(one: _Kind, other: _Kind) -> _Kind:
    kinds = {one, other} - {_Kind.CLEAN}
    if len(kinds) < 2:
        return kinds.pop() if kinds else _Kind.CLEAN
    if kinds == {_Kind.CONTENT, _Kind.TEXT}:
        return _Kind.TEXT
    raise _Unproven


def stand_ins(count: int) -> list[str]:
    """Return contents that `Skeleton.of` finds again in a rendering."""
    return [f"{_LEFT}{_OPEN}{number}{_CLOSE}{_RIGHT}" for number in range(count)]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The text around the contents of a conversation.

    Attributes:
        literals: texts before, between and after the contents.
        slots: the message whose content stands between two of them, and how it is written.
        borders: where marked parts start and end: literal and character in it.
    """

    literals: tuple[str, ...]
    slots: tuple[tuple[int, Callable[[str], str]], ...]
    borders: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, text: str, marked: Sequence[Span]) -> Skeleton | None:
        """Return the skeleton of a rendering of `stand_ins`; None when a mark starts or ends inside a content."""
        literals: list[str] = []
        slots: list[tuple[int, Callable[[str], str]]] = []
        starts: list[int] = []
        end = 0
        for match in _PLACE.finditer(text):
            starts.append(end)
            literals.append(text[end : match.start()])
            slots.append((int(match[2]), _WRITE[bool(match[1]), bool(match[3])]))
            end = match.end()
        starts.append(end)
        literals.append(text[end:])
        borders: list[tuple[int, int]] = []
        for position in (border for span in marked for border in span):
            number = bisect_right(starts, position) - 1
            if position - starts[number] > len(literals[number]):
                return None
            borders.append((number, position - starts[number]))
        return cls(tuple(literals), tuple(slots), tuple(borders))

    def fill(self, contents: Sequence[str]) -> tuple[str, list[Span]]:
        """Return the rendering with these contents, and its marked parts."""
        parts = [self.literals[0]]
        for (number, write), literal in zip(self.slots, self.literals[1:], strict=True):
            parts += (write(contents[number]), literal)
        if not self.borders:
            return "".join(parts), []
        starts = [0, *accumulate(map(len, parts))]
        places = [starts[2 * literal] + offset for literal, offset in self.borders]
        return "".join(parts), list(zip(places[::2], places[1::2], strict=True))
