"""Official chat templates: our token ids are those of transformers, and the mask is what the assistant has to write.

The templates are those that the `trl` package carries; without it there is nothing to compare with.
"""

import copy
import re
from collections import Counter
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
import pytest
from swift_core.config.sections import TemplateSection
from swift_core.errors import TemplateError
from swift_core.protocols import Sample
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.templates.media import PartsRenderer
from swift_core.templates.rendering import Renderer
from swift_core.templates.thinking import ThinkingPolicy
from swift_core.testing.tiny import make_tiny_tokenizer


def official() -> dict[str, Path]:
    """Return the official templates, those that TRL changed for training left out."""
    spec = find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else None
    files = sorted(folder.glob("*.jinja")) if folder else []
    return {file.stem: file for file in files if not file.stem.endswith("_training")}


OFFICIAL = official()
pytestmark = pytest.mark.skipif(not OFFICIAL, reason="trl is not installed")
# Their contents are lists of typed parts.
TAKE_PARTS = ("idefics3", "llava_next", "smolvlm")
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add numbers",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "one"}}, "required": ["a"]},
        },
    }
]
LITERAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?[a-z_]{1,24}>|<\|?[a-z_]{1,24}\|?>|\[/?[A-Z_]{2,24}\]")
USER: Any = [{"role": "user", "content": "What is it?"}, {"role": "user", "content": "And then?"}]
ANSWERS = ["Answer alpha.", "Answer omega."]
THOUGHTS = ["thought alpha", "thought omega"]


@cache
def tokenizer_of(name: str) -> Any:
    """Return a tiny tokenizer that knows the special tokens of a template."""
    source = OFFICIAL[name].read_text(encoding="utf-8")
    made: Any = make_tiny_tokenizer()
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    made.add_special_tokens({"additional_special_tokens": sorted(set(LITERAL.findall(source)) - {"<s>", "</s>", "<think>", "</think>"})})
    made.chat_template = source
    return made


def answer(number: int, thought: str) -> dict[str, Any]:
    if thought == "inline":
        return {"role": "assistant", "content": f"<think>\n{THOUGHTS[number]}\n</think>\n\n{ANSWERS[number]}"}
    if thought == "field":
        return {"role": "assistant", "content": ANSWERS[number], "reasoning_content": THOUGHTS[number]}
    return {"role": "assistant", "content": ANSWERS[number]}


def conversation(system: bool, shape: str, thought: str) -> list[Any]:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = {
        "one": [USER[0], answer(0, thought)],
        "two": [USER[0], answer(0, thought), USER[1], answer(1, thought)],
        "call": [USER[0], {"role": "assistant", "content": "", "tool_calls": [call]}],
        "tool": [
            USER[0],
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "add", "content": "Result two"},
            answer(1, thought),
        ],
    }[shape]
    return [{"role": "system", "content": "Be brief."}, *turns] if system else turns


AXES: Any = ((False, True), (False, True), ("one", "two", "call", "tool"), ("none", "inline", "field"), (None, True, False))


def grid(half: int) -> list[Any]:
    """Return every second cell: each value of an axis still meets each value of every other one."""
    places = (place for place in product(*(range(len(axis)) for axis in AXES)) if sum(place) % 2 == half)
    cells = (tuple(axis[at] for axis, at in zip(AXES, place, strict=True)) for place in places)
    # A turn that is a call has no thoughts: one cell says what three would.
    return [cell for cell in cells if cell[2] != "call" or cell[3] == "none"]


def expected(tokenizer, messages, tools, **more):
    """Return what transformers makes of a conversation, or None where the template refuses it."""
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False, **more)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.e2e)])
@pytest.mark.parametrize("name", OFFICIAL)
def test_ids_and_mask_of_official_templates(name, half, record_property):
    tokenizer = tokenizer_of(name)
    counts: Counter[str] = Counter()
    for system, with_tools, shape, thought, enable in grid(half):
        tools = TOOLS if with_tools else None
        messages = conversation(system, shape, thought)
        try:
            template = made(name, enable)
        except TemplateError:
            counts["no switch"] += 1
            continue
        facts = template._facts
        variables = facts.variables(template.thinking)
        theirs = template._call_form.shaped(as_they_take_it(messages, facts.field, thought))
        if name in TAKE_PARTS:
            theirs = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in theirs]
        ids = expected(tokenizer, theirs, tools, **variables)
        try:
            marked = template.mark(Sample(messages, tools=tools))
            encoded = template.tokenize([marked])[0]
        except TemplateError as error:
            if ids is None or ("cannot render" in str(error) and shape in ("call", "tool")):
                counts["refused"] += 1
                continue
            raise
        where = (name, system, with_tools, shape, thought, enable)
        assert ids is not None, where
        assert encoded.input_ids[: len(ids)] == ids, where
        # Where a template ends the last answer with nothing, its end is added.
        assert len(encoded.input_ids) <= len(ids) + 1, where
        prompt = expected(tokenizer, theirs[:-1], tools, add_generation_prompt=True, **variables)
        assert prompt is None or template.encode_prompt(messages[:-1], tools) == prompt, where
        check_mask(template, marked, messages, tools, where)
        counts["passed"] += 1
    record_property("cells", dict(counts))
    print(name, dict(counts))
    assert counts["passed"] >= 6


