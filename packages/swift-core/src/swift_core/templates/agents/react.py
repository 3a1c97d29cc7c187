"""ReAct and ToolBench: calls as lines `Action:` and `Action Input:`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_json, dumps, function_of, loads
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_EN = """Answer the following questions as best you can. You have access to the following tools:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!
"""
_ZH = """尽你所能回答以下问题。你可以使用以下工具：

{tools}

请按照以下格式：

Question: 需要你回答的问题
Thought: 思考应该做什么
Action: 要采取的动作，应为 [{names}] 之一
Action Input: 动作的输入
Observation: 动作的结果
...（Thought/Action/Action Input/Observation 可以重复零次或多次）
Thought: 我现在知道最终答案了
Final Answer: 对原始问题的最终回答

开始！
"""
_TOOLBENCH = """You can use many tools (functions) to do the following task.
At each step, analyse the state and decide what to do next with a function call. Your output follows this format:
Thought:
Action:
Action Input:

After each call you get its result, and you are then in a new state.
When you have the answer, call the function Finish with it.
Your thoughts are short, at most five sentences.
You have access to these functions: {tools}"""


def _tools(text: str, about: str, tools: Sequence[Tool]) -> str:
    functions = [function_of(tool) for tool in tools]
    lines = [
        about.format(
            name=function.get("name", ""), description=function.get("description", ""), parameters=dumps(function.get("parameters", {}))
        )
        for function in functions
    ]
    return text.format(tools="\n\n".join(lines), names=",".join(str(function.get("name", "")) for function in functions))


def _toolbench(tools: Sequence[Tool]) -> str:
    return _TOOLBENCH.format(tools=dumps([function_of(tool) for tool in tools]))


def _calls(calls: Sequence[Call]) -> str:
    return "\n".join(f"Action: {call.name}\nAction Input: {arguments_json(call.arguments)}" for call in calls)


def _results(results: Sequence[Result]) -> str:
    return "\n".join(f"Observation: {result.content}" for result in results)


def _plain_results(results: Sequence[Result]) -> str:
    return "\n".join(result.content for result in results)


_CALL = re.compile(r"Action:[ \t]*(.+?)[ \t]*\n\s*Action Input:\s*(.*?)(?=\n\s*(?:Thought:|Action:|Observation:)|$)", re.DOTALL)


def _read(block: str) -> list[Call] | None:
    body = block.removesuffix("Observation:")
    calls: list[Call] = []
    for name, text in _CALL.findall(body):
        value = loads(text.strip())
        calls.append(Call(name.strip(), value if isinstance(value, dict) else text.strip()))
    return calls or None


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser(("Action:",), ("Observation:",), _read)


REACT_EN = AgentFormat(
    tools=partial(
        _tools,
        _EN,
        "{name}: Call this tool to interact with the {name} API. What is the {name} API useful for? {description} "
        "Parameters: {parameters} Format the arguments as a JSON object.",
    ),
    calls=_calls,
    results=_results,
    reader=_reader,
)
REACT_ZH = AgentFormat(
    tools=partial(
        _tools,
        _ZH,
        "{name}: 调用此工具与 {name} API 进行交互。{name} API 有什么用？{description} 参数：{parameters} 此工具的输入应为JSON对象。",
    ),
    calls=_calls,
    results=_results,
    reader=_reader,
)
TOOLBENCH = AgentFormat(tools=_toolbench, calls=_calls, results=_plain_results, reader=_reader)
