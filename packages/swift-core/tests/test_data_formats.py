import itertools
import json
import math

import pytest
from swift_core.data.formats import rename, to_sample
from swift_core.data.values import Refused
from swift_core.errors import DataError

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
HISTORY = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [USER, BOT]}, [USER, BOT]),
        ({"messages": json.dumps([USER, BOT])}, [USER, BOT]),
        ({"messages": [USER, BOT], "system": "s"}, [SYSTEM, USER, BOT]),
        ({"messages": [SYSTEM, USER, BOT], "system": "s"}, [SYSTEM, USER, BOT]),
        ({"messages": [{"role": "system", "content": ""}, USER, BOT], "system": "s"}, [SYSTEM, USER, BOT]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER, BOT]),
        ({"Conversations": [{"from": "Human", "value": "q"}, {"from": "bot", "value": "a"}]}, [USER, BOT]),
        ({"conversation": [{"human": "q0", "assistant": "a0"}, {"human": "q", "assistant": "a"}]}, [*HISTORY, USER, BOT]),
        ({"conversation": [{"system": "s", "human": "q", "assistant": "a"}]}, [SYSTEM, USER, BOT]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, BOT]}, [USER, BOT]),
        ({"messages": [USER, {**BOT, "loss": False}]}, [USER, {**BOT, "loss": False}]),
        ({"messages": [USER, {**BOT, "weight": 1}]}, [USER, {**BOT, "loss": True}]),
        ({"messages": [USER, {**BOT, "reasoning_content": "r", "name": None}]}, [USER, {**BOT, "reasoning_content": "r"}]),
        ({"instruction": "q", "input": "", "output": "a"}, [USER, BOT]),
        ({"instruction": "q", "input": "more", "output": "a"}, [{"role": "user", "content": "q\nmore"}, BOT]),
        ({"instruction": "q", "output": "a", "history": [["q0", "a0"]], "system": "s"}, [SYSTEM, *HISTORY, USER, BOT]),
        ({"query": "q", "response": "a", "history": json.dumps([["q0", "a0"]])}, [*HISTORY, USER, BOT]),
        ({"prompt": "q", "completion": "a"}, [USER, BOT]),
        ({"prompt": [SYSTEM, USER], "completion": [BOT]}, [SYSTEM, USER, BOT]),
        ({"prompt": [USER], "response": "a"}, [USER, BOT]),
        ({"messages": [USER, {**BOT, "loss_scale": 2}]}, [USER, {**BOT, "loss_scale": 2.0}]),
        ({"question": "q", "answer": "a", "system_prompt": "s"}, [SYSTEM, USER, BOT]),
        ({"problem": "q", "solution": "a"}, [USER, BOT]),
        ({"query": "q", "response": 42}, [USER, {"role": "assistant", "content": "42"}]),
        ({"text": "a"}, [BOT]),
        ({"text": "a", "query": None, "messages": float("nan")}, [BOT]),
        ({"messages": [BOT]}, [BOT]),
    ],
)
def test_rows_become_messages(row, messages):
    assert to_sample(row, "f:1").messages == messages


def test_the_order_of_columns_does_not_matter():
    row = {"instruction": "q", "input": "more", "output": "a", "system": "s", "id": 7, "history": []}
    samples = [to_sample(dict(order), "f:1") for order in itertools.permutations(row.items())]
    assert all(sample == samples[0] for sample in samples)
    assert samples[0].extra == {"id": 7}


def test_glaive_rows_get_tools_and_tool_turns():
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "{}"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": '[{"name": "f", "description": "d", "parameters": {}}]',
    }
    sample = to_sample(row, "f:1")
    assert [message["role"] for message in sample.messages] == ["user", "tool_call", "tool_response", "assistant"]
    assert sample.tools == [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]


def test_openai_tool_calls_pass_through():
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "1", "tool_call_id": "1"}, BOT]
    messages = to_sample({"messages": turns, "tools": []}, "f:1").messages
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": calls}
    assert messages[2] == turns[2]


def test_columns_without_a_part_are_kept():
    sample = to_sample({"messages": [USER, BOT], "label": True, "Source": "x", "empty": None}, "f:9")
    assert (sample.extra, sample.origin) == ({"label": True, "Source": "x"}, "f:9")