@cache
def made(name, enable):
    renderer = partial(PartsRenderer, placeholders={}) if name in TAKE_PARTS else Renderer
    return ChatTemplate(tokenizer_of(name), thinking=ThinkingPolicy(enable=enable, ignore_empty=False), make_renderer=renderer)


def as_they_take_it(messages, field, thought):
    if thought == "field" and field != "reasoning_content":
        return [inlined(message, field) for message in messages]
    if thought == "inline" and field == "thinking":
        return [inlined(message, field) for message in messages]
    return messages


def inlined(message, field):
    number = next((number for number, text in enumerate(ANSWERS) if text in message["content"]), None)
    if message["role"] != "assistant" or number is None:
        return message
    if field == "thinking":
        return {"role": "assistant", "content": ANSWERS[number], "thinking": THOUGHTS[number]}
    return answer(number, "inline")


def check_mask(template, marked, messages, tools, where):
    """Assert that the answers and the tokens that end them are trained, and nothing else."""
    text = marked.text
    trained = [text[start:stop] for start, stop in marked.spans]
    joined = "".join(trained)
    for foreign in ("What is it?", "And then?", "Be brief.", "Result two", "Add numbers"):
        assert foreign not in joined, where
    visible = [number for number, words in enumerate(ANSWERS) if any(words in str(message["content"]) for message in messages)]
    last = visible[-1] if visible else None
    if last is not None and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        assert ANSWERS[last] in trained[-1], where
    if messages[-1].get("tool_calls"):
        assert "add" in trained[-1], where
    start, stop = marked.spans[-1]
    # What the model is given, then what it writes, then nothing but white space (or the header of the turn that must follow).
    prompt = template.render(messages[:-1], tools, add_generation_prompt=True)
    if text.startswith(prompt):
        assert start == len(prompt), (where, text[start : len(prompt)] or text[len(prompt) : start])
    assert text[stop:].strip() in ("", "</s>"), (where, text[stop:])
    end = trained[-1].rstrip()
    assert any(end.endswith(word) for word in template.stop_words), (where, end[-30:])


# Named format -> official template with the same text, with tools and without them.
SAME = {
    "qwen3": "qwen3",
    "qwen2_5": "qwen2_5",
    "qwen3_nothinking": "qwen3_instruct_2507",
    "qwen3_vl": "qwen3_vl",
    "qwen3_5": "qwen3_5_think",
    "glm4_5": "glm4moe",
    "gemma": "gemma",
    "gemma3_text": "gemma3",
    "c4ai": "cohere",
    "llama3": "llama3",
}


@pytest.mark.parametrize(("name", "theirs"), SAME.items())
def test_named_formats_are_the_official_ones(name, theirs):
    ours = build_template(copy.deepcopy(tokenizer_of(theirs)), TemplateSection(template=name, ignore_empty_think=False))
    reference = made(theirs, None)
    same = 0
    for system, with_tools, shape, thought in product((False, True), (False, True), ("one", "two", "call", "tool"), ("none", "inline")):
        sample = Sample(conversation(system, shape, thought), tools=TOOLS if with_tools else None)
        if with_tools and not reference._renderer.mentions("tools", TOOLS):
            continue
        try:
            expected_text = reference.mark(sample)
        except TemplateError:
            continue
        got = ours.mark(sample)
        assert got.text.rstrip() == expected_text.text.rstrip(), (system, with_tools, shape, thought)
        same += 1
    assert same >= 4


MARKED = [name for name, file in OFFICIAL.items() if file.with_name(f"{name}_training.jinja").is_file() and name not in TAKE_PARTS]


@pytest.mark.parametrize("name", MARKED)
def test_the_mask_is_what_the_marks_of_trl_say(name):
    """TRL marks the official templates by hand; what it marks beyond ours is given by the prompt, or comes after the end."""
    tokenizer, template = tokenizer_of(name), made(name, None)
    marks = OFFICIAL[name].with_name(f"{name}_training.jinja").read_text(encoding="utf-8")
    compared = 0
    for system, thought in product((False, True), ("none", "inline")):
        messages = conversation(system, "one", thought)
        theirs = as_they_take_it(messages, template._facts.field, thought)
        given = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        try:
            output = tokenizer.apply_chat_template(theirs, chat_template=marks, **given)
        except jinja2.TemplateError:
            continue
        encoded = template.encode(Sample(messages))
        ids = output["input_ids"]
        if encoded.input_ids[: len(ids)] != ids:  # some of TRL's keep thoughts that the official ones drop
            continue
        compared += 1
        ours = {at for at, label in enumerate(encoded.labels[: len(ids)]) if label != -100}
        marked = {at for at, mark in enumerate(output["assistant_masks"]) if mark}
        assert ours <= marked, tokenizer.decode([ids[at] for at in sorted(ours - marked)])
        prompt = template.encode_prompt(messages[:-1])
        given_ids = next((at for at, (one, other) in enumerate(zip(ids, prompt, strict=False)) if one != other), min(len(ids), len(prompt)))
        rest = tokenizer.decode([ids[at] for at in sorted(marked - ours) if at >= given_ids])
        # The generation prompt may open a thinking block, which answers without thoughts close at once.
        assert rest.replace("</s>", "").strip() in ("", "</think>", "<think></think>"), repr(rest)
    assert compared
