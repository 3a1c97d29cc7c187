"""A chat template as Go's text/template, which Ollama reads, found by rendering and proved by rendering again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from swift_core.errors import TemplateError
from swift_core.protocols import Message

Render = Callable[[list[Message], bool], str]

_SYSTEM, _USER, _ANSWER, _USER2 = "xSYSTEMx", "xFIRSTx", "xANSWERx", "xSECONDx"
_FIX = "choose a named format with --template (see `swift list templates`), such as --template chatml where the model was trained with it"


@dataclass(frozen=True, slots=True)
class Pieces:
    """The texts around the messages of a conversation.

    Attributes:
        start: before everything, such as the bos token.
        system: before and after the system message; None where it is folded into the first question.
        folded: before and after the system message inside the first question, where it is.
        user, answer: before and after a message.
        prompt: after which the model writes.
        default_system: system message that the chat template puts before conversations without one.
    """

    start: str
    system: tuple[str, str] | None
    folded: tuple[str, str] | None
    user: tuple[str, str]
    answer: tuple[str, str]
    prompt: str
    default_system: str


def find_pieces(render: Render, *, bos: str) -> Pieces:
    """Return the pieces of a chat template.

    Args:
        render: gives the text of messages, with or without the start of an answer.
        bos: the bos token, or nothing.

    Raises:
        TemplateError: when the template is not made of pieces.
    """
    first: list[Message] = [{"role": "user", "content": _USER}]
    turns: list[Message] = [*first, {"role": "assistant", "content": _ANSWER}]
    after_question = _split(render(first, False), [_USER])[1]
    after_answer = _split(render(turns, False), [_USER, _ANSWER])[2]
    opened, between, next_question, closing = _split(render([*turns, {"role": "user", "content": _USER2}], True), [_USER, _ANSWER, _USER2])
    user_before = _without(next_question, after_answer)
    prompt = _without(closing, after_question)
    answer_before = _without(between, after_question)
    user, answer = (user_before, after_question), (answer_before, after_answer)
    try:
        with_system = render([{"role": "system", "content": _SYSTEM}, *first], False)
    except TemplateError:  # the template refuses system messages
        with_system = ""
    if _SYSTEM not in with_system:
        if not opened.endswith(user_before):
            raise TemplateError("the first question is framed like no other", fix=_FIX)
        return Pieces(opened.removesuffix(user_before), None, None, user, answer, prompt, "")
    before, after, _ = _split(with_system, [_SYSTEM, _USER])
    plain = opened.removesuffix(user_before) if opened.endswith(user_before) else ""
    # What stands before the first question stands before the system message too, unless it is one that the template brings along.
    # A bos token that opens every turn is no start.
    own_bos = bos if bos and before.startswith(bos) and not user_before.startswith(bos) else ""
    start = plain if before.startswith(plain) and plain else own_bos
    default = ""
    if opened == start + user_before and not after.endswith(user_before):
        return Pieces(start, None, (_without(before, start), after), user, answer, prompt, default)
    if not after.endswith(user_before):
        raise TemplateError("the system message is framed in a way that Ollama templates cannot say", fix=_FIX)
    if opened != start + user_before:
        default = opened.removeprefix(before).removesuffix(after)
        if before + default + after != opened:
            raise TemplateError("conversations without a system message are framed differently", fix=_FIX)
    system = (_without(before, start), after.removesuffix(user_before))
    return Pieces(start, system, None, user, answer, prompt, default)


def _split(text: str, marks: Sequence[str]) -> list[str]:
    parts: list[str] = []
    for mark in marks:
        if text.count(mark) != 1:
            raise TemplateError("the chat template drops, repeats or changes messages", fix=_FIX)
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text]


def _without(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise TemplateError("the chat template frames a message differently by its place in the conversation", fix=_FIX)
    return text[len(prefix) :]


def write_go(pieces: Pieces, *, with_start: bool) -> str:
    """Return the Go template.

    Args:
        pieces: what stands around the messages.
        with_start: whether it writes the start itself; false where the program that runs the model adds the bos token.

    Raises:
        TemplateError: when a piece holds text that the Modelfile cannot quote.
    """
    for text in (pieces.start, *(pieces.system or ()), *(pieces.folded or ()), *pieces.user, *pieces.answer, pieces.prompt):
        if "{{" in text or '"""' in text:
            raise TemplateError(f"{text!r} cannot be written into a Modelfile", fix=_FIX)
    user = pieces.user[0]
    if pieces.folded is not None:
        before, after = pieces.folded
        user = "{{ if and $.System (le $i 1) }}" + f"{before}{{{{ $.System }}}}{after}" + "{{ else }}" + user + "{{ end }}"
    blocks = {"user": (user, pieces.user[1]), "assistant": pieces.answer}
    if pieces.system is not None:
        blocks = {"system": pieces.system, **blocks}
    branches = [
        f'{{{{ {"if" if not index else "else if"} eq $m.Role "{role}" }}}}{before}{{{{ $m.Content }}}}{after}'
        for index, (role, (before, after)) in enumerate(blocks.items())
    ]
    body = "{{ range $i, $m := .Messages }}" + "".join(branches) + "{{ end }}{{ end }}"
    return (pieces.start if with_start else "") + body + pieces.prompt