def test_the_solution_is_an_answer_and_stays_for_rewards():
    assert to_sample({"problem": "q", "solution": "a", "answer": "x"}, "f:1").extra == {"solution": "a"}
    assert to_sample({"problem": "q", "solution": "a"}, "f:1").extra == {"solution": "a"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no columns"),
        ({"foo": 1, "bar": None}, r"no format fits the columns 'foo', 'bar' \(empty\) .*accepted: messages"),
        ({"query": "q"}, "a question .'query'. but no answer"),
        ({"instruction": "q", "output": ""}, r"no answer: columns 'instruction', 'output' \(empty\)"),
        ({"query": "", "response": "a"}, "question is empty"),
        ({"query": None, "response": "a"}, "question is empty"),
        ({"query": " ", "response": "a"}, "question in turn 1 is empty"),
        ({"query": "q", "response": " "}, "answer in turn 2 is empty"),
        ({"query": "q", "response": {"a": 1}}, "column 'response' is an object, not a text"),
        ({"query": "q", "response": "\ud83d"}, r"half of a character \(\\ud83d\)"),
        ({"query": "q", "response": "a", "history": [["q"]]}, "entry 1 of 'history' is not a pair"),
        ({"prompt": [USER, BOT], "response": "a"}, "turns 2 and 3 are both from assistant"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference pair"),
        ({"conversations": [USER], "chosen": BOT, "rejected": BOT}, "preference pair"),
        ({"messages": []}, "conversation is empty"),
        ({"messages": [SYSTEM]}, "conversation is empty"),
        ({"messages": "hello"}, "column 'messages' is not valid JSON"),
        ({"messages": {"role": "user"}}, "column 'messages' is an object, not a list"),
        ({"messages": ["hi"]}, "turn 1 is a text, not an object"),
        ({"messages": [{"role": "user", "text": "q"}]}, "turn 1 has 'role', 'text'"),
        ({"messages": [{"role": "usr", "content": "q"}, BOT]}, "turn 1 has the role 'usr' .*allowed roles: system, .*user"),
        ({"messages": [{"role": None, "content": "q"}, BOT]}, "turn 1 has the role None"),
        ({"messages": [USER]}, "last turn is from user"),
        ({"messages": [USER, USER, BOT]}, "turns 1 and 2 are both from user"),
        ({"messages": [USER, BOT, BOT]}, "turns 2 and 3 are both from assistant"),
        ({"messages": [USER, SYSTEM, BOT]}, "turn 2 is from system"),
        ({"messages": [USER, {"role": "tool", "content": "1"}, BOT]}, "no tool was called"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, r"content of turn 2 \(assistant\) is a number"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"content of turn 2 \(assistant\) is null"),
        ({"messages": [USER, {"role": "assistant", "content": ["a"]}]}, "is a list, not a text"),
        ({"messages": [SYSTEM, USER, BOT], "system": "other"}, "two different system texts"),
        ({"messages": [USER, {**BOT, "loss": "no"}]}, "'loss' of turn 2 is 'no'"),
        ({"messages": [USER, {**BOT, "loss_scale": -0.5}]}, "'loss_scale' of turn 2 is -0.5"),
        ({"messages": [USER, {**BOT, "loss_scale": True}]}, "'loss_scale' of turn 2 is True"),
        ({"messages": [USER, BOT], "tools": "[{"}, "column 'tools' is not valid JSON"),
        ({"messages": [USER, BOT], "tools": [1]}, "tool 1 is a number"),
        ({"messages": [{"role": "user", "content": "<image>what?"}, BOT]}, "turn 1 has the tag <image>, and the row has no images"),
        ({"messages": [{"role": "user", "content": "<video> what?"}, BOT]}, "turn 1 has the tag <video>, and the row has no videos"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, BOT]}, "'image_url' in turn 1 has no source"),
    ],
)
def test_reasons(row, reason):
    with pytest.raises(DataError, match=f"(?s)^f:3: .*{reason}") as raised:
        to_sample(row, "f:3")
    assert raised.value.location == "f:3"
    assert raised.value.fix


@pytest.mark.parametrize("text", ["Explain the <video> element.", "What does <audio> do in HTML?"])
def test_html_elements_are_not_media(text):
    assert to_sample({"query": text, "response": "a"}, "f:1").messages[0]["content"] == text


def test_prompts_need_no_answer():
    assert to_sample({"messages": [SYSTEM, USER]}, "f:1", need_answer=False).messages == [SYSTEM, USER]
    assert to_sample({"query": "q"}, "f:1", need_answer=False).messages == [USER]
    with pytest.raises(DataError, match="empty"):
        to_sample({"messages": [SYSTEM]}, "f:1", need_answer=False)


def test_rename():
    assert rename({"a": "q", "b": 1}, {"a": "query", "zzz": "response"}) == {"b": 1, "query": "q"}
    assert rename({"a": 1, "b": 2}, {"a": "b", "b": "a"}) == {"a": 2, "b": 1}
    assert rename({"a": 1, "query": math.nan}, {"a": "query"}) == {"query": 1}
    with pytest.raises(Refused, match="'a' cannot be renamed to 'query'"):
        rename({"a": 1, "query": "q"}, {"a": "query"})
