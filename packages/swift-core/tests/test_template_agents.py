"""Agent formats: tools, calls and results as text, and calls read back however the text is cut."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.config.sections import TemplateSection
from swift_core.errors import RegistryError, TemplateError
from swift_core.protocols import Sample
from swift_core.registry import AGENT_TEMPLATES, TEMPLATES
from swift_core.templates.agents.base import Result, load_agent
from swift_core.templates.agents.incremental import Call
from swift_core.templates.chat import build_template
from swift_core.testing.tiny import make_tiny_tokenizer

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Name"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"name": "no_arguments", "description": "Nothing", "parameters": {"type": "object", "properties": {}}},
]
CALLS = [Call("get_weather", {"city": 'Köln "am Rhein"', "days": 2}), Call("get_weather", {"city": "東京\nEast", "days": 3})]
SINGLE = ("react_en", "react_zh", "toolbench")
NAMES = AGENT_TEMPLATES.names()
# What a model of the family may write besides what we write ourselves: text -> calls.
WRITTEN: dict[str, list[tuple[str, str, list[tuple[str, Any]]]]] = {
    "hermes": [
        ('Sure.\n<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>', "Sure.", [("f", {"a": 1})]),
        ("<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>", []),
        ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", {})]),
        ("a < b and <tool> c", "a < b and <tool> c", []),
    ],
    "react_en": [
        ('Thought: look\nAction: f\nAction Input: {"a": 1}\nObservation:', "Thought: look", [("f", {"a": 1})]),
        ("Action: f\nAction Input: plain words", "", [("f", "plain words")]),
        ("Final Answer: 3", "Final Answer: 3", []),
    ],
    "llama3": [
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>', "", [("f", {"a": 1})]),
        ('{"no": "call"}', '{"no": "call"}', []),
        ("  plain", "  plain", []),
    ],
    "llama4": [
        ("[f(a=1, b='x'), g()]", "", [("f", {"a": 1, "b": "x"}), ("g", {})]),
        ("[1, 2]", "[1, 2]", []),
        ("[f(a=open('x'))]", "[f(a=open('x'))]", []),
    ],
    "glm4": [('f\n{"a": 1}', "", [("f", {"a": 1})]), ("word", "word", []), ("Two words\n{", "Two words\n{", [])],
    "glm4_5": [("Hm\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", "Hm", [("f", {"a": 1})])],
    "deepseek_v3_1": [
        (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "",
            [("f", {"a": 1})],
        )
    ],
    "mistral": [('[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "x"}]', "", [("f", {"a": 1})])],
    "gpt_oss": [
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
            '{"a": 1}<|call|>',
            "<think>\nHm.\n</think>\n\n",
            [("f", {"a": 1})],
        ),
        ("<|channel|>final<|message|>Hello<|return|>", "Hello", []),
        ("Hello", "Hello", []),
    ],
    "kimi_k2": [
        (
            "Wait. <|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
            "<|tool_calls_section_end|>",
            "Wait.",
            [("f", {})],
        )
    ],
    "minimax_m2": [
        (
            '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>',
            "",
            [("f", {"a": 1}), ("g", {})],
        )
    ],
}


def fed(agent, text, cuts):
    parser = agent.parser(TOOLS)
    borders = [0, *sorted(cuts), len(text)]
    deltas = [delta for start, stop in pairwise(borders) for delta in parser.feed(text[start:stop])]
    deltas += parser.finish()
    return "".join(delta.content for delta in deltas), [delta.call for delta in deltas if delta.call]


def pairs(calls):
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [1, 2])
def test_calls_are_read_as_they_are_written(name, number):
    agent = load_agent(name)
    content, calls = agent.parse(agent.format_calls(CALLS[:number]), TOOLS)
    assert pairs(calls) == pairs(CALLS[:number])
    assert content.strip() == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_call_without_arguments(name):
    agent = load_agent(name)
    assert pairs(agent.parse(agent.format_calls([Call("no_arguments", {})]), TOOLS)[1]) == [("no_arguments", {})]


@pytest.mark.parametrize(("name", "text", "content", "calls"), [(name, *case) for name, cases in WRITTEN.items() for case in cases])
def test_what_models_write(name, text, content, calls):
    found, read = load_agent(name).parse(text)
    assert (found, pairs(read)) == (content, calls)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_cut_of_a_text_gives_the_same(name, data):
    agent = load_agent(name)
    pieces = [
        agent.format_calls(CALLS[:1]),
        agent.format_calls(CALLS),
        *(text for text, _, _ in WRITTEN.get(name, [])),
        "I think ",
        "\n\n",
        "<think>\nhm\n</think>",
        "Action",
        "<",
        "{",
        "[",
        "a b\n",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=4)))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    whole = fed(agent, text, [])
    assert fed(agent, text, cuts) == whole
    assert fed(agent, text, range(len(text) + 1)) == whole
    assert agent.parse(text, TOOLS) == whole


@given(text=st.text(max_size=60))
def test_a_text_without_calls_comes_out_as_it_went_in(text):
    for name in ("hermes", "qwen3_coder", "kimi_k2", "mistral"):
        assert load_agent(name).parse(text) == (text, [])


def test_content_is_passed_on_as_soon_as_it_is_known_to_be_content():
    parser = load_agent("hermes").parser()
    assert [delta.content for delta in parser.feed("Hello <to")] == ["Hello"]
    assert parser.feed("ol_cal") == []
    assert [delta.content for delta in parser.feed("m>")] == [" <tool_calm>"]


@pytest.mark.parametrize("name", NAMES)
def test_tools_and_results_are_told(name):
    agent = load_agent(name)
    text = agent.format_tools(TOOLS, "Be brief.")
    assert "get_weather" in text
    assert "Weather of a city" in text
    assert "Be brief." in text
    assert "sunny" in agent.format_results([Result("sunny", "get_weather")])


ROWS: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "I look."},
    {"role": "tool_call", "content": json.dumps({"name": "get_weather", "arguments": {"city": "Rome"}})},
    {"role": "tool_call", "content": json.dumps({"name": "get_weather", "arguments": {"city": "Oslo"}})},
    {"role": "tool_response", "content": "sunny"},
    {"role": "tool_response", "content": "rain"},
    {"role": "assistant", "content": "Sunny and rain."},
]


@pytest.mark.parametrize("name", NAMES)
def test_rows_with_tools_train_under_a_template_that_has_no_place_for_them(name):
    template = build_template(make_tiny_tokenizer(), TemplateSection(agent_template=name))
    marked = template.mark(Sample(ROWS, tools=TOOLS))
    trained = [marked.text[start:stop] for start, stop in marked.spans]
    assert len(trained) == 2
    assert trained[0].startswith("I look.")
    assert trained[0].endswith("<|im_end|>")
    assert pairs(load_agent(name).parse(trained[0].removesuffix("<|im_end|>").removeprefix("I look."), TOOLS)[1]) == [
        ("get_weather", {"city": "Rome"}),
        ("get_weather", {"city": "Oslo"}),
    ]
    assert trained[1] == "Sunny and rain.<|im_end|>"
    assert marked.notes == ()
    assert "sunny" in marked.text
    assert marked.text.startswith("<|im_start|>system\n")


AGENTS_OF_FORMATS = [(spec.name, spec.agent) for spec in TEMPLATES if spec.agent]


@pytest.mark.parametrize(("template", "agent"), AGENTS_OF_FORMATS)
def test_named_formats_write_tools_as_their_models_do(template, agent):
    made = build_template(make_tiny_tokenizer(), TemplateSection(template=template))
    marked = made.mark(Sample(ROWS, tools=TOOLS, chat_template_kwargs={}))
    trained = [marked.text[start:stop] for start, stop in marked.spans]
    assert len(trained) == 2
    assert "Rome" in trained[0]
    assert "sunny" not in "".join(trained)
    assert "Sunny and rain." in trained[1]
    prompt = made.render(ROWS[:-1], TOOLS, add_generation_prompt=True)
    assert marked.text.startswith(prompt.split("sunny")[0])


def test_named_formats_use_the_frames_of_their_families():
    def rendered(name):
        return build_template(make_tiny_tokenizer(), TemplateSection(template=name)).render(ROWS, TOOLS)

    assert '<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"sunny"\n"rain"<|eot_id|><|start_header_id|>assistant' in rendered(
        "llama3"
    )
    assert "<|observation|>\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response><|assistant|>\n" in rendered(
        "glm4_5"
    )
    assert "<｜tool▁output▁end｜>Sunny and rain." in rendered("deepseek_v3_1").replace("</think>", "")
    assert "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>" in rendered(
        "qwen3"
    )
    harmony = rendered("gpt_oss")
    assert '<|call|><|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"sunny"<|end|>' in harmony
    assert harmony.endswith("<|end|><|start|>assistant<|channel|>final<|message|>Sunny and rain.<|return|>")


def test_unknown_names_and_formats_without_an_agent():
    with pytest.raises(RegistryError, match="hermes"):
        build_template(make_tiny_tokenizer(), TemplateSection(agent_template="hermess"))
    with pytest.raises(TemplateError, match="cannot render") as caught:
        build_template(make_tiny_tokenizer(), TemplateSection(template="zephyr")).mark(Sample(ROWS, tools=TOOLS))
    assert "--agent_template hermes" in str(caught.value)
    with pytest.raises(TemplateError, match="--agent_template has no effect"):
        build_template(make_tiny_tokenizer(), TemplateSection(agent_template="hermes", use_chat_template=False))