def check_go(template: str, render: Render, *, start: str, default_system: str = "") -> int:
    """Compare what a Go template and the chat template make of conversations and return how many agree.

    Args:
        template: the Go template.
        render: the chat template.
        start: text that the program which runs the model puts in front, such as the bos token.
        default_system: system message that the Modelfile gives to conversations without one.

    Raises:
        TemplateError: when one differs.
    """
    compared = 0
    for messages in _conversations():
        try:
            expected = render(messages, True)
        except TemplateError:  # no system messages, say
            continue
        brought: list[Message] = [{"role": "system", "content": default_system}] if default_system else []
        asked = messages if messages[0]["role"] == "system" else [*brought, *messages]
        found = start + run_go(template, asked)
        if found != expected:
            raise TemplateError(
                f"an Ollama template cannot say what this chat template does: {found[-200:]!r} instead of {expected[-200:]!r}", fix=_FIX
            )
        compared += 1
    return compared


def _conversations() -> Iterator[list[Message]]:
    system: Message = {"role": "system", "content": "Be brief."}
    turns: list[Message] = [
        {"role": "user", "content": "Hello there."},
        {"role": "assistant", "content": "Hi!\nHow are you?"},
        {"role": "user", "content": "Fine. 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "谢谢"},
    ]
    for count in (1, 3, 5):
        yield turns[:count]
        yield [system, *turns[:count]]


_TAG = re.compile(r"\{\{\s*(.*?)\s*\}\}")


def run_go(template: str, messages: Sequence[Message]) -> str:
    """Return what Ollama makes of messages with a template of `write_go`: the part of the language that it uses, and no more."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    parts = _TAG.split(template)
    start = parts.index("range $i, $m := .Messages")
    end = len(parts) - 2  # the last tag closes the range
    rows = (_block(parts[start + 1 : end], {"i": index, "m": message, "system": system}) for index, message in enumerate(messages))
    return "".join([*parts[:start], *rows, parts[-1]])


def _block(parts: Sequence[str], scope: dict[str, Any]) -> str:
    """Return the text of a part of a template: texts at even places, tags at odd ones."""
    out: list[str] = []
    # For each open `if`: whether it writes now, and whether a branch was taken already.
    open_ifs: list[tuple[bool, bool]] = []
    for index, part in enumerate(parts):
        if index % 2 == 0 or not part.startswith(("if ", "else", "end")):
            if all(active for active, _ in open_ifs):
                out.append(part if index % 2 == 0 else _value(part, scope))
        elif part.startswith("if "):
            holds = _holds(part[3:], scope)
            open_ifs.append((holds, holds))
        elif part == "end":
            open_ifs.pop()
        else:
            _, taken = open_ifs.pop()
            holds = not taken and (part == "else" or _holds(part.removeprefix("else if "), scope))
            open_ifs.append((holds, taken or holds))
    return "".join(out)


def _value(tag: str, scope: dict[str, Any]) -> str:
    return {"$m.Content": scope["m"]["content"], "$.System": scope["system"]}[tag]


def _holds(condition: str, scope: dict[str, Any]) -> bool:
    if condition == "and $.System (le $i 1)":
        return bool(scope["system"]) and scope["i"] <= 1
    return bool(scope["m"]["role"] == condition.removeprefix('eq $m.Role "').removesuffix('"'))
