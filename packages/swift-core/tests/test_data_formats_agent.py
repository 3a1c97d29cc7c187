"""Rows with tools: schemas, calls and results, as OpenAI, Anthropic, ms-swift and ShareGPT write them."""

import json

import pytest
from swift_core.data.formats import to_sample
from swift_core.errors import DataError

USER, BOT = {"role": "user", "content": "weather?"}, {"role": "assistant", "content": "a"}
CALL = {"id": "t1", "type": "function", "function": {"name": "w", "arguments": {"city": "X"}}}


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": {"name": "w", "parameters": {}}}],
        '[{"type": "function", "function": {"name": "w", "parameters": {}}}]',
        [{"name": "w", "parameters": {}}],
        {"name": "w", "parameters": {}},
        ['{"name": "w", "parameters": {}}'],
        [{"name": "w", "input_schema": {}}],
        [{"type": "function", "name": "w", "parameters": {}}],
    ],
)
def test_schemas(tools):
    sample = to_sample({"messages": [USER, BOT], "tools": tools}, "f:1")
    assert sample.tools == [{"type": "function", "function": {"name": "w", "parameters": {}}}]


def test_parallel_calls_stay_turns_in_a_row():
    calls = [{"role": "tool_call", "content": f'{{"name": "{name}", "arguments": {{}}}}'} for name in "fg"]
    results = [{"role": "tool_response", "content": text} for text in "12"]
    assert to_sample({"messages": [USER, *calls, *results, BOT]}, "f:1").messages == [USER, *calls, *results, BOT]


def test_calls_and_results_may_be_objects():
    turns = [USER, {"role": "tool_call", "content": {"name": "f"}}, {"role": "tool", "content": [{"type": "row", "v": "ü"}]}, BOT]
    messages = to_sample({"messages": turns}, "f:1").messages
    assert [message["content"] for message in messages[1:3]] == ['{"name": "f"}', '[{"type": "row", "v": "ü"}]']


def test_tool_results_of_openai_may_be_parts():
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])},
        {"role": "tool", "tool_call_id": "t1", "content": [{"type": "text", "text": "15"}]},
        BOT,
    ]
    messages = to_sample({"messages": turns}, "f:1").messages
    assert messages[1]["tool_calls"] == [CALL]
    assert messages[2] == {"role": "tool", "tool_call_id": "t1", "content": "15"}


def test_anthropic_blocks():
    turns = [
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "w", "input": {"city": "X"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "15"}, {"type": "image", "image": "m.png"}],
                },
                {"type": "text", "text": "And now?"},
            ],
        },
        BOT,
    ]
    sample = to_sample({"messages": turns, "system": [{"type": "text", "text": "s"}]}, "f:1")
    assert sample.messages == [
        {"role": "system", "content": "s"},
        USER,
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "15<image>", "tool_call_id": "t1"},
        {"role": "user", "content": "And now?"},
        BOT,
    ]
    assert sample.images == ["m.png"]


def test_a_turn_of_results_alone_becomes_no_question():
    turns = [
        USER,
        {"role": "assistant", "content": [{"type": "tool_use", "id": i, "name": "w", "input": {}} for i in "12"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": i, "content": {"t": 1}} for i in "12"]},
        BOT,
    ]
    messages = to_sample({"messages": turns}, "f:1").messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert messages[2] == {"role": "tool", "content": '{"t": 1}', "tool_call_id": "1"}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}], "tool_use part of turn 2 needs a 'name'"),
        ([{"role": "user", "content": [{"type": "tool_result", "content": "1"}]}, BOT], "turn 1 is a tool result, but no tool was called"),
        ([USER, {"role": "assistant", "content": [{"type": "tool_result", "content": "1"}]}], "from assistant and holds a tool_result"),
        ([{"role": "user", "content": "q", "tool_calls": [CALL]}, BOT], "tool_calls of turn 1 must be"),
        ([USER, {"role": "assistant", "content": [{"type": "thinking"}]}], "a thinking part of turn 2 is null, not a text"),
    ],
)
def test_reasons(turns, reason):
    with pytest.raises(DataError, match=f"^f:3: .*{reason}"):
        to_sample({"messages": turns}, "f:3")
