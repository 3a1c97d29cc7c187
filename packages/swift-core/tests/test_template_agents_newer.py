"""Agent formats of newer families: as their models write them, nested values included."""

from pathlib import Path
from typing import Any

import pytest
from swift_core.config.sections import TemplateSection
from swift_core.protocols import Sample
from swift_core.templates.agents.base import load_agent
from swift_core.templates.agents.incremental import Call
from swift_core.templates.chat import build_template
from swift_core.testing.tiny import make_tiny_tokenizer

NESTED: Any = {
    "type": "function",
    "function": {
        "name": "plan",
        "description": "Plan a trip",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name", "enum": ["Rome", "Oslo"]},
                "days": {"type": "integer", "nullable": True},
                "stops": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"zip": {"type": "string"}, "Lat": {"type": "number", "description": "north"}},
                        "required": ["zip"],
                    },
                },
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "free": {"type": "object", "description": "any"},
            },
            "required": ["city"],
        },
    },
}
ARGUMENTS: Any = {
    "city": 'Rome "by, {night}"',
    "days": 2,
    "stops": [{"zip": "00100", "Lat": 41.9}, {"zip": "2", "Lat": 5}],
    "where": {"lat": 1.5},
}
NAMES = ("deepseek_v4", "gemma4", "hunyuan_hermes", "hy_v3", "hy_v3_preview", "youtu", "minicpm5", "minimax_m3", "kimi_k3")


@pytest.mark.parametrize("name", NAMES)
def test_nested_arguments_come_back_with_their_types(name):
    agent = load_agent(name)
    content, calls = agent.parse("Well.\n" + agent.format_calls([Call("plan", ARGUMENTS)]), [NESTED])
    assert content == "Well."
    assert [(call.name, call.arguments) for call in calls] == [("plan", ARGUMENTS)]


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        (
            "deepseek_v4",
            'Hm.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="false">[1]</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="b" string="true">1</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n'
            "</｜DSML｜tool_calls>",
            "Hm.",
            [("f", {"a": [1], "b": "1"}), ("g", {})],
        ),
        (
            "gemma4",
            '<|tool_call>call:f{a:<|"|>x, {y}<|"|>,b:[1,-2.5,true,null],c:{}}<tool_call|>',
            "",
            [("f", {"a": "x, {y}", "b": [1, -2.5, True, None], "c": {}})],
        ),
        ("gemma4", "<|tool_call>call:f{a:<tool_call|>", "<|tool_call>call:f{a:<tool_call|>", []),
        ("hunyuan_hermes", "<tool_calls><tool_call>f\n```json\n{}\n```</tool_call></tool_calls>", "", [("f", {})]),
        (
            "hy_v3",
            "<tool_calls:opensource>\n<tool_call:opensource>f<tool_sep:opensource>\n<arg_key:opensource>a</arg_key:opensource>\n"
            "<arg_value:opensource>1</arg_value:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>",
            "",
            [("f", {"a": 1})],
        ),
        ("youtu", '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "", [("f", {"a": 1})]),
        (
            "minicpm5",
            '<function name="f"><param name="a"><![CDATA[1 < 2\n]]></param><param name="b">[1]</param></function>',
            "",
            [("f", {"a": "1 < 2\n", "b": [1]})],
        ),
        ("minicpm5", "<function without a name>", "<function without a name>", []),
        (
            "minimax_m3",
            ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="f">]<]minimax[>[<a>]<]minimax[>[<item>1]<]minimax[>[</item>'
            "]<]minimax[>[</a>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
            "",
            [("f", {"a": [1]})],
        ),
        (
            "kimi_k3",
            'Yes.<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|>'
            '<|open|>argument key="a&quot;" type="null"<|sep|>null<|close|>argument<|sep|><|close|>call<|sep|>'
            '<|open|>call tool="g"<|sep|><|open|>json type="object"<|sep|>{"b": 2}<|close|>json<|sep|><|close|>call<|sep|>'
            "<|close|>tools<|sep|>",
            "Yes.",
            [("f", {'a"': None}), ("g", {"b": 2})],
        ),
    ],
)
def test_what_models_write(name, text, content, calls):
    found, read = load_agent(name).parse(text)
    assert (found, [(call.name, call.arguments) for call in read]) == (content, calls)


ROWS: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "plan", "arguments": ARGUMENTS}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Bye"},
]


def test_gemma4_writes_what_the_official_template_writes():
    trl = pytest.importorskip("trl")
    source = Path(trl.__file__).parent / "chat_templates" / "gemma4_v5.jinja"
    if not source.is_file():
        pytest.skip("this version of trl has another collection")
    official: Any = make_tiny_tokenizer().apply_chat_template(ROWS, tools=[NESTED], chat_template=source.read_text("utf-8"), tokenize=False)
    ours = build_template(make_tiny_tokenizer(), TemplateSection(template="gemma4")).render(ROWS, [NESTED])
    assert ours == official


def test_kimi_k3_declares_tools_in_a_message_of_their_own_and_closes_the_response_before_calls():
    made = build_template(make_tiny_tokenizer(), TemplateSection(template="kimi_k3"))
    marked = made.mark(Sample(ROWS, tools=[NESTED]))
    assert marked.text.startswith('<|open|>message role="system" type="tool-declare"<|sep|># Tools\nHere are')
    declared, rest = marked.text.split("<|end_of_msg|>", 1)
    assert declared.endswith('"type":"function"}]\n```<|close|>message<|sep|>')
    assert rest.startswith('<|open|>message role="system"<|sep|>Be brief.<|close|>message<|sep|><|end_of_msg|>')
    called = marked.text[marked.spans[0][0] : marked.spans[0][1]]
    assert called.startswith("<|open|>think<|sep|><|close|>think<|sep|><|open|>response<|sep|><|close|>response<|sep|><|open|>tools<|sep|>")
    assert called.endswith("<|close|>tools<|sep|><|close|>message<|sep|><|end_of_msg|>")
    assert '<|open|>message role="tool" tool="plan" index="1"<|sep|>sunny<|close|>message<|sep|><|end_of_msg|>' in rest
    assert marked.text.endswith("Bye<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>")


@pytest.mark.parametrize(
    ("template", "frame"),
    [
        ("deepseek_v4", "<｜User｜><tool_result>sunny</tool_result><｜Assistant｜>"),
        ("hunyuan", "<｜hy_User｜><tool_responses><tool_response>sunny</tool_response></tool_responses><｜hy_Assistant｜>"),
        (
            "hy_v3",
            "<｜hy_eos:opensource｜><tool_responses:opensource>\n<tool_response:opensource>\nsunny\n</tool_response:opensource>\n"
            "</tool_responses:opensource><｜hy_Assistant:opensource｜>",
        ),
        ("youtu_llm", "<|User|><tool_response>sunny</tool_response><|Assistant|>"),
        ("minicpm5", "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"),
        ("minimax_m3_vl", "]~b]tool\n<response>sunny</response>[e~[\n]~b]ai\n"),
    ],
)
def test_results_stand_in_the_frame_of_the_family(template, frame):
    assert frame in build_template(make_tiny_tokenizer(), TemplateSection(template=template)).render(ROWS, [NESTED])
