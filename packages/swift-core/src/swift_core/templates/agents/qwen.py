"""Qwen-Agent's first format: calls between ✿ marks, in Chinese and English."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_json, dumps, function_of, loads
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_EN = """# Tools

## You have access to the following tools:

{tools}

## When you need to call a tool, please insert the following command in your reply, which can be called zero or multiple times according to your needs:

✿FUNCTION✿: The tool to use, should be one of [{names}]
✿ARGS✿: The input of the tool
✿RESULT✿: Tool results
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""  # noqa: E501  the models know this line as one
_ZH = """# 工具

## 你拥有如下工具：

{tools}

## 你可以在回复中插入零次、一次或多次以下命令以调用工具：

✿FUNCTION✿: 工具名称，必须是[{names}]之一。
✿ARGS✿: 工具输入
✿RESULT✿: 工具结果
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来"""


def _tools(text: str, about: str, tools: Sequence[Tool]) -> str:
    functions = [function_of(tool) for tool in tools]
    lines = [
        about.format(
            name=function.get("name", ""), description=function.get("description", ""), parameters=dumps(function.get("parameters", {}))
        )
        for function in functions
    ]
    return text.format(tools="\n\n".join(lines), names=",".join(str(function.get("name", "")) for function in functions))


def _calls(calls: Sequence[Call]) -> str:
    return "\n".join(f"✿FUNCTION✿: {call.name}\n✿ARGS✿: {arguments_json(call.arguments)}" for call in calls)


def _results(results: Sequence[Result]) -> str:
    return "\n".join(f"✿RESULT✿: {result.content}" for result in results) + "\n✿RETURN✿:"


_CALL = re.compile(r"✿FUNCTION✿:\s*(.+?)\s*✿ARGS✿:\s*(.*?)\s*(?=✿FUNCTION✿|✿RESULT✿|$)", re.DOTALL)


def _read(block: str) -> list[Call] | None:
    calls: list[Call] = []
    for name, text in _CALL.findall(block):
        value = loads(text)
        calls.append(Call(name, value if isinstance(value, dict) else text))
    return calls or None


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser(("✿FUNCTION✿",), ("✿RESULT✿",), _read)


QWEN_EN = AgentFormat(
    tools=partial(_tools, _EN, "### {name}\n\n{name}: {description} Parameters: {parameters} Format the arguments as a JSON object."),
    calls=_calls,
    results=_results,
    reader=_reader,
)
QWEN_ZH = AgentFormat(
    tools=partial(_tools, _ZH, "### {name}\n\n{name}: {description} 输入参数：{parameters} 此工具的输入应为JSON对象。"),
    calls=_calls,
    results=_results,
    reader=_reader,
)
