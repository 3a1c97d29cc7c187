"""Llama 3 and 4: calls as bare JSON or, from Llama 4, as Python calls in a list."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, cast

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_json, dumps, read_call, wrapped
from swift_core.templates.agents.incremental import Call, CallParser, WholeParser

_HOW = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'  # two sentences, no space
    "Do not use variables."
)
_MARKS = ("<|python_tag|>", "<|python_start|>")
_CLOSING = ("<|eom_id|>", "<|eot_id|>", "<|python_end|>", "<|eom|>", "<|eot|>")


def _tools(tools: Sequence[Tool]) -> str:
    listed = "\n\n".join(json.dumps(wrapped(tool), ensure_ascii=False, indent=4) for tool in tools)
    return (
        "You have access to the following functions. To call a function, please respond with JSON for a function call."
        f"{_HOW}\n\n{listed}\n\n"
    )


def _calls(calls: Sequence[Call]) -> str:
    return "; ".join(f'{{"name": {dumps(call.name)}, "parameters": {arguments_json(call.arguments)}}}' for call in calls)


def _results(results: Sequence[Result]) -> str:
    return "\n".join(dumps(result.content) for result in results)


def _opens(text: str) -> bool | None:
    if not text or any(mark.startswith(text) for mark in _MARKS):
        return None
    return text[0] == "{" or text.startswith(_MARKS)


def _bare(text: str) -> str:
    for mark in _MARKS:
        text = text.removeprefix(mark)
    for mark in _CLOSING:
        text = text.strip().removesuffix(mark)
    return text.strip()


def _read(text: str) -> list[Call] | None:
    """Return the calls of JSON objects one after the other, with `;`, commas or nothing between them."""
    decoder, rest = json.JSONDecoder(), _bare(text)
    calls: list[Call] = []
    while rest:
        try:
            value, stop = decoder.raw_decode(rest)
        except ValueError:
            return None
        call = read_call(value)
        if call is None:
            return None
        calls.append(call)
        rest = rest[stop:].lstrip().lstrip(";,").lstrip()
    return calls or None


def _reader3(tools: Sequence[Tool]) -> CallParser:
    return WholeParser(_opens, _read)


def _tools4(tools: Sequence[Tool]) -> str:
    listed = "\n\n".join(json.dumps(wrapped(tool), ensure_ascii=False, indent=4) for tool in tools)
    return (
        "You have access to the functions below. If you decide to call functions, put them in the format of a list of Python calls: "
        "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]\n"
        f"Do not write any other text then. Functions in JSON format:\n\n{listed}"
    )


def _calls4(calls: Sequence[Call]) -> str:
    written = [
        f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
        if isinstance(call.arguments, dict)
        else f"{call.name}({call.arguments})"
        for call in calls
    ]
    return f"[{', '.join(written)}]"


_LIST = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")
_LIST_SO_FAR = re.compile(r"\[\s*(?:[A-Za-z_][\w.]*\s*)?")


def _opens4(text: str) -> bool | None:
    if not text.startswith("["):
        return _opens(text)
    return True if _LIST.match(text) else None if _LIST_SO_FAR.fullmatch(text) else False


def _read4(text: str) -> list[Call] | None:
    text = _bare(text)
    if not text.startswith("["):
        return _read(text)
    try:
        tree: Any = ast.parse(text, mode="eval").body
        calls = [
            Call(ast.unparse(node.func), {cast(str, word.arg): ast.literal_eval(word.value) for word in node.keywords})
            for node in tree.elts
            if isinstance(node, ast.Call) and not node.args and all(word.arg for word in node.keywords)
        ]
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
        return None
    return calls if calls and len(calls) == len(tree.elts) else None


def _reader4(tools: Sequence[Tool]) -> CallParser:
    return WholeParser(_opens4, _read4)


LLAMA3 = AgentFormat(
    tools=_tools,
    calls=_calls,
    results=_results,
    reader=_reader3,
    tools_first=True,
    between="",
    frame="<|start_header_id|>ipython<|end_header_id|>\n\n{{RESULTS}}<|eot_id|>",
)
LLAMA4 = AgentFormat(
    tools=_tools4,
    calls=_calls4,
    results=_results,
    reader=_reader4,
    frame="<|header_start|>ipython<|header_end|>\n\n{{RESULTS}}<|eot|>",
)
